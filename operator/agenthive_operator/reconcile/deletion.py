"""The end of a hive: agents drained first, then what lies outside of Kubernetes, and never without a deadline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Final

import asyncpg

from agenthive.bus import BusUnavailable
from agenthive.store import schema_name
from agenthive.store.errors import StoreError
from agenthive_operator.api.agent import Agent
from agenthive_operator.api.hive import AgentHive
from agenthive_operator.api.meta import InvalidObjectError
from agenthive_operator.backends import postgres, redis
from agenthive_operator.backends.kube import AGENT, DEPLOYMENT, POD, ApiError, Object
from agenthive_operator.backends.reports import StoreReport
from agenthive_operator.backends.users import UsersError
from agenthive_operator.plan.book import Book
from agenthive_operator.plan.names import AGENT_LABEL, FINALIZER, HIVE_LABEL
from agenthive_operator.reconcile.cache import SELECTOR, Change, Key, keys_of
from agenthive_operator.reconcile.context import Context
from agenthive_operator.reconcile.stores import SERVERS, Connection, Server, Stores, scope_of

logger = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS: Final = 2.0
CLEANUP_TRY_SECONDS: Final = 20.0


class HiveDeletion:
    """Takes a hive that is being deleted apart."""

    def __init__(self, context: Context, stores: Stores) -> None:
        self._context = context
        self._stores = stores
        self._seen: dict[str, float] = {}

    async def step(
        self, key: Key, live: Object, hive: AgentHive, servers: Mapping[Server, Connection]
    ) -> tuple[str, float] | None:
        """Do what can be done now; ``servers`` are to be cleaned.

        Returns what the deletion waits for and when to look again, or None when the finalizer is gone. Raises
        ``ApiError`` for what trying again may cure.
        """
        if FINALIZER not in hive.metadata.finalizers:
            return None
        draining = self._draining(key)
        if not draining:
            # What comes now can not be undone, and the watches may have missed what still runs.
            await confirm_agents(self._context, key)
            draining = self._draining(key)
        remaining = self._deadline(key, hive) - self._age(hive)
        if draining and remaining > 0:
            return f"draining {len(draining)} agents: {', '.join(draining[:10])}", LOOK_AGAIN_SECONDS
        left = [f"pods of agents {', '.join(draining[:10])} still run"] if draining else []
        for server, connection in servers.items():
            problem = await self._clean(key, hive, server, connection)
            if problem and remaining > 0:
                return f"cleaning {server}: {problem}", LOOK_AGAIN_SECONDS
            if problem:
                left.append(f"{server} was not cleaned: {problem}")
        if left:
            # A terminating namespace takes no new Events; the recorder then logs the text.
            await self._context.events.emit(live, "Warning", "CleanupAbandoned", "; ".join(left))
            logger.warning("cleanup of %s abandoned: %s", key, "; ".join(left))
        await release(self._context, live)
        self.forget(hive.metadata.uid)
        return None

    def _draining(self, key: Key) -> list[str]:
        """Agents of the hive that still have pods: an Agent that was deleted may be gone before its pods are."""
        names = self._context.cache.agents_with_pods(key.namespace, key.name)
        for agent in self._context.cache.agents_of(key.namespace, key.name):
            name = agent["metadata"]["name"]
            deployment = self._context.cache.get("Deployment", key.namespace, name)
            counted = ((deployment or {}).get("status") or {}).get("replicas", 0)
            wanted = ((deployment or {}).get("spec") or {}).get("replicas", 0)
            if counted or wanted:
                names.add(name)
        return sorted(names)

    def _deadline(self, key: Key, hive: AgentHive) -> float:
        """Seconds after the deletion was asked for at which the finalizer goes whatever is left."""
        drain = 0
        for entry in self._context.cache.agents_of(key.namespace, key.name):
            try:
                drain = max(drain, Agent.parse(entry).spec.drain_seconds)
            except InvalidObjectError:
                continue  # has no pods of ours to wait for
        for name in self._context.cache.agents_with_pods(key.namespace, key.name):
            for pod in self._context.cache.pods_of(key.namespace, hive=key.name, agent=name):
                drain = max(drain, int(pod["metadata"].get("deletionGracePeriodSeconds") or 0))
        return drain + self._context.options.cleanup_seconds

    def _age(self, hive: AgentHive) -> float:
        """Seconds since we first saw that the hive is to be deleted.

        No clock of another machine is compared with ours: one that is wrong or jumps would end the clean-up before it
        began, or never. A restart of the operator begins to count again.
        """
        now = self._context.monotonic()
        return now - self._seen.setdefault(hive.metadata.uid, now)

    def forget(self, uid: str) -> None:
        """The hive is gone."""
        self._seen.pop(uid, None)

    async def _clean(self, key: Key, hive: AgentHive, server: Server, connection: Connection) -> str:
        """Remove what the hive left in an external server; returns what went wrong, or nothing."""
        self._context.kube.check()
        if connection.access is None:
            return connection.missing.message if connection.missing else "no URL"
        dialled = await self._stores.dial(connection.access.upkeep, server)
        if isinstance(dialled, StoreReport):
            return dialled.message
        try:
            if server == "redis":
                await redis.remove_hive(dialled, scope_of(hive), timeout=CLEANUP_TRY_SECONDS)
                if connection.access.admin is not None:
                    await self._context.users.remove(key, dialled, scope_of(hive))
            else:
                schema, roles = schema_name(scope_of(hive)), connection.access.admin is not None
                async with asyncio.timeout(CLEANUP_TRY_SECONDS), self._stores.database(key):
                    await postgres.remove_schema(dialled, schema, roles=roles)
        except (
            BusUnavailable,
            UsersError,
            StoreError,
            asyncpg.PostgresError,
            OSError,
            TimeoutError,
            ValueError,
        ) as error:
            return str(error) or type(error).__name__
        return ""


def outside(hive: AgentHive, book: Book) -> list[Server]:
    """External servers that the hive's end has to clean: those in force of a hive with deletionPolicy Delete. Pure."""
    if hive.spec.deletion_policy != "Delete" or hive.instance_id is None:
        return []
    external = {"redis": hive.spec.redis.external, "postgres": hive.spec.postgres.external}
    return [
        server
        for server in SERVERS
        if (external[server] is not None if (held := book.held(server)) is None else not held.managed)
    ]


