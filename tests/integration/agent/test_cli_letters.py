"""``agenthive dlq`` and ``cancel``: real dead letters, a real terminal, and a process that is killed half-way."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agenthive.bus import Bus, Consumer, LetterFilter
from agenthive.protocol import AgentMessage
from agenthive.settings import Settings

Cli = Callable[..., tuple[int, str, str]]


async def connected(redis_url: str, hive: str) -> Bus:
    return await Bus.connect(redis_url, Settings().replace(redis_url=redis_url, hive=hive).scope)


async def claim(consumer: Consumer, count: int) -> list[Any]:
    deliveries: list[Any] = []
    async with asyncio.timeout(20):
        while len(deliveries) < count:
            deliveries += await consumer.claim(count - len(deliveries))
    return deliveries


async def make_letters(bus: Bus, *messages: AgentMessage) -> None:
    """Each is rejected."""
    await asyncio.gather(*(bus.send(message) for message in messages))
    consumer = bus.consumer("worker", pod="killer")
    await consumer.start()
    deliveries = await claim(consumer, len(messages))
    await asyncio.gather(*(consumer.reject(delivery, "no\nway") for delivery in deliveries))
    await consumer.aclose()


def message(n: int, **fields: Any) -> AgentMessage:
    return AgentMessage(
        **{"message_id": f"m{n}", "from_agent": "t", "to_agent": "worker", "message_type": "x", "body": {"n": n}}
        | fields
    )


@pytest.fixture
def letters(redis_url: str, unique: str) -> Callable[..., None]:
    """Makes dead letters of numbered messages."""

    def make(*messages: AgentMessage) -> None:
        async def work() -> None:
            bus = await connected(redis_url, unique)
            await make_letters(bus, *messages)
            await bus.aclose()

        asyncio.run(work())

    return make


def test_list_and_show(cli: Cli, letters: Callable[..., None]) -> None:
    letters(*(message(n, message_type="odd" if n % 2 else "even") for n in range(4)))
    listed = json.loads(cli("dlq", "list", "worker", "-o", "json")[1])
    numbers = [letter["message_id"] for letter in listed]
    assert sorted(numbers) == ["m0", "m1", "m2", "m3"]

    def found(*options: str) -> list[str]:
        return [letter["message_id"] for letter in json.loads(cli("dlq", "list", "worker", "-o", "json", *options)[1])]

    assert sorted(found("--type", "odd", "--from", "t", "--reason", "rejected", "--error", "WAY")) == ["m1", "m3"]
    assert found("--message", "m2", "--since", "10m") == ["m2"]
    assert found("--until", "1h") == []
    assert found("--since", (datetime.now(UTC) + timedelta(hours=1)).isoformat()) == []
    assert found("--newest", "--limit", "1") == [numbers[-1]]
    code, out, err = cli("dlq", "list", "worker", "--limit", "2")
    assert (code, err, len(out.splitlines())) == (0, "", 3)
    assert out.split()[:5] == ["ID", "MESSAGE", "TYPE", "FROM", "REASON"]
    assert cli("dlq", "list", "worker", "--type", "none")[2] == "worker has no dead letters that fit\n"
    code, _, err = cli("dlq", "list", "worker", "--since", "soon")
    assert code == 2
    assert "'soon' is no moment; write 2026-01-31T12:00:00Z, or an age: 10m, 2h, 3d" in " ".join(err.split())

    code, out, _ = cli("dlq", "show", "worker", "m3")
    assert code == 0
    assert re.match(r"Letter:   \d+-\d+\nMessage:  m3\nReason:   rejected\nAttempts: 1\nDied: ", out)
    assert "Error:\nno\nway\n" in out
    assert json.loads(out[out.index("{") :])["body"] == {"n": 3}
    assert json.loads(cli("dlq", "show", "worker", "m3", "-o", "json")[1])["message"]["body"] == {"n": 3}
    assert cli("dlq", "show", "worker", "m9") == (
        1, "", "agenthive: agent worker has no dead letter, and none of a message, of id m9\n"
    )  # fmt: skip


def test_redrive(cli: Cli, letters: Callable[..., None]) -> None:
    letters(*(message(n, message_type="odd" if n % 2 else "even") for n in range(6)))
    assert cli("dlq", "redrive", "worker", "m0", "m2") == (0, "2 redriven\n", "")
    code, out, err = cli("dlq", "redrive", "worker", "m0", "m4", "--ttl", "60")
    assert (code, out) == (1, "1 redriven, 1 refused\n")
    assert err == "m0: agent worker has no dead letter, and none of a message, of this id\n"
    code, out, _ = cli("dlq", "redrive", "worker", "--type", "odd", "--rate", "1000", "-o", "json")
    assert (code, json.loads(out)) == (0, {"agent": "worker", "redriven": 3, "refused": 0, "problems": []})
    assert json.loads(cli("status", "worker", "-o", "json")[1])[0]["backlog"] == 6
    for options in ([], ["--all", "m1"], ["--all", "--type", "odd"], ["m1", "--type", "odd"]):
        code, _, err = cli("dlq", "redrive", "worker", *options)
        assert code == 2
        assert "which dead letters? Give IDs, or filters such as --type, or --all" in err
    assert cli("dlq", "redrive", "worker", "--all", "--to", "other") == (0, "0 redriven\n", "")


def test_purge_asks_nobody_only_when_told_so(cli: Cli, letters: Callable[..., None]) -> None:
    letters(*(message(n) for n in range(3)))
    code, _, err = cli("dlq", "purge", "worker", "--all")
    assert code == 2
    assert "where nobody can answer, give --yes" in err
    assert cli("dlq", "purge", "worker", "m1", "--yes") == (0, "1 purged\n", "")
    assert cli("dlq", "purge", "worker", "--all", "-y") == (0, "2 purged\n", "")


def on_terminal(environment: dict[str, str], answer: str, *arguments: str) -> tuple[int, str]:
    """Exit code and everything that a terminal shows."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "agenthive.cli", *arguments]
    with subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        os.write(ours, answer.encode())
        shown = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # EIO: the process has closed its end
                break
            if not part:
                break
            shown += part
        os.close(ours)
        return process.wait(20), shown.decode().replace("\r\n", "\n")


