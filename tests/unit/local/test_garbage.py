"""Owner garbage collection: who is judged how."""

from __future__ import annotations

import pytest

from agenthive_operator.local.controllers.garbage import Graph, Verdict, resources_of
from agenthive_operator.local.resources import PODS


def obj(
    uid: str, *owners: str, finalizers: tuple[str, ...] = (), deleting: bool = False, blocking: bool = True
) -> dict:
    meta = {"name": uid, "namespace": "n", "uid": uid, "finalizers": list(finalizers)}
    meta["ownerReferences"] = [
        {"apiVersion": "v1", "kind": "Pod", "name": each, "uid": each, "blockOwnerDeletion": blocking}
        for each in owners
    ]
    if deleting:
        meta["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return {"metadata": meta}


def graph(*objects: dict) -> Graph:
    made = Graph()
    for each in objects:
        made.put(PODS, each)
    return made


FOREGROUND = ("foregroundDeletion",)


@pytest.mark.parametrize(
    ("objects", "absent", "expected"),
    [
        ([obj("x")], set(), Verdict.KEEP),
        ([obj("a"), obj("x", "a")], set(), Verdict.KEEP),
        ([obj("x", "a")], {"a"}, Verdict.DELETE),
        ([obj("x", "a")], set(), Verdict.KEEP),  # not in the graph, yet the server has it
        ([obj("b"), obj("x", "a", "b")], {"a"}, Verdict.KEEP),  # one owner is left
        ([obj("a", finalizers=FOREGROUND, deleting=True), obj("x", "a")], set(), Verdict.DELETE),
        ([obj("a", deleting=True), obj("x", "a")], set(), Verdict.KEEP),  # another finalizer holds the owner
        ([obj("x", deleting=True, finalizers=FOREGROUND)], set(), Verdict.RELEASE_FOREGROUND),
        ([obj("x", deleting=True, finalizers=FOREGROUND), obj("c", "x")], set(), Verdict.DELETE_DEPENDENTS),
        (
            [obj("x", deleting=True, finalizers=FOREGROUND), obj("c", "x", blocking=False)],
            set(),
            Verdict.RELEASE_FOREGROUND,
        ),
        ([obj("x", deleting=True, finalizers=("orphan",)), obj("c", "x")], set(), Verdict.ORPHAN_DEPENDENTS),
        ([obj("x", deleting=True, finalizers=("agenthive.dev/cleanup",))], set(), Verdict.KEEP),
    ],
)
def test_verdict(objects, absent, expected) -> None:
    assert graph(*objects).judge("x", absent) is expected


def test_the_graph_follows_changes() -> None:
    made = graph(obj("a"), obj("x", "a"))
    assert [node.obj["metadata"]["uid"] for node in made.dependents("a")] == ["x"]
    assert made.missing_owners("x") == []
    made.put(PODS, obj("x"))  # orphaned
    assert made.dependents("a") == []
    made.put(PODS, obj("x", "a"))
    made.remove("a")
    assert [owner["uid"] for owner in made.missing_owners("x")] == ["a"]
    made.remove("x")
    assert made.dependents("a") == []


def test_blocked_owners_need_their_dependents_gone_in_the_foreground() -> None:
    made = graph(obj("a", deleting=True, finalizers=FOREGROUND), obj("x", "a"), obj("c", "x"))
    assert made.deletes_in_foreground("x")
    assert not made.deletes_in_foreground("c")


def test_what_is_followed() -> None:
    verbs = ["list", "watch", "delete"]
    discovered = [
        {"name": "pods", "kind": "Pod", "namespaced": True, "verbs": verbs},
        {"name": "pods/status", "kind": "Pod", "namespaced": True, "verbs": ["get"]},
        {"name": "events", "kind": "Event", "namespaced": True, "verbs": verbs},
        {"name": "bindings", "kind": "Binding", "namespaced": True, "verbs": ["create"]},
    ]
    assert [each.plural for each in resources_of("v1", discovered)] == ["pods"]
    assert resources_of("apps/v1", discovered)[0].api_version == "apps/v1"
