"""The claim → run → acknowledge loop of one agent process."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from agenthive import telemetry
from agenthive.agent import Agent
from agenthive.bus import BusError, BusUnavailable, ConsumerStopped, LeaseLost
from agenthive.context import Context, Resources, current
from agenthive.deadlines import Deadlines
from agenthive.handling import (
    ACKNOWLEDGE,
    Acknowledge,
    BoundHandler,
    Discard,
    Fail,
    HandBack,
    Run,
    Stop,
    Verdict,
    bind,
    committed_reply,
    format_error,
    judge,
    outcome,
    unknown_type,
)
from agenthive.journal import Journal
from agenthive.once import Progress
from agenthive.outage import FIRST_DELAY, LONGEST_DELAY, Outage
from agenthive.protocol import describe

if TYPE_CHECKING:
    from agenthive.bus import Consumer, Delivery, GivenUp
    from agenthive.protocol import AgentMessage
    from agenthive.telemetry import Telemetry

log = logging.getLogger(__name__)

#: Of messages that Redis gave up, so many bytes are fetched with one claim, for the message log.
LOGGED_BYTES = 1024 * 1024
#: After the drain time cancelled handlers get this long to clean up, and finished ones to be acknowledged, seconds.
CLEANUP_SECONDS = 5.0

OnFailure = Callable[["AgentMessage", BaseException | None], None]


class Worker:
    """Runs the handlers of one agent on the messages of one consumer.

    A slot is taken from the claim of a message until its handler ends; the acknowledgement happens outside the slot,
    so that it shares a round trip with the next claim. Messages whose acknowledgement is on its way are bounded too.

    Args:
        agent: whose handlers run.
        resources: what their contexts share.
        consumer: a started consumer; the caller closes it.
        figures: where everything is counted.
        concurrency: handlers at a time.
        default_timeout: seconds one handling may take where its handler says nothing; None means no limit.
        stop: once set, the worker claims no more, drains, and ``run`` returns.
        drain_seconds: how long running handlers may take to finish then.
        on_failure: told of each handling that failed, with what was raised (None: it outran its time limit).
    """

    def __init__(
        self,
        agent: Agent,
        resources: Resources,
        consumer: Consumer,
        figures: Telemetry,
        *,
        concurrency: int,
        default_timeout: float | None,
        stop: asyncio.Event,
        drain_seconds: float,
        on_failure: OnFailure | None = None,
    ) -> None:
        self._resources = resources
        self._consumer = consumer
        self._figures = figures
        self._concurrency = concurrency
        self._stop = stop
        self._drain_seconds = drain_seconds
        self._on_failure = on_failure
        self._handlers = bind(agent, figures, default_timeout)
        self._unknown = unknown_type(agent, resources.agent, figures)
        self._journal = None if resources.store is None else Journal(resources.store, resources.agent, figures)
        consumer.on_given_up = self._given_up
        consumer.noted_bytes = LOGGED_BYTES if self._journal is not None else 0
        figures.replies_dropped = lambda: consumer.replies_dropped
        self._loop = asyncio.get_running_loop()
        #: Handlers running now.
        self.running = 0
        #: Every message claimed and not yet settled with Redis.
        self._runs: set[Run] = set()
        self._unsettled_limit = 2 * concurrency + 64
        #: Set at each change of ``running`` and ``_runs``, while somebody waits for one.
        self._change = asyncio.Event()
        self._change_wanted = False
        self._deadlines: Deadlines[Run] = Deadlines()
        self._timer: asyncio.TimerHandle | None = None
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="handler")
        #: The bus as this worker sees it.
        self.outage = Outage("Redis", figures.bus_errors, stop)

    @property
    def stuck(self) -> list[Run]:
        """Handlings that neither ended nor could be cancelled; they hold their messages until the process ends."""
        return [run for run in self._runs if not run.done and not _over(run)]

    @property
    def bus_available(self) -> bool:
        """Whether Redis answered when it was last asked."""
        return self._resources.bus.available

    @property
    def bus_trouble(self) -> str:
        """Why it did not; empty while it does."""
        return self._resources.bus.trouble

    async def run(self) -> None:
        """Claim and handle until ``stop`` is set, then drain."""
        claiming = asyncio.create_task(self._claim_loop(), name="claim")
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            await asyncio.wait((claiming, stopping), return_when=asyncio.FIRST_COMPLETED)
            self._stop.set()
            await self._consumer.stop()
            self._change.set()
            await claiming
            for delivery in await self._consumer.rest():
                self._start(delivery)
        finally:
            stopping.cancel()
            await self._drain()
            if self._timer is not None:
                self._timer.cancel()
            self._threads.shutdown(wait=False)

    # Claiming

    async def _claim_loop(self) -> None:
        delay = FIRST_DELAY
        while not self._stop.is_set():
            free = self._free()
            if free <= 0:
                await self._next_change()
                continue
            try:
                deliveries = await self._consumer.claim(free, free=self._free)
            except ConsumerStopped:
                return
            except BusError as error:
                delay = await self.outage.wait("claim", error, delay)
                continue
            delay = FIRST_DELAY
            self.outage.over()
            self._figures.claims += 1
            self._figures.claimed += len(deliveries)
            for delivery in deliveries:
                self._start(delivery)

    def _free(self) -> int:
        """Messages that may be claimed now."""
        return min(self._concurrency - self.running, self._unsettled_limit - len(self._runs))

    async def _next_change(self) -> None:
        self._change_wanted = True
        self._change.clear()
        await self._change.wait()
        self._change_wanted = False

    def _start(self, delivery: Delivery) -> None:
        message = delivery.message
        handler = self._handlers.get(message.message_type, self._unknown)
        run = Run(delivery, handler, Context(self._resources, message, delivery.attempt), self._acknowledged)
        self._runs.add(run)
        self.running += 1
        if sys.version_info >= (3, 12):
            # One that needs not wait is done at once, without a turn of the loop.
            run.task = asyncio.Task(self._handle(run), loop=self._loop, eager_start=True)
        else:
            run.task = asyncio.Task(self._handle(run), loop=self._loop)

    # Handling

    async def _handle(self, run: Run) -> None:
        handler, ctx = run.handler, run.ctx
        current.set(ctx)
        result: Any = None
        error: BaseException | None = None
        started = perf_counter()
        if handler.timeout is not None:
            self._limit(run, handler.timeout)
        try:
            if run.delivery.attempt > 1 and self._resources.transactions is not None:
                ctx.progress = Progress()
                await self._resources.transactions.look(ctx.message, ctx.progress)
            if not handler.is_async:
                result = await self._in_thread(handler, ctx)
            elif handler.takes_context:
                result = await handler.function(ctx.message, ctx)
            else:
                result = await handler.function(ctx.message)
        except BaseException as caught:
            error = caught
        self.running -= 1
        if self._change_wanted:
            self._change.set()
        handler.figures.observe(perf_counter() - started)
        if error is None and run.stop is None:
            verdict: Verdict = ACKNOWLEDGE
        else:
            verdict = judge(run, error)
            if isinstance(verdict, HandBack):
                return  # the drain hands back everything it cancelled in one call
            self._note(run, verdict, error)
        run.done = True
        reply: AgentMessage | None = None
        if verdict is ACKNOWLEDGE and ctx.progress is not None and ctx.progress.committed:
            reply = committed_reply(run, result, error)
        elif verdict is ACKNOWLEDGE and ctx.message.reply_to is not None:
            try:
                reply = ctx.message.reply(result)
            except ValidationError as unfit:
                # Another attempt would end the same way, after doing the work twice.
                verdict = Discard(f"the result of {handler.where} cannot be sent as a reply: {describe(unfit)}")
                self._note(run, verdict, unfit)
        self._settle(run, verdict, reply, FIRST_DELAY)

    async def _in_thread(self, handler: BoundHandler, ctx: Context) -> Any:
        arguments = (ctx.message, ctx) if handler.takes_context else (ctx.message,)
        call = functools.partial(contextvars.copy_context().run, _call, handler.function, *arguments)
        result, error = await self._loop.run_in_executor(self._threads, call)
        if error is not None:
            raise error
        return await result if inspect.isawaitable(result) else result

    def _note(self, run: Run, verdict: Verdict, error: BaseException | None) -> None:
        if isinstance(verdict, Acknowledge):
            if run.ctx.progress is not None and run.ctx.progress.again:
                log.info("acknowledged without running: its effects were committed before")
                return
            if error is None:
                return
            log.error(
                "%s failed after its transaction was committed, so its message is acknowledged: %s",
                run.handler.where, format_error(error),
            )  # fmt: skip
        if type(error).__module__.startswith("agenthive.store"):  # not imported where there is no store
            self._figures.store_errors["handler"] += 1
        elif isinstance(error, BusUnavailable):
            self._figures.bus_errors["handler"] += 1
        if self._on_failure is not None:
            self._on_failure(run.delivery.message, error)
        if isinstance(verdict, Fail):
            log.warning("attempt %d failed: %s", run.delivery.attempt, verdict.error)
        elif isinstance(verdict, Discard):
            log.warning("rejected: %s", verdict.reason)

    # Telling Redis

    def _settle(self, run: Run, verdict: Verdict, reply: AgentMessage | None, delay: float) -> None:
        """Tell the bus what became of a message; ``_settled`` goes on when it has heard."""
        # Callbacks, not a task that waits: this is the path of every message.
        if verdict is ACKNOWLEDGE and reply is None and delay == FIRST_DELAY:
            self._consumer.acknowledge(run.delivery, run.acknowledged)
            return
        if isinstance(verdict, Acknowledge):
            told = self._consumer.ack(run.delivery, reply)
        elif isinstance(verdict, Fail):
            told = self._consumer.fail(run.delivery, verdict.error, retry_after=verdict.retry_after)
        else:
            assert isinstance(verdict, Discard)
            told = self._consumer.reject(run.delivery, verdict.reason)
        told.add_done_callback(functools.partial(self._heard, run, verdict, reply, delay))

    def _heard(
        self, run: Run, verdict: Verdict, reply: AgentMessage | None, delay: float, told: asyncio.Future[None]
    ) -> None:
        if told.cancelled():  # the loop is closing
            return
        error, progress = told.exception(), run.ctx.progress
        if error is None and progress is not None and progress.reply_row is not None:
            assert self._resources.transactions is not None
            self._resources.transactions.relay.done(progress.reply_row)
        self._settled(run, verdict, reply, delay, error)

    def _acknowledged(self, run: Run, error: BaseException | None) -> None:
        self._settled(run, ACKNOWLEDGE, None, FIRST_DELAY, error)

    def _settled(
        self, run: Run, verdict: Verdict, reply: AgentMessage | None, delay: float, error: BaseException | None
    ) -> None:
        results = run.handler.figures.results
        if error is None:
            results[verdict.result] += 1
            if self.outage.reason:
                self.outage.over()
            if self._journal is not None and (verdict is not ACKNOWLEDGE or self._journal.everything):
                self._record(self._journal, run.delivery, verdict)
        elif isinstance(error, LeaseLost):
            results[telemetry.LEASE_LOST] += 1
            log.warning("the lease was lost while the handler ran; another process has the message: %s", error)
        else:
            # Again until Redis has heard: unheard, the message would stay under our own lease as long as we live.
            self.outage.failed("settle", error)
            run.delivery.completed = False  # or the bus would take the repetition for a second result
            self._loop.call_later(delay, self._settle, run, verdict, reply, min(delay * 2, LONGEST_DELAY))
            return
        self._runs.discard(run)
        if self._change_wanted:
            self._change.set()

    def _record(self, journal: Journal, delivery: Delivery, verdict: Verdict) -> None:
        """Into the message log and the audit trail, behind the back of whoever handles the next one."""
        message = delivery.message
        if message.delivery_options.persistent:
            max_retries = self._resources.settings.messaging.max_retries
            status, error = outcome(verdict, message, delivery.attempt, max_retries)
            why = telemetry.REJECTED if isinstance(verdict, Discard) else None
            journal.note(message.message_id, message, status, error, delivery.attempt, why=why)

    def _given_up(self, given_up: GivenUp) -> None:
        """Redis put a message into the dead letters that no handler rejected."""
        self._figures.given_up[given_up.reason] += 1
        message = given_up.message
        log.warning("message %s was given up: %s: %s", given_up.message_id, given_up.reason, given_up.error)
        if self._journal is None or (message is not None and not message.delivery_options.persistent):
            return
        if message is None and given_up.reason != "malformed":
            log.warning("message %s is not in the message log: too much was given up at once", given_up.message_id)
            return
        status = "expired" if given_up.reason == "expired" else "failed"
        error = f"{given_up.reason}: {given_up.error}"
        self._journal.note(given_up.message_id, message, status, error, given_up.attempts, why=given_up.reason)

    # Time limits

    def _limit(self, run: Run, seconds: float) -> None:
        when = self._loop.time() + seconds
        if self._deadlines.push(when, run):
            self._arm(when)

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._expire)

    def _expire(self) -> None:
        self._timer = None
        for run in self._deadlines.due(self._loop.time()):
            run.stop = Stop.TIME_LIMIT
            if run.handler.is_async:
                assert run.task is not None
                run.task.cancel()
            else:
                log.warning(
                    "%s has run for %g s: a thread cannot be stopped, message %s waits for it",
                    run.handler.where,
                    run.handler.timeout,
                    run.delivery.message.message_id,
                )
        following = self._deadlines.next()
        if following is not None:
            self._arm(following)

    # Draining

    async def _drain(self) -> None:
        """Let what runs finish, cancel what does not, hand back what was cancelled."""
        if not self._runs:
            return
        log.info("draining: %d handlers run, they have %g s", self.running, self._drain_seconds)
        await self._until(lambda: not self._runs, self._drain_seconds)
        cancelled = [run for run in self._runs if not run.done and run.handler.is_async]
        for run in cancelled:
            assert run.task is not None
            # One that is past its own time limit stays a failure.
            run.stop = run.stop or Stop.DRAIN
            run.task.add_done_callback(lambda _: self._change.set())
            run.task.cancel()
        # Those that ended and those that were cancelled are waited for; a thread had its time.
        await self._until(lambda: not any(run.done or not _over(run) for run in self._runs if run.handler.is_async),
                          CLEANUP_SECONDS)  # fmt: skip
        await self._release([run for run in cancelled if run in self._runs and not run.done and _over(run)])
        for run in self.stuck:
            log.error(
                "%s does not end; its message %s stays with this process until the lease runs out",
                run.handler.where,
                run.delivery.message.message_id,
            )

    async def _until(self, reached: Callable[[], bool], seconds: float) -> None:
        """Wait until ``reached``, at most ``seconds``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not reached():
                    await self._next_change()

    async def _release(self, runs: list[Run]) -> None:
        if not runs:
            return
        try:
            async with asyncio.timeout(CLEANUP_SECONDS):
                await self._consumer.release([run.delivery for run in runs])
        except (BusError, TimeoutError) as error:
            log.warning("%d messages wait for the lease to run out: %s", len(runs), error)
            return
        log.info("handed back %d messages", len(runs))
        for run in runs:
            run.handler.figures.results[telemetry.RELEASED] += 1


def _over(run: Run) -> bool:
    """Whether its handler has ended, or was cancelled before it began."""
    return run.task is None or run.task.done()


def _call(function: Any, *arguments: Any) -> tuple[Any, BaseException | None]:
    """Call in a thread; the error is returned, as a future cannot carry each kind (StopIteration)."""
    try:
        return function(*arguments), None
    except BaseException as error:
        return None, error
