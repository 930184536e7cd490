"""The servers of a hive in force, and the way to others: what ``plan.cutover`` decides is brought about here.

The book is written before anything is done that it tells of, so that whoever looks next, after a crash too, goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from agenthive_operator.api.agent import Agent
from agenthive_operator.api.hive import AgentHive
from agenthive_operator.api.meta import InvalidObjectError
from agenthive_operator.backends.candidates import postgres_candidate, redis_candidate
from agenthive_operator.backends.kube import POD, ApiError, Object, secret_data
from agenthive_operator.backends.remains import look_at_remains
from agenthive_operator.backends.reports import PostgresReport, StoreReport
from agenthive_operator.plan import names
from agenthive_operator.plan.agent import GRACE_BEYOND_DRAIN_SECONDS
from agenthive_operator.plan.book import SERVERS, Book, Gates, book_of, data_of
from agenthive_operator.plan.cutover import (
    ACCEPT_ANNOTATION,
    RETRY_ANNOTATION,
    Candidate,
    Note,
    Remains,
    Seen,
    Step,
    decide,
)
from agenthive_operator.plan.external import Server
from agenthive_operator.plan.servers import encoded
from agenthive_operator.reconcile.adoption import book_of_agents
from agenthive_operator.reconcile.cache import Key, controller_of
from agenthive_operator.reconcile.children import is_labelled
from agenthive_operator.reconcile.conditions import Problem, Verdict
from agenthive_operator.reconcile.context import Context
from agenthive_operator.reconcile.monitor import Monitor
from agenthive_operator.reconcile.stores import Connection, Stores, needs_of, scope_of

logger = logging.getLogger(__name__)

CONDITIONS: Final[Mapping[Server, str]] = {"redis": "RedisReady", "postgres": "PostgresReady"}
REMAINS_SECONDS: Final = 1.0
STOP_BEYOND_SECONDS: Final = GRACE_BEYOND_DRAIN_SECONDS + 45.0


@dataclass(frozen=True, slots=True)
class Servers:
    """Where both stores of a hive are: those that the spec and its Secrets name, or those in force."""

    redis: Connection
    postgres: Connection

    def of(self, server: Server) -> Connection:
        """The connection of one server."""
        return self.redis if server == "redis" else self.postgres


class Cutovers:
    """Looks after the servers in force of all hives."""

    def __init__(self, context: Context, stores: Stores) -> None:
        self._context = context
        self._stores = stores
        self._books: dict[Key, tuple[str, Book]] = {}
        wake, permit = context.queue.add, context.kube.check
        self._candidates: Mapping[Server, Monitor[Candidate]] = {
            server: Monitor[Candidate](f"new {server}", wake, good=lambda found: found.ok, permit=permit)
            for server in SERVERS
        }
        self._remains = Monitor[Remains](
            "remains", wake, steady=REMAINS_SECONDS, good=lambda found: not found.problem, permit=permit
        )
        self.monitors: tuple[Monitor[Any], ...] = (*self._candidates.values(), self._remains)

    # ---- what is in force

    async def book(self, key: Key, hive: AgentHive, wanted: Servers, *, known: bool) -> Book:
        """The book of a hive; of one that an older operator made, what its agents use. Raises ``ApiError``.

        ``known``: an operator has concluded on this hive before.
        """
        secret = await self._context.children.live("Secret", key.namespace, names.connections_name(key.name))
        if secret is not None and is_labelled(secret) and is_owned(secret, hive):
            return book_of(secret_data(secret))
        uid, book = self._books.get(key, ("", Book()))
        if uid == hive.metadata.uid:
            return book  # somebody deleted it; it is written again
        if not known:
            return Book()
        return await book_of_agents(self._context, key, hive, wanted.of)

    async def wanted(self, key: Key, hive: AgentHive) -> Servers:
        """Where the spec leads to. Raises ``ApiError``."""
        redis = await self._stores.connection(key, hive, "redis")
        return Servers(redis, await self._stores.connection(key, hive, "postgres"))

    def in_force(self, key: Key, book: Book, wanted: Servers) -> Servers:
        """The servers to look at: those in force, else those wanted."""
        redis, postgres = (self._in_force(key, server, book, wanted.of(server)) for server in SERVERS)
        return Servers(redis, postgres)

    def _in_force(self, key: Key, server: Server, book: Book, wanted: Connection) -> Connection:
        held = book.held(server)
        if held is None:
            return wanted
        if wanted.server is not None and wanted.server.leads_as(held):
            return replace(wanted, server=held)
        return self._stores.held(key, server, held)

    def kept(self, hive: AgentHive, book: Book) -> list[Object]:
        """Objects that are not planned and yet stay: the book, and servers in force that the spec does not name."""
        components = {"connections", *running(book)}
        return [
            child
            for child in self._context.cache.owned(hive.metadata.uid)
            if (child["metadata"].get("labels") or {}).get(names.COMPONENT_LABEL) in components
            and child["kind"] != "NetworkPolicy"  # planned anew as long as the server runs
        ]

    # ---- one step

    async def step(
        self,
        key: Key,
        live: Object,
        hive: AgentHive,
        book: Book,
        wanted: Servers,
        bus: StoreReport | None,
        store: PostgresReport | None,
    ) -> tuple[Step, Problem | None]:
        """Decide, write the book, tell. Raises ``ApiError``."""
        annotations = live["metadata"].get("annotations") or {}
        stopping = book.move is not None and book.move.phase == "stopping"
        pods = await self._running(key, hive) if stopping else ()
        step = decide(
            Seen(
                book=book,
                wanted={server: wanted.of(server).server for server in SERVERS},
                missing={
                    server: found.message for server in SERVERS if (found := wanted.of(server).missing) is not None
                },
                good={
                    "redis": bus is not None and bus.ok,
                    "postgres": store is not None and store.store.ok and store.schema.ok,
                },
                identities={
                    "redis": bus.identity if bus else "",
                    "postgres": store.store.identity if store else "",
                },
                candidates={server: self._candidate(key, hive, server, book, wanted) for server in SERVERS},
                strategy=hive.spec.redis.cutover.strategy,
                timeout=hive.spec.redis.cutover.timeout_seconds,
                suspended=hive.spec.suspend,
                remains=self._look_at_remains(key, hive, book, pods),
                running=pods,
                stop_seconds=self._stop_seconds(key),
                accept=annotations.get(ACCEPT_ANNOTATION, ""),
                retry=annotations.get(RETRY_ANNOTATION, ""),
                command=f"kubectl annotate hive {key.name} -n {key.namespace}",
                now=self._context.clock().timestamp(),
            )
        )
        if step.accepted and annotations.get(ACCEPT_ANNOTATION) == "true":
            # It has done its work and is not to accept the next accident. Before the book says that it was needed.
            # rbac: agenthive.dev/agenthives patch
            answer = await self._context.kube.merge_patch(
                live, {"metadata": {"annotations": {ACCEPT_ANNOTATION: None}}}
            )
            self._context.cache.put(answer)
        if step.book != Book():
            problem = await self._context.children.apply([plan_book(hive, step.book)])
            if problem is not None:
                return Step(book), problem
            self._books[key] = hive.metadata.uid, step.book
        if step.event:
            await self._context.events.emit(live, "Normal", "Cutover", step.event)
            logger.info("%s: %s", key, step.event)
        if step.book != book:
            self._context.queue.add(key)  # what is in force is to be looked at
        return step, None

    def _candidate(self, key: Key, hive: AgentHive, server: Server, book: Book, wanted: Servers) -> Candidate | None:
        """What was found at the wanted server, where that is another than the one in force."""
        monitor, held = self._candidates[server], book.held(server)
        new, access = wanted.of(server).server, wanted.of(server).access
        if held is None or new is None or access is None or new.leads_as(held):
            monitor.forget(key)
            return None
        scope, needs = scope_of(hive), needs_of(hive, access)

        async def check() -> Candidate:
            dialled = await self._stores.dial_all(access, server)
            if isinstance(dialled, StoreReport):
                return Candidate(False, dialled.reason, dialled.message)
            if server == "redis":
                return await redis_candidate(dialled, scope, needs, shown=access.url)
            return await postgres_candidate(dialled, scope, shown=access.url)

        found = monitor.watch(key, (access, scope, needs), check)
        if found is not None and not found.ok:
            monitor.poke(key)
        return found

    def _look_at_remains(self, key: Key, hive: AgentHive, book: Book, pods: tuple[str, ...]) -> Remains | None:
        """Sets the gates of the Redis in force as the book wants them, and counts what is left there."""
        gates = book.gates
        if gates is None or book.redis is None or book.postgres is None:
            self._remains.forget(key)
            return None
        redis = self._stores.held(key, "redis", book.redis).access
        postgres = self._stores.held(key, "postgres", book.postgres).access
        wish: Gates = "stopped" if gates == "stopping" and not pods else gates
        until = book.move.until if book.move is not None else 0.0
        closes = book.move is None or "redis" in book.move.servers
        scope, agents, kube = scope_of(hive), self._topics(key), self._context.kube

        async def check() -> Remains:
            if redis is None or postgres is None:
                return Remains(wish, problem="the book holds no URL that could be used")
            dialled, other = (
                await self._stores.dial_all(redis, "redis"),
                await self._stores.dial_all(postgres, "postgres"),
            )
            if isinstance(dialled, StoreReport):
                return Remains(wish, problem=dialled.message)
            if isinstance(other, StoreReport):
                return Remains(wish, problem=other.message)
            left = until - self._context.clock().timestamp()
            try:
                kube.check()  # gates are outside of Kubernetes, where nothing else keeps a former leader from them
            except ApiError as error:
                return Remains(wish, problem=str(error))
            return await look_at_remains(dialled.url, other.upkeep, scope, agents, wish, left, closes=closes)

        target = book.move.target if book.move is not None else ""
        return self._remains.watch(key, (redis, wish, until, target, tuple(sorted(agents.items()))), check)

    def _topics(self, key: Key) -> dict[str, tuple[str, ...]]:
        """The topics of each agent of a hive."""
        return {
            agent["metadata"]["name"]: tuple((agent.get("spec") or {}).get("topics") or ())
            for agent in self._context.cache.agents_of(key.namespace, key.name)
        }

    def _stop_seconds(self, key: Key) -> float:
        """How long the agents' pods may take to end."""
        drain = 0
        for entry in self._context.cache.agents_of(key.namespace, key.name):
            try:
                drain = max(drain, Agent.parse(entry).spec.drain_seconds)
            except InvalidObjectError:
                continue
        return drain + STOP_BEYOND_SECONDS

    async def _running(self, key: Key, hive: AgentHive) -> tuple[str, ...]:
        """Agents that have pods, or may still get some. That none is left only the API server's word counts for."""
        found = set()
        for agent in self._context.cache.agents_of(key.namespace, key.name):
            name = agent["metadata"]["name"]
            deployment = self._context.cache.get("Deployment", key.namespace, name)
            # A look that is under way may have begun when agents were still to run.
            begun = self._context.queue.schedule.handles(Key("Agent", key.namespace, name))
            if begun or (deployment is not None and not is_still(deployment)):
                found.add(name)
        if found:
            return tuple(sorted(found))
        # rbac: core/pods list
        selector = names.selector_string(names.server_selector(hive.metadata.name, "agent"))
        pods, _ = await self._context.kube.list(POD, key.namespace, labels=selector)
        living = (pod for pod in pods if lives(pod))
        return tuple(sorted({(pod["metadata"].get("labels") or {}).get(names.AGENT_LABEL, "?") for pod in living}))

    def rest(self, key: Key) -> None:
        """Nothing is to be moved any more, as the hive is about to go."""
        for monitor in self.monitors:
            monitor.forget(key)

    def forget(self, key: Key) -> None:
        """The hive is gone."""
        self.rest(key)
        self._books.pop(key, None)


