"""What an agent's author writes against: an ``Agent``, its handlers, and what a handler may raise."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Any, TypeVar, overload

from agenthive import bodies
from agenthive.protocol import AgentMessage, Body, DeliveryOptions, MessagePriority
from agenthive.schedule import NAME_PATTERN as SCHEDULE_NAME
from agenthive.schedule import Schedule, slots_of

#: What an agent's name must look like: a DNS label, as the Agent resource that runs it has.
NAME_PATTERN = re.compile(r"[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?")

#: Most seconds of ``Retry(after=…)``.
LONGEST_RETRY = 365 * 86_400

#: A handler takes (message, ctx) or (message), or a body instead of the message; a hook takes (ctx) or nothing.
AnyFunction = Callable[..., Any]
F = TypeVar("F", bound=AnyFunction)


class Retry(Exception):  # noqa: N818 - reads as the instruction it is: `raise Retry(after=5)`
    """Raised by a handler: not now, try again. Counts as an attempt; after ``max_retries`` the message is given up.

    Args:
        after: seconds until the next attempt, at most a year; None takes the hive's doubling delay. A message whose
            time to live ends before then expires at once.
        reason: kept with the message, shown in its status and in the dead letters.

    Raises:
        ValueError: ``after`` is negative, no number, or more than a year.
    """

    def __init__(self, after: float | None = None, reason: object = "") -> None:
        if after is not None and (not isinstance(after, int | float) or not 0 <= after <= LONGEST_RETRY):
            raise ValueError(
                f"Retry(after={after!r}): give seconds from 0 to {LONGEST_RETRY} (a year), or None for the hive's delay"
            )
        super().__init__(str(reason) or "the handler asked for a retry")
        self.after = after


class Reject(Exception):  # noqa: N818 - as above
    """Raised by a handler: this message can never be handled. It goes to the dead letters at once.

    Args:
        reason: kept with the message, shown in its status and in the dead letters; an exception will do.
    """

    def __init__(self, reason: object = "") -> None:
        self.reason = str(reason) or "the handler rejected the message"
        super().__init__(self.reason)


@dataclass(frozen=True, slots=True)
class Handler:
    """One registered function and how to call it."""

    message_type: str
    function: AnyFunction
    #: An ``async def``: runs as a task. Otherwise a thread runs it.
    is_async: bool
    #: Whether it takes ``ctx`` after the message.
    takes_context: bool
    #: Seconds one handling may take; None takes the hive's ``handlerTimeoutSeconds``.
    timeout: float | None
    #: The type it takes its message's body as; None: it takes the message.
    body_type: Any = None
    #: Makes such a body of JSON.
    read_body: bodies.Reader | None = None
    #: Whether it takes anything at all; what a schedule calls need not.
    takes_message: bool = True

    @property
    def where(self) -> str:
        """``module.function``, for messages to people."""
        return describe(self.function)


@dataclass(frozen=True, slots=True)
class Hook:
    """A function that runs when the agent's process starts or stops."""

    function: AnyFunction
    takes_context: bool

    @property
    def where(self) -> str:
        """``module.function``, for messages to people."""
        return describe(self.function)

    async def run(self, ctx: object) -> None:
        """Call it; a plain ``def`` runs on the event loop, so it must be short."""
        result = self.function(ctx) if self.takes_context else self.function()
        if inspect.isawaitable(result):
            await result


