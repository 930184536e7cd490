"""What both reconcilers work with: access, caches, monitors, and what hives let their agents know."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from agenthive import __version__
from agenthive_operator.backends.certificates import CertificateFolder
from agenthive_operator.backends.events import EventRecorder
from agenthive_operator.backends.kube import Kube, Object
from agenthive_operator.backends.references import References
from agenthive_operator.backends.reports import Figures, PostgresReport, StoreReport
from agenthive_operator.backends.resolve import Resolver
from agenthive_operator.plan.inputs import OperatorPlace
from agenthive_operator.reconcile.cache import Key, ObjectCache
from agenthive_operator.reconcile.children import Children
from agenthive_operator.reconcile.conditions import Verdict
from agenthive_operator.reconcile.logins import Logins
from agenthive_operator.reconcile.monitor import Monitor
from agenthive_operator.reconcile.queue import KeyedQueue
from agenthive_operator.reconcile.rolls import Rolls
from agenthive_operator.reconcile.status import condition, merge_patch
from agenthive_operator.reconcile.users import Users


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator was started with.

    ``runtime_image``: image of agents for which nobody names one. ``cleanup_seconds``: how long the deletion of a hive
    may wait for servers that have to be cleaned, beyond the time its agents need to drain. ``place``: where it runs.
    """

    namespaces: tuple[str, ...] = ()
    runtime_image: str = f"agenthive-runtime:{__version__}"
    resolve_services: bool = False
    cleanup_seconds: float = 120.0
    resync_seconds: float = 300.0
    workers: int = 16
    place: OperatorPlace = field(default_factory=OperatorPlace)


@dataclass(frozen=True, slots=True)
class HiveState:
    """What a hive's reconciler lets its agents know.

    Attributes:
        rotate: The value of its annotation ``agenthive.dev/rotate``.
        moving: Whether the hive moves to another server.
        halted: Whether all agents are to stand at zero pods for that.
        redis_held: The URL of the server in force, whatever state it is in: agents use no other. None before there is.
        redis_url: The same, while that server was found good.
        redis_mints: Whether the operator makes credentials of each agent's own there.
        cache_url: Of the cache's own Redis, while it was found good.
    """

    uid: str
    generation: int
    instance_id: str
    ready: bool
    deleting: bool = False
    message: str = ""
    rotate: str = ""
    moving: bool = False
    halted: bool = False
    redis_mints: bool = False
    postgres_mints: bool = False
    redis_held: str | None = field(default=None, repr=False)
    postgres_held: str | None = field(default=None, repr=False)
    redis_url: str | None = field(default=None, repr=False)
    postgres_url: str | None = field(default=None, repr=False)
    cache_url: str | None = field(default=None, repr=False)


@dataclass(slots=True)
class Context:
    """Everything a reconciler needs; one per operator."""

    options: Options
    kube: Kube
    cache: ObjectCache
    children: Children
    references: References
    events: EventRecorder
    resolver: Resolver
    queue: KeyedQueue[Key]
    redis: Monitor[StoreReport]
    caches: Monitor[StoreReport]
    postgres: Monitor[PostgresReport]
    figures: Monitor[dict[str, Figures]]
    logins: Logins
    rolls: Rolls
    users: Users
    certificates: CertificateFolder = field(default_factory=CertificateFolder)
    states: dict[Key, HiveState] = field(default_factory=dict)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    monotonic: Callable[[], float] = time.monotonic

    def enqueue_agents(self, hive: Key) -> None:
        """Have every Agent of a hive reconciled."""
        for agent in self.cache.agents_of(hive.namespace, hive.name):
            self.queue.add(Key("Agent", hive.namespace, agent["metadata"]["name"]))

    async def write_status(self, live: Object, status: Object) -> Object:
        """Patch the status where it differs; returns the object as it is then. Raises ``ApiError``."""
        patch = merge_patch(live.get("status") or {}, status)
        if not patch:
            return live
        # rbac: agenthive.dev/agenthives/status patch
        # rbac: agenthive.dev/agents/status patch
        answer = await self.kube.patch_status(live, patch)
        self.cache.put(answer)
        return answer

    async def tell_transitions(self, live: Object, verdicts: dict[str, Verdict], *, normal: bool) -> None:
        """Events for conditions that changed against the status in ``live``."""
        for kind, reason, message in transitions(live, verdicts):
            if normal or kind == "Warning":
                await self.events.emit(live, kind, reason, message)


QUIET = frozenset(
    {
        "Probing", "Starting", "Loading", "WaitingForPostgres", "RollingOut", "Waiting", "PodsNotReady", "HiveNotReady",
        "RollQueued", "UpToDate", "NoAgents", "AgentsNotReady", "RedisNotReady", "PostgresNotReady", "SchemaNotReady",
        "NamespaceTerminating", "ServerChangePending",
    }
)  # fmt: skip
"""Reasons on the way to somewhere, or that only point at another condition: no news of their own."""

ALARMING = frozenset(
    {
        "CacheNotReady",
        "NewServerRefused",
        "DatabaseNotAccepted",
        "CutoverTimedOut",
        "NearConnectionLimit",
        "CertificateExpiring",
        "MayEvict",
        "MayLoseMessages",
        "NoReplicas",
        "EgressDenied",
    }
)  # fmt: skip
"""Reasons of a condition that is True, and yet somebody should do something."""


def transitions(live: Object, verdicts: dict[str, Verdict]) -> list[tuple[Literal["Normal", "Warning"], str, str]]:
    """What is worth an Event: conditions whose status or reason differs from what ``live`` says. Pure."""
    news: list[tuple[Literal["Normal", "Warning"], str, str]] = []
    told: set[str] = set()
    for kind, verdict in verdicts.items():
        before = condition(live, kind) or {}
        same = (before.get("status"), before.get("reason")) == (verdict.status, verdict.reason)
        if same or verdict.reason in QUIET or verdict.reason in told:
            continue
        told.add(verdict.reason)
        fine = verdict.status == "True" and verdict.reason not in ALARMING
        news.append(("Normal" if fine else "Warning", verdict.reason, verdict.message))
    return news
