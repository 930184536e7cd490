"""Merge patch, JSON patch, strategic merge patch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenthive_operator.local.apiserver.builtin_types import builtin_type
from agenthive_operator.local.apiserver.errors import ApiError
from agenthive_operator.local.apiserver.patches import json_patch, merge_patch, strategic_merge

POD = builtin_type("", "Pod", "V1Pod").fields["spec"]
SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
TREES = st.recursive(SCALARS, lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8)


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": None}}, {"a": {"c": 2}}),
        ({"a": [1]}, {"a": [2]}, {"a": [2]}),
        ({"a": 1}, {"a": {"b": {"c": None}}}, {"a": {"b": {}}}),
    ],
)
def test_merge_patch(target: Any, patch: Any, result: Any) -> None:
    assert merge_patch(target, patch) == result


@given(TREES, TREES)
def test_merge_patch_changes_nothing_it_is_given(target: Any, patch: Any) -> None:
    before = copy.deepcopy((target, patch))
    once = merge_patch(target, patch)
    assert (target, patch) == before
    assert merge_patch(once, patch) == once, "a merge patch is idempotent"


@pytest.mark.parametrize(
    ("steps", "result"),
    [
        ([{"op": "add", "path": "/l/0", "value": 0}], {"l": [0, 1, 2], "o": {"a/b": 1}}),
        ([{"op": "add", "path": "/l/-", "value": 3}], {"l": [1, 2, 3], "o": {"a/b": 1}}),
        ([{"op": "remove", "path": "/l/1"}], {"l": [1], "o": {"a/b": 1}}),
        ([{"op": "replace", "path": "/l/1", "value": 9}], {"l": [1, 9], "o": {"a/b": 1}}),
        ([{"op": "replace", "path": "/o/a~1b", "value": 9}], {"l": [1, 2], "o": {"a/b": 9}}),
        ([{"op": "move", "from": "/l/0", "path": "/o/x"}], {"l": [2], "o": {"a/b": 1, "x": 1}}),
        ([{"op": "copy", "from": "/l/0", "path": "/o/x"}], {"l": [1, 2], "o": {"a/b": 1, "x": 1}}),
        ([{"op": "test", "path": "/o", "value": {"a/b": 1}}], {"l": [1, 2], "o": {"a/b": 1}}),
        ([{"op": "add", "path": "", "value": {"new": 1}}], {"new": 1}),
    ],
)
def test_json_patch(steps: Any, result: Any) -> None:
    target = {"l": [1, 2], "o": {"a/b": 1}}
    before = copy.deepcopy(target)
    assert json_patch(target, steps) == result
    assert target == before


@pytest.mark.parametrize(
    "step",
    [
        {"op": "remove", "path": "/none"}, {"op": "remove", "path": ""}, {"op": "replace", "path": "/none", "value": 1},
        {"op": "add", "path": "/l/7", "value": 1}, {"op": "add", "path": "/none/x", "value": 1},
        {"op": "add", "path": "l", "value": 1}, {"op": "spin", "path": "/l"}, {"op": "add", "path": "/l"},
        {"op": "test", "path": "/l/0", "value": 2}, {"op": "add", "path": "/l/0/x/y", "value": 1}, {"path": "/l"},
    ],
)  # fmt: skip
def test_json_patches_that_do_not_fit(step: Any) -> None:
    with pytest.raises(ApiError) as caught:
        json_patch({"l": [1, 2]}, [step])
    assert caught.value.code == 422


@pytest.mark.parametrize(("patch", "code"), [({}, 400), ([1], 400), ([{}] * 10_001, 413)])
def test_no_json_patches(patch: Any, code: int) -> None:
    with pytest.raises(ApiError) as caught:
        json_patch({}, patch)
    assert caught.value.code == code


def containers(*names: str) -> list[dict[str, str]]:
    return [{"name": name, "image": "i"} for name in names]


@pytest.mark.parametrize(
    ("patch", "names"),
    [
        ({"containers": [{"name": "b", "image": "j"}]}, ["a", "b", "c"]),
        ({"containers": [{"name": "d"}]}, ["d", "a", "b", "c"]),
        ({"containers": [{"name": "b", "$patch": "delete"}]}, ["a", "c"]),
        ({"containers": [{"name": "z", "$patch": "delete"}]}, ["a", "b", "c"]),
        ({"containers": [{"$patch": "replace"}, {"name": "x"}]}, ["x"]),
        ({"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}, {"name": "b"}]}, ["c", "a", "b"]),
        ({"containers": None}, []),
        ({"$patch": "replace", "containers": [{"name": "y"}]}, ["y"]),
        ({"$retainKeys": ["volumes"]}, []),
        ({"$patch": "delete"}, []),
    ],
)  # fmt: skip
def test_strategic_merge_of_lists(patch: Any, names: list[str]) -> None:
    target = {"containers": containers("a", "b", "c")}
    before = copy.deepcopy(target)
    found = strategic_merge(target, patch, POD)
    assert [item["name"] for item in found.get("containers", [])] == names
    assert target == before


def test_strategic_merge_of_scalar_lists() -> None:
    meta = builtin_type("", "Pod", "V1Pod").fields["metadata"]
    target = {"finalizers": ["a/a", "b/b"]}
    assert strategic_merge(target, {"finalizers": ["c/c"]}, meta)["finalizers"] == ["c/c", "a/a", "b/b"]
    gone = strategic_merge(target, {"$deleteFromPrimitiveList/finalizers": ["a/a"]}, meta)
    assert gone == {"finalizers": ["b/b"]}


def test_strategic_merge_of_structs() -> None:
    target = {"securityContext": {"runAsUser": 1, "fsGroup": 2}, "tolerations": [{"key": "a"}]}
    found = strategic_merge(target, {"securityContext": {"runAsUser": None}, "tolerations": []}, POD)
    assert found == {"securityContext": {"fsGroup": 2}, "tolerations": []}
    assert strategic_merge(target, {"securityContext": {"$patch": "delete"}}, POD) == {"tolerations": [{"key": "a"}]}


@pytest.mark.parametrize("patch", [{"$patch": "explode"}, {"containers": [{"image": "i"}]}])
def test_strategic_patches_that_make_no_sense(patch: Any) -> None:
    with pytest.raises(ApiError) as caught:
        strategic_merge({"containers": containers("a")}, patch, POD)
    assert caught.value.code == 400