async def ensure_finalizer(context: Context, live: Object, hive: AgentHive, servers: Sequence[Server]) -> Object:
    """The finalizer is there exactly while the hive's end has work to do: agents to drain, ``servers`` to clean."""
    key = Key("AgentHive", hive.metadata.namespace, hive.metadata.name)

    def has_agents() -> bool:
        cache = context.cache
        return bool(cache.agents_of(key.namespace, key.name) or cache.agents_with_pods(key.namespace, key.name))

    needed = bool(servers) or has_agents()
    present = FINALIZER in hive.metadata.finalizers
    if present and not needed:
        await confirm_agents(context, key)
        needed = has_agents()
    if needed and not present:
        return await _write(context, live, [*hive.metadata.finalizers, FINALIZER])
    if present and not needed:
        return await release(context, live)
    return live


async def release(context: Context, live: Object) -> Object:
    """Take the finalizer off; an object that is gone already is fine."""
    finalizers = [name for name in live["metadata"].get("finalizers") or () if name != FINALIZER]
    try:
        return await _write(context, live, finalizers)
    except ApiError as error:
        if not error.absent:
            raise
        return live


async def confirm_agents(context: Context, key: Key) -> None:
    """Ask the API server for what belongs to a hive's agents, and take in what the watches did not tell.

    Three lists rather than one: a list may be wrong, and pods or Deployments of agents tell of them. Only additions
    count: nothing is taken for gone here. Raises ``ApiError``.
    """
    of_hive = f"{SELECTOR},{HIVE_LABEL}={key.name},{AGENT_LABEL}"
    for resource, labels in ((AGENT, ""), (DEPLOYMENT, of_hive), (POD, of_hive)):
        # rbac: agenthive.dev/agents list
        # rbac: apps/deployments list
        # rbac: core/pods list
        for obj in (await context.kube.list(resource, key.namespace, labels=labels))[0]:
            _take_in(context, obj)
            agent = (obj["metadata"].get("labels") or {}).get(AGENT_LABEL)
            if resource is AGENT or not agent or context.cache.get("Agent", key.namespace, agent) is not None:
                continue
            # rbac: agenthive.dev/agents get
            if (found := await context.kube.get(AGENT, key.namespace, agent)) is not None:
                _take_in(context, found)


def _take_in(context: Context, obj: Object) -> None:
    if context.cache.put(obj) is Change.ADDED:
        for key in keys_of(obj):
            context.queue.add(key)


async def _write(context: Context, live: Object, finalizers: list[str]) -> Object:
    # The resourceVersion makes the server refuse this when somebody else changed the list meanwhile.
    version = live["metadata"]["resourceVersion"]
    # rbac: agenthive.dev/agenthives patch
    answer = await context.kube.merge_patch(live, {"metadata": {"finalizers": finalizers, "resourceVersion": version}})
    context.cache.put(answer)
    return answer
