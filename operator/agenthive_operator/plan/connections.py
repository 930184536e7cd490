"""How many connections a hive may open to PostgreSQL, and whether its server has that many. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from agenthive_operator.plan.replicas import with_surge

NEAR_PERCENT: Final = 80
"""A hive that may take more than this share of what the server has is near its limit: people and tools connect, too."""
OPERATOR_CONNECTIONS: Final = 2
"""The operator's looks come one after the other, daily housekeeping has a pool of one."""


@dataclass(frozen=True, slots=True)
class ConnectionBudget:
    """The most connections a hive opens, and those there are.

    Attributes:
        pods: Pods of all agents at once, those of a rollout that surges among them.
        pool: Most connections of one pod: ``spec.postgres.pool.maxSize``.
        room: Connections the server has for ordinary roles.
    """

    pods: int
    pool: int
    room: int

    @property
    def most(self) -> int:
        """The most connections that the hive opens."""
        return self.pods * self.pool + OPERATOR_CONNECTIONS

    @property
    def is_near(self) -> bool:
        """Whether that is more than the hive should take."""
        return self.most * 100 > self.room * NEAR_PERCENT


def connection_budget(replicas: Iterable[int], pool: int, room: int) -> ConnectionBudget:
    """The budget of a hive.

    Args:
        replicas: How many pods each of its agents is to have.
        pool: Most connections of one pod.
        room: Connections the server has for ordinary roles.
    """
    return ConnectionBudget(sum(map(with_surge, replicas)), pool, room)


def budget_text(budget: ConnectionBudget, *, managed: bool) -> str:
    """What a person reads when a budget is near its limit."""
    more = "move to an external server that has more" if managed else "raise max_connections of the server"
    return (
        f"this hive may open {budget.most} connections ({budget.pods} pods, a rollout's extra ones among them,"
        f" of {budget.pool} each, and {OPERATOR_CONNECTIONS} of the operator); the server has {budget.room} to give:"
        f" more than {NEAR_PERCENT} %. Lower spec.postgres.pool.maxSize, run fewer replicas, {more}, or put PgBouncer"
        " in between (spec.postgres.external.directUrlSecretRef then names the way past it)"
    )
