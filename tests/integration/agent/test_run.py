"""`agenthive run` as a pod runs it: a process, its signals, its exit code, its pages."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agenthive.bus import Bus
from agenthive.protocol import AgentMessage
from agenthive.settings import HiveScope, Messaging

CODE = """
import asyncio, os, time
from pathlib import Path
from agenthive import Agent

agent = Agent("worker")

@agent.on_start
def starting(ctx):
    ctx.log.info("hooked")

@agent.on("echo")
async def echo(message, ctx):
    ctx.log.info("echoing")
    return {**message.body, "pod": ctx.settings.pod, "attempt": ctx.attempt}

@agent.on("slow")
async def slow(message, ctx):
    ctx.log.info("slow begins")
    await asyncio.sleep(message.body["seconds"])
    return ctx.settings.pod

@agent.on("hold")
async def hold(message, ctx):
    # Its first attempt in one pod waits for a file.
    if ctx.settings.pod == message.body["pod"] and ctx.attempt == 1:
        ctx.log.info("holding")
        while not Path("release").exists():
            await asyncio.sleep(0.02)
    return ctx.settings.pod

@agent.on("deaf")
async def deaf(message, ctx):
    ctx.log.info("deaf begins")
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

@agent.on("thread")
def thread(message, ctx):
    ctx.log.info("thread begins")
    time.sleep(message.body["seconds"])
    return ctx.settings.pod
