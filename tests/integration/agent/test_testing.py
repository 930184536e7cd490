"""agenthive.testing: agents in a test, on the real bus."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

import agenthive.testing
from agenthive import Agent, Context, Reject
from agenthive.bus import BusUnavailable, RequestFailed
from agenthive.loader import ConfigurationError
from agenthive.protocol import AgentMessage
from agenthive.runner import StartFailed

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture
def agent() -> Agent:
    agent = Agent("worker")

    @agent.on("echo")
    async def echo(message: AgentMessage, ctx: Context) -> Any:
        return {"body": message.body, "from": message.from_agent, "instance": ctx.settings.instance}

    @agent.on("fail")
    async def fail(message: AgentMessage) -> None:
        raise LookupError("no such thing")

    return agent


async def test_an_agent_answers_in_a_hive_of_its_own_that_is_removed(
    redis_url: str, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTHIVE_INSTANCE", "not-this-one")
    monkeypatch.setenv("AGENTHIVE_AGENT", "nor-this-name")
    async with (
        agenthive.testing.run(agent, redis_url=redis_url) as one,
        agenthive.testing.run(agent, redis_url=redis_url) as other,
        redis.asyncio.Redis.from_url(redis_url) as raw,
    ):
        answers = [await running.ask("echo", {"n": 1}) for running in (one, other)]
        instances = [answer["instance"] for answer in answers]
        assert [answer["body"] for answer in answers] == [{"n": 1}] * 2
        assert answers[0]["from"] == "test"
        assert instances[0] != instances[1]
        assert not {"local", "not-this-one"} & set(instances)
        assert [key async for key in raw.scan_iter(f"ah:{{{instances[0]}/*")]
    async with redis.asyncio.Redis.from_url(redis_url) as raw:
        for instance in instances:
            assert [key async for key in raw.scan_iter(f"ah:{{{instance}/*")] == []


async def test_what_handlers_raise_surfaces(redis_url: str, agent: Agent) -> None:
    async with agenthive.testing.run(agent, redis_url=redis_url, messaging={"max_retries": 1}) as running:
        with pytest.raises(RequestFailed, match="LookupError: no such thing") as caught:
            await running.ask("fail")
        assert isinstance(caught.value.__cause__, LookupError)
        with pytest.raises(RequestFailed, match="no handler for message_type 'other'") as caught:
            await running.ask("other")
        assert isinstance(caught.value.__cause__, Reject)
        sent = await running.send("fail", {"n": 2}, max_retries=0)
        await running.idle()
        assert (await running.status(sent)).error == (await running.dead_letters())[-1].reason + ": " + (
            (await running.dead_letters())[-1].error
        )
        assert [(item.message.message_type, str(item.error)) for item in running.errors[:2]] == [
            ("fail", "no such thing")
        ] * 2
        assert running.errors[-1].message.body == {"n": 2}


async def test_idle_waits_for_what_handlers_send_on_and_says_what_is_left(redis_url: str) -> None:
    first, second, done, release = Agent("first"), Agent("second"), [], asyncio.Event()

    @first.on("start")
    async def start(message: AgentMessage, ctx: Context) -> None:
        await ctx.send("second", "step", delay=0.05)

    @second.on("step")
    async def step(message: AgentMessage, ctx: Context) -> None:
        if ctx.attempt < 3:
            raise ValueError(f"attempt {ctx.attempt}")
        done.append(message.from_agent)

    @second.on("hang")
    async def hang(message: AgentMessage) -> None:
        await release.wait()

    async with agenthive.testing.run(first, second, redis_url=redis_url) as running:
        await running.send("start")
        await running.idle()
        assert done == ["first"]
        assert [str(item.error) for item in running.errors] == ["attempt 1", "attempt 2"]
        await running.send("hang", to="second")
        with pytest.raises(TimeoutError, match="second: 0 waiting, 1 in flight, 0 delayed"):
            await running.idle(0.2)
        release.set()
        await running.idle()


async def test_schedules_fire_when_told_to_or_by_the_clock(redis_url: str) -> None:
    agent, fired = Agent("worker"), asyncio.Queue[str]()

    @agent.every(0.1)
    async def tick(message: AgentMessage) -> None:
        fired.put_nowait(message.message_id)

    async with agenthive.testing.run(agent, redis_url=redis_url) as running:
        message_id = await running.fire("tick")
        await running.idle()
        assert (fired.get_nowait(), fired.empty()) == (message_id, True)
        with pytest.raises(LookupError, match="agent worker has no schedule 'tock'; it has: tick"):
            await running.fire("tock")
    async with agenthive.testing.run(agent, redis_url=redis_url, schedules=True), asyncio.timeout(10):
        assert await fired.get() != await fired.get()


async def test_an_agent_may_have_a_store(redis_url: str, postgres_url: str) -> None:
    import asyncpg

    agent = Agent("worker")

    @agent.on("count")
    async def count(message: AgentMessage, ctx: Context) -> int:
        seen = await ctx.state.get("seen", default=0) + 1
        await ctx.state.set("seen", seen)
        return int(seen)

    async with agenthive.testing.run(agent, redis_url=redis_url, postgres_url=postgres_url) as running:
        assert [await running.ask("count") for _ in range(2)] == [1, 2]
    connection = await asyncpg.connect(postgres_url)
    assert await connection.fetchval("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'ah_test%'") == 0
    await connection.close()


async def test_what_keeps_an_agent_from_running_is_told(redis_url: str, agent: Agent) -> None:
    with pytest.raises(ValueError, match="give one agent or more, of different names"):
        async with agenthive.testing.run(agent, agent, redis_url=redis_url):
            pass
    with pytest.raises(BusUnavailable):
        async with agenthive.testing.run(agent, redis_url="redis://127.0.0.1:1/0"):
            pass
    agent.every(30, message_type="unknown")
    with pytest.raises(ConfigurationError, match="which nothing handles"):
        async with agenthive.testing.run(agent, redis_url=redis_url):
            pass
    broken = Agent("broken")
    broken.on("x")(lambda message: None)
    broken.on_start(lambda: 1 / 0)
    with pytest.raises(StartFailed, match="division by zero"):
        async with agenthive.testing.run(broken, redis_url=redis_url):
            pass


def test_without_a_server_it_says_what_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    server = agenthive.testing.redis_server()
    with pytest.raises(RuntimeError, match=r"set AGENTHIVE_TEST_REDIS_URL, or install .*agenthive-k8s\[local\]"):
        server.__enter__()


def test_the_example_of_the_documentation_works(tmp_path: Path) -> None:
    for code in re.findall(r"```python\n(# (\w+\.py)\n.*?)```", (DOCS / "testing.md").read_text(), re.DOTALL):
        (tmp_path / code[1]).write_text(code[0])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:asyncio", "-p", "no:valkey", "-W", "error"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