def test_on_a_terminal(letters: Callable[..., None], redis_url: str, unique: str) -> None:
    letters(*(message(n) for n in range(3)))
    environment = os.environ | {"AGENTHIVE_REDIS_URL": redis_url, "AGENTHIVE_HIVE": unique, "TERM": "dumb"}
    code, shown = on_terminal(environment, "n\n", "dlq", "purge", "worker", "--all")
    assert code == 130
    assert "Throw all dead letters that fit of worker away, for good? [y/N]: " in shown
    code, shown = on_terminal(environment, "y\n", "dlq", "purge", "worker", "m1", "m2")
    assert (code, "Throw 2 dead letters of worker away" in shown) == (0, True)
    assert "\r2 of 2 looked at, 2 purged\n2 purged\n" in shown
    code, shown = on_terminal(environment, "", "dlq", "redrive", "worker", "--all")
    assert (code, shown) == (0, "\r1 of 1 looked at, 1 redriven\n1 redriven\n")


def test_cancel(cli: Cli, letters: Callable[..., None]) -> None:
    letters(message(1))
    cli("send", "worker", "x", "--id", "waits")
    assert cli("cancel", "worker", "waits", "--reason", "too late") == (0, "cancelled\n", "")
    assert "cancelled: too late" in cli("status", "worker", "waits")[1]
    assert cli("cancel", "worker", "m1") == (1, "finished\n", "")
    code, out, _ = cli("cancel", "worker", "nothing", "-o", "json")
    assert (code, json.loads(out)["result"]) == (1, "unknown")


async def test_a_redrive_that_is_killed_neither_loses_nor_doubles(redis_url: str, unique: str, tmp_path: Path) -> None:
    count = 2000
    bus = await connected(redis_url, unique)
    await make_letters(bus, *(message(n) for n in range(count)))
    environment = os.environ | {"AGENTHIVE_REDIS_URL": redis_url, "AGENTHIVE_HIVE": unique}
    command = [sys.executable, "-m", "agenthive.cli", "dlq", "redrive", "worker", "--all", "--rate", "1500"]

    async def moved() -> int:
        return (await bus.queue("worker")).backlog

    for least in (1, 1000):
        with (tmp_path / "log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=log, stderr=log)
        try:
            before = await moved()
            async with asyncio.timeout(20):
                while await moved() < max(least, before + 1):
                    assert process.returncode is None, (tmp_path / "log").read_text()
                    await asyncio.sleep(0)
        finally:
            process.send_signal(signal.SIGKILL)
            assert await process.wait() == -signal.SIGKILL
        queue = await bus.queue("worker")
        assert queue.backlog + queue.dead_letters == count
        assert queue.backlog < count, "it was to be killed before it was done"
    assert (await bus.redrive("worker", LetterFilter())).refused == 0
    consumer = bus.consumer("worker", pod="reader")
    await consumer.start()
    ids = [delivery.message.message_id for delivery in await claim(consumer, count)]
    assert sorted(ids) == sorted(f"m{n}" for n in range(count))
    queue = await bus.queue("worker")
    assert (queue.backlog, queue.in_flight, queue.dead_letters) == (0, count, 0)
    await consumer.aclose()
    await bus.aclose()
