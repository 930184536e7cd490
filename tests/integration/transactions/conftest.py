"""Agents with a store, a table of their author's, and a look at the tables of transactions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from tests.integration.agent.conftest import Hive, eventually, hive_on

from agenthive import Agent, AgentContext
from agenthive.runner import Runner
from agenthive.store import schema_name, upgrade


class Ledger:
    """A table of the agent's author, and what is in the tables of transactions."""

    def __init__(self, connection: asyncpg.Connection[Any], schema: str) -> None:
        self.connection = connection
        self.schema = schema

    async def effects(self) -> list[str]:
        return [row["item"] for row in await self.connection.fetch("SELECT item FROM public.ledger ORDER BY item")]

    async def marks(self) -> list[str]:
        rows = await self.connection.fetch(f'SELECT message_id FROM "{self.schema}".inbox ORDER BY 1')
        return [row["message_id"] for row in rows]

    async def outbox(self) -> list[asyncpg.Record]:
        return list(await self.connection.fetch(f'SELECT * FROM "{self.schema}".outbox ORDER BY created_at, id'))

    async def empty_outbox(self) -> None:
        """Until every row is gone."""
        await eventually(self.outbox, lambda rows: not rows, "empty outbox")


MESSAGING = {"retry_delay_seconds": 0.01, "max_retries": 2}


@pytest.fixture
async def hive(redis_url: str, postgres_url: str, unique: str) -> AsyncIterator[Hive]:
    """A hive with a store in a database of the test's own."""
    async with hive_on(redis_url, unique, messaging=MESSAGING, postgres_url=postgres_url) as hive:
        await upgrade(postgres_url, schema_name(hive.settings.scope))
        yield hive


@pytest.fixture
async def ledger(hive: Hive, postgres_url: str) -> AsyncIterator[Ledger]:
    """The tables of ``hive``."""
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("CREATE TABLE public.ledger (item text NOT NULL)")
    yield Ledger(connection, schema_name(hive.settings.scope))
    await connection.close()


Surroundings = Callable[..., Awaitable[tuple[Runner, AgentContext]]]


@pytest.fixture
def surroundings(hive: Hive) -> Surroundings:
    """Starts an agent and returns the context of its start hook, to open transactions outside of handlers."""

    async def start(agent: Agent | None = None, /, **changes: Any) -> tuple[Runner, AgentContext]:
        agent = agent or Agent("worker")
        if not agent.handlers:
            agent.on("nothing")(lambda message: None)
        contexts: list[AgentContext] = []
        agent.on_start(contexts.append)
        return await hive.start(agent, **changes), contexts[0]

    return start
