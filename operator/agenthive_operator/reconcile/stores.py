"""The stores of a hive as its reconciler sees them: where they are, and what the monitors last found there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, Literal

from agenthive.bus import BusUnavailable
from agenthive.settings import HiveScope
from agenthive.store import schema_name
from agenthive_operator.api.hive import AgentHive
from agenthive_operator.backends import postgres, redis
from agenthive_operator.backends.identity import identified_postgres, identified_redis
from agenthive_operator.backends.kube import ApiError, Object, secret_data
from agenthive_operator.backends.postgres import FIELDS, Access
from agenthive_operator.backends.references import Reference
from agenthive_operator.backends.reports import (
    Figures,
    PostgresReport,
    SchemaReport,
    StoreReport,
    Warned,
    endpoint_of,
)
from agenthive_operator.backends.resolve import NoEndpointError
from agenthive_operator.backends.shared import Sessions, SharedLooks
from agenthive_operator.plan.book import Held
from agenthive_operator.plan.external import Secrets, UnusableError, Ways, cache_way, secret_names, ways_in
from agenthive_operator.plan.names import COMPONENT_LABEL, server_name
from agenthive_operator.reconcile.cache import Key
from agenthive_operator.reconcile.children import is_labelled
from agenthive_operator.reconcile.conditions import pod_failure
from agenthive_operator.reconcile.context import Context

logger = logging.getLogger(__name__)

Server = Literal["redis", "postgres"]
SERVERS: Final[tuple[Server, Server]] = ("redis", "postgres")
PORTS: Final = {"redis": redis.DEFAULT_PORT, "postgres": postgres.DEFAULT_PORT}
DAYS_AT_ONCE: Final = 1
"""A new schema's partitions are made until tomorrow before agents start; the rest, most of them, by its housekeeping
within ten minutes: each is a dozen files of the server's, which a hundred new hives would wait for."""
REACHABLE_SECONDS: Final = 30.0
"""How long the name of a pod that became ready may take to lead to it: name servers remember absence that long."""
BEING_CREATED: Final = StoreReport(False, "Starting", "being created")
NO_SCHEMA: Final = SchemaReport(False, "WaitingForPostgres", "the schema is migrated once PostgreSQL is ready")


@dataclass(frozen=True, slots=True)
class Connection:
    """Where one store of a hive is: its URLs as this process dials them, or the report that says why there are none.

    ``server`` is the same as it is remembered, with who it is as far as that is known.
    """

    access: Access | None = field(default=None, repr=False)
    missing: StoreReport | None = None
    warnings: tuple[Warned, ...] = ()
    server: Held | None = None
    managed: bool = False

    @property
    def url(self) -> str | None:
        """The URL that the hive's processes use."""
        return self.access.url if self.access else None


