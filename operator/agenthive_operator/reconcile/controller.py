"""The operator without kopf: takes what watches tell, keeps the queue running, compares with lists now and then."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass
from typing import Final

from agenthive_operator.backends.events import EventRecorder
from agenthive_operator.backends.kube import CHILDREN, CUSTOM, ApiError, Kube, Object, Resource
from agenthive_operator.backends.references import References
from agenthive_operator.backends.reports import Figures, PostgresReport, StoreReport
from agenthive_operator.backends.resolve import Resolver
from agenthive_operator.reconcile.agent import AgentReconciler
from agenthive_operator.reconcile.cache import SELECTOR, Change, Key, ObjectCache, keys_of
from agenthive_operator.reconcile.children import Children
from agenthive_operator.reconcile.context import Context, Options
from agenthive_operator.reconcile.hive import HiveReconciler
from agenthive_operator.reconcile.logins import Logins
from agenthive_operator.reconcile.monitor import Monitor
from agenthive_operator.reconcile.queue import KeyedQueue, RetryLater
from agenthive_operator.reconcile.status import figure_fields, figures_in, material

logger = logging.getLogger(__name__)

FIGURES_SECONDS: Final = 5.0
BUSY_FIGURES_SECONDS: Final = 2.4
"""With the jitter at most 3 s: this long the status may tell of a backlog that is gone."""
SPREAD_SECONDS: Final = 20.0
"""A resync spreads its reconciles over this long."""
MIGRATION_SECONDS: Final = 660.0


@dataclass(frozen=True, slots=True)
class Health:
    """A look at the controller at one moment; ``beat`` is when, in seconds of ``time.monotonic``."""

    beat: float
    synced: bool = False
    depth: int = 0
    oldest_wait: float = 0.0
    oldest_in_flight: float = 0.0
    last_event: float = 0.0
    objects: int = 0


class Controller:
    """Everything that reconciles, for one API server. ``observe`` feeds it, ``run`` runs it."""

    def __init__(self, kube: Kube, options: Options) -> None:
        cache = ObjectCache()
        self.queue: KeyedQueue[Key] = KeyedQueue(self._reconcile, workers=options.workers)
        self.context = Context(
            options=options,
            kube=kube,
            cache=cache,
            children=Children(kube, cache),
            references=References(kube, self._reference_changed, namespaces=options.namespaces),
            events=EventRecorder(kube),
            resolver=Resolver(kube, enabled=options.resolve_services),
            queue=self.queue,
            redis=Monitor[StoreReport]("redis", self.queue.add, good=lambda report: report.ok),
            caches=Monitor[StoreReport]("caches", self.queue.add, good=lambda report: report.ok),
            postgres=Monitor[PostgresReport](
                "postgres",
                self.queue.add,
                good=lambda report: report.store.ok and report.schema.ok,
                timeout=MIGRATION_SECONDS,
            ),
            figures=Monitor[dict[str, Figures]]("figures", self._figures_changed, steady=figures_pause),
            logins=Logins(kube, cache, self.queue),
        )
        self._hives = HiveReconciler(self.context)
        self._agents = AgentReconciler(self.context)
        self._namespaces: tuple[str | None, ...] = options.namespaces or (None,)
        self._last_event = time.monotonic()
        self.health = Health(beat=time.monotonic())
        self.synced = asyncio.Event()

    async def run(self) -> None:
        """Run until cancelled. ``synced`` is set once the first complete lists are in the cache."""
        try:
            await self._first_sync()
            async with asyncio.TaskGroup() as group:
                group.create_task(self.context.references.run(), name="references")
                context = self.context
                for monitor in (context.redis, context.caches, context.postgres, context.figures):
                    group.create_task(monitor.run(), name="monitor")
                group.create_task(self.queue.run(), name="queue")
                group.create_task(self._resync_for_ever(), name="resync")
                group.create_task(self._beat(), name="beat")
        finally:
            await self._hives.stores.aclose()

    # ---- what is told

    def observe(self, kind: str | None, obj: Object) -> None:
        """Take in a watch event: its type (ADDED, MODIFIED, DELETED, None for a first listing) and the object."""
        self._last_event = time.monotonic()
        change = self.context.cache.remove(obj) if kind == "DELETED" else self.context.cache.put(obj)
        self._react(obj, change)

    def _react(self, obj: Object, change: Change) -> None:
        if change is Change.NONE:
            return
        custom = obj["kind"] in {"AgentHive", "Agent"}
        if custom and change is Change.STATUS:
            return  # our own words
        for key in keys_of(obj):
            self.queue.add(key)
        namespace = obj["metadata"].get("namespace", "")
        if obj["kind"] == "Agent":  # its hive counts agents, and the connections that their pods may open
            hive = ((obj.get("spec") or {}).get("hiveRef") or {}).get("name", "")
            self.queue.add(Key("AgentHive", namespace, hive))
        if obj["kind"] == "AgentHive" and change in {Change.ADDED, Change.REMOVED}:
            self.context.enqueue_agents(Key("AgentHive", namespace, obj["metadata"]["name"]))

    def _reference_changed(self, referrer: tuple[str, str, str]) -> None:
        self.queue.add(Key(*referrer))

    def _figures_changed(self, hive: Key) -> None:
        """Only what is worth writing wakes a reconciler: figures of a busy hive change at every look."""
        latest = self.context.figures.latest(hive) or {}
        for agent in self.context.cache.agents_of(hive.namespace, hive.name):
            figures = latest.get(agent["metadata"]["name"])
            if figures is not None and material(figures_in(agent.get("status") or {}), figure_fields(figures)):
                self.queue.add(Key("Agent", hive.namespace, agent["metadata"]["name"]))
        live = self.context.cache.get(*hive)
        known = figures_in((live or {}).get("status") or {})
        if material(known, {"backlog": sum(figures.backlog for figures in latest.values())}):
            self.queue.add(hive)

    # ---- what is done

    async def _reconcile(self, key: Key) -> float | None:
        try:
            if key.kind == "AgentHive":
                return await self._hives.reconcile(key)
            return await self._agents.reconcile(key)
        except ApiError as error:
            if error.transient or error.status == 404:
                # 404: the object or its namespace went while we worked; the next look finds out which.
                raise RetryLater(str(error), after=error.retry_after) from error
            raise

    # ---- lists

    async def _first_sync(self) -> None:
        """Fill the cache before anything is decided; tries until the API server answers."""
        for resource in (*CUSTOM, *CHILDREN):
            delay = 0.2
            while not await self._compare(resource, quiet=delay < 5):
                await asyncio.sleep(random.uniform(delay / 2, delay))  # noqa: S311 - jitter
                delay = min(10.0, delay * 2)
        for resource in CUSTOM:
            for obj in self.context.cache.all(resource.kind):
                for key in keys_of(obj):
                    self.queue.add(key)
        self.synced.set()
        logger.info("synced: %d objects", len(self.context.cache))

    async def _compare(self, resource: Resource, *, quiet: bool = False) -> bool:
        """Compare the cache with complete lists; False if one of them could not be had, which is not absence."""
        labels = "" if resource in CUSTOM else SELECTOR
        complete = True
        for namespace in self._namespaces:
            try:
                # rbac: agenthive.dev/agenthives list
                # rbac: agenthive.dev/agents list
                # rbac: apps/deployments list
                # rbac: apps/statefulsets list
                # rbac: core/services list
                # rbac: core/secrets list
                # rbac: core/configmaps list
                # rbac: core/pods list
                # rbac: networking.k8s.io/networkpolicies list
                items, version = await self.context.kube.list(resource, namespace, labels=labels)
            except ApiError as error:
                complete = False
                logger.log(logging.INFO if quiet else logging.WARNING, "list of %s: %s", resource.plural, error)
                continue
            for obj in self.context.cache.replace(resource.kind, namespace, items, version):
                gone = self.context.cache.get(*_ref(obj)) is None
                self._react(obj, Change.REMOVED if gone else Change.UPDATED)
        return complete

    async def _resync_for_ever(self) -> None:
        while True:
            seconds = self.context.options.resync_seconds
            await asyncio.sleep(random.uniform(0.8, 1.2) * seconds)  # noqa: S311 - jitter
            await self.resync()

    async def resync(self) -> None:
        """Repair what watches missed, and have everything looked at once more."""
        for resource in (*CUSTOM, *CHILDREN):
            await self._compare(resource)
        for resource in CUSTOM:
            for obj in self.context.cache.all(resource.kind):
                for key in keys_of(obj):
                    self.queue.add_after(key, random.uniform(0, SPREAD_SECONDS))  # noqa: S311 - spread

    async def _beat(self) -> None:
        while True:
            now = asyncio.get_running_loop().time()
            schedule = self.queue.schedule
            self.health = Health(
                beat=time.monotonic(),
                synced=self.synced.is_set(),
                depth=schedule.depth,
                oldest_wait=schedule.oldest_wait(now),
                oldest_in_flight=schedule.oldest_in_flight(now),
                last_event=self._last_event,
                objects=len(self.context.cache),
            )
            await asyncio.sleep(1.0)


def figures_pause(figures: dict[str, Figures]) -> float:
    """Seconds until the next look at the queues of a hive. Pure."""
    busy = any(entry.backlog or entry.in_flight for entry in figures.values())
    return BUSY_FIGURES_SECONDS if busy else FIGURES_SECONDS


def _ref(obj: Object) -> tuple[str, str, str]:
    return obj["kind"], obj["metadata"].get("namespace", ""), obj["metadata"]["name"]
