"""What a hive has left on the servers that it leaves, and the gates that keep new work out meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import asyncpg

from agenthive.bus import Bus, BusUnavailable
from agenthive.bus.keys import TOPIC_MARK, closed_key
from agenthive.settings import HiveScope, RedisPool
from agenthive.store import schema_name
from agenthive.store.database import Address, close_once, connect_once
from agenthive.store.errors import StoreError
from agenthive.store.naming import quote
from agenthive_operator.backends import postgres, redis
from agenthive_operator.backends.reports import without_secret
from agenthive_operator.plan.book import Gates
from agenthive_operator.plan.cutover import Remains

LOOK_SECONDS: Final = 10.0
CLOSED_MS: Final = {"draining": 30_000, "stopping": 86_400_000, "stopped": 86_400_000}
"""How long a gate stays closed when nobody looks any more: while agents run it is to open by itself."""


async def outbox_rows(url: str, scope: HiveScope) -> int:
    """Messages of transactions that have no final status yet. Raises as ``postgres_identity`` does."""
    async with asyncio.timeout(LOOK_SECONDS):
        connection = await connect_once(Address.parse(url), postgres.CLIENT_NAME)
        try:
            query = f"SELECT count(*) FROM {quote(schema_name(scope))}.outbox"  # noqa: S608 - a quoted name
            return int(await connection.fetchval(query))
        finally:
            await close_once(connection)


async def look_at_remains(
    url: str,
    upkeep: str,
    scope: HiveScope,
    agents: Mapping[str, Sequence[str]],
    gates: Gates,
    seconds: float,
    *,
    closes: bool = True,
) -> Remains:
    """Set the gates of all agents and topics, then count what is left. Never raises for what the servers do.

    Args:
        url: Of the Redis in force.
        upkeep: Of the PostgreSQL in force.
        scope: The hive.
        agents: The topics of each agent, as its Agent says.
        gates: How to set the gates.
        seconds: Delayed messages that are due later than that are counted apart.
        closes: Without it gates are but opened: the hive stays on this Redis, which may take what comes meanwhile.
    """
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            bus = await Bus.connect(url, scope, pool=RedisPool(max_connections=2), client_name=redis.CLIENT_NAME)
            try:
                remains = await _queues(bus, url, scope, agents, gates, seconds, closes=closes)
            finally:
                await bus.aclose()
        if gates == "open":
            return remains
        outbox = await outbox_rows(upkeep, scope)
    except (BusUnavailable, StoreError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        text = without_secret(without_secret(str(error), url), upkeep) or "no answer in time"
        return Remains(gates, problem=text)
    return replace(remains, outbox=outbox)


async def _queues(
    bus: Bus,
    url: str,
    scope: HiveScope,
    agents: Mapping[str, Sequence[str]],
    gates: Gates,
    seconds: float,
    *,
    closes: bool,
) -> Remains:
    names = sorted({*agents, *await bus.agents()})
    topics = await bus.topics()
    listed = {topic.topic for topic in topics}.union(*agents.values())
    prefixes = [scope.key_prefix(name) for name in names]
    doors = [closed_key(prefix) for prefix in (*prefixes, *(scope.key_prefix(TOPIC_MARK + topic) for topic in listed))]
    connections = redis.open_connections(url, redis.PROBE_SECONDS)
    try:
        if doors and gates == "open":
            await connections.execute([("UNLINK", door) for door in doors])
        elif doors and closes:
            await connections.execute([("SET", door, "1", "PX", CLOSED_MS[gates]) for door in doors])
        if gates == "open" or not names:
            return Remains(gates)
        due = int((time.time() + seconds) * 1000)
        late = await connections.execute([("ZCOUNT", f"{prefix}delayed", due, "+inf") for prefix in prefixes])
    finally:
        await connections.aclose()
    stats = await bus.queues(names)
    behind = sum(topic.behind.get(agent, 0) for topic in topics for agent, own in agents.items() if topic.topic in own)
    return Remains(
        gates,
        waiting=sum(entry.backlog for entry in stats.values()),
        in_flight=sum(entry.in_flight for entry in stats.values()),
        delayed=sum(entry.delayed for entry in stats.values()),
        later=sum(map(int, late)),
        topics=behind,
        agents=tuple(name for name, entry in stats.items() if entry.backlog or entry.in_flight or entry.delayed),
    )
