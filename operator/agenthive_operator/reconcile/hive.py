"""One look at an AgentHive: gather, plan, apply, prune, probe, tell.

``reconcile`` is a flat chain of steps. It is level-triggered: it may run at any time, any number of times, and writes
only what differs.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import TypeAdapter, ValidationError

from agenthive_operator.api.hive import AgentHive, InstanceId
from agenthive_operator.api.meta import InvalidObjectError
from agenthive_operator.backends.kube import AGENT_HIVE, Object, secret_data
from agenthive_operator.backends.references import Reference
from agenthive_operator.backends.reports import Figures, PostgresReport, StoreReport
from agenthive_operator.plan.book import Book, Held
from agenthive_operator.plan.connections import ConnectionBudget, connection_budget
from agenthive_operator.plan.hive import plan_annotations, plan_claims, plan_hive
from agenthive_operator.plan.inputs import ObservedHive, ObservedServer
from agenthive_operator.plan.names import (
    ANNOTATIONS_MANAGER,
    CHECKSUM_ANNOTATION,
    HIVE_LABEL,
    INSTANCE_ANNOTATION,
    server_name,
    users_name,
)
from agenthive_operator.plan.network import blame, closed_servers, plan_network
from agenthive_operator.plan.redis import USERS_FILE
from agenthive_operator.plan.references import hive_references
from agenthive_operator.plan.replicas import replicas_of
from agenthive_operator.plan.rotation import token
from agenthive_operator.plan.servers import claim_size
from agenthive_operator.reconcile.cache import Key
from agenthive_operator.reconcile.children import is_labelled
from agenthive_operator.reconcile.conditions import (
    HiveInput,
    Problem,
    Verdict,
    hive_conditions,
    sooner,
    stores_ready,
)
from agenthive_operator.reconcile.context import Context, HiveState
from agenthive_operator.reconcile.cutover import Cutovers, Servers, running, with_notes
from agenthive_operator.reconcile.deletion import HiveDeletion, ensure_finalizer, outside
from agenthive_operator.reconcile.status import FigureGate, hive_status, is_true, merge_conditions, only_ready
from agenthive_operator.reconcile.stores import SERVERS, Connection, Server, Stores, scope_of

PASSWORD_BYTES: Final = 24
INSTANCE_ALPHABET: Final = "abcdefghijkmnpqrstuvwxyz23456789"
INSTANCE_LENGTH: Final = 8
_INSTANCE_ID: Final = TypeAdapter[str](InstanceId)


@dataclass(frozen=True, slots=True)
class Found:
    """The stores of a hive: where they are, and the latest reports (None while the first look is under way)."""

    redis: Connection
    bus: StoreReport | None
    postgres: Connection
    store: PostgresReport | None
    cache: Connection | None = None
    cached: StoreReport | None = None

    def of(self, server: Server) -> Connection:
        """The connection of one server."""
        return self.redis if server == "redis" else self.postgres

    def is_of(self, server: Server, book: Book) -> bool:
        """Whether what was looked at is the server that is in force by now."""
        held, found = book.held(server), self.of(server).server
        return held is None or (found is not None and found.leads_as(held))

    @property
    def is_incomplete(self) -> bool:
        """Whether a first look is still under way."""
        return self.bus is None or self.store is None or (self.cache is not None and self.cached is None)


class HiveReconciler:
    """Reconciles AgentHives."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.stores = Stores(context)
        self.cutovers = Cutovers(context, self.stores)
        self._deletion = HiveDeletion(context, self.stores)
        self._gates: dict[Key, FigureGate] = {}

    async def reconcile(self, key: Key) -> float | None:
        """Look at one hive; returns the seconds after which to look again without an event, if any.

        Raises ``ApiError`` for what trying again may cure.
        """
        live = self._context.cache.get(*key)
        if live is None:
            live = await self._context.kube.get(AGENT_HIVE, key.namespace, key.name)
        if live is None:
            await self._forget(key)
            return None
        try:
            hive = AgentHive.parse(live)
        except InvalidObjectError as error:
            await self._conclude_unreadable(live, str(error))
            return None
        if hive.metadata.deleting:
            return await self._delete(key, live, hive)
        live, hive = await self._ensure_instance_id(live, hive)
        book = await self.cutovers.book(key, hive, await self.cutovers.wanted(key, hive), known=is_known(live))
        live = await ensure_finalizer(self._context, live, hive, outside(hive, book))
        problem = await self._bring_about(key, hive, book)
        wanted = await self.cutovers.wanted(key, hive)  # a managed server may have its Secret now
        found = await self._look(key, hive, self.cutovers.in_force(key, book, wanted))
        figures = self.stores.look_at_queues(key, hive, found.redis.url if found.bus and found.bus.ok else None)
        if problem is None and found.is_incomplete and is_known(live):
            # The first look since the start, or at another server, is under way and comes back here by itself: until
            # then what was written before is the best there is.
            return None
        step, refused = await self.cutovers.step(key, live, hive, book, wanted, found.bus, found.store)
        problem = problem or refused
        seen = self._observe(key, hive, problem, found)
        verdicts = with_notes(hive_conditions(seen), step.notes)
        again = await self._tell(key, live, hive, verdicts, seen, figures)
        if problem is not None or not found.is_incomplete:
            self._tell_agents(key, hive, verdicts, found, step.book)
        return sooner(earlier(again, step.again), problem)

    # ---- steps

    async def _forget(self, key: Key) -> None:
        await self.stores.forget(key)
        self.cutovers.forget(key)
        self._context.references.register(key, ())
        self._context.states.pop(key, None)
        self._gates.pop(key, None)
        self._context.enqueue_agents(key)

    async def _ensure_instance_id(self, live: Object, hive: AgentHive) -> tuple[Object, AgentHive]:
        """The instance id goes into the status before anything is named after it."""
        if hive.status.instance_id is not None:
            return live, hive
        instance = hive.spec.instance_id or await self._retained_instance_id(hive) or mint_instance_id()
        live = await self._context.write_status(live, {**(live.get("status") or {}), "instanceId": instance})
        return live, AgentHive.parse(live)

    async def _retained_instance_id(self, hive: AgentHive) -> str | None:
        """The instance id of an earlier hive of this name, whose servers' data this one takes over."""
        servers: tuple[tuple[Server, bool], ...] = (
            ("postgres", hive.spec.postgres.run is not None),
            ("redis", hive.spec.redis.run is not None),
        )
        for server, managed in servers:
            name = server_name(hive.metadata.name, server)
            secret = await self._context.children.live("Secret", hive.metadata.namespace, name) if managed else None
            if (found := known_instance_id(secret, hive.metadata.name)) is not None:
                return found
        return None

    async def _bring_about(self, key: Key, hive: AgentHive, book: Book) -> Problem | None:
        """Apply the hive's own servers, prune what is no longer planned, follow the Secrets it points at."""
        pointed = [Reference(entry.kind, key.namespace, entry.name) for entry in hive_references(hive)]
        self._context.references.register(key, pointed)
        observed = ObservedHive(
            redis=await self._observe_server(key, hive, "redis"),
            postgres=await self._observe_server(key, hive, "postgres"),
        )
        planned = plan_hive(hive, observed)
        policies = plan_network(hive, self._context.options.place, running(book))
        children = self._context.children
        # Before the StatefulSets, which say what annotations there were.
        problem = await children.apply_existing(plan_annotations(hive, observed), ANNOTATIONS_MANAGER)
        problem = problem or await children.apply(planned)
        if problem is not None:
            return problem
        await children.prune(hive.metadata.uid, [*planned, *policies, *self.cutovers.kept(hive, book)])
        refused = await self._apply_policies(policies)
        return await children.apply_existing(plan_claims(hive, observed)) or refused

    async def _apply_policies(self, policies: list[Object]) -> Problem | None:
        """Apply the NetworkPolicies. One that is refused keeps nothing else from going on, and stays as it was."""
        problem = await self._context.children.apply(policies)
        if problem is None or problem.reason != "ApplyRejected":
            return problem
        return Problem(problem.reason, blame(problem.message))

    async def _observe_server(self, key: Key, hive: AgentHive, server: Server) -> ObservedServer:
        """The password a managed server has, or a fresh one; the size of its claim; of Redis, the file of users."""
        if (hive.spec.redis.run if server == "redis" else hive.spec.postgres.run) is None:
            if server == "redis":
                self._context.users.forget_file(key)
            return ObservedServer()
        namespace, name = hive.metadata.namespace, server_name(hive.metadata.name, server)
        secret = await self._context.children.live("Secret", namespace, name)
        stateful_set = await self._context.children.live("StatefulSet", namespace, name)
        password = known_password(secret, hive.metadata.name) or secrets.token_urlsafe(PASSWORD_BYTES)
        users = await self._users_of(key, hive) if server == "redis" else ""
        return ObservedServer(password, claim_size(stateful_set), annotated=is_annotated(stateful_set), users=users)

    async def _users_of(self, key: Key, hive: AgentHive) -> str:
        """The file of users that the managed Redis is to find when it starts."""
        scope, users = scope_of(hive), self._context.users
        held = ""
        if not users.has_file(key, scope):
            secret = await self._context.children.live("Secret", key.namespace, users_name(key.name))
            held = secret_data(secret).get(USERS_FILE, "") if secret is not None and is_of(secret, key.name) else ""
        text, again = users.file(key, scope, held)
        if again is not None:
            self._context.queue.add_after(key, again)
        return text

    async def _look(self, key: Key, hive: AgentHive, at: Servers) -> Found:
        """Where the stores are, and what the latest look at each found."""
        redis, postgres = at.redis, at.postgres
        cache = await self.stores.cache_connection(key, hive)
        return Found(
            redis, self.stores.look_at_redis(key, hive, redis),
            postgres, self.stores.look_at_postgres(key, hive, postgres),
            cache, self.stores.look_at_cache(key, cache),
        )  # fmt: skip

    def _observe(self, key: Key, hive: AgentHive, problem: Problem | None, found: Found) -> HiveInput:
        agents = self._context.cache.agents_of(key.namespace, key.name)
        waiting = tuple(sorted(agent["metadata"]["name"] for agent in agents if not is_true(agent, "Ready")))
        return HiveInput(
            redis=found.bus,
            postgres=found.store.store if found.store else None,
            schema=found.store.schema if found.store else None,
            own_cache=found.cache is not None,
            cache=found.cached,
            budget=budget_of(hive, agents, found),
            managed_postgres=found.postgres.managed,
            agents_total=len(agents),
            agents_ready=len(agents) - len(waiting),
            agents_not_ready=waiting,
            suspended=hive.spec.suspend,
            closed=closed_servers(hive, [server for server in SERVERS if not found.of(server).managed]),
            problem=problem,
            halted=self._context.rolls.halted(key),
        )

    async def _tell(
        self,
        key: Key,
        live: Object,
        hive: AgentHive,
        verdicts: dict[str, Verdict],
        seen: HiveInput,
        figures: Mapping[str, Figures] | None,
    ) -> float | None:
        """Write the status where it differs, and Events for what changed."""
        before = live.get("status") or {}
        backlog, again = self._backlog(key, before, figures)
        status = hive_status(
            conditions=merge_conditions(
                before.get("conditions") or [], verdicts, hive.metadata.generation, self._context.clock()
            ),
            generation=hive.metadata.generation,
            instance_id=hive.instance_id or "",
            agents_total=seen.agents_total,
            agents_ready=seen.agents_ready,
            redis=seen.redis,
            postgres=seen.postgres,
            backlog=backlog,
        )
        await self._context.write_status(live, status)
        await self._context.tell_transitions(live, verdicts, normal=True)
        return again

    def _backlog(
        self, key: Key, before: Object, figures: Mapping[str, Figures] | None
    ) -> tuple[int | None, float | None]:
        """The backlog to write, and when to look again if a newer one is being held back."""
        known = {"backlog": before["backlog"]} if "backlog" in before else {}
        if figures is None:
            return known.get("backlog"), None
        newest = {"backlog": sum(entry.backlog for entry in figures.values())}
        gate = self._gates.setdefault(key, FigureGate())
        chosen, again = gate.choose(known, newest, self._context.monotonic())
        return chosen.get("backlog"), again

    def _tell_agents(self, key: Key, hive: AgentHive, verdicts: dict[str, Verdict], found: Found, book: Book) -> None:
        """Let the agents know what they depend on, and have them reconciled when it changed."""
        ready = stores_ready(verdicts)
        failing = next((verdict.message for verdict in verdicts.values() if verdict.status != "True"), "")
        state = HiveState(
            uid=hive.metadata.uid,
            generation=hive.metadata.generation,
            instance_id=hive.instance_id or "",
            ready=ready,
            deleting=hive.metadata.deleting,
            message="" if ready else failing,
            rotate=token(hive.metadata.annotations),
            moving=book.move is not None,
            halted=book.halted,
            redis_mints=mints(book.redis, found.redis, hive.spec.redis.mints_users),
            postgres_mints=mints(book.postgres, found.postgres, hive.spec.postgres.mints_logins),
            redis_held=self._url_of(key, "redis", book),
            postgres_held=self._url_of(key, "postgres", book),
            redis_url=found.redis.url if found.bus and found.bus.ok and found.is_of("redis", book) else None,
            # Of a server whose schema cannot be used, no pod is told: what is known of logins speaks of the former one.
            postgres_url=(
                found.postgres.url
                if found.store and found.store.store.ok and found.store.schema.ok and found.is_of("postgres", book)
                else None
            ),
            cache_url=found.cache.url if found.cache and found.cached and found.cached.ok else None,
        )
        self._set_state(key, state)

    def _url_of(self, key: Key, server: Server, book: Book) -> str | None:
        """The URL of the server in force that agents use."""
        held = book.held(server)
        return self.stores.held(key, server, held).url if held is not None else None

    def _set_state(self, key: Key, state: HiveState) -> None:
        if self._context.states.get(key) != state:
            self._context.states[key] = state
            self._context.enqueue_agents(key)

    # ---- other ends

    async def _conclude_unreadable(self, live: Object, text: str) -> None:
        """A spec this operator cannot read: say so and leave everything as it is."""
        verdict = Verdict("False", "InvalidSpec", text)
        await self._context.write_status(live, only_ready(live, verdict, self._context.clock()))
        await self._context.tell_transitions(live, {"Ready": verdict}, normal=True)

    async def _delete(self, key: Key, live: Object, hive: AgentHive) -> float | None:
        """Drain the agents, clean what lies outside, let go."""
        known = self._context.states.get(key)
        state = HiveState(
            uid=hive.metadata.uid,
            generation=hive.metadata.generation,
            instance_id=hive.instance_id or "",
            ready=False,
            deleting=True,
            message="it is being deleted",
            redis_mints=known.redis_mints if known else hive.spec.redis.mints_users,
            postgres_mints=known.postgres_mints if known else hive.spec.postgres.mints_logins,
            redis_held=known.redis_held if known else None,
            postgres_held=known.postgres_held if known else None,
            redis_url=known.redis_url if known else None,
            postgres_url=known.postgres_url if known else None,
            cache_url=known.cache_url if known else None,
        )
        self._set_state(key, state)
        self.cutovers.rest(key)
        self._context.postgres.forget(key)  # another look would make the schema again that is about to be dropped
        self._context.redis.forget(key)  # and the users
        waiting = await self._deletion.step(key, live, hive, await self._outside(key, live, hive))
        if waiting is None:
            return None
        text, again = waiting
        verdict = Verdict("False", "Deleting", text)
        await self._context.write_status(live, only_ready(live, verdict, self._context.clock()))
        return again

    async def _outside(self, key: Key, live: Object, hive: AgentHive) -> dict[Server, Connection]:
        """The external servers that are to be cleaned."""
        if hive.spec.deletion_policy != "Delete" or hive.instance_id is None:
            return {}
        wanted = await self.cutovers.wanted(key, hive)
        book = await self.cutovers.book(key, hive, wanted, known=is_known(live))
        at = self.cutovers.in_force(key, book, wanted)
        return {server: at.of(server) for server in outside(hive, book)}


