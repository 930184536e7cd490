"""What becomes of one handling: pure decisions about results, errors, time limits and cancellation."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from agenthive import telemetry
from agenthive.agent import Agent, Handler, Reject, Retry, describe
from agenthive.bodies import name_of
from agenthive.protocol import describe as describe_unfit
from agenthive.telemetry import UNKNOWN_TYPE, Telemetry, TypeFigures

if TYPE_CHECKING:
    from agenthive.bus import Delivery
    from agenthive.context import Context
    from agenthive.protocol import AgentMessage

log = logging.getLogger(__name__)

#: Most characters of an error that are kept with a message.
ERROR_CHARACTERS = 4000


class Stop(Enum):
    """Why the worker ended a handling from outside."""

    TIME_LIMIT = "time limit"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class BoundHandler:
    """A handler as one worker runs it: its time limit resolved, its figures at hand."""

    function: Callable[..., Any]
    where: str
    is_async: bool
    takes_context: bool
    #: Seconds; None means no limit.
    timeout: float | None
    figures: TypeFigures


class Run:
    """One handling of one message."""

    __slots__ = ("_acknowledged", "ctx", "delivery", "done", "handler", "stop", "task")

    def __init__(
        self,
        delivery: Delivery,
        handler: BoundHandler,
        ctx: Context,
        acknowledged: Callable[[Run, BaseException | None], None],
    ) -> None:
        self.delivery = delivery
        self.handler = handler
        self.ctx = ctx
        #: The handler has returned or raised; what is left is telling Redis.
        self.done = False
        self.stop: Stop | None = None
        self.task: asyncio.Task[None] | None = None
        self._acknowledged = acknowledged

    def acknowledged(self, error: BaseException | None) -> None:
        """Redis has heard that the message is done, or why not."""
        self._acknowledged(self, error)


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """The message is done."""

    result: str = telemetry.DELIVERED


@dataclass(frozen=True, slots=True)
class Fail:
    """Try again later, or give up when no retry is left."""

    error: str
    result: str = telemetry.FAILED
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Discard:
    """Give up at once."""

    reason: str
    result: str = telemetry.REJECTED


@dataclass(frozen=True, slots=True)
class HandBack:
    """Nothing happened: another process is to handle it, and it is no attempt."""

    result: str = telemetry.RELEASED


Verdict = Acknowledge | Fail | Discard | HandBack

ACKNOWLEDGE = Acknowledge()


def judge(run: Run, error: BaseException | None) -> Verdict:
    """What to tell Redis about a handling that ended with ``error`` (None: it returned).

    A handling that outran its time limit failed, however it ended: who swallows the cancellation has no proof that the
    work was done. One that returned while its process drained has finished. One whose transaction was committed is
    done, whatever came afterwards.
    """
    if run.ctx.progress is not None and run.ctx.progress.committed:
        return ACKNOWLEDGE
    if run.stop is Stop.TIME_LIMIT:
        text = f"the time limit of {run.handler.timeout:g} s was exceeded by {run.handler.where}"
        if error is not None and not isinstance(error, asyncio.CancelledError):
            text = f"{text}; it then raised {format_error(error)}"
        return Fail(text, telemetry.TIMED_OUT)
    if error is None:
        return ACKNOWLEDGE
    if isinstance(error, Retry):
        return Fail(_storable(str(error)), telemetry.RETRIED, error.after)
    if isinstance(error, Reject):
        return Discard(_storable(error.reason))
    if isinstance(error, asyncio.CancelledError):
        if run.stop is Stop.DRAIN:
            return HandBack()
        return Fail(f"{run.handler.where} was cancelled from within: something it awaited had been cancelled")
    return Fail(format_error(error))


def committed_reply(run: Run, result: Any, error: BaseException | None) -> AgentMessage | None:
    """The reply to a message whose transaction was committed: the one that was committed with it, else the result.

    None where nobody asked, and where there is no result to be had: the handler raised ``error``, or it was an earlier
    handling that returned it.
    """
    progress, message = run.ctx.progress, run.ctx.message
    assert progress is not None
    if progress.reply is not None or progress.again or error is not None or message.reply_to is None:
        return progress.reply
    try:
        return message.reply(result)
    except ValidationError as unfit:
        log.error("the result of %s cannot be sent as a reply: %s", run.handler.where, describe_unfit(unfit))
        return None


def outcome(verdict: Verdict, message: AgentMessage, attempt: int, max_retries: int) -> tuple[str, str | None]:
    """(status, error) for the message log: ``delivered``, ``failed``, or ``retried`` if the message comes again.

    Args:
        max_retries: the hive's, for messages that name none.
    """
    if isinstance(verdict, Discard):
        return "failed", verdict.reason
    if isinstance(verdict, Fail):
        retries = message.delivery_options.max_retries
        last = attempt > (max_retries if retries is None else retries)
        return ("failed" if last else "retried"), verdict.error
    return "delivered", None


def format_error(error: BaseException) -> str:
    """``KeyError: 'topic'`` and below it the traceback through the agent's own code, at most 4000 characters."""
    headline = "".join(traceback.format_exception_only(error)).strip()
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_OWN_FILES)]
    text = _storable(f"{headline}\n{''.join(traceback.format_list(frames))}".strip())
    if len(text) <= ERROR_CHARACTERS:
        return text
    half = ERROR_CHARACTERS // 2 - 4
    return f"{text[:half]}\n  …\n{text[-half:]}"


