"""Transactions once more, each agent with a database login of its own: row-level security is in nobody's way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from tests.integration.agent.conftest import Hive, hive_on
from tests.integration.store.conftest import as_role
from tests.integration.store.roles_ground import PASSWORD

from agenthive import Agent
from agenthive.runner import Runner
from agenthive.store import schema_name, upgrade
from agenthive.store.roles import drop_roles, ensure_agent, ensure_roles, role_names

from . import test_outbox, test_state, test_transactions
from .conftest import MESSAGING, Ledger

#: Housekeeping, which is the owner's; a Redis of one's own, which has nothing to do with logins.
NOT_HERE = {
    "test_marks_are_forgotten_in_time",
    "test_what_redis_forgets_is_sent_again",
    "test_an_outage_of_redis_costs_no_message_and_no_order",
}
globals().update(
    {
        name: test
        for module in (test_transactions, test_outbox, test_state)
        for name, test in vars(module).items()
        if name.startswith("test_") and name not in NOT_HERE
    }
)


@pytest.fixture
async def admin(postgres_url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


@pytest.fixture
async def hive(redis_url: str, postgres_url: str, unique: str, admin: Any) -> AsyncIterator[Hive]:
    """A hive whose agents log in as themselves."""
    async with hive_on(redis_url, unique, messaging=MESSAGING) as hive:
        schema = schema_name(hive.settings.scope)
        await upgrade(postgres_url, schema)
        await ensure_roles(admin, schema)
        start = hive.start

        async def with_login(agent: Agent, /, **changes: Any) -> Runner:
            login = await ensure_agent(admin, schema, agent.name, PASSWORD)
            return await start(agent, postgres_url=as_role(postgres_url, login, PASSWORD), **changes)

        hive.start = with_login  # type: ignore[method-assign]
        yield hive
    await drop_roles(admin, schema)


@pytest.fixture
async def ledger(hive: Hive, admin: Any) -> Ledger:
    """The tables of ``hive``, seen by an administrator; the table of the author's is the agents'."""
    schema = schema_name(hive.settings.scope)
    await admin.execute("CREATE TABLE public.ledger (item text NOT NULL)")
    await admin.execute(f"GRANT ALL ON public.ledger TO {role_names(schema).agents}")
    return Ledger(admin, schema)
