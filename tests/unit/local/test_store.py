"""The local copy of a collection: what replaces what."""

from __future__ import annotations

from agenthive_operator.local.informer import Store
from agenthive_operator.local.objects import digest, matches, set_condition


def obj(name: str, version: int, uid: str = "1", owner: str | None = None) -> dict:
    meta = {"name": name, "namespace": "n", "uid": uid, "resourceVersion": str(version)}
    if owner:
        meta["ownerReferences"] = [{"kind": "X", "name": owner, "uid": owner, "controller": True}]
    return {"metadata": meta}


def changes(store: Store) -> list[tuple]:
    seen: list[tuple] = []
    store.on_change(
        lambda old, new: seen.append(
            tuple(o and (o["metadata"]["uid"], o["metadata"]["resourceVersion"]) for o in (old, new))
        )
    )
    return seen


def test_older_versions_are_ignored() -> None:
    store = Store()
    seen = changes(store)
    store.observe(obj("a", 5))
    store.observe(obj("a", 4))
    store.observe(obj("a", 5))
    store.observe(obj("a", 6))
    assert seen == [(None, ("1", "5")), (("1", "5"), ("1", "6"))]


def test_a_namesake_is_a_deletion_and_a_creation() -> None:
    store = Store()
    store.observe(obj("a", 1, owner="o"))
    seen = changes(store)
    store.observe(obj("a", 9, uid="2"))
    assert seen == [(("1", "1"), None), (None, ("2", "9"))]
    store.forget(obj("a", 1))  # a late word about the first one
    assert store.get("n", "a") is not None
    assert store.owned_by({"metadata": {"uid": "o"}}) == []


def test_a_list_removes_what_it_lacks_unless_that_is_newer() -> None:
    store = Store()
    for name, version in (("a", 1), ("b", 2), ("c", 30)):
        store.observe(obj(name, version))
    store.replace([obj("a", 3)], 20)
    assert sorted(each["metadata"]["name"] for each in store) == ["a", "c"]
    assert len(store) == 2


def test_owned() -> None:
    store = Store()
    store.observe(obj("a", 1, owner="o"))
    store.observe(obj("b", 2, owner="o"))
    owner = {"metadata": {"uid": "o"}}
    assert len(store.owned_by(owner)) == 2
    assert store.orphans("n") == []
    store.observe(obj("a", 3))  # lost its owner
    assert [each["metadata"]["name"] for each in store.orphans("n")] == ["a"]
    assert store.orphans("other") == []
    store.forget(obj("b", 2))
    assert store.owned_by(owner) == []


def test_selectors() -> None:
    labels = {"a": "1"}
    assert matches({"matchLabels": {"a": "1"}}, labels)
    assert not matches({"matchLabels": {"a": "2"}}, labels)
    assert not matches(None, labels)
    assert matches({}, labels)
    for operator, values, expected in (
        ("In", ["1"], True),
        ("NotIn", ["1"], False),
        ("Exists", [], True),
        ("DoesNotExist", [], False),
    ):
        assert matches({"matchExpressions": [{"key": "a", "operator": operator, "values": values}]}, labels) is expected


def test_conditions_keep_their_time_until_the_status_changes() -> None:
    first = set_condition([], {"type": "Ready", "status": "True"}, "t1")
    same = set_condition(first, {"type": "Ready", "status": "True", "reason": "x"}, "t2")
    assert (same[0]["lastTransitionTime"], same[0]["reason"]) == ("t1", "x")
    assert set_condition(same, {"type": "Ready", "status": "False"}, "t3")[0]["lastTransitionTime"] == "t3"


def test_digest_is_of_the_value() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1})
    assert len(digest("x")) == 10
