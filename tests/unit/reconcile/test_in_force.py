"""What follows the servers in force: conditions, what is cleaned at the end, what counts as stopped."""

from __future__ import annotations

from typing import Any

import pytest

from agenthive_operator.api.hive import AgentHive
from agenthive_operator.plan.book import Book, Held
from agenthive_operator.plan.cutover import Note
from agenthive_operator.reconcile.conditions import Verdict
from agenthive_operator.reconcile.cutover import is_owned, is_still, lives, plan_book, running, with_notes
from agenthive_operator.reconcile.deletion import outside

UP = {kind: Verdict("True", "Reachable", f"{kind} is up") for kind in ("Ready", "RedisReady", "PostgresReady")}
OWN = Held((("admin", "redis://own"), ("url", "redis://own")), managed=True)
THEIRS = Held((("url", "redis://theirs"),))
EXTERNAL = {"external": {"urlSecretRef": {"name": "urls", "key": "url"}}}


def hive(policy: str = "Delete", **spec: Any) -> AgentHive:
    metadata = {"name": "demo", "namespace": "team", "uid": "u"}
    return AgentHive.parse(
        {
            "metadata": metadata,
            "spec": {"deletionPolicy": policy, "instanceId": "i1", **spec},
            "status": {"instanceId": "i1"},
        }
    )


def test_a_refused_server_is_told_beside_the_one_in_use() -> None:
    told = with_notes(UP, {"redis": Note("NewServerRefused", "it is down")})
    assert told["RedisReady"].status == "True"
    assert told["RedisReady"].reason == "NewServerRefused"
    assert (
        told["RedisReady"].message == "RedisReady is up; this stays in use, and of what the spec names now: it is down"
    )
    assert told["PostgresReady"] == UP["PostgresReady"]
    assert told["Ready"] == Verdict("False", "ServerChangePending", "RedisReady NewServerRefused: it is down")


def test_what_is_wrong_with_the_one_in_use_comes_first() -> None:
    down = {
        **UP,
        "RedisReady": Verdict("False", "Unreachable", "no answer"),
        "Ready": Verdict("False", "RedisNotReady", "x"),
    }
    told = with_notes(down, {"redis": Note("CuttingOver", "agents are stopped")})
    assert (told["RedisReady"].status, told["RedisReady"].reason) == ("False", "Unreachable")
    assert told["RedisReady"].message == "no answer; the hive moves to another server: agents are stopped"
    assert told["Ready"].reason == "RedisNotReady"


@pytest.mark.parametrize(
    ("spec", "policy", "book", "servers"),
    [
        ({}, "Delete", Book(), []),
        ({"redis": EXTERNAL}, "Delete", Book(), ["redis"]),
        ({"redis": EXTERNAL}, "Retain", Book(THEIRS), []),
        ({"redis": EXTERNAL}, "Delete", Book(OWN), []),
        ({}, "Delete", Book(THEIRS), ["redis"]),
        ({"postgres": EXTERNAL}, "Delete", Book(THEIRS), ["redis", "postgres"]),
    ],
)
def test_the_end_cleans_external_servers_in_force(
    spec: dict[str, Any], policy: str, book: Book, servers: list[str]
) -> None:
    assert outside(hive(policy, **spec), book) == servers


def test_the_book_is_its_hives() -> None:
    assert running(Book(OWN, THEIRS)) == ["redis"]
    secret = plan_book(hive(), Book(OWN))
    assert secret["metadata"]["name"] == "demo-connections"
    assert is_owned(secret, hive())
    assert not is_owned({"metadata": {"ownerReferences": [{**hive().owner(), "uid": "a former one"}]}}, hive())
    assert not is_owned({"metadata": {}}, hive())


@pytest.mark.parametrize(
    ("generation", "wanted", "status", "still"),
    [
        (2, 0, {"observedGeneration": 2}, True),
        (2, 0, {"observedGeneration": 1}, False),
        (2, 0, {"observedGeneration": 2, "replicas": 1}, False),
        (2, 1, {"observedGeneration": 2}, False),
        (2, 0, None, False),
    ],
)
def test_a_deployment_is_still_once_its_controller_says_so(
    generation: int, wanted: int, status: dict[str, Any] | None, still: bool
) -> None:
    found = {"metadata": {"generation": generation}, "spec": {"replicas": wanted}, "status": status}
    assert is_still(found) is still


def test_a_pod_that_ended_lives_no_more() -> None:
    assert [lives({"status": {"phase": phase}}) for phase in ("Running", "Failed", "Succeeded")] == [True, False, False]
    assert lives({})
