"""The tests of agent state once more, with a database login of each agent's own: it can do all that it needs to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from agenthive.settings import HiveScope
from agenthive.store import Store

from . import test_state
from .conftest import Connect
from .roles_ground import hive_with_roles

#: What is the owner's and not an agent's: housekeeping, the state of other agents, logins without rights.
NOT_HERE = {
    "test_maintenance_deletes_what_expired",
    "test_agents_have_state_of_their_own",
    "test_a_row_the_server_refuses_fails_its_caller_alone",
    "test_missing_rights_are_named",
}
globals().update(
    {name: test for name, test in vars(test_state).items() if name.startswith("test_") and name not in NOT_HERE}
)


@pytest.fixture
async def connect(hive_url: str, scope: HiveScope) -> AsyncIterator[Connect]:
    """Opens stores as agents do that log in as themselves."""
    async with hive_with_roles(hive_url, "superuser", scope) as hive:
        stores: list[Store] = []

        async def open_store(agent: str = "librarian", url: str | None = None, **options: Any) -> Store:
            login = await hive.url_of(agent)
            stores.append(await Store.connect(login if url is None else url, scope, agent=agent, **options))
            return stores[-1]

        yield open_store
        for store in stores:
            await store.aclose()
