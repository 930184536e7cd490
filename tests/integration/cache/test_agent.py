"""The cache of an agent that runs: hooks, handlers, figures, settings, and the code of docs/state.md."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

import agenthive.testing
from agenthive import Agent, AgentContext, AgentMessage, Context, cached
from agenthive.context import surroundings
from agenthive.loader import ConfigurationError
from agenthive.runner import Runner
from agenthive.settings import Settings

PAGE = Path(__file__).parents[3] / "docs" / "state.md"
asked: list[str] = []


@cached
async def ask(who: str) -> str:
    asked.append(who)
    return who.upper()


def make() -> Agent:
    agent = Agent("poet")
    asked.clear()

    @agent.on_start
    async def warm_up(ctx: AgentContext) -> None:
        await ask("start")

    @agent.on("in-a-task")
    async def in_a_task(message: AgentMessage, ctx: Context) -> list[Any]:
        return [await ask("start"), await ask("ada"), await ctx.state.get("k"), await ctx.state.get("k")]

    @agent.on("in-a-thread")
    def in_a_thread(message: AgentMessage, ctx: Context) -> list[Any]:
        return [ctx.run(ask(who)) for who in ("start", "ada", "ada")]

    return agent


async def test_hooks_tasks_and_threads_find_the_cache(redis_url: str, postgres_url: str) -> None:
    async with agenthive.testing.run(make(), redis_url=redis_url, postgres_url=postgres_url) as running:
        assert await running.ask("in-a-task") == ["START", "ADA", None, None]
        assert await running.ask("in-a-thread") == ["START", "ADA", "ADA"]
        assert asked == ["start", "ada"]
        page = running._runners["poet"].telemetry.exposition().decode()
        figures = dict(re.findall(r"agenthive_cache_requests_total\{.*?(kind=.*)\} (.*)", page))
        assert figures == {
            'kind="call",result="miss"': "2.0",
            'kind="call",result="hit"': "4.0",
            'kind="state",result="miss"': "1.0",
            'kind="state",result="negative_hit"': "1.0",
        }
    assert surroundings.get() is None, "what runs in the agent only is known there"


async def test_a_cache_that_is_disabled(redis_url: str, postgres_url: str) -> None:
    options: dict[str, Any] = {"postgres_url": postgres_url, "cache": {"enabled": False}}
    async with agenthive.testing.run(make(), redis_url=redis_url, **options) as running:
        assert await running.ask("in-a-task") == ["START", "ADA", None, None]
        assert asked == ["start", "start", "ada"]
        assert "agenthive_cache_requests_total{" not in running._runners["poet"].telemetry.exposition().decode()


async def test_a_redis_of_its_own_has_no_bound(redis_url: str, own_valkey: Any) -> None:
    url = own_valkey.url
    options: dict[str, Any] = {"cache_url": url, "cache": {"max_bytes": 1024}}
    async with agenthive.testing.run(make(), redis_url=redis_url, **options) as running:
        assert await running.ask("in-a-thread") == ["START", "ADA", "ADA"]
        async with redis.asyncio.Redis.from_url(url, protocol=2) as client:
            keys = await client.keys("*")
            assert len([key for key in keys if b":c:f" in key]) == 2
            assert not [key for key in keys if key.endswith(b":cb")]


async def test_a_url_that_is_none_is_said_at_the_start(redis_url: str) -> None:
    settings = Settings().replace(
        redis_url=redis_url, cache_url="http://secret@cache", bind="127.0.0.1", http_port=0, hive="x"
    )
    with pytest.raises(ConfigurationError, match="AGENTHIVE_CACHE_URL: the Redis URL starts with http://") as caught:
        await Runner(make(), settings).run()
    assert "secret" not in str(caught.value)


async def test_the_code_of_the_page_works(
    redis_url: str, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    file = tmp_path / "state_page.py"
    first, second = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    file.write_text("from __future__ import annotations\n" + first + second)
    spec = importlib.util.spec_from_file_location("state_page", file)
    assert spec is not None
    assert spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "state_page", page)
    spec.loader.exec_module(page)
    looked = 0

    async with agenthive.testing.run(page.agent, redis_url=redis_url, postgres_url=postgres_url) as running:
        for visits in (1, 2, 3):
            answer = await running.ask("visit", {"name": "Ada"})
            assert answer == {"visits": visits, "greeting": "Hello", "price": 4.2}
        looked += capsys.readouterr().out.count("looking up b-17")
        assert looked == 1
        await running.ask("new-price", {"article": "b-17"})
        await running.ask("visit", {"name": "Ada"})
        assert capsys.readouterr().out.count("looking up b-17") == 1
