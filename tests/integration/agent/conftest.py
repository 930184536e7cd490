"""Agents that run on the real bus: in the test's own event loop, or as processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agenthive import Agent
from agenthive.bus import Bus
from agenthive.cli import main
from agenthive.protocol import AgentMessage
from agenthive.runner import Runner
from agenthive.settings import Settings

PATIENCE = 20.0
"""How long a test waits for what has to happen, seconds."""


class Hive:
    """A hive of one test's own: its bus, and agents running in the test's loop."""

    def __init__(self, settings: Settings, bus: Bus) -> None:
        self.settings = settings
        self.bus = bus
        self._running: list[tuple[Runner, asyncio.Task[None]]] = []

    async def start(self, agent: Agent, /, **changes: Any) -> Runner:
        """Run ``agent`` until ``stop`` or the end of the test; returns once it claims."""
        runner = Runner(agent, self.settings.replace(**changes))
        task = asyncio.create_task(runner.run())
        self._running.append((runner, task))
        serving = asyncio.create_task(runner.serving.wait())
        await asyncio.wait((task, serving), timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        serving.cancel()
        if task.done():
            self._running.remove((runner, task))
            await task
        assert runner.serving.is_set(), "the agent does not serve"
        return runner

    async def stop(self, runner: Runner) -> None:
        """Drain and stop it."""
        runner.stop.set()
        for entry in list(self._running):
            if entry[0] is runner:
                self._running.remove(entry)
                await asyncio.wait_for(entry[1], PATIENCE)

    async def send(self, to: str, message_type: str = "x", body: dict[str, Any] | None = None, **fields: Any) -> str:
        message = AgentMessage(from_agent="test", to_agent=to, message_type=message_type, body=body or {}, **fields)
        return await self.bus.send(message)

    async def ask(self, to: str, message_type: str = "x", body: dict[str, Any] | None = None, **fields: Any) -> Any:
        message = AgentMessage(from_agent="test", to_agent=to, message_type=message_type, body=body or {}, **fields)
        return (await self.bus.request(message, PATIENCE)).body["result"]

    async def until(self, good: Callable[[], bool], what: str) -> None:
        """Until ``good`` is true of this process."""

        async def look() -> bool:
            return good()

        await eventually(look, bool, what)

    async def final(self, agent: str, message_id: str) -> Any:
        """The status of a message once it is final."""
        return await eventually(
            lambda: self.bus.status(agent, message_id), lambda found: found.status != "pending", "final status"
        )

    async def aclose(self) -> None:
        for runner, _ in list(self._running):
            await self.stop(runner)
        await self.bus.aclose()


async def eventually(look: Callable[[], Awaitable[Any]], good: Callable[[Any], bool], what: str) -> Any:
    """Poll until ``good``; a failure shows what was seen last."""
    deadline = time.monotonic() + PATIENCE
    while not good(seen := await look()):
        assert time.monotonic() < deadline, f"no {what} within {PATIENCE:.0f} s; last: {seen}"
        await asyncio.sleep(0.02)
    return seen


@contextlib.asynccontextmanager
async def hive_on(redis_url: str, name: str, **changes: Any) -> AsyncIterator[Hive]:
    settings = Settings().replace(
        redis_url=redis_url, hive=name, pod="pod-1", bind="127.0.0.1", http_port=0, drain_seconds=5, **changes
    )
    bus = await Bus.connect(redis_url, settings.scope, messaging=settings.messaging)
    hive = Hive(settings, bus)
    try:
        yield hive
    finally:
        await hive.aclose()


@pytest.fixture
async def hive(redis_url: str, unique: str) -> AsyncIterator[Hive]:
    """A hive on the session's Valkey, quick to retry."""
    async with hive_on(redis_url, unique, messaging={"retry_delay_seconds": 0.01, "max_retries": 2}) as hive:
        yield hive


class Process:
    """``agenthive run`` as a pod runs it."""

    def __init__(self, folder: Path, name: str, environment: dict[str, str]) -> None:
        self.folder = folder
        self.log = folder / f"{name}.log"
        self.termination_log = folder / f"{name}.termination"
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("AGENTHIVE_")},
            "AGENTHIVE_POD": name,
            "AGENTHIVE_BIND": "127.0.0.1",
            "AGENTHIVE_HTTP_PORT": "0",
            "AGENTHIVE_TERMINATION_LOG": str(self.termination_log),
            **environment,
        }
        self.popen: subprocess.Popen[bytes] | None = None

    def start(self, entrypoint: str, *options: str) -> None:
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "agenthive.cli", "run", entrypoint, *options],
                cwd=self.folder, env=self.environment, stdout=log, stderr=log,
            )  # fmt: skip

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Another command of the CLI in the same environment."""
        return subprocess.run(
            [sys.executable, "-m", "agenthive.cli", *arguments],
            cwd=self.folder, env={**self.environment, **environment}, text=True, capture_output=True, check=False,
            timeout=PATIENCE,
        )  # fmt: skip

    def wait_for(self, text: str) -> None:
        """Until the process has printed ``text``."""
        assert self.popen is not None
        deadline = time.monotonic() + PATIENCE
        while text not in self.log.read_text():
            assert self.popen.poll() is None, f"exited with {self.popen.returncode}:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"never printed {text!r}:\n{self.log.read_text()}"
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        assert self.popen is not None
        self.popen.send_signal(number)

    def exit_code(self, within: float = PATIENCE) -> int:
        assert self.popen is not None
        try:
            return self.popen.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {within} s:\n{self.log.read_text()}") from None

    def page(self, path: str) -> tuple[int, str]:
        """One of its health pages."""
        port = int(self.environment["AGENTHIVE_HTTP_PORT"])
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except urllib.error.URLError as error:
            return 0, str(error)

    def kill(self) -> None:
        if self.popen is not None and self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()


@pytest.fixture
def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Start = Callable[..., Process]


@pytest.fixture
def process(tmp_path: Path, redis_url: str, unique: str) -> Iterator[Start]:
    """Makes agent processes of one hive; whatever still runs is killed at the end."""
    made: list[Process] = []

    def make(name: str = "pod-1", **environment: str) -> Process:
        process = Process(tmp_path, name, {"AGENTHIVE_REDIS_URL": redis_url, "AGENTHIVE_HIVE": unique, **environment})
        made.append(process)
        return process

    yield make
    for process in made:
        process.kill()


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, redis_url: str, unique: str) -> Cli:
    """Runs the command line in this process: (exit code, stdout, stderr)."""
    monkeypatch.setenv("AGENTHIVE_REDIS_URL", redis_url)
    monkeypatch.setenv("AGENTHIVE_HIVE", unique)
    monkeypatch.setattr(sys, "argv", ["agenthive"])

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        printed = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, printed.out, printed.err

    return run