class Stores:
    """Looks after the stores of all hives."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._schemas: dict[Key, postgres.HiveSchema] = {}
        self._queues: dict[Key, redis.HiveQueues] = {}
        self._databases: dict[Key, asyncio.Lock] = {}
        self._ready_seen: dict[tuple[Key, Server], tuple[datetime | None, float]] = {}
        self._sessions = Sessions()
        self._looks = SharedLooks[StoreReport](lambda report: report.ok)

    async def connection(self, key: Key, hive: AgentHive, server: Server) -> Connection:
        """The URLs of a store, from the Secrets that hold them. Raises ``ApiError`` when the API cannot be asked."""
        external = (hive.spec.redis if server == "redis" else hive.spec.postgres).external
        if external is None:
            self._context.certificates.forget((key, server))
            secret = await self._context.children.live("Secret", key.namespace, server_name(key.name, server))
            url = secret_data(secret).get("url") if secret is not None and is_labelled(secret) else None
            if not url:
                return Connection(missing=BEING_CREATED, managed=True)
            # The user that a managed server starts with may do everything.
            ways = Ways(server, {"url": url, "admin": url})
            return self._at((key, server), Held.of(ways, managed=True), ways)
        secrets = await self._secrets(key, secret_names(external))
        try:
            ways = ways_in(server, external, secrets, self._context.clock())
            return self._at((key, server), Held.of(ways, managed=False), ways)
        except UnusableError as error:
            return Connection(missing=StoreReport(False, error.reason, str(error)))

    def held(self, key: Key, server: Server, held: Held) -> Connection:
        """The way to a server in force, whatever the spec says; its certificates are laid down again."""
        try:
            return self._at((key, server, "held"), held, held.ways(server))
        except UnusableError as error:
            return Connection(missing=StoreReport(False, error.reason, str(error)), server=held, managed=held.managed)

    async def cache_connection(self, key: Key, hive: AgentHive) -> Connection | None:
        """The URL of the cache's own Redis; None where the hive has none. Raises ``ApiError``."""
        pointer, external = hive.spec.redis.cache.own_url, hive.spec.redis.external
        if pointer is None:
            return None
        names = {pointer.name} | (secret_names(external) if external else set())
        secrets = await self._secrets(key, names)
        try:
            way = cache_way(pointer, external, secrets, self._context.clock())
            return self._at((key, "redis"), Held.of(way, managed=False), way)
        except UnusableError as error:
            return Connection(missing=StoreReport(False, error.reason, str(error)))

    async def _secrets(self, key: Key, names: Iterable[str]) -> Secrets:
        read = self._context.references.read
        return {name: await read(Reference("Secret", key.namespace, name)) for name in sorted(names)}

    def _at(self, owner: Hashable, server: Held, ways: Ways) -> Connection:
        """The URLs, their certificates laid where this process finds them. Raises ``UnusableError``."""
        folder = self._context.certificates.place(owner, ways.files)
        warnings = tuple(Warned("CertificateExpiring", text) for text in ways.warnings)
        return Connection(Access(**ways.below(folder)), warnings=warnings, server=server, managed=server.managed)

    def look_at_redis(self, key: Key, hive: AgentHive, connection: Connection) -> StoreReport | None:
        """The latest report on Redis; None while the first look at this URL is under way."""
        monitor, access = self._context.redis, connection.access
        if access is None:
            monitor.forget(key)
            return connection.missing
        scope, needs = scope_of(hive), needs_of(hive, access)

        async def check() -> StoreReport:
            dialled = await self.dial_all(access, "redis")
            if isinstance(dialled, StoreReport):
                return dialled
            report = await redis.probe(dialled.url, shown=access.url, needs=needs)
            if dialled.admin is None:
                await self._context.users.forget_hive(key)
            else:
                report = await self._context.users.sync(key, dialled, scope, report, shown=access.url)
            return await identified_redis(report, dialled.url, scope)

        report = monitor.watch(key, (access, scope, needs), check)
        if report is None or report.ok:
            return report and replace(report, warnings=connection.warnings + report.warnings)
        monitor.poke(key)
        return self._while_starting(key, report, "redis") if connection.managed else report

    def look_at_cache(self, key: Key, connection: Connection | None) -> StoreReport | None:
        """The latest report on the cache's own Redis; None while the first look is under way, or where it has none."""
        monitor, url = self._context.caches, connection.url if connection else None
        if url is None:
            monitor.forget(key)
            return connection.missing if connection else None

        async def check() -> StoreReport:
            dialled = await self.dial(url, "redis")
            return dialled if isinstance(dialled, StoreReport) else await self._probe_redis(dialled, url)

        return monitor.watch(key, url, check)

    def look_at_postgres(self, key: Key, hive: AgentHive, connection: Connection) -> PostgresReport | None:
        """The latest report on PostgreSQL and the schema; None while the first look at this URL is under way."""
        monitor, access = self._context.postgres, connection.access
        if access is None:
            monitor.forget(key)
            return PostgresReport(connection.missing, NO_SCHEMA) if connection.missing else None
        scope, schemas = scope_of(hive), self._schema(key)
        known = connection.server.identity if connection.server else ""
        schemas.retention = hive.spec.retention

        async def check() -> PostgresReport:
            dialled = await self.dial_all(access)
            if isinstance(dialled, StoreReport):
                return PostgresReport(dialled, NO_SCHEMA)
            async with self.database(key):
                report = await schemas.check(dialled, scope, shown=access.url)
                report = await identified_postgres(report, dialled.upkeep, scope, known, connect=self._sessions.lend)
                if not report.schema.ok or access.admin is None:
                    return report
                problem = await self._context.logins.sync(key, dialled, schema_name(scope), shown=access.url)
                return report if problem is None else replace(report, schema=problem)

        report = monitor.watch(key, (access, scope), check)
        if report is None:
            return None
        if connection.warnings and report.store.ok:
            store = replace(report.store, warnings=connection.warnings + report.store.warnings)
            report = replace(report, store=store)
        if report.store.ok and report.schema.ok:
            return report
        monitor.poke(key)
        if connection.managed and not report.store.ok:
            return replace(report, store=self._while_starting(key, report.store, "postgres"))
        return report

    def _schema(self, key: Key) -> postgres.HiveSchema:
        if key not in self._schemas:
            self._schemas[key] = postgres.HiveSchema(
                days_at_once=DAYS_AT_ONCE, sessions=self._sessions, looks=self._looks
            )
        return self._schemas[key]

    async def _probe_redis(self, dialled: str, shown: str) -> StoreReport:
        return await self._looks.look((dialled, shown), lambda: redis.probe(dialled, shown=shown))

    def database(self, key: Key) -> asyncio.Lock:
        """Held by who works on the hive's schema: what drops it does not meet a look that makes it."""
        return self._databases.setdefault(key, asyncio.Lock())

    def look_at_queues(self, key: Key, hive: AgentHive, url: str | None) -> dict[str, Figures] | None:
        """The latest figures by agent; None while they are unknown (``url`` is None: Redis is not ready)."""
        monitor = self._context.figures
        if url is None:
            monitor.forget(key)
            return None
        scope, queues = scope_of(hive), self._queues.setdefault(key, redis.HiveQueues())

        async def check() -> dict[str, Figures]:
            agents = [entry["metadata"]["name"] for entry in self._context.cache.agents_of(key.namespace, key.name)]
            dialled = await self.dial(url, "redis")
            if not agents or isinstance(dialled, StoreReport):
                return monitor.latest(key) or {}
            try:
                return await queues.figures(dialled, scope, agents)
            except (BusUnavailable, OSError, TimeoutError) as error:
                # RedisReady is to tell it, soon; the figures stay what they were.
                logger.info("figures of %s: %s", key, error)
                self._context.redis.poke(key)
                return monitor.latest(key) or {}

        return monitor.watch(key, (url, scope), check)

    async def dial(self, url: str, server: Server) -> str | StoreReport:
        """The URL to connect to, Service names resolved where the operator was told to; or why there is none."""
        try:
            return await self._context.resolver.resolve(url)
        except ValueError as error:
            return StoreReport(False, "InvalidURL", str(error))
        except (NoEndpointError, ApiError) as error:
            return StoreReport(False, "Unreachable", str(error), endpoint_of(url, PORTS[server]))

    async def dial_all(self, access: Access, server: Server = "postgres") -> Access | StoreReport:
        """As ``dial``, for every way in."""
        dialled: dict[str, str] = {}
        for name in FIELDS:
            url = getattr(access, name)
            found = await self.dial(url, server) if url else None
            if isinstance(found, StoreReport):
                return found
            if found:
                dialled[name] = found
        return Access(**dialled)

    async def forget(self, key: Key) -> None:
        """The hive is gone."""
        for monitor in (self._context.redis, self._context.caches, self._context.postgres, self._context.figures):
            monitor.forget(key)
        for server in SERVERS:
            self._context.certificates.forget((key, server))
            self._context.certificates.forget((key, server, "held"))
        self._schemas.pop(key, None)
        self._databases.pop(key, None)
        for server in SERVERS:
            self._ready_seen.pop((key, server), None)
        self._context.logins.forget_hive(key)
        await self._context.users.forget_hive(key)
        if (queues := self._queues.pop(key, None)) is not None:
            await queues.aclose()

    async def aclose(self) -> None:
        """Close what is open."""
        await self._context.users.aclose()
        while self._queues:
            _, queues = self._queues.popitem()
            await queues.aclose()
        self._context.certificates.close()
        await self._sessions.aclose()

    def _while_starting(self, key: Key, report: StoreReport, server: Server) -> StoreReport:
        """A managed server without a ready pod is not unreachable but starting; its pod says how that goes."""
        pods = [
            pod
            for pod in self._context.cache.pods_of(key.namespace, hive=key.name)
            if pod["metadata"]["labels"].get(COMPONENT_LABEL) == server
        ]
        since, now = ready_since(pods), self._context.monotonic()
        known, seen = self._ready_seen.get((key, server), (None, now))
        if known != since:
            seen = now
        self._ready_seen[(key, server)] = since, seen
        judged, again = while_starting(report, pods, self._context.clock(), seen_for=now - seen)
        if again is not None:
            self._context.queue.add_after(key, again)
        return judged