def _storable(text: str) -> str:
    """Without what neither UTF-8 nor PostgreSQL can hold, which a handler's words may well contain."""
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\x00")


#: Frames of these files are the machinery around the handler: no help to its author.
_OWN_FILES = (__file__, __file__.replace("handling.py", "worker.py"))


def bind(agent: Agent, figures: Telemetry, default_timeout: float | None) -> dict[str, BoundHandler]:
    """Every handler of ``agent`` by message type.

    Args:
        default_timeout: seconds, for handlers that name no limit of their own.
    """

    def one(handler: Handler) -> BoundHandler:
        return BoundHandler(
            function=_taking_a_message(handler),
            where=handler.where,
            is_async=handler.is_async,
            takes_context=handler.takes_context,
            timeout=default_timeout if handler.timeout is None else handler.timeout,
            figures=figures.for_type(handler.message_type),
        )

    return {message_type: one(handler) for message_type, handler in agent.handlers.items()}


def _taking_a_message(handler: Handler) -> Callable[..., Any]:
    """The handler, or what calls it with what it takes instead of a message."""
    function = handler.function
    if handler.read_body is not None:
        return _given_body(handler)
    return function if handler.takes_message else lambda _message: function()


def _given_body(handler: Handler) -> Callable[..., Any]:
    function, read, wanted = handler.function, handler.read_body, name_of(handler.body_type)
    assert read is not None

    def body_of(message: AgentMessage) -> Any:
        try:
            return read(message.body)
        except ValidationError as error:
            raise Reject(f"the body is no {wanted}: {describe_unfit(error)}") from error

    async def call_async(message: AgentMessage, *ctx: Context) -> Any:
        return await function(body_of(message), *ctx)

    def call(message: AgentMessage, *ctx: Context) -> Any:
        return function(body_of(message), *ctx)

    return call_async if handler.is_async else call


def unknown_type(agent: Agent, name: str, figures: Telemetry) -> BoundHandler:
    """The handler of messages that no handler is for: they go to the dead letters with a reason a sender can act on."""
    known = ", ".join(sorted(agent.handlers))

    async def unknown(message: AgentMessage) -> None:
        raise Reject(f"agent {name} has no handler for message_type {message.message_type!r}; it handles: {known}")

    return BoundHandler(unknown, describe(unknown), True, False, None, figures.for_type(UNKNOWN_TYPE))
