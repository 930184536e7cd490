"""Topics as agents see them: ctx.publish, the command line, and processes that are killed while they copy."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis.asyncio
from tests.integration.agent.conftest import Hive, eventually

from agenthive import Agent
from agenthive.bus.keys import AgentKeys
from agenthive.protocol import AgentMessage

Cli = Callable[..., tuple[int, str, str]]

LEDGER = """
import os

import redis.asyncio

from agenthive import Agent

agent = Agent("unnamed")
ledger = redis.asyncio.Redis.from_url(os.environ["AGENTHIVE_REDIS_URL"], protocol=2)

@agent.on("count")
async def count(message, ctx):
    await ledger.rpush(f"ledger:{ctx.settings.hive}:{ctx.agent}", f"{message.body['n']} {ctx.attempt}")
"""


async def test_handlers_publish_and_get_what_others_published(hive: Hive) -> None:
    heard: list[tuple[str, str, dict[str, Any]]] = []
    listener, teller = Agent("listener"), Agent("teller")

    @listener.on("news")
    async def news(message: AgentMessage) -> dict[str, Any]:
        heard.append((message.to_agent, message.from_agent, message.body))
        return {"nobody": "waits"}

    @teller.on("tell")
    async def tell(message: AgentMessage, ctx: Any) -> str:
        published: str = await ctx.publish("world", "news", message.body, priority=3)
        return published

    await hive.start(listener, topics=("world",), pod="listener-1")
    runner = await hive.start(listener, topics=("world",), pod="listener-2")
    await hive.start(teller)
    message_id = await hive.ask("teller", "tell", {"n": 1})
    await hive.until(lambda: bool(heard), "copy")
    assert heard == [("#world", "teller", {"n": 1})]
    assert (await hive.final("listener", message_id)).status == "delivered"
    assert len(heard) == 1
    assert b"agenthive_topic_missed" in runner.telemetry.exposition()


def test_publish_and_topics_on_the_command_line(cli: Cli) -> None:
    assert cli("topics")[0] == 0
    code, out, _ = cli("publish", "world", "news", '{"n": 1}', "--id", "my-id", "--from", "me", "--priority", "high")
    assert (code, out) == (0, "my-id\n")
    assert json.loads(cli("publish", "world", "news", "-o", "json")[1])["topic"] == "world"
    assert json.loads(cli("topics", "-o", "json")[1]) == [{"topic": "world", "length": 2, "behind": {}}]
    assert [line.split() for line in cli("topics")[1].splitlines()] == [
        ["TOPIC", "KEPT", "AGENT", "BEHIND"],
        ["world", "2", "-", "-"],
    ]
    code, _, err = cli("publish", "a b", "news")
    assert (code, "no name of a topic" in err) == (2, True)
    code, _, err = cli("send", "#world", "news")
    assert (code, "agenthive publish" in err) == (2, True)


async def test_processes_killed_while_they_copy_lose_and_double_nothing(
    process: Callable[..., Any], hive: Hive, redis_url: str, tmp_path: Path
) -> None:
    """Two agents of two processes each; of each, the one that copies is killed on the way."""
    (tmp_path / "ledger.py").write_text(LEDGER)
    pods: dict[str, Any] = {}

    def start(agent: str, name: str) -> None:
        pods[name] = process(
            name,
            AGENTHIVE_AGENT=agent,
            AGENTHIVE_TOPICS="numbers",
            AGENTHIVE_MESSAGING='{"leaseSeconds": 2}',
        )
        pods[name].start("ledger:agent")

    for agent in ("odd", "even"):
        for replica in range(2):
            start(agent, f"{agent}-{replica}")
    for pod in pods.values():
        await asyncio.to_thread(pod.wait_for, "serving")

    async with redis.asyncio.Redis.from_url(redis_url, protocol=2, decode_responses=True) as raw:
        ledgers = {agent: f"ledger:{hive.settings.hive}:{agent}" for agent in ("odd", "even")}

        async def publish() -> None:
            for start_at in range(0, 2000, 10):
                messages = [
                    AgentMessage(from_agent="t", to_agent="#numbers", message_type="count", body={"n": number})
                    for number in range(start_at, start_at + 10)
                ]
                await asyncio.gather(*(hive.bus.publish("numbers", message) for message in messages))

        async def some_more(ledger: str) -> bool:
            return bool(await raw.llen(ledger) > 300)

        publishing = asyncio.create_task(publish())
        for agent, ledger in ledgers.items():
            await eventually(lambda ledger=ledger: some_more(ledger), bool, "handling")
            gate = AgentKeys.of(hive.settings.scope, agent).gate
            leader = (await raw.get(gate.replace("gate", "pump:numbers"))).rpartition("/")[0]
            pods[leader].signal(signal.SIGKILL)
            pods[leader].popen.wait()
            if agent == "odd":  # of the other one, the replica takes over when the lease has run out
                start(agent, leader)
        await publishing

        async def all_handled() -> dict[str, int]:
            return {
                agent: len({line.split()[0] for line in await raw.lrange(ledger, 0, -1)})
                for agent, ledger in ledgers.items()
            }

        await eventually(all_handled, lambda seen: set(seen.values()) == {2000}, "complete ledger")
        for agent, ledger in ledgers.items():
            lines = [line.split() for line in await raw.lrange(ledger, 0, -1)]
            first_attempts = Counter(number for number, attempt in lines if attempt == "1")
            assert max(first_attempts.values()) == 1, "a message was copied twice"
            assert {topic.behind[agent] for topic in await hive.bus.topics()} == {0}
            assert len(lines) - 2000 <= 2 * 10, "only what a killed process handled runs again"
        await raw.delete(*ledgers.values())