def while_starting(
    report: StoreReport, pods: list[Object], now: datetime, *, seen_for: float = 0.0
) -> tuple[StoreReport, float | None]:
    """``report`` on a managed server in the light of its pods, and when its judgement changes by itself. Pure.

    A pod that has just become ready may not be found yet: the report may be older, and DNS takes its time. That it
    became ready was timed by another machine; ``seen_for``, seconds since we know it, is as good where clocks differ.
    """
    if report.reason not in {"Unreachable", "Starting"}:
        return report, None
    since = ready_since(pods)
    if since is None:
        failure = pod_failure(pods)
        text = failure.message if failure else "waiting for its pod to be ready"
        return replace(report, reason="Starting", message=text), None
    left = REACHABLE_SECONDS - max((now - since).total_seconds(), seen_for)
    if left <= 0:
        return report, None
    return replace(report, reason="Starting", message="its pod is ready and about to be reachable"), left


def ready_since(pods: list[Object]) -> datetime | None:
    """When the pod that is ready became so (an unknown time is long ago); None while none is. Pure."""
    for pod in pods:
        for entry in (pod.get("status") or {}).get("conditions") or ():
            if entry["type"] == "Ready" and entry["status"] == "True" and "deletionTimestamp" not in pod["metadata"]:
                moment = entry.get("lastTransitionTime")
                return datetime.fromisoformat(moment) if moment else datetime.min.replace(tzinfo=UTC)
    return None


def needs_of(hive: AgentHive, access: Access) -> redis.Needs:
    """What a hive's bus needs of its Redis. Pure."""
    return redis.Needs(
        scope_of(hive).hive_prefix,
        loads=access.admin is None,
        replicated=hive.spec.messaging.durability == "replicated",
    )


def scope_of(hive: AgentHive) -> HiveScope:
    """Where the hive's keys and rows live. The instance id is in the status by then."""
    instance = hive.instance_id
    assert instance is not None, "the instance id is written before anything is named after it"
    return HiveScope(instance=instance, namespace=hive.metadata.namespace, hive=hive.metadata.name)