# ---- pure


def plan_book(hive: AgentHive, book: Book) -> Object:
    """The Secret that holds the book of a hive; agents are never given it."""
    return names.hive_child("v1", "Secret", hive, "connections", type="Opaque", data=encoded(data_of(book)))


def running(book: Book) -> list[names.Component]:
    """The servers in force that are the operator's own."""
    return [server for server in SERVERS if (held := book.held(server)) is not None and held.managed]


def is_owned(secret: Object, hive: AgentHive) -> bool:
    """Whether a Secret is this hive's and not that of a former one of its name."""
    owner = controller_of(secret)
    return owner is not None and owner["uid"] == hive.metadata.uid


def is_still(deployment: Object) -> bool:
    """Whether a Deployment has no pods and will not get any: its controller has seen that it is to have none."""
    status, spec = deployment.get("status") or {}, deployment["spec"]
    seen = status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
    return spec.get("replicas", 1) == 0 and seen and not status.get("replicas", 0)


def lives(pod: Object) -> bool:
    """Whether a pod's processes may still run."""
    return (pod.get("status") or {}).get("phase") not in {"Succeeded", "Failed"}


def with_notes(verdicts: dict[str, Verdict], notes: Mapping[Server, Note]) -> dict[str, Verdict]:
    """The conditions of a hive with what is to be said of a change of its servers.

    RedisReady and PostgresReady speak of the server in force; Ready is not True while the spec's is another.
    """
    told = dict(verdicts)
    for server, note in notes.items():
        kind, verdict = CONDITIONS[server], told[CONDITIONS[server]]
        moves = note.reason == "CuttingOver"
        what = "the hive moves to another server" if moves else "this stays in use, and of what the spec names now"
        text = f"{verdict.message}; {what}: {note.text}"
        if verdict.status == "True":
            told[kind] = Verdict("True", note.reason, text)
        else:
            told[kind] = replace(verdict, message=text)
    first = next(iter(notes.items()), None)
    if first is not None and all(told[kind].status == "True" for kind in CONDITIONS.values()):
        server, note = first
        told["Ready"] = Verdict("False", "ServerChangePending", f"{CONDITIONS[server]} {note.reason}: {note.text}")
    return told
