"""The cache of what watches told: versions, indices and the comparison with a LIST."""

from __future__ import annotations

from typing import Any

import pytest

from agenthive_operator.reconcile.cache import Change, Key, ObjectCache, controller_of, keys_of, slim


def obj(kind: str = "Agent", name: str = "a", version: int = 1, **fields: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "ns", "uid": f"uid-{kind}-{name}", "resourceVersion": str(version)}
    metadata |= fields.pop("metadata", {})
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **fields}


def owned(by: str, kind: str = "Deployment", name: str = "a", version: int = 1) -> dict[str, Any]:
    owner = {"kind": "Agent", "name": "x", "uid": by, "controller": True}
    return obj(kind, name, version, metadata={"ownerReferences": [owner]})


def test_older_and_equal_versions_are_no_news() -> None:
    cache = ObjectCache()
    assert cache.put(obj(version=5)) is Change.ADDED
    assert cache.put(obj(version=5)) is Change.NONE
    assert cache.put(obj(version=4)) is Change.NONE
    assert cache.put(obj(version=6)) is Change.UPDATED


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("generation", 2, Change.UPDATED),
        ("labels", {"a": "b"}, Change.UPDATED),
        ("annotations", {"agenthive.dev/rotate": "1"}, Change.UPDATED),
        ("deletionTimestamp", "2026-01-01T00:00:00Z", Change.UPDATED),
        ("finalizers", ["x"], Change.UPDATED),
        ("managedFields", [{"manager": "m"}], Change.STATUS),
    ],
)
def test_what_counts_as_more_than_a_status_change(field: str, value: Any, expected: Change) -> None:
    cache = ObjectCache()
    cache.put(obj(version=1, metadata={"generation": 1}))
    assert cache.put(obj(version=2, metadata={"generation": 1, field: value}, status={"x": 1})) is expected


def test_a_successor_of_the_same_name_replaces_and_a_late_word_about_the_former_does_not() -> None:
    cache = ObjectCache()
    cache.put(owned("one", version=1))
    successor = obj("Deployment", version=9, metadata={"uid": "second"})
    assert cache.put(successor) is Change.ADDED
    assert cache.owned("one") == []
    assert cache.remove(owned("one", version=8)) is Change.NONE
    assert cache.put(owned("one", version=7)) is Change.NONE
    assert cache.get("Deployment", "ns", "a") == successor


def test_indices_follow_changes() -> None:
    cache = ObjectCache()
    cache.put(obj("Agent", "a", spec={"hiveRef": {"name": "h1"}}))
    cache.put(obj("Agent", "b", spec={"hiveRef": {"name": "h1"}}))
    cache.put(obj("Agent", "b", 2, spec={"hiveRef": {"name": "h2"}}))
    assert [agent["metadata"]["name"] for agent in cache.agents_of("ns", "h1")] == ["a"]
    assert [agent["metadata"]["name"] for agent in cache.agents_of("ns", "h2")] == ["b"]
    assert cache.agents_of("other", "h1") == []
    labels = {"agenthive.dev/hive": "h1", "agenthive.dev/agent": "a"}
    cache.put(obj("Pod", "p", metadata={"labels": labels}))
    cache.put(obj("Pod", "q", metadata={"labels": {"agenthive.dev/hive": "h1"}}))
    assert [pod["metadata"]["name"] for pod in cache.pods_of("ns", hive="h1", agent="a")] == ["p"]
    assert [pod["metadata"]["name"] for pod in cache.pods_of("ns", hive="h1")] == ["q"]
    cache.remove(obj("Pod", "p"))
    assert cache.pods_of("ns", hive="h1", agent="a") == []


def test_a_list_finds_ghosts_changes_and_newcomers() -> None:
    cache = ObjectCache()
    cache.put(obj(name="ghost", version=1))
    cache.put(obj(name="same", version=2))
    cache.put(obj(name="old", version=3))
    listed = [obj(name="same", version=2), obj(name="old", version=8), obj(name="new")]
    missed, lacking = cache.take_in(listed), cache.lacking("Agent", None, listed, "9")
    assert sorted(item["metadata"]["name"] for item in missed) == ["new", "old"]
    assert [item["metadata"]["name"] for item in lacking] == ["ghost"]
    assert cache.get("Agent", "ns", "ghost"), "the list may be wrong: nothing is gone until the API server says so"


def test_a_list_lacks_nothing_that_is_younger_than_the_list_and_other_kinds_and_namespaces() -> None:
    cache = ObjectCache()
    cache.put(obj(name="young", version=12))
    cache.put(obj("Deployment", "other-kind"))
    cache.put(obj(name="elsewhere", metadata={"namespace": "other"}))
    assert cache.lacking("Agent", "ns", [], "10") == []
    assert len(cache) == 3


def test_a_list_that_knows_the_namespace_only_says_what_lacks_there() -> None:
    cache = ObjectCache()
    cache.put(obj(name="here", version=1))
    cache.put(obj(name="there", metadata={"namespace": "other"}))
    assert [item["metadata"]["name"] for item in cache.lacking("Agent", "ns", [], "10")] == ["here"]


def test_a_list_under_way_does_not_bring_back_the_deleted() -> None:
    cache = ObjectCache()
    cache.put(obj(version=1))
    cache.remove(obj(version=2))
    assert cache.take_in([obj(version=1)]) == []
    assert cache.get("Agent", "ns", "a") is None


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        (obj("AgentHive", "h"), [Key("AgentHive", "ns", "h")]),
        (obj("Agent", "x"), [Key("Agent", "ns", "x")]),
        (owned("u"), [Key("Agent", "ns", "x")]),
        (
            obj("Pod", metadata={"labels": {"agenthive.dev/hive": "h", "agenthive.dev/agent": "x"}}),
            [Key("Agent", "ns", "x")],
        ),
        (obj("Secret", metadata={"labels": {"agenthive.dev/hive": "h"}}), [Key("AgentHive", "ns", "h")]),
        (obj("Secret"), []),
    ],
)
def test_whom_an_event_concerns(thing: dict[str, Any], expected: list[Key]) -> None:
    assert keys_of(thing) == expected


def test_slim_keeps_what_is_read_of_a_pod() -> None:
    pod = obj("Pod", metadata={"managedFields": [1], "annotations": {"big": "x"}}, spec={"containers": []})
    pod["status"] = {"phase": "Running", "containerStatuses": [{"name": "agent"}], "podIP": "127.0.0.9"}
    kept = slim(pod)
    assert "spec" not in kept
    assert "annotations" not in kept["metadata"]
    assert kept["status"] == {"phase": "Running", "containerStatuses": [{"name": "agent"}]}


def test_controller_of() -> None:
    assert controller_of(obj()) is None
    found = controller_of(owned("u"))
    assert found is not None
    assert found["uid"] == "u"
