"""The code of docs/transactions.md, run."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import asyncpg
import pytest
from tests.integration.agent.conftest import eventually

import agenthive.testing
from agenthive import Agent

PAGE = Path(__file__).parents[3] / "docs" / "transactions.md"


async def test_the_code_of_the_page_works(
    redis_url: str, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "transactions_page.py"
    file.write_text("\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)))
    spec = importlib.util.spec_from_file_location("transactions_page", file)
    assert spec is not None
    assert spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "transactions_page", page)
    spec.loader.exec_module(page)

    connection = await asyncpg.connect(postgres_url)
    await connection.execute("CREATE SCHEMA shop CREATE TABLE orders (id text PRIMARY KEY, item text)")
    warehouse, packed = Agent("warehouse"), []
    warehouse.on("pack")(lambda message: packed.append(message.body))
    async with agenthive.testing.run(
        page.agent, warehouse, redis_url=redis_url, postgres_url=postgres_url, messaging={"max_retries": 0}
    ) as running:
        assert await running.ask("order", {"item": "tea"}, message_id="o1") == {"order": "o1", "sold": 1}
        assert await running.ask("order", {"item": "tea"}, message_id="o2") == {"order": "o2", "sold": 2}
        await running.send("order", {"item": "tea"}, message_id="o2")
        await eventually(running.bus.topics, lambda found: [topic.length for topic in found] == [2], "both published")
        await running.idle()
        assert [row["id"] for row in await connection.fetch("SELECT id FROM shop.orders ORDER BY id")] == ["o1", "o2"]
        assert [body["order"] for body in packed] == ["o1", "o2"]
        assert running.errors == []
    await connection.close()