"""

Make = Callable[..., Any]


@pytest.fixture
def code(tmp_path: Path) -> str:
    (tmp_path / "code_under_test.py").write_text(CODE)
    return "code_under_test:agent"


@pytest.fixture
async def bus(redis_url: str, unique: str) -> AsyncIterator[Bus]:
    bus = await Bus.connect(redis_url, HiveScope(hive=unique), messaging=Messaging(lease_seconds=2))
    yield bus
    await bus.aclose()


def message(message_type: str, **body: Any) -> AgentMessage:
    return AgentMessage(from_agent="test", to_agent="worker", message_type=message_type, body=body)


async def ask(bus: Bus, message_type: str, **body: Any) -> Any:
    return (await bus.request(message(message_type, **body), 20)).body["result"]


async def printed(process: Any, text: str) -> None:
    await asyncio.to_thread(process.wait_for, text)


async def test_it_serves_and_drains_on_sigterm(process: Make, code: str, bus: Bus, free_port: int) -> None:
    pod = process(AGENTHIVE_HTTP_PORT=str(free_port))
    pod.start(code, "--concurrency", "5")
    assert await ask(bus, "echo", n=1) == {"n": 1, "pod": "pod-1", "attempt": 1}
    assert await asyncio.to_thread(pod.page, "/livez") == (200, "ok\n")
    assert await asyncio.to_thread(pod.page, "/readyz") == (200, "ok\n")
    status, metrics = await asyncio.to_thread(pod.page, "/metrics")
    assert status == 200
    labels = f'agent="worker",hive="{bus.scope.hive}"'
    assert f'agenthive_messages_handled_total{{{labels},result="delivered",type="echo"}} 1.0' in metrics
    assert f"agenthive_concurrency{{{labels}}} 5.0" in metrics

    asking = asyncio.create_task(ask(bus, "slow", seconds=0.5))
    await printed(pod, "slow begins")
    pod.signal(signal.SIGTERM)
    await printed(pod, "draining: 1 handlers run")
    assert await asyncio.to_thread(pod.page, "/readyz") == (503, "draining\n")
    assert await asking == "pod-1"
    assert await asyncio.to_thread(pod.exit_code) == 0
    lines = [json.loads(line) for line in pod.log.read_text().splitlines()]
    (echoing,) = [line for line in lines if line["message"] == "echoing"]
    assert (echoing["pod"], echoing["message_type"], echoing["attempt"]) == ("pod-1", "echo", 1)
    assert echoing["message_id"]
    assert [line["message"] for line in lines if line["message"] in {"hooked", "stopped"}] == ["hooked", "stopped"]


async def test_what_does_not_finish_in_time_is_handled_elsewhere_at_once(process: Make, code: str, bus: Bus) -> None:
    first = process("first", AGENTHIVE_DRAIN_SECONDS="0.2")
    first.start(code)
    asking = asyncio.create_task(ask(bus, "hold", pod="first"))
    await printed(first, "holding")
    second = process("second")
    second.start(code)
    await printed(second, "serving worker")
    first.signal(signal.SIGTERM)
    assert await asyncio.to_thread(first.exit_code) == 0
    assert "handed back 1 messages" in first.log.read_text()
    assert await asking == "second"


async def test_a_second_signal_ends_it_at_once(process: Make, code: str, bus: Bus) -> None:
    pod = process(AGENTHIVE_DRAIN_SECONDS="60")
    pod.start(code)
    await bus.send(message("slow", seconds=60))
    await printed(pod, "slow begins")
    pod.signal(signal.SIGTERM)
    await printed(pod, "draining: 1 handlers run")
    pod.signal(signal.SIGTERM)
    assert await asyncio.to_thread(pod.exit_code, 5) == 128 + signal.SIGTERM


@pytest.mark.parametrize("handler", ["thread", "deaf"])
async def test_a_handler_that_does_not_end_keeps_its_message_and_does_not_keep_the_process(
    process: Make, code: str, bus: Bus, handler: str
) -> None:
    pod = process(AGENTHIVE_DRAIN_SECONDS="0.2", AGENTHIVE_MESSAGING='{"leaseSeconds": 2}')
    pod.start(code)
    message_id = await bus.send(message(handler, seconds=60))
    await printed(pod, f"{handler} begins")
    pod.signal(signal.SIGTERM)
    assert await asyncio.to_thread(pod.exit_code) == 0
    assert f"its message {message_id} stays with this process" in pod.log.read_text()
    stats = await bus.queue("worker")
    assert (stats.backlog, stats.in_flight) == (0, 1)


async def test_sigint_drains_too_and_an_idle_agent_stops_at_once(process: Make, code: str) -> None:
    pod = process()
    pod.start(code)
    await printed(pod, "serving worker")
    pod.signal(signal.SIGINT)
    assert await asyncio.to_thread(pod.exit_code, 15) == 0  # half of what it would give a handler


async def test_the_next_incarnation_of_a_killed_pod_takes_over_at_once(process: Make, code: str, bus: Bus) -> None:
    pod = process(AGENTHIVE_MESSAGING='{"leaseSeconds": 600}')
    pod.start(code)
    asking = asyncio.create_task(ask(bus, "hold", pod="pod-1"))
    await printed(pod, "holding")
    pod.kill()
    pod.start(code)
    assert await asking == "pod-1"


async def test_a_process_that_was_frozen_past_its_lease_is_refused(process: Make, code: str, bus: Bus) -> None:
    first = process("first", AGENTHIVE_MESSAGING='{"leaseSeconds": 2}')
    first.start(code)
    asking = asyncio.create_task(ask(bus, "hold", pod="first"))
    await printed(first, "holding")
    second = process("second", AGENTHIVE_MESSAGING='{"leaseSeconds": 2}')
    second.start(code)
    await printed(second, "serving worker")
    first.signal(signal.SIGSTOP)
    assert await asking == "second"
    (first.folder / "release").touch()
    first.signal(signal.SIGCONT)
    await printed(first, "the lease was lost while the handler ran")
    first.signal(signal.SIGTERM)
    assert await asyncio.to_thread(first.exit_code) == 0


async def test_it_waits_for_redis_and_survives_its_restarts(
    process: Make, code: str, own_valkey: Any, unique: str, free_port: int
) -> None:
    own_valkey.kill()
    pod = process(AGENTHIVE_REDIS_URL=own_valkey.url, AGENTHIVE_HTTP_PORT=str(free_port))
    pod.start(code)
    await printed(pod, "Redis is not available (connect)")
    status, why = await asyncio.to_thread(pod.page, "/readyz")
    assert status == 503
    assert "BusUnavailable" in why
    assert await asyncio.to_thread(pod.page, "/livez") == (200, "ok\n")
    await asyncio.to_thread(own_valkey.start)
    await printed(pod, "serving worker")
    bus = await Bus.connect(own_valkey.url, HiveScope(hive=unique))
    try:
        assert (await ask(bus, "echo", n=1))["n"] == 1
        asking = asyncio.create_task(ask(bus, "slow", seconds=1))
        await printed(pod, "slow begins")
        own_valkey.kill()
        await asyncio.to_thread(own_valkey.start)
        assert await asking == "pod-1"
        assert (await ask(bus, "echo", n=2))["n"] == 2
    finally:
        await bus.aclose()
    pod.signal(signal.SIGTERM)
    assert await asyncio.to_thread(pod.exit_code) == 0


async def test_it_can_be_stopped_while_it_waits_for_redis(process: Make, code: str) -> None:
    pod = process(AGENTHIVE_REDIS_URL="redis://127.0.0.1:1/0")
    pod.start(code)
    await printed(pod, "Redis is not available (connect)")
    pod.signal(signal.SIGTERM)
    assert await asyncio.to_thread(pod.exit_code) == 0


@pytest.mark.parametrize(
    ("text", "environment", "code", "reason"),
    [
        ("import no_such_library", {}, 2, "No module named 'no_such_library'; is no_such_library installed"),
        (CODE, {"AGENTHIVE_CONCURRENCY": "0"}, 2, "AGENTHIVE_* environment: concurrency: "),
        (CODE, {"AGENTHIVE_MESSAGING": '{"maxRetry": 1}'}, 2, "messaging"),
        (CODE, {"AGENTHIVE_MESSAGING": "{"}, 2, "messaging"),
        (CODE, {"AGENTHIVE_REDIS_URL": "http://x"}, 2, "http"),
        (CODE, {"AGENTHIVE_BIND": "203.0.113.1"}, 2, "cannot serve the health pages on 203.0.113.1:0"),
        (
            CODE + "\n@agent.on_start\ndef broken():\n    raise ValueError('no model file')\n",
            {},
            1,
            "start hook code_under_test.broken failed: ValueError: no model file",
        ),
    ],
)
def test_what_cannot_run_says_why_in_the_termination_log(
    process: Make, tmp_path: Path, text: str, environment: dict[str, str], code: int, reason: str
) -> None:
    (tmp_path / "code_under_test.py").write_text(text)
    pod = process(**environment)
    pod.termination_log.write_text("left from before")
    pod.start("code_under_test:agent")
    assert pod.exit_code() == code
    assert reason in pod.termination_log.read_text()
    assert "left from before" not in pod.termination_log.read_text()
    assert pod.log.read_text().splitlines()[-1] == f"agenthive run: {pod.termination_log.read_text()}"


def test_a_missing_schema_is_waited_for(process: Make, code: str, postgres_url: str, free_port: int) -> None:
    pod = process(AGENTHIVE_POSTGRES_URL=postgres_url, AGENTHIVE_HTTP_PORT=str(free_port))
    pod.start(code)
    pod.wait_for("PostgreSQL is not available (connect): SchemaMissing")
    assert "SchemaMissing" in pod.page("/readyz")[1]
    upgrade = pod.command("db", "upgrade", AGENTHIVE_POSTGRES_URL=postgres_url)
    assert upgrade.returncode == 0, upgrade.stderr
    pod.wait_for("serving worker")
    assert pod.page("/readyz") == (200, "ok\n")
    pod.signal(signal.SIGTERM)
    assert pod.exit_code() == 0
