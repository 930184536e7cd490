"""Versions, history and watches of the store, in memory."""

from __future__ import annotations

from typing import Any

import pytest

from agenthive_operator.local.apiserver import store as module
from agenthive_operator.local.apiserver.errors import ApiError
from agenthive_operator.local.apiserver.store import Store


def obj(name: str, **fields: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, **fields}


def test_versions_rise_over_all_resources() -> None:
    store = Store(None)
    empty = store.version
    first = store.put("a", ("", "x"), obj("x"))
    second = store.put("b", ("n", "y"), obj("y"))
    gone = store.remove("a", ("", "x"))
    assert [first.version, second.version, gone.version] == [empty + 1, empty + 2, empty + 3]
    assert first.obj["metadata"]["resourceVersion"] == str(first.version)
    assert gone.obj["metadata"]["resourceVersion"] == str(gone.version)
    assert store.get("a", ("", "x")) is None


def test_history_since_a_version() -> None:
    store = Store(None)
    start = store.version
    entry = store.put("a", ("", "x"), obj("x"))
    store.put("a", ("", "x"), obj("x", n=2))
    store.remove("a", ("", "x"))
    table = store.resource("a")
    assert [change.type for change in table.since(start)] == ["ADDED", "MODIFIED", "DELETED"]
    assert [change.type for change in table.since(entry.version)] == ["MODIFIED", "DELETED"]
    assert table.since(store.version) == []
    previous = table.since(entry.version)[0].previous
    assert previous is not None
    assert previous.version == entry.version


def test_history_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_LOG", 10)
    store = Store(None)
    start = store.version
    for number in range(25):
        store.put("a", ("", "x"), obj("x", n=number))
    table = store.resource("a")
    assert len(table.history) <= 20
    with pytest.raises(ApiError) as caught:
        table.since(start)
    assert (caught.value.code, caught.value.reason) == (410, "Expired")
    oldest = table.since(table.oldest)
    assert oldest[0].version == table.oldest + 1


def test_lists_are_sorted_and_by_namespace() -> None:
    store = Store(None)
    for key in (("n", "b"), ("m", "c"), ("n", "a")):
        store.put("a", key, obj(key[1]))
    names = [entry.obj["metadata"]["name"] for entry in store.resource("a").listed(None)]
    assert names == ["c", "a", "b"]
    assert len(store.resource("a").listed("n")) == 2


async def test_watchers_wake() -> None:
    store = Store(None)
    waiting = store.resource("a").changed
    store.put("b", ("", "x"), obj("x"))
    assert not waiting.is_set()
    store.put("a", ("", "x"), obj("x"))
    assert waiting.is_set()
    assert not store.resource("a").changed.is_set()


def test_a_dropped_resource_ends_its_watches() -> None:
    store = Store(None)
    store.put("a", ("", "x"), obj("x"))
    table = store.resource("a")
    store.drop("a")
    with pytest.raises(ApiError):
        table.since(store.version)
    assert store.get("a", ("", "x")) is None
