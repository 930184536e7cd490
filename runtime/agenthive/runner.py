"""The life of one agent process: connect, start, serve, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from agenthive.agent import Agent
from agenthive.bus import Bus, BusError
from agenthive.cache import Cache
from agenthive.context import AgentContext, Resources, surroundings
from agenthive.health import HealthServer
from agenthive.journal import Journal
from agenthive.loader import ConfigurationError, last_line, place
from agenthive.outage import FIRST_DELAY, Outage
from agenthive.protocol import describe
from agenthive.settings import Settings
from agenthive.telemetry import Telemetry
from agenthive.worker import OnFailure, Worker

if TYPE_CHECKING:
    from agenthive.bus import Consumer
    from agenthive.store import Store
    from agenthive.store.transaction import Transactions

log = logging.getLogger(__name__)
T = TypeVar("T")

#: How long the answer of PostgreSQL to a readiness check is good for, and how long it may take, seconds.
STORE_CHECK_SECONDS = 5.0
STORE_ANSWER_SECONDS = 2.0


class StartFailed(Exception):  # noqa: N818 - what happened
    """A start hook raised; the text says which and why."""


class Runner:
    """One agent process, from its settings to its end.

    Args:
        agent: whose handlers run.
        settings: the environment. ``settings.agent`` wins over the agent's own name.
        fires: whether the agent's schedules are fired by this process.
        on_failure: as the worker's.
    """

    def __init__(
        self, agent: Agent, settings: Settings, *, fires: bool = True, on_failure: OnFailure | None = None
    ) -> None:
        self.agent = agent
        self.settings = settings
        self.name = settings.agent or agent.name
        self.pod = settings.pod or f"{socket.gethostname()}-{os.getpid()}"
        #: Set to drain and stop.
        self.stop = asyncio.Event()
        #: Set once messages are claimed.
        self.serving = asyncio.Event()
        #: Port of the health pages, once they are served.
        self.port: int | None = None
        self.telemetry = Telemetry(
            self.name,
            hive=settings.hive,
            in_flight=lambda: self._worker.running if self._worker is not None else 0,
            concurrency=settings.concurrency,
        )
        self._fires = fires
        self._on_failure = on_failure
        self._worker: Worker | None = None
        self._store: Store | None = None
        self._store_checked = float("-inf")
        self._store_outage = Outage("PostgreSQL", self.telemetry.store_errors, self.stop)
        self._bus_outage = Outage("Redis", self.telemetry.bus_errors, self.stop)

    @property
    def stuck(self) -> bool:
        """After ``run``: whether a handler still runs that could not be ended, in a thread or by ignoring its end."""
        return self._worker is not None and bool(self._worker.stuck)

    async def run(self) -> None:
        """Serve until ``stop`` is set and everything is drained.

        Raises:
            ConfigurationError: the health port is taken, a schedule's message has no handler, or this code cannot work
                with what it is connected to.
            StartFailed: a start hook raised.
        """
        check_schedules(self.agent)
        async with AsyncExitStack() as stack:
            health = HealthServer(live=self._live, ready=self._ready, metrics=self.telemetry.exposition)
            self.port = await self._listen(health)
            stack.push_async_callback(health.stop)
            bus = await self._connect_bus(stack)
            cache = self._make_cache(stack)
            self._store = await self._connect_store(stack, cache)
            if bus is None or self.stop.is_set():
                return
            resources = Resources(
                self.name, self.settings, bus, self._store, logging.getLogger(f"agent.{self.name}"),
                asyncio.get_running_loop(), await self._start_transactions(stack, bus), cache,
            )  # fmt: skip
            if self._store is not None and self.settings.messaging.log == "all":
                bus.on_sent = Journal(self._store, self.name, self.telemetry).sent
            surroundings.set(resources)
            await self._serve(bus, resources)

    async def _listen(self, health: HealthServer) -> int:
        host, port = self.settings.bind, self.settings.http_port
        try:
            return await health.start(host, port)
        except OSError as error:
            raise ConfigurationError(
                f"cannot serve the health pages on {host}:{port}: {error.strerror or error}; "
                "AGENTHIVE_BIND and AGENTHIVE_HTTP_PORT name another address (port 0: any free one)"
            ) from error

    async def _serve(self, bus: Bus, resources: Resources) -> None:
        ctx = AgentContext(resources)
        for hook in self.agent.start_hooks:
            try:
                await hook.run(ctx)
            except Exception as error:
                raise StartFailed(f"start hook {hook.where} failed: {last_line(error)}; {place(error)}") from error
        settings = self.settings
        try:
            consumer = bus.consumer(self.name, pod=self.pod, topics=settings.topics, topic_start=settings.topic_start)
        except ValueError as error:
            raise ConfigurationError(f"AGENTHIVE_AGENT, AGENTHIVE_POD or AGENTHIVE_TOPICS: {error}") from error
        self.telemetry.topic_copies, self.telemetry.topic_missed = consumer.pump.copied, consumer.pump.missed
        try:
            if await self._persist(self._bus_outage, "start", _returning_true(consumer.start), BusError) is None:
                return
            self._worker = Worker(
                self.agent,
                resources,
                consumer,
                self.telemetry,
                concurrency=self.settings.concurrency,
                default_timeout=self.settings.messaging.handler_timeout_seconds,
                stop=self.stop,
                drain_seconds=self.settings.drain_seconds,
                on_failure=self._on_failure,
            )
            # What start-up made lives as long as the process: the collector need not walk it again.
            gc.freeze()
            self._audit("process.start", {"handlers": sorted(self.agent.handlers)[:100]})
            log.info("serving %s: %s", self.name, ", ".join(sorted(self.agent.handlers)))
            self.serving.set()
            async with self._firing(bus):
                await self._worker.run()
        finally:
            for hook in self.agent.stop_hooks:
                try:
                    await hook.run(ctx)
                except Exception:
                    log.exception("stop hook %s failed", hook.where)
            await self._close(consumer)
            self._audit("process.stop", {"stuck": self.stuck})
            log.info("stopped")

    def _audit(self, action: str, details: dict[str, Any]) -> None:
        if self._store is not None:
            self._store.audit.note(action, self.pod, details)

    @contextlib.asynccontextmanager
    async def _firing(self, bus: Bus) -> AsyncIterator[None]:
        """Fire the agent's schedules meanwhile."""
        if not self._fires or not self.agent.schedules:
            yield
            return
        from agenthive.firing import Scheduler  # noqa: PLC0415 - of use to few

        scheduler = Scheduler(self.name, self.agent.schedules.values(), bus, self.telemetry, self.stop)
        task = asyncio.create_task(scheduler.run(), name="schedules")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _close(self, consumer: Consumer) -> None:
        if self.stuck:
            return  # closing frees the lease at once, which a handler that still runs must keep
        try:
            await consumer.aclose()
        except BusError as error:
            log.warning("the lease could not be given back and runs out by itself: %s", error)

    # Connections

    async def _connect_bus(self, stack: AsyncExitStack) -> Bus | None:
        settings = self.settings

        async def connect() -> Bus:
            return await Bus.connect(
                settings.redis_url.get_secret_value(),
                settings.scope,
                messaging=settings.messaging,
                pool=settings.redis_pool,
                client_name=f"agenthive:{self.pod}",
                inside=True,
            )

        try:
            bus = await self._persist(self._bus_outage, "connect", connect, BusError)
        except ValueError as error:
            raise ConfigurationError(f"AGENTHIVE_REDIS_URL: {error}") from error
        if bus is not None:
            stack.push_async_callback(bus.aclose)
        return bus

    def _make_cache(self, stack: AsyncExitStack) -> Cache | None:
        """The cache, which connects when it is first used; closed after the store, which tells it what it writes."""
        settings = self.settings
        if not settings.cache.enabled:
            return None
        own = settings.cache_url  # nothing else is in a Redis of its own that it could crowd out
        try:
            cache = Cache(
                (own or settings.redis_url).get_secret_value(),
                settings.scope,
                max_bytes=None if own else settings.cache.max_bytes,
                client_name=f"agenthive:{self.pod}:cache",
            )
        except ValueError as error:
            raise ConfigurationError(f"AGENTHIVE_CACHE_URL: {error}") from error
        self.telemetry.cache = cache.figures
        stack.push_async_callback(cache.aclose)
        return cache

    async def _connect_store(self, stack: AsyncExitStack, cache: Cache | None) -> Store | None:
        url = self.settings.postgres_url
        if url is None:
            return None
        # asyncpg costs 60 ms and 8 MiB that an agent without a store saves
        from agenthive.store import SchemaTooNew, Store, StoreError, application_name  # noqa: PLC0415

        async def connect() -> Store:
            return await Store.connect(
                url.get_secret_value(),
                self.settings.scope,
                agent=self.name,
                pool=self.settings.postgres_pool,
                application_name=application_name(self.settings.hive, self.name, self.pod),
                message_log=self.settings.messaging.log,
                process=self.pod,
                cache=cache,
            )

        try:
            store = await self._persist(self._store_outage, "connect", connect, StoreError, never=SchemaTooNew)
        except SchemaTooNew as error:
            raise ConfigurationError(str(error)) from error
        if store is not None:
            stack.push_async_callback(store.aclose)
            self.telemetry.message_log_dropped = lambda: store.messages.dropped
            self.telemetry.audit_rows = lambda: (store.audit.written, store.audit.dropped)
        return store

    async def _start_transactions(self, stack: AsyncExitStack, bus: Bus) -> Transactions | None:
        """What ``ctx.transaction()`` needs; at the end it sends what was committed, before bus and store are closed."""
        if self._store is None:
            return None
        from agenthive.relay import Relay  # noqa: PLC0415 - loads asyncpg, see above
        from agenthive.store.transaction import Transactions  # noqa: PLC0415 - as above

        relay = Relay(self.name, bus, self._store.outbox, self.telemetry)
        stack.push_async_callback(relay.aclose)
        relay.start()
        return Transactions(self.name, self.settings, self._store, bus, relay, self.telemetry)

    async def _persist(
        self,
        outage: Outage,
        operation: str,
        attempt: Callable[[], Awaitable[T]],
        passing: type[Exception],
        *,
        never: type[Exception] | tuple[type[Exception], ...] = (),
    ) -> T | None:
        """Try until it works; None if the process stops first.

        Args:
            passing: errors that trying again may cure; all others are raised, and of these ``never``.
        """
        delay = FIRST_DELAY
        while not self.stop.is_set():
            try:
                result = await attempt()
            except never:
                raise
            except passing as error:
                delay = await outage.wait(operation, error, delay)
            else:
                outage.over()
                return result
        return None

    # Health

    async def _live(self) -> tuple[bool, str]:
        # The answer itself is the proof: it comes from the loop that handlers run on.
        return True, "ok"

    async def _ready(self) -> tuple[bool, str]:
        if self.stop.is_set():
            return False, "draining"
        why = [outage.reason for outage in (self._bus_outage, self._store_outage) if outage.reason]
        if self._worker is None:
            return False, "; ".join(["starting", *why])
        if self._worker.outage.reason or not self._worker.bus_available:
            return False, f"Redis: {self._worker.outage.reason or self._worker.bus_trouble or 'does not answer'}"
        reason = await self._check_store()
        return (False, f"PostgreSQL: {reason}") if reason else (True, "ok")

    async def _check_store(self) -> str:
        if self._store is None:
            return ""
        from agenthive.store import StoreError  # noqa: PLC0415 - loaded by now

        now = time.monotonic()
        if now - self._store_checked >= STORE_CHECK_SECONDS:
            self._store_checked = now
            try:
                await self._store.ping(STORE_ANSWER_SECONDS)
            except StoreError as error:
                self._store_outage.failed("check", error)
            else:
                self._store_outage.over()
        return self._store_outage.reason


