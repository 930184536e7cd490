"""``ctx.transaction()`` on real servers: one commit for effects, mark, messages and reply."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from tests.integration.agent.conftest import Hive, eventually, hive_on

from agenthive import Agent, Context
from agenthive.protocol import AgentMessage
from agenthive.store import schema_name, upgrade


class Ledger:
    """A user's table, and the tables of transactions."""

    def __init__(self, connection: asyncpg.Connection[Any], schema: str) -> None:
        self.connection = connection
        self.schema = schema

    async def effects(self) -> list[str]:
        return [row["item"] for row in await self.connection.fetch("SELECT item FROM ledger ORDER BY item")]

    async def marks(self) -> list[str]:
        rows = await self.connection.fetch(f'SELECT message_id FROM "{self.schema}".inbox ORDER BY 1')
        return [row["message_id"] for row in rows]

    async def outbox(self) -> list[asyncpg.Record]:
        return list(await self.connection.fetch(f'SELECT * FROM "{self.schema}".outbox ORDER BY created_at, id'))

    async def empty(self) -> None:
        await eventually(self.outbox, lambda rows: not rows, "empty outbox")


@pytest.fixture
async def hive(redis_url: str, postgres_url: str, unique: str) -> AsyncIterator[Hive]:
    messaging = {"retry_delay_seconds": 0.01, "max_retries": 2}
    async with hive_on(redis_url, unique, messaging=messaging, postgres_url=postgres_url) as hive:
        await upgrade(postgres_url, schema_name(hive.settings.scope))
        yield hive


@pytest.fixture
async def ledger(hive: Hive, postgres_url: str) -> AsyncIterator[Ledger]:
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("CREATE TABLE ledger (item text NOT NULL)")
    yield Ledger(connection, schema_name(hive.settings.scope))
    await connection.close()


async def test_effects_messages_and_reply_are_one_commit(hive: Hive, ledger: Ledger) -> None:
    agent, got = Agent("worker"), []

    @agent.on("x")
    async def handle(message: AgentMessage, ctx: Context) -> str:
        async with ctx.transaction() as tx:
            await tx.execute("INSERT INTO public.ledger VALUES ($1)", message.body["item"])
            tx.send("worker", "y", {"item": message.body["item"]})
            assert await tx.fetchval("SELECT count(*) FROM public.ledger") == 1
            assert len(await tx.fetch("SELECT item FROM public.ledger")) == 1
            assert (await tx.fetchrow("SELECT item FROM public.ledger"))["item"] == "a"
            tx.reply({"done": 1})
            await asyncio.sleep(0.05)
            assert not got, "nothing is sent before the commit"
        return "dropped"

    @agent.on("y")
    async def follow(message: AgentMessage) -> None:
        got.append((message.body["item"], message.correlation_id))

    runner = await hive.start(agent)
    assert await hive.ask("worker", body={"item": "a"}, message_id="m1") == {"done": 1}
    await hive.until(lambda: got == [("a", "m1")], "the second message")
    assert await ledger.effects() == ["a"]
    assert await ledger.marks() == ["m1"]
    await ledger.empty()
    assert runner.telemetry.transactions == {"committed": 1}
    assert runner.telemetry.outbox_sent == 1
    assert runner.telemetry.outbox_waiting() == 0
