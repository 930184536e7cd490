"""The end of a hive: agents drained first, then what lies outside of Kubernetes, and never without a deadline."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from typing import Final

import asyncpg

from agenthive.bus import BusUnavailable
from agenthive.store import schema_name
from agenthive.store.errors import StoreError
from agenthive_operator.api.agent import Agent
from agenthive_operator.api.hive import AgentHive
from agenthive_operator.api.meta import InvalidObjectError
from agenthive_operator.backends import postgres, redis
from agenthive_operator.backends.kube import ApiError, Object
from agenthive_operator.backends.reports import StoreReport
from agenthive_operator.backends.users import UsersError
from agenthive_operator.plan.names import FINALIZER
from agenthive_operator.reconcile.cache import Key
from agenthive_operator.reconcile.context import Context
from agenthive_operator.reconcile.stores import SERVERS, Server, Stores, scope_of

logger = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS: Final = 2.0
CLEANUP_TRY_SECONDS: Final = 20.0


class HiveDeletion:
    """Takes a hive that is being deleted apart."""

    def __init__(self, context: Context, stores: Stores) -> None:
        self._context = context
        self._stores = stores

    async def step(self, key: Key, live: Object, hive: AgentHive) -> tuple[str, float] | None:
        """Do what can be done now.

        Returns what the deletion waits for and when to look again, or None when the finalizer is gone. Raises
        ``ApiError`` for what trying again may cure.
        """
        if FINALIZER not in hive.metadata.finalizers:
            return None
        draining = self._draining(key)
        remaining = self._deadline(key, hive) - self._age(hive)
        if draining and remaining > 0:
            return f"draining {len(draining)} agents: {', '.join(draining[:10])}", LOOK_AGAIN_SECONDS
        left = [f"pods of agents {', '.join(draining[:10])} still run"] if draining else []
        for server in outside(hive):
            problem = await self._clean(key, hive, server)
            if problem and remaining > 0:
                return f"cleaning {server}: {problem}", LOOK_AGAIN_SECONDS
            if problem:
                left.append(f"{server} was not cleaned: {problem}")
        if left:
            # A terminating namespace takes no new Events; the recorder then logs the text.
            await self._context.events.emit(live, "Warning", "CleanupAbandoned", "; ".join(left))
            logger.warning("cleanup of %s abandoned: %s", key, "; ".join(left))
        await release(self._context, live)
        return None

    def _draining(self, key: Key) -> list[str]:
        """Agents of the hive that still have pods."""
        names = []
        for agent in self._context.cache.agents_of(key.namespace, key.name):
            name = agent["metadata"]["name"]
            deployment = self._context.cache.get("Deployment", key.namespace, name)
            counted = ((deployment or {}).get("status") or {}).get("replicas", 0)
            wanted = ((deployment or {}).get("spec") or {}).get("replicas", 0)
            if counted or wanted or self._context.cache.pods_of(key.namespace, hive=key.name, agent=name):
                names.append(name)
        return names

    def _deadline(self, key: Key, hive: AgentHive) -> float:
        """Seconds after the deletion was asked for at which the finalizer goes whatever is left."""
        drain = 0
        for entry in self._context.cache.agents_of(key.namespace, key.name):
            try:
                drain = max(drain, Agent.parse(entry).spec.drain_seconds)
            except InvalidObjectError:
                continue  # has no pods of ours to wait for
        return drain + self._context.options.cleanup_seconds

    def _age(self, hive: AgentHive) -> float:
        since: datetime | None = hive.metadata.deletion_timestamp
        return (self._context.clock() - since).total_seconds() if since else 0.0

    async def _clean(self, key: Key, hive: AgentHive, server: Server) -> str:
        """Remove what the hive left in an external server; returns what went wrong, or nothing."""
        self._context.kube.check()
        connection = await self._stores.connection(key, hive, server)
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


def outside(hive: AgentHive) -> list[Server]:
    """External servers that the hive's end has to clean: those of a hive with deletionPolicy Delete. Pure."""
    if hive.spec.deletion_policy != "Delete" or hive.instance_id is None:
        return []
    return [
        server
        for server in SERVERS
        if (hive.spec.redis if server == "redis" else hive.spec.postgres).external is not None
    ]


async def ensure_finalizer(context: Context, live: Object, hive: AgentHive) -> Object:
    """The finalizer is there exactly while the hive's end has work to do: agents to drain, servers to clean."""
    needed = bool(outside(hive)) or bool(context.cache.agents_of(hive.metadata.namespace, hive.metadata.name))
    present = FINALIZER in hive.metadata.finalizers
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
        if error.status != 404:
            raise
        return live


async def _write(context: Context, live: Object, finalizers: list[str]) -> Object:
    # The resourceVersion makes the server refuse this when somebody else changed the list meanwhile.
    version = live["metadata"]["resourceVersion"]
    # rbac: agenthive.dev/agenthives patch
    answer = await context.kube.merge_patch(live, {"metadata": {"finalizers": finalizers, "resourceVersion": version}})
    context.cache.put(answer)
    return answer
