"""Sets of fields and the merge of applied configurations, without a server."""

from __future__ import annotations

from typing import Any

import pytest

from agenthive_operator.local.apiserver import fieldsets
from agenthive_operator.local.apiserver.apply import Manager, apply, merge, read_managed
from agenthive_operator.local.apiserver.builtin_types import builtin_type
from agenthive_operator.local.apiserver.errors import ApiError

POD = builtin_type("", "Pod", "V1Pod")
NOW, LATER = "2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z"


def pod(*containers: dict[str, Any], **meta: Any) -> dict[str, Any]:
    spec = {"containers": list(containers)} if containers else {}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", **meta}, "spec": spec}


def by(name: str) -> Manager:
    return Manager(name, "Apply", "", "v1")


def applied(live: Any, config: Any, name: str, *, now: str = NOW, force: bool = False) -> dict[str, Any]:
    return apply(live, config, by(name), POD, now, force=force)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"spec": {"nodeName": "n"}}, {"f:spec": {"f:nodeName": {}}}),
        ({"metadata": {"labels": {}}}, {"f:metadata": {"f:labels": {}}}),
        ({"spec": {"nodeSelector": {"a": "b"}}}, {"f:spec": {"f:nodeSelector": {}}}),
        ({"spec": {"containers": []}}, {"f:spec": {}}),
        ({"spec": {"tolerations": []}}, {"f:spec": {"f:tolerations": {}}}),
        (
            {"spec": {"containers": [{"name": "c", "args": ["x"]}]}},
            {"f:spec": {"f:containers": {'k:{"name":"c"}': {".": {}, "f:name": {}, "f:args": {}}}}},
        ),
        ({"metadata": {"finalizers": ["a/b"]}}, {"f:metadata": {"f:finalizers": {'v:"a/b"': {}}}}),
    ],
)
def test_field_set(value: Any, found: Any) -> None:
    assert fieldsets.field_set(value, POD) == found


def test_set_arithmetic() -> None:
    first = {"f:a": {}, "f:b": {".": {}, "f:c": {}}}
    second = {"f:b": {"f:c": {}, "f:d": {}}}
    assert fieldsets.merge_roots(first, second) == {"f:a": {}, "f:b": {".": {}, "f:c": {}, "f:d": {}}}
    assert fieldsets.merge_roots({}, second) == second
    assert fieldsets.intersect(first, second) == {"f:b": {"f:c": {}}}
    assert fieldsets.subtract(first, second) == {"f:a": {}, "f:b": {}}
    assert fieldsets.without_below(first, {"f:b": {}}) == {"f:a": {}}
    assert fieldsets.without_below(first, {"f:b": {"f:c": {}}}) == {"f:a": {}, "f:b": {}}
    assert list(fieldsets.paths(first)) == [".a", ".b", ".b.c"]


def test_paths_show_keys_and_values() -> None:
    found = {"f:l": {'k:{"name":"x"}': {"f:i": {}}, 'v:"s"': {}}}
    assert list(fieldsets.paths(found)) == ['.l[="s"]', '.l[name="x"].i']


def test_a_second_apply_is_the_same_object() -> None:
    config = pod({"name": "c", "image": "i"}, labels={"a": "b"})
    first = applied(None, config, "m")
    assert applied(first, config, "m", now=LATER) == first


def test_nulls_are_absent() -> None:
    found = applied(None, pod({"name": "c", "image": None, "args": ["x"]}), "m")
    assert found["spec"]["containers"] == [{"name": "c", "args": ["x"]}]


def test_order_of_merged_items() -> None:
    node = POD.fields["spec"].fields["containers"]

    def names(live: str, wanted: str) -> str:
        found = merge([{"name": name} for name in live], [{"name": name} for name in wanted], node)
        return "".join(item["name"] for item in found)

    assert names("abc", "ca") == "bca"
    assert names("abc", "xb") == "xabc"
    assert names("", "ab") == "ab"
    assert names("ab", "") == "ab"


def test_removal_keeps_what_others_own_in_an_item() -> None:
    live = applied(None, pod({"name": "c", "image": "i", "args": ["x"]}), "m")
    live = applied(live, pod({"name": "c", "workingDir": "/w"}), "o")
    found = applied(live, pod(), "m")
    assert found["spec"]["containers"] == [{"name": "c", "workingDir": "/w"}]
    mine = {owned.manager.name: owned.fields for owned in read_managed(found["metadata"]["managedFields"])}
    assert mine["m"] == {"f:spec": {}}
    assert applied(found, pod(), "o")["spec"] == {}


def test_members_of_a_set_go_one_by_one() -> None:
    live = applied(None, pod(finalizers=["a/a", "b/b"]), "m")
    live = applied(live, pod(finalizers=["c/c"]), "o")
    assert set(live["metadata"]["finalizers"]) == {"a/a", "b/b", "c/c"}
    found = applied(live, pod(finalizers=["b/b"]), "m")
    assert set(found["metadata"]["finalizers"]) == {"b/b", "c/c"}


def test_forced_fields_change_hands() -> None:
    live = applied(None, pod({"name": "c", "image": "i"}), "m")
    with pytest.raises(ApiError) as caught:
        applied(live, pod({"name": "c", "image": "j"}), "o")
    assert caught.value.code == 409
    found = applied(live, pod({"name": "c", "image": "j"}), "o", force=True, now=LATER)
    mine = {owned.manager.name: owned.fields for owned in read_managed(found["metadata"]["managedFields"])}
    assert list(fieldsets.paths(mine["m"])) == ['.spec.containers[name="c"]', '.spec.containers[name="c"].name']
    assert found["spec"]["containers"][0]["image"] == "j"


@pytest.mark.parametrize("entry", [{"fieldsType": "FieldsV2"}, {"fieldsType": "FieldsV1", "operation": "Grab"}])
def test_managed_fields_that_are_none(entry: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        read_managed([entry])
    assert caught.value.code == 400