class Agent:
    """One kind of worker: a name and a handler for each message type it understands.

    Example::

        agent = Agent("summarizer")

        @agent.on("summarize", timeout=60)
        async def summarize(message, ctx):
            return {"summary": message.body["text"][:80]}

    Args:
        name: where its messages are addressed to; a DNS label of at most 47 characters. In a hive the name of the Agent
            resource (``AGENTHIVE_AGENT``) wins over this one.

    Raises:
        ValueError: the name is no such label.
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
            raise ValueError(
                f"Agent({name!r}): a name is 1 to 47 lower-case letters, digits and '-', "
                "and starts and ends with a letter or digit"
            )
        self.name = name
        self._handlers: dict[str, Handler] = {}
        self._schedules: dict[str, Schedule] = {}
        self._on_start: list[Hook] = []
        self._on_stop: list[Hook] = []

    def __repr__(self) -> str:
        return f"Agent({self.name!r}, handles={sorted(self._handlers)})"

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """Every handler by message type."""
        return MappingProxyType(self._handlers)

    @property
    def schedules(self) -> Mapping[str, Schedule]:
        """What ``every`` registered, by name."""
        return MappingProxyType(self._schedules)

    @property
    def start_hooks(self) -> tuple[Hook, ...]:
        """What runs before the first message, in order of registration."""
        return tuple(self._on_start)

    @property
    def stop_hooks(self) -> tuple[Hook, ...]:
        """What runs after the last message, in reverse order of registration."""
        return tuple(reversed(self._on_stop))

    def on(self, *message_types: str, timeout: float | None = None) -> Callable[[F], F]:
        """Register the decorated function as the handler of ``message_types``.

        The function takes ``(message, ctx)`` or ``(message)``. An ``async def`` runs as a task of the event loop and
        must not block it; a ``def`` runs in a thread. What it returns (anything JSON can hold, or a pydantic model)
        answers the sender, if one waits.

        With a pydantic model (or a dataclass, a TypedDict, a dict) as the annotation of its first parameter it gets the
        message's body as that, and the message as ``ctx.message``. A body that does not fit goes to the dead letters at
        once, with each field that is wrong; whoever asked gets the same text.

        Args:
            message_types: one or more values of ``message_type``.
            timeout: seconds one handling may take, counted from its start (waiting in the queue is free). An
                ``async def`` is cancelled then. A ``def`` cannot be stopped: its message stays with it until it
                returns. Either way the handling failed. None takes the hive's ``messaging.handlerTimeoutSeconds``.

        Raises:
            ValueError: no type, an empty type, a type registered before, or a timeout that is not positive.
            TypeError: what is decorated cannot be called with a message, or the annotation of its first parameter
                cannot be resolved or be a body.
        """
        if not message_types or not all(isinstance(name, str) and name for name in message_types):
            raise ValueError(f"{self.name}: on(…) needs the message types it handles, as in @agent.on('summarize')")
        self._check_timeout(f"on({message_types[0]!r}", timeout)

        def register(function: F) -> F:
            # Where text annotations of what is defined beside the handler are resolved.
            self._register(function, message_types, timeout, sys._getframe(1).f_locals, least=1)
            return function

        return register

    def every(
        self,
        when: str | float | timedelta,
        *,
        message_type: str | None = None,
        name: str | None = None,
        body: Body | None = None,
        timezone: str = "UTC",
        catch_up: bool = False,
        overlap: bool = True,
        timeout: float | None = None,
        priority: MessagePriority | int = MessagePriority.MEDIUM,
        ttl: float | None = None,
        **options: Any,
    ) -> Callable[[F], F]:
        """Call the decorated function on a schedule: once per slot in the whole fleet, however many replicas run.

        Each slot becomes one message to the agent's own queue, handled as any other: with retries, time limit and
        dead letters. The function takes ``(message, ctx)``, ``(message)`` or nothing, or a body as in ``on``;
        ``message.timestamp`` is the slot. With ``message_type`` the result need not decorate anything, if ``on`` names
        a handler for that type::

            @agent.every("0 3 * * *", timezone="Europe/Berlin")
            async def sweep(): ...

            agent.every(30, message_type="poll", body={"deep": False})

        A slot is fired by whichever replica is first, when the server's clock has reached it, and at most 60 s later: a
        fleet that was away for longer does not make up for what it missed.

        Args:
            when: a cron expression of five fields (or six: seconds first), seconds, or a timedelta. The slots of the
                latter two are counted from 1970, so that all replicas agree.
            message_type: of the messages; None takes the function's name.
            name: of the schedule, in message ids and figures; None takes the message type.
            body: of each message.
            timezone: in which the cron expression is read, such as "Europe/Berlin".
            catch_up: after any time away fire the last slot that was missed, and no more than that one.
            overlap: False skips a slot while the message of an earlier one is not finished.
            timeout: as in ``on``, for the decorated function.
            priority, ttl, options: of the messages, as in ``ctx.send``.

        Raises:
            ValueError: no such expression or time zone, a name or type that is taken, or a message that cannot be.
            TypeError: the function takes something else, or ``when`` is none of the three.
        """
        slots = slots_of(when, timezone)
        self._check_timeout(f"every({when!r}", timeout)
        for refused in ("not_before", "deduplication_key", "ordering_key"):
            if refused in options:
                raise ValueError(f"{self.name}: every({when!r}, {refused}=…): a schedule has no use for it")

        def make(message_type: str) -> Schedule:
            given = {} if ttl is None else {"ttl": ttl}
            template = AgentMessage(
                from_agent=self.name,
                to_agent=self.name,
                message_type=message_type,
                body={} if body is None else body,
                priority=priority,
                delivery_options=DeliveryOptions(**options),
                **given,
            )
            known_as = message_type if name is None else name
            if not SCHEDULE_NAME.fullmatch(known_as):
                raise ValueError(
                    f"{self.name}: every({when!r}, name={known_as!r}): "
                    "a name is 1 to 64 letters, digits, '-', '_' and '.', with a letter or digit at both ends"
                )
            if known_as in self._schedules:
                raise ValueError(f"{self.name}: there is a schedule {known_as!r} already; give this one a name=")
            return Schedule(known_as, slots, template, catch_up, overlap)

        at_once = None if message_type is None else make(message_type)
        if at_once is not None:
            self._schedules[at_once.name] = at_once

        def register(function: F) -> F:
            kind = message_type or str(getattr(function, "__name__", type(function).__name__))
            schedule = at_once or make(kind)
            self._register(function, (kind,), timeout, sys._getframe(1).f_locals, least=0)
            self._schedules[schedule.name] = schedule
            return function

        return register

    def _check_timeout(self, what: str, timeout: float | None) -> None:
        if timeout is not None and not timeout > 0:
            raise ValueError(f"{self.name}: {what}, timeout={timeout!r}): seconds must be more than 0")

    def _register(
        self, function: AnyFunction, message_types: tuple[str, ...], timeout: float | None,
        names: Mapping[str, Any], *, least: int,
    ) -> None:  # fmt: skip
        count = _parameters(function, "a handler", ("message", "ctx"), least=least)
        body_type = bodies.body_type(function, describe(function), names) if count else None
        read_body = None if body_type is None else bodies.reader(body_type)
        for message_type in message_types:
            known = self._handlers.get(message_type)
            if known is not None:
                raise ValueError(f"{self.name}: {message_type!r} is handled by {known.where} already")
        for message_type in message_types:
            self._handlers[message_type] = Handler(
                message_type, function, _is_async(function), count == 2, timeout, body_type, read_body, count > 0
            )

    @overload
    def on_start(self, function: F) -> F: ...
    @overload
    def on_start(self, function: None = None) -> Callable[[F], F]: ...
    def on_start(self, function: F | None = None) -> F | Callable[[F], F]:
        """Run the decorated function (``(ctx)`` or no parameter) once per process, before the first message.

        If it raises, the process ends with exit code 1 and the error in its termination log.

        Raises:
            TypeError: what is decorated takes other parameters.
        """
        return self._hook(self._on_start, "a start hook", function)

    @overload
    def on_stop(self, function: F) -> F: ...
    @overload
    def on_stop(self, function: None = None) -> Callable[[F], F]: ...
    def on_stop(self, function: F | None = None) -> F | Callable[[F], F]:
        """Run the decorated function (``(ctx)`` or no parameter) once per process, after the last message.

        Bus and store still work then. If it raises, the error is logged and the stop goes on.

        Raises:
            TypeError: what is decorated takes other parameters.
        """
        return self._hook(self._on_stop, "a stop hook", function)

    @staticmethod
    def _hook(hooks: list[Hook], what: str, function: F | None) -> F | Callable[[F], F]:
        def register(function: F) -> F:
            hooks.append(Hook(function, _parameters(function, what, ("ctx",), least=0) == 1))
            return function

        return register if function is None else register(function)


def describe(function: AnyFunction) -> str:
    """``module.qualified_name`` of a callable."""
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{getattr(function, '__module__', '?')}.{name}"


def _is_async(function: AnyFunction) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _parameters(function: AnyFunction, what: str, names: tuple[str, ...], *, least: int) -> int:
    """How many of ``names`` to pass by position: as many as ``function`` accepts."""
    if not callable(function):
        raise TypeError(f"{what} must be a function, not {function!r}")
    signature = inspect.signature(function)
    for count in range(len(names), least - 1, -1):
        try:
            signature.bind(*names[:count])
        except TypeError:
            continue
        return count
    forms = [f"({', '.join(names[:count])})" for count in range(len(names), least - 1, -1)]
    raise TypeError(
        f"{describe(function)}{signature}: {what} takes {' or '.join(forms)}; other parameters need defaults"
    )
