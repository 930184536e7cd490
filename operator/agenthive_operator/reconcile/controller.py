"""The operator without kopf: takes what watches tell, keeps the queue running, compares with lists now and then.

A replica that does not act (see ``backends.lease``) keeps its cache up to date and does nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from agenthive_operator import log
from agenthive_operator.backends.events import EventRecorder
from agenthive_operator.backends.kube import BY_KIND, CHILDREN, CUSTOM, ApiError, Kube, Object, Resource
from agenthive_operator.backends.references import References
from agenthive_operator.backends.reports import Figures, PostgresReport, StoreReport
from agenthive_operator.backends.resolve import Resolver
from agenthive_operator.log import Sparing
from agenthive_operator.metrics import QueueFigures, Snapshot
from agenthive_operator.plan.names import AGENT_LABEL, HIVE_LABEL
from agenthive_operator.reconcile.absence import confirm_gone
from agenthive_operator.reconcile.agent import AgentReconciler
from agenthive_operator.reconcile.cache import SELECTOR, Change, Key, ObjectCache, keys_of, wish_of
from agenthive_operator.reconcile.children import Children
from agenthive_operator.reconcile.context import Context, Options
from agenthive_operator.reconcile.hearing import Hearing
from agenthive_operator.reconcile.hive import HiveReconciler
from agenthive_operator.reconcile.logins import Logins
from agenthive_operator.reconcile.monitor import Monitor
from agenthive_operator.reconcile.queue import KeyedQueue, RetryLater
from agenthive_operator.reconcile.rolls import Rolls
from agenthive_operator.reconcile.status import figure_fields, figures_in, material
from agenthive_operator.reconcile.users import Users

logger = logging.getLogger(__name__)

FIGURES_SECONDS: Final = 5.0
BUSY_FIGURES_SECONDS: Final = 2.4
"""With the jitter at most 3 s: this long the status may tell of a backlog that is gone."""
SETTLED_SECONDS: Final = 0.1
"""How often it is looked whether everything was looked at once, after a start."""
SPREAD_SECONDS: Final = 20.0
"""A resync spreads its reconciles over this long."""
MIGRATION_SECONDS: Final = 660.0
LIST_RETRY_SECONDS: Final = 10.0
REFUSED_RETRY_SECONDS: Final = 30.0
RELISTED_SECONDS: Final = 0.3
"""What a watch lists when it begins has arrived by then."""
SETTLE_SECONDS: Final = 30.0
"""What a predecessor wrote at its end arrives within this long."""


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
    acting: bool = False
    silent: frozenset[str] = frozenset()


class Listed(Enum):
    """What became of a LIST."""

    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"
    """The namespace does not exist (yet), or holds no Role for us."""


class Controller:
    """Everything that reconciles, for one API server. ``observe`` feeds it, ``run`` runs it.

    ``elected`` is set once this replica is to act; None: it is the only one. ``ended`` is told of each look at an
    object its kind, how long it took (seconds) and what it raised.
    """

    def __init__(
        self,
        kube: Kube,
        options: Options,
        elected: asyncio.Event | None = None,
        ended: Callable[[str, float, BaseException | None], None] = lambda kind, seconds, error: None,
    ) -> None:
        cache = ObjectCache()
        self.queue: KeyedQueue[Key] = KeyedQueue(
            self._reconcile,
            workers=options.workers,
            about=lambda key: log.about(*key),
            ended=lambda key, seconds, error: ended(key.kind, seconds, error),
        )
        redis = Monitor[StoreReport]("redis", self.queue.add, good=lambda report: report.ok, permit=kube.check)
        self.context = Context(
            options=options,
            kube=kube,
            cache=cache,
            children=Children(kube, cache),
            references=References(kube, self._reference_changed, namespaces=options.namespaces),
            events=EventRecorder(kube),
            resolver=Resolver(kube, enabled=options.resolve_services),
            queue=self.queue,
            redis=redis,
            caches=Monitor[StoreReport]("caches", self.queue.add, good=lambda report: report.ok, permit=kube.check),
            postgres=Monitor[PostgresReport](
                "postgres",
                self.queue.add,
                good=lambda report: report.store.ok and report.schema.ok,
                timeout=MIGRATION_SECONDS,
                permit=kube.check,
            ),
            figures=Monitor[dict[str, Figures]](
                "figures", self._figures_changed, steady=figures_pause, permit=kube.check
            ),
            logins=Logins(kube, cache, self.queue),
            rolls=Rolls(cache, self.queue),
            users=Users(kube, cache, look_at=self.queue.add, look_later=self.queue.add_after, poke=redis.poke),
        )
        self._hives = HiveReconciler(self.context)
        self._agents = AgentReconciler(self.context)
        self._namespaces: tuple[str | None, ...] = options.namespaces or (None,)
        self._read: set[str | None] = set()
        self._refused: set[str | None] = set()
        self._elected = elected
        self._acting_since: float | None = None
        self._last_event = time.monotonic()
        self._hearing = Hearing()
        self._list_again = 0.0
        self._relisted: dict[tuple[Resource, str | None], None] = {}
        self._relist = asyncio.Event()
        self._sparing = Sparing()
        self.health = Health(beat=time.monotonic())
        self.synced = asyncio.Event()

    async def run(self) -> None:
        """Run until cancelled. ``synced`` is set once the first complete lists are in the cache."""
        try:
            async with asyncio.TaskGroup() as group:
                for namespace in self._namespaces:
                    group.create_task(self._keep_reading(namespace), name=f"lists of {namespace or 'the cluster'}")
                await self.synced.wait()
                logger.info("synced: %d objects", len(self.context.cache))
                group.create_task(self.context.references.run(), name="references")
                group.create_task(self._beat(), name="beat")
                group.create_task(self._compare_relisted(), name="compare")
                await self._begin_to_act()
                context = self.context
                monitors: list[Monitor[Any]] = [context.redis, context.caches, context.postgres, context.figures]
                for monitor in (*monitors, *self._hives.cutovers.monitors):
                    group.create_task(monitor.run(), name="monitor")
                group.create_task(self.queue.run(), name="queue")
                group.create_task(self._tell_settled(time.monotonic()), name="settled")
        finally:
            await self._hives.stores.aclose()

    async def _begin_to_act(self) -> None:
        """Wait for our turn; then what the predecessor wrote is read before anything is decided."""
        if self._elected is not None:
            await self._elected.wait()
            await asyncio.gather(*(self._list_all(namespace) for namespace in self._read))
        self._acting_since = time.monotonic()
        for key in self._keys():
            self._add(key)

    # ---- what is told

    def observe(self, kind: str | None, obj: Object) -> None:
        """Take in a watch event: its type (ADDED, MODIFIED, DELETED, None for a first listing) and the object."""
        self._last_event = time.monotonic()
        if kind is not None:  # what a watch lists when it begins is not its own word
            namespaces = self.context.options.namespaces
            self._hearing.told((obj["kind"], obj["metadata"].get("namespace", "") if namespaces else None))
        change = self.context.cache.remove(obj) if kind == "DELETED" else self.context.cache.put(obj)
        self._react(obj, change)

    def relisted(self, resource: Resource, namespace: str | None) -> None:
        """A watch began anew with a list: what was deleted meanwhile, nobody tells unless we compare."""
        self._relisted[(resource, namespace)] = None
        self._relist.set()

    def _react(self, obj: Object, change: Change) -> None:
        namespace = obj["metadata"].get("namespace", "")
        if change is Change.NONE or not self._acts_in(namespace):
            return
        custom = obj["kind"] in {"AgentHive", "Agent"}
        if custom and change is Change.STATUS and not self._took_over_lately():
            return  # our own words
        if obj["kind"] == "PodDisruptionBudget" and change is Change.STATUS:
            return  # who may be evicted now changes with every pod, and nothing here depends on it
        for key in keys_of(obj):
            self._add(key)
        if obj["kind"] == "Agent":  # its hive counts agents, and the connections that their pods may open
            hive = ((obj.get("spec") or {}).get("hiveRef") or {}).get("name", "")
            self._add(Key("AgentHive", namespace, hive))
        if obj["kind"] == "Pod" and change is Change.REMOVED:
            labels = obj["metadata"].get("labels") or {}
            if (agent := labels.get(AGENT_LABEL)) and self.context.cache.get("Agent", namespace, agent) is None:
                self._add(Key("AgentHive", namespace, labels.get(HIVE_LABEL, "")))  # which may have waited for it
        if obj["kind"] == "AgentHive" and change in {Change.ADDED, Change.REMOVED}:
            self.context.enqueue_agents(Key("AgentHive", namespace, obj["metadata"]["name"]))

    def _went(self, obj: Object) -> None:
        """The API server says that this object is gone."""
        self._react(obj, self.context.cache.remove(obj))

    def _acts_in(self, namespace: str) -> bool:
        """Whether objects of a namespace are reconciled: not on a standby, nor before all of it was read."""
        return self._acting_since is not None and (None in self._read or namespace in self._read)

    def _took_over_lately(self) -> bool:
        """Whether a status may be a predecessor's last word, which has to be compared with ours."""
        since = self._acting_since
        return self._elected is not None and since is not None and time.monotonic() - since < SETTLE_SECONDS

    def _add(self, key: Key) -> None:
        if self._acts_in(key.namespace):
            self.queue.add(key)

    def _keys(self, namespace: str | None = None) -> Iterator[Key]:
        """Everything that is reconciled (in one namespace), as far as it is known."""
        for resource in CUSTOM:
            for obj in self.context.cache.all(resource.kind):
                if namespace in {None, obj["metadata"].get("namespace", "")}:
                    yield from keys_of(obj)

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
        if not self._acts_in(key.namespace):
            return None  # its namespace cannot be read any more; should it come back, all in it is looked at
        before = self.context.cache.get(*key)
        try:
            if key.kind == "AgentHive":
                again = await self._hives.reconcile(key)
            else:
                again = await self._agents.reconcile(key)
        except ApiError as error:
            if error.transient or error.status == 404:
                # 404: the object or its namespace went while we worked; the next look finds out which.
                if error.status in {404, 409}:
                    await self._read_again(key)
                raise RetryLater(str(error), after=error.retry_after) from error
            if error.status == 403:
                logger.warning("%s: %s", key, error)
                raise RetryLater("refused") from error
            raise
        after = self.context.cache.get(*key)
        if after is not None and wish_of(after) != wish_of(before):
            # The answer to a write of ours brought a newer wish than the one that was acted upon. To its watch event
            # nobody reacts any more: it is known by then.
            self._add(key)
        return again

    async def _read_again(self, key: Key) -> None:
        """What is known of an object may be old, as a watch that is silent leaves it: ask for it."""
        try:
            # rbac: agenthive.dev/agenthives get
            # rbac: agenthive.dev/agents get
            found = await self.context.kube.get(BY_KIND[key.kind], key.namespace, key.name)
        except ApiError as error:
            logger.debug("%s: %s", key, error)
            return
        known = self.context.cache.get(*key)
        if found is not None:
            self.context.cache.put(found)
        elif known is not None:
            self._went(known)

    async def _tell_settled(self, began: float) -> None:
        """Log when everything was looked at once: every server asked, every object concluded."""
        monitors = (self.context.redis, self.context.caches, self.context.postgres)
        await self.queue.drained()
        while any(monitor.unanswered for monitor in monitors) or self.queue.schedule.is_busy:  # noqa: ASYNC110 - once
            await asyncio.sleep(SETTLED_SECONDS)
        logger.info("looked at everything once within %.1f s", time.monotonic() - began)

    # ---- lists

    async def _keep_reading(self, namespace: str | None) -> None:
        """Read a namespace (None: the cluster), and now and then repair what watches missed.

        One that refuses us is waited for, and holds up no other.
        """
        delay = 0.5
        while True:
            if await self._list_all(namespace):
                self._take_in(namespace)
                delay = 0.5
                seconds = self.context.options.resync_seconds
                await asyncio.sleep(random.uniform(0.8, 1.2) * seconds)  # noqa: S311 - jitter
            else:
                self._leave_out(namespace)
                await asyncio.sleep(random.uniform(delay / 2, delay))  # noqa: S311 - jitter
                delay = min(REFUSED_RETRY_SECONDS, delay * 2)

    def _take_in(self, namespace: str | None) -> None:
        """All of a namespace is in the cache: have everything in it looked at, at once when that is news."""
        news = namespace not in self._read
        if namespace in self._refused:
            logger.info("namespace %s can be read now", namespace)
        self._refused.discard(namespace)
        self._read.add(namespace)
        for key in self._keys(namespace) if self._acting_since is not None else ():
            self.queue.add_after(key, 0.0 if news else random.uniform(0, SPREAD_SECONDS))  # noqa: S311 - spread
        self._settle()

    def _leave_out(self, namespace: str | None) -> None:
        if namespace not in self._refused:
            logger.warning("namespace %s is left out until it can be read", namespace)
        self._refused.add(namespace)
        self._read.discard(namespace)
        self._settle()

    def _settle(self) -> None:
        """The first sync is over once something was read and nothing is left that may still be."""
        if self._read and self._read | self._refused >= set(self._namespaces):
            self.synced.set()

    async def _list_all(self, namespace: str | None) -> bool:
        """Compare the cache with complete lists of every kind; False if the namespace refuses us.

        Tries until the API server answers.
        """
        for resource in (*CUSTOM, *CHILDREN):
            delay = 0.2
            while (listed := await self._compare(resource, namespace, quiet=delay < 5)) is Listed.FAILED:
                await asyncio.sleep(max(self._list_again, random.uniform(delay / 2, delay)))  # noqa: S311 - jitter
                delay = min(LIST_RETRY_SECONDS, delay * 2)
            if listed is Listed.REFUSED:
                return False
        return True

    async def _compare_relisted(self) -> None:
        """Compare each kind whose watch began anew."""
        while True:
            await self._relist.wait()
            self._relist.clear()
            await asyncio.sleep(RELISTED_SECONDS)
            for resource, namespace in list(self._relisted):
                if namespace not in self._read:
                    continue  # all of it is about to be read anyway
                del self._relisted[(resource, namespace)]
                if await self._compare(resource, namespace, quiet=True, deletions=True) is Listed.FAILED:
                    self.relisted(resource, namespace)
                    await asyncio.sleep(max(self._list_again, random.uniform(1, LIST_RETRY_SECONDS)))  # noqa: S311 - jitter

    async def _compare(
        self, resource: Resource, namespace: str | None, *, quiet: bool = False, deletions: bool = False
    ) -> Listed:
        """Compare the cache with a complete list. One that could not be had is not absence, and one that lacks
        something is only a hint: what is gone the API server has to say of each object.

        ``deletions``: those alone are looked for, by names, as the watch has just told what there is. Otherwise what
        this finds speaks of whether the watch tells what happens.
        """
        labels = "" if resource in CUSTOM else SELECTOR
        try:
            # rbac: agenthive.dev/agenthives list
            # rbac: agenthive.dev/agents list
            # rbac: apps/deployments list
            # rbac: apps/statefulsets list
            # rbac: core/services list
            # rbac: core/secrets list
            # rbac: core/configmaps list
            # rbac: core/pods list
            # rbac: policy/poddisruptionbudgets list
            # rbac: networking.k8s.io/networkpolicies list
            items, version = await self.context.kube.list(resource, namespace, labels=labels, metadata_only=deletions)
        except ApiError as error:
            refused = error.status == 403 and namespace is not None
            told = logging.INFO if quiet and not refused else logging.WARNING
            if refused and namespace in self._refused:
                told = logging.DEBUG  # said before, when it was left out
            logger.log(told, "list of %s: %s", resource.plural, error)
            self._list_again = error.retry_after or 0.0
            return Listed.REFUSED if refused else Listed.FAILED
        self._list_again = 0.0
        missed = [] if deletions else self.context.cache.take_in(items)
        lacking = self.context.cache.lacking(resource.kind, namespace, items, version)
        for obj in missed:
            self._react(obj, Change.UPDATED)
        found = await confirm_gone(self.context.kube, resource, lacking, self._went)
        if not deletions:
            self._hearing.listed((resource.kind, namespace), news=bool(missed) or found.gone > 0)
        if found.there:
            self._sparing.log(
                logger, logging.WARNING, "list",
                "the list of %s left out %d objects that are there; nothing is taken for gone that the API server has",
                resource.plural, found.there,
            )  # fmt: skip
        return Listed.FAILED if found.unknown else Listed.DONE

    @property
    def silent(self) -> frozenset[str]:
        """Kinds of which a watch tells nothing."""
        return frozenset(BY_KIND[kind].plural for kind, _ in self._hearing.silent)

    def snapshot(self) -> Snapshot:
        """What a scrape of the metrics reads."""
        now, context = asyncio.get_running_loop().time(), self.context
        queues = {
            "reconcile": self.queue.schedule, "redis": context.redis.queue.schedule,
            "caches": context.caches.queue.schedule, "postgres": context.postgres.queue.schedule,
            "figures": context.figures.queue.schedule,
        }  # fmt: skip
        return Snapshot(
            queues={
                name: QueueFigures(
                    schedule.depth, schedule.in_flight, schedule.oldest_wait(now), schedule.oldest_in_flight(now)
                )
                for name, schedule in queues.items()
            },
            objects=[obj for resource in CUSTOM for obj in context.cache.all(resource.kind)],
            acting=self._acting_since is not None,
            synced=self.synced.is_set(),
            silent=self.silent,
            figures={(hive.namespace, hive.name): held for hive, held in context.figures.results().items()},
        )

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
                acting=self._acting_since is not None,
                silent=self.silent,
            )
            await asyncio.sleep(1.0)


def figures_pause(figures: dict[str, Figures]) -> float:
    """Seconds until the next look at the queues of a hive. Pure."""
    busy = any(entry.backlog or entry.in_flight for entry in figures.values())
    return BUSY_FIGURES_SECONDS if busy else FIGURES_SECONDS


def _ref(obj: Object) -> tuple[str, str, str]:
    return obj["kind"], obj["metadata"].get("namespace", ""), obj["metadata"]["name"]