# ---- pure


def mints(held: Held | None, found: Connection, wished: bool) -> bool:
    """Whether agents get credentials of their own at the server in force; ``wished`` is what the spec says."""
    server = held or found.server
    return server.mints if server is not None else wished


def earlier(one: float | None, other: float | None) -> float | None:
    """The sooner of two times to look again."""
    return min((seconds for seconds in (one, other) if seconds is not None), default=None)


def budget_of(hive: AgentHive, agents: list[Object], found: Found) -> ConnectionBudget | None:
    """The connections the hive's pods may open; None while the server's are unknown, or where PgBouncer shares them."""
    room = found.store.store.room if found.store else None
    access = found.postgres.access
    if room is None or access is None or access.direct is not None:
        return None
    return connection_budget((replicas_of(agent, hive) for agent in agents), hive.spec.postgres.pool.max_size, room)


def is_known(live: Object) -> bool:
    """Whether a hive's status was concluded before: it holds a verdict on both stores."""
    types = {entry["type"] for entry in (live.get("status") or {}).get("conditions") or ()}
    return {"RedisReady", "PostgresReady"} <= types


def mint_instance_id() -> str:
    """A fresh instance id: short, a DNS label, without look-alike characters."""
    return "i" + "".join(secrets.choice(INSTANCE_ALPHABET) for _ in range(INSTANCE_LENGTH - 1))


def known_password(secret: Object | None, hive: str) -> str | None:
    """The password in a managed server's Secret, if that Secret is this hive's or an earlier one's of its name."""
    return secret_data(secret).get("password") or None if secret is not None and is_of(secret, hive) else None


def known_instance_id(secret: Object | None, hive: str) -> str | None:
    """The instance id on a managed server's Secret, if that Secret is this hive's or an earlier one's of its name.

    What is no instance id is ignored: somebody edited it, and the API server would refuse it.
    """
    if secret is None or not is_of(secret, hive):
        return None
    try:
        return _INSTANCE_ID.validate_python((secret["metadata"].get("annotations") or {}).get(INSTANCE_ANNOTATION))
    except ValidationError:
        return None


def is_of(secret: Object, hive: str) -> bool:
    """Whether this operator made the Secret for a hive of this name."""
    return is_labelled(secret) and secret["metadata"]["labels"].get(HIVE_LABEL) == hive


def is_annotated(stateful_set: Object | None) -> bool:
    """Whether a StatefulSet's pods have annotations of the spec's, or there is none to tell."""
    if stateful_set is None:
        return True
    return bool({*(stateful_set["spec"]["template"]["metadata"].get("annotations") or ())} - {CHECKSUM_ANNOTATION})
