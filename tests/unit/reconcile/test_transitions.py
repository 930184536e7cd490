"""Which changes of conditions become Events."""

from __future__ import annotations

from typing import Any

import pytest

from agenthive_operator.reconcile.conditions import Verdict
from agenthive_operator.reconcile.context import transitions

UP = Verdict("True", "Reachable", "up")
DOWN = Verdict("False", "Unreachable", "down")


def live(**conditions: tuple[str, str]) -> dict[str, Any]:
    entries = [{"type": kind, "status": status, "reason": reason} for kind, (status, reason) in conditions.items()]
    return {"status": {"conditions": entries}}


@pytest.mark.parametrize(
    ("before", "verdicts", "expected"),
    [
        (live(), {"RedisReady": UP}, [("Normal", "Reachable", "up")]),
        (live(RedisReady=("True", "Reachable")), {"RedisReady": UP}, []),
        (live(RedisReady=("True", "Reachable")), {"RedisReady": DOWN}, [("Warning", "Unreachable", "down")]),
        (live(), {"RedisReady": Verdict("Unknown", "Probing", "x")}, []),
        (live(), {"Ready": Verdict("False", "RedisNotReady", "x"), "RedisReady": DOWN},
         [("Warning", "Unreachable", "down")]),
        (live(), {"RedisReady": UP, "PostgresReady": UP}, [("Normal", "Reachable", "up")]),
        (live(PostgresReady=("True", "Reachable")), {"PostgresReady": Verdict("True", "NearConnectionLimit", "x")},
         [("Warning", "NearConnectionLimit", "x")]),
        (live(PostgresReady=("True", "NearConnectionLimit")), {"PostgresReady": UP}, [("Normal", "Reachable", "up")]),
        (live(RedisReady=("True", "Reachable")), {"RedisReady": Verdict("True", "CacheNotReady", "x")},
         [("Warning", "CacheNotReady", "x")]),
        ({}, {"Ready": Verdict("False", "CodeMissing", "x")}, [("Warning", "CodeMissing", "x")]),
    ],
)  # fmt: skip
def test_transitions(
    before: dict[str, Any], verdicts: dict[str, Verdict], expected: list[tuple[str, str, str]]
) -> None:
    assert transitions(before, verdicts) == expected
