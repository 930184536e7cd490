"""Conditions by tables: what was seen, and what each condition must say."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agenthive_operator.backends.reports import SchemaReport, StoreReport, Warned
from agenthive_operator.plan.connections import connection_budget
from agenthive_operator.reconcile import conditions
from agenthive_operator.reconcile.conditions import (
    REASONS,
    AgentInput,
    HiveFacts,
    HiveInput,
    Problem,
    Rollout,
    agent_conditions,
    hive_conditions,
    pod_failure,
    rollout_of,
    stores_ready,
)
from agenthive_operator.reconcile.context import ALARMING

PAGE = Path(__file__).parents[3] / "docs" / "conditions.md"
OK = StoreReport(True, "Reachable", "fine", "h:1", "8.1")
DOWN = StoreReport(False, "Unreachable", "connection refused", "h:1")
MIGRATED = SchemaReport(True, "Migrated", "at version 1")
HEALTHY = HiveInput(OK, OK, MIGRATED, agents_total=2, agents_ready=2)


def test_warnings_are_all_told_and_the_first_names_the_reason() -> None:
    warned = replace(OK, warnings=(Warned("CertificateExpiring", "renew"), Warned("MayEvict", "set noeviction")))
    budget = connection_budget([100], pool=10, room=97)
    verdicts = hive_conditions(
        replace(HEALTHY, redis=warned, postgres=warned, own_cache=True, cache=DOWN, budget=budget)
    )
    for kind, words in (("RedisReady", "the cache's own is not ready"), ("PostgresReady", "97 to give")):
        verdict = verdicts[kind]
        assert (verdict.status, verdict.reason) == ("True", "CertificateExpiring")
        assert verdict.message.startswith("fine; renew; set noeviction; ")
        assert words in verdict.message
    assert stores_ready(verdicts)
    down = hive_conditions(replace(HEALTHY, redis=replace(DOWN, warnings=warned.warnings)))["RedisReady"]
    assert (down.reason, down.message) == ("Unreachable", "connection refused")


@pytest.mark.parametrize("reason", ["CertificateExpiring", "MayEvict", "MayLoseMessages", "NoReplicas"])
def test_every_warning_has_a_meaning_and_alarms(reason: str) -> None:
    assert REASONS["AgentHive"]["RedisReady"][reason].status == "True"
    assert REASONS["AgentHive"]["RedisReady"][reason].todo
    assert reason in ALARMING


@pytest.mark.parametrize(
    ("seen", "ready", "reason", "gate"),
    [
        (HEALTHY, "True", "AllReady", True),
        (replace(HEALTHY, suspended=True), "True", "Suspended", True),
        (replace(HEALTHY, agents_total=0, agents_ready=0), "True", "AllReady", True),
        (replace(HEALTHY, agents_ready=1, agents_not_ready=("b",)), "False", "AgentsNotReady", True),
        (replace(HEALTHY, redis=DOWN), "False", "RedisNotReady", False),
        (replace(HEALTHY, postgres=DOWN, schema=None), "False", "PostgresNotReady", False),
        (replace(HEALTHY, schema=SchemaReport(False, "MigrationFailed", "x")), "False", "SchemaNotReady", False),
        (replace(HEALTHY, redis=None), "Unknown", "RedisNotReady", False),
        (replace(HEALTHY, problem=Problem("NameConflict", "Secret x")), "False", "NameConflict", True),
    ],
)
def test_hive(seen: HiveInput, ready: str, reason: str, gate: bool) -> None:
    verdicts = hive_conditions(seen)
    assert (verdicts["Ready"].status, verdicts["Ready"].reason) == (ready, reason)
    assert stores_ready(verdicts) is gate
    for kind, verdict in verdicts.items():
        assert verdict.status in REASONS["AgentHive"][kind][verdict.reason].status.split(", ")
        assert verdict.message


TIGHT = connection_budget([4, 4], 10, 97)
AMPLE = connection_budget([4, 4], 10, 300)


@pytest.mark.parametrize(
    ("seen", "kind", "expected", "words"),
    [
        (replace(HEALTHY, budget=AMPLE), "PostgresReady", ("True", "Reachable"), "fine"),
        (replace(HEALTHY, budget=TIGHT), "PostgresReady", ("True", "NearConnectionLimit"), "external server"),
        (replace(HEALTHY, budget=TIGHT, managed_postgres=False), "PostgresReady", ("True", "NearConnectionLimit"),
         "raise max_connections"),
        (replace(HEALTHY, postgres=DOWN, budget=TIGHT), "PostgresReady", ("False", "Unreachable"), "refused"),
        (replace(HEALTHY, postgres=None, budget=TIGHT), "PostgresReady", ("Unknown", "Probing"), "probe"),
        (replace(HEALTHY, cache=DOWN), "RedisReady", ("True", "Reachable"), "fine"),
        (replace(HEALTHY, own_cache=True), "RedisReady", ("Unknown", "Probing"), "cache"),
        (replace(HEALTHY, own_cache=True, cache=OK), "RedisReady", ("True", "Reachable"), "fine"),
        (replace(HEALTHY, own_cache=True, cache=DOWN), "RedisReady", ("True", "CacheNotReady"), "Unreachable"),
        (replace(HEALTHY, own_cache=True, cache=DOWN, redis=DOWN), "RedisReady", ("False", "Unreachable"), "refused"),
    ],
)  # fmt: skip
def test_what_is_true_and_yet_alarming(seen: HiveInput, kind: str, expected: tuple[str, str], words: str) -> None:
    verdicts = hive_conditions(seen)
    assert (verdicts[kind].status, verdicts[kind].reason) == expected
    assert words in verdicts[kind].message
    assert verdicts[kind].status in REASONS["AgentHive"][kind][verdicts[kind].reason].status.split(", ")
    assert stores_ready(verdicts) is (expected[0] == "True")


def test_hive_names_the_agents_that_are_not_ready_but_not_all_of_a_thousand() -> None:
    names = tuple(f"agent-{number}" for number in range(1000))
    verdict = hive_conditions(replace(HEALTHY, agents_total=1000, agents_ready=0, agents_not_ready=names))[
        "AgentsReady"
    ]
    assert "agent-9" in verdict.message
    assert "agent-10" not in verdict.message


THERE = HiveFacts(exists=True, ready=True)
DONE = Rollout(desired=2, replicas=2, updated=2, ready=2)
GOOD = AgentInput("x", "h", THERE, DONE)


@pytest.mark.parametrize(
    ("seen", "ready", "progressing", "hive"),
    [
        (GOOD, ("True", "AllPodsReady"), ("False", "UpToDate"), ("True", "HiveReady")),
        (
            AgentInput("x", "h", HiveFacts(exists=False)),
            ("False", "HiveMissing"), ("False", "Waiting"), ("False", "HiveMissing"),
        ),
        (
            AgentInput("x", "h", HiveFacts(exists=True, message="m")),
            ("False", "HiveNotReady"), ("False", "Waiting"), ("False", "HiveNotReady"),
        ),
        (
            replace(GOOD, facts=HiveFacts(exists=True, message="m")),
            ("True", "AllPodsReady"), ("False", "UpToDate"), ("False", "HiveNotReady"),
        ),
        (
            replace(GOOD, facts=HiveFacts(exists=True, deleting=True)),
            ("False", "HiveDeleting"), ("False", "UpToDate"), ("False", "HiveDeleting"),
        ),
        (
            replace(GOOD, facts=replace(THERE, suspended=True), rollout=Rollout(0)),
            ("True", "Suspended"), ("False", "UpToDate"), ("True", "HiveSuspended"),
        ),
        (
            replace(GOOD, facts=replace(THERE, suspended=True), rollout=Rollout(0, replicas=1, updated=1, ready=1)),
            ("False", "RollingOut"), ("True", "RollingOut"), ("True", "HiveSuspended"),
        ),
        (
            replace(GOOD, rollout=Rollout(0)),
            ("True", "ScaledToZero"), ("False", "UpToDate"), ("True", "HiveReady"),
        ),
        (
            replace(GOOD, rollout=replace(DONE, current=False)),
            ("False", "RollingOut"), ("True", "RollingOut"), ("True", "HiveReady"),
        ),
        (
            replace(GOOD, rollout=Rollout(2, replicas=3, updated=1, ready=2)),
            ("False", "RollingOut"), ("True", "RollingOut"), ("True", "HiveReady"),
        ),
        (
            replace(GOOD, rollout=replace(DONE, ready=1)),
            ("False", "PodsNotReady"), ("False", "UpToDate"), ("True", "HiveReady"),
        ),
        (
            replace(GOOD, rollout=replace(DONE, ready=1), failure=Problem("ContainerFailed", "boom")),
            ("False", "ContainerFailed"), ("False", "UpToDate"), ("True", "HiveReady"),
        ),
        (
            replace(GOOD, rollout=replace(DONE, stalled="deadline")),
            ("True", "AllPodsReady"), ("False", "Stalled"), ("True", "HiveReady"),
        ),
        (
            replace(GOOD, rollout=None, problem=Problem("CodeMissing", "ConfigMap c")),
            ("False", "CodeMissing"), ("False", "Waiting"), ("True", "HiveReady"),
        ),
        (replace(GOOD, rollout=None), ("False", "RollingOut"), ("False", "Waiting"), ("True", "HiveReady")),
    ],
)  # fmt: skip
def test_agent(seen: AgentInput, ready: tuple[str, str], progressing: tuple[str, str], hive: tuple[str, str]) -> None:
    verdicts = agent_conditions(seen)
    said = {kind: (verdict.status, verdict.reason) for kind, verdict in verdicts.items()}
    assert said == {"Ready": ready, "Progressing": progressing, "HiveReady": hive}
    for kind, verdict in verdicts.items():
        assert verdict.status in REASONS["Agent"][kind][verdict.reason].status.split(", ")


def test_every_reason_in_the_rules_is_in_the_table() -> None:
    known = {reason for kinds in REASONS.values() for reasons in kinds.values() for reason in reasons}
    for node in ast.walk(ast.parse(inspect.getsource(conditions))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"Verdict", "Problem"}:
            argument = node.args[1 if node.func.id == "Verdict" else 0]
            if isinstance(argument, ast.Constant):
                assert argument.value in known


# ---- Deployments and pods


def test_rollout_of_a_new_and_of_a_stalled_deployment() -> None:
    new = {"metadata": {"generation": 1}, "spec": {"replicas": 3}}
    assert rollout_of(new) == Rollout(desired=3, current=False)
    status = {
        "observedGeneration": 2, "replicas": 4, "updatedReplicas": 1, "readyReplicas": 3,
        "conditions": [{"type": "Progressing", "status": "False", "message": "timed out progressing"}],
    }  # fmt: skip
    deployment = {"metadata": {"generation": 2}, "spec": {"replicas": 3}, "status": status}
    assert rollout_of(deployment) == Rollout(3, 4, 1, 3, True, "timed out progressing")


def pod(name: str = "p", **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "status": status}


def container(state: dict[str, Any], last: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {"name": "agent", "ready": False, "state": state, "lastState": last or {}, **fields}


ENDED = {"terminated": {"exitCode": 2, "reason": "Error", "message": "ModuleNotFoundError: No module named 'numpy'\n"}}
LOOPING = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}


@pytest.mark.parametrize(
    ("pods", "reason", "words"),
    [
        ([], None, ""),
        ([pod(containerStatuses=[container({"running": {}}, ready=True)])], None, ""),
        ([pod(containerStatuses=[container({"running": {}}, ENDED, ready=True)])], None, ""),
        ([pod(containerStatuses=[container(LOOPING, ENDED, restartCount=3)])], "ContainerFailed", "named 'numpy'"),
        ([pod(containerStatuses=[container(LOOPING, ENDED, restartCount=3)])], "ContainerFailed", "restarted 3 times"),
        ([pod(containerStatuses=[container(ENDED)])], "ContainerFailed", "exit code 2"),
        ([pod(containerStatuses=[container({"terminated": {"exitCode": 137, "reason": "OOMKilled"}})])],
         "ContainerFailed", "OOMKilled"),
        ([pod(containerStatuses=[container({"terminated": {"exitCode": 0}})])], None, ""),
        ([pod(containerStatuses=[container(LOOPING)])], "ContainerWaiting", "CrashLoopBackOff: back-off"),
        ([pod(containerStatuses=[container({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}})])],
         "ContainerWaiting", "no such image"),
        ([pod(containerStatuses=[container({"waiting": {"reason": "ContainerCreating"}})])], None, ""),
        ([pod(initContainerStatuses=[container(ENDED)])], "ContainerFailed", "numpy"),
        ([pod(conditions=[{"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}])],
         "Unschedulable", "0/3 nodes"),
        ([pod(phase="Failed", reason="Evicted", message="disk")], "PodFailed", "Evicted: disk"),
        ([pod("a", conditions=[{"type": "PodScheduled", "status": "False"}]),
          pod("b", containerStatuses=[container(ENDED)])], "ContainerFailed", "pod b"),
    ],
)  # fmt: skip
def test_pod_failure(pods: list[dict[str, Any]], reason: str | None, words: str) -> None:
    found = pod_failure(pods)
    assert (found.reason if found else None) == reason
    if found:
        assert words in found.message
        assert found.reason in REASONS["Agent"]["Ready"]


def test_pods_on_their_way_out_do_not_count() -> None:
    leaving = pod(containerStatuses=[container(ENDED)])
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert pod_failure([leaving]) is None


def test_a_long_message_is_cut() -> None:
    ended = {"terminated": {"exitCode": 1, "message": "x" * 5000}}
    found = pod_failure([pod(containerStatuses=[container(ended)])])
    assert found is not None
    assert len(found.message) == conditions.MESSAGE_LIMIT


@pytest.mark.parametrize(
    ("again", "problem", "expected"),
    [
        (None, None, None),
        (5.0, None, 5.0),
        (None, Problem("CodeMissing", "x"), None),
        (None, Problem("NameConflict", "x"), conditions.BLOCKED_SECONDS),
        (5.0, Problem("ApplyRejected", "x"), 5.0),
        (50.0, Problem("ApplyRejected", "x"), conditions.BLOCKED_SECONDS),
    ],
)
def test_sooner(again: float | None, problem: Problem | None, expected: float | None) -> None:
    assert conditions.sooner(again, problem) == expected


# ---- the page


def test_the_page_is_the_generated_one() -> None:
    script = [sys.executable, "-m", "agenthive_operator.reconcile.conditions"]
    printed = subprocess.run(script, capture_output=True, check=True).stdout
    assert PAGE.read_bytes() == printed, "run: make docs"


def test_whatever_is_wrong_comes_with_something_to_do() -> None:
    for kind, kinds in REASONS.items():
        for condition, reasons in kinds.items():
            for name, reason in reasons.items():
                where = f"{kind} {condition} {name}"
                assert reason.meaning.endswith("."), where
                assert set(reason.status.split(", ")) <= {"True", "False", "Unknown"}, where
                fine = reason.status == "True" or name == "UpToDate"
                assert fine or reason.todo.endswith((".", "`.")), where
                assert "|" not in reason.meaning + reason.todo, "it would end the cell of the table"


@pytest.mark.parametrize(("server", "kind"), [("redis", "RedisReady"), ("postgres", "PostgresReady")])
def test_a_server_that_a_policy_keeps_agents_from_is_a_warning(server: str, kind: str) -> None:
    seen = hive_conditions(replace(HEALTHY, closed=frozenset({server})))
    warned = [name for name, verdict in seen.items() if verdict.reason == "EgressDenied"]
    assert warned == [kind]
    assert (seen[kind].status, seen["Ready"].status) == ("True", "True")
    assert "list its address in allowEgress" in seen[kind].message


def test_a_server_that_is_not_ready_says_so_first() -> None:
    seen = hive_conditions(replace(HEALTHY, redis=None, closed=frozenset({"redis"})))
    assert seen["RedisReady"].reason == "Probing"