def check_schedules(agent: Agent) -> None:
    """Raises ConfigurationError for a schedule whose messages would all end as dead letters."""
    for schedule in agent.schedules.values():
        kind, body = schedule.template.message_type, schedule.template.body
        handler = agent.handlers.get(kind)
        if handler is None:
            raise ConfigurationError(
                f"agent {agent.name}: schedule {schedule.name} sends {kind!r}, which nothing handles; "
                f"decorate a function with every(…), or one with @agent.on({kind!r})"
            )
        if handler.read_body is not None:
            try:
                handler.read_body(body)
            except ValidationError as error:
                raise ConfigurationError(
                    f"agent {agent.name}: the body of schedule {schedule.name} does not fit {handler.where}: "
                    f"{describe(error)}"
                ) from error


def _returning_true(call: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[bool]]:
    async def wrapped() -> bool:
        await call()
        return True

    return wrapped


def run(agent: Agent, settings: Settings) -> None:
    """Run ``agent`` until SIGTERM or SIGINT, then drain. A second signal ends the process at once.

    Raises:
        ConfigurationError, StartFailed: as ``Runner.run``.
    """
    loop_factory = None
    if sys.platform != "win32":
        import uvloop  # noqa: PLC0415 - where there is one

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as loop_runner:
        if loop_runner.run(_until_signalled(agent, settings)):
            # The runner would wait for tasks that ignore their end, the interpreter for threads that do not come to it.
            logging.shutdown()
            os._exit(0)


async def _until_signalled(agent: Agent, settings: Settings) -> bool:
    runner = Runner(agent, settings)
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if runner.stop.is_set():
            log.warning("second signal: exiting at once")
            logging.shutdown()
            os._exit(128 + number)
        log.info("%s: draining", signal.Signals(number).name)
        runner.stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    await runner.run()
    return runner.stuck
