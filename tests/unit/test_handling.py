"""What becomes of a handling, by tables."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from agenthive import Agent, Reject, Retry, handling, telemetry
from agenthive.handling import Acknowledge, Discard, Fail, HandBack, Run, Stop, bind, format_error, judge, unknown_type
from agenthive.once import AlreadyHandled, Progress
from agenthive.protocol import AgentMessage
from agenthive.telemetry import Telemetry, TypeFigures


def run_of(stop: Stop | None = None, progress: Progress | None = None) -> Run:
    handler = handling.BoundHandler(print, "mod.handler", True, True, 2.5, TypeFigures())
    ctx = SimpleNamespace(progress=progress)
    run = Run(SimpleNamespace(), handler, ctx, lambda run, error: None)  # type: ignore[arg-type]
    run.stop = stop
    return run


@pytest.mark.parametrize(
    ("stop", "error", "verdict"),
    [
        (None, None, Acknowledge()),
        (None, Retry(after=3, reason="busy"), Fail("busy", telemetry.RETRIED, 3)),
        (None, Retry(), Fail("the handler asked for a retry", telemetry.RETRIED, None)),
        (None, Reject("broken"), Discard("broken")),
        (None, KeyError("topic"), Fail("KeyError: 'topic'")),
        (None, ValueError("\ud800\0"), Fail("ValueError: \\ud800\\x00")),
        (None, Reject("\udfff"), Discard("\\udfff")),
        (None, Retry(reason="\0"), Fail("\\x00", telemetry.RETRIED)),
        (None, SystemExit(3), Fail("SystemExit: 3")),
        (
            None,
            asyncio.CancelledError(),
            Fail("mod.handler was cancelled from within: something it awaited had been cancelled"),
        ),
        (Stop.DRAIN, asyncio.CancelledError(), HandBack()),
        (Stop.DRAIN, None, Acknowledge()),
        (Stop.DRAIN, ValueError("x"), Fail("ValueError: x")),
        (
            Stop.TIME_LIMIT,
            asyncio.CancelledError(),
            Fail("the time limit of 2.5 s was exceeded by mod.handler", telemetry.TIMED_OUT),
        ),
        (Stop.TIME_LIMIT, None, Fail("the time limit of 2.5 s was exceeded by mod.handler", telemetry.TIMED_OUT)),
        (
            Stop.TIME_LIMIT,
            ValueError("x"),
            Fail("the time limit of 2.5 s was exceeded by mod.handler; it then raised ValueError: x", "timed_out"),
        ),
    ],
)
def test_verdicts(stop: Stop | None, error: BaseException | None, verdict: handling.Verdict) -> None:
    assert judge(run_of(stop), error) == verdict


@pytest.mark.parametrize("stop", [None, *Stop])
@pytest.mark.parametrize(
    "error",
    [
        None, Retry(after=3), Reject("no"), KeyError("topic"), SystemExit(3), asyncio.CancelledError(),
        AlreadyHandled(), BaseExceptionGroup("in a task group", [AlreadyHandled()]),
    ],
)  # fmt: skip
def test_what_is_committed_is_acknowledged_whatever_comes_afterwards(
    stop: Stop | None, error: BaseException | None
) -> None:
    progress = Progress()
    open_or_rolled_back = judge(run_of(stop, progress), error)
    assert open_or_rolled_back == judge(run_of(stop), error), "a transaction that has not committed changes nothing"
    progress.committed = True
    assert judge(run_of(stop, progress), error) is handling.ACKNOWLEDGE


@pytest.mark.parametrize(
    ("verdict", "own", "attempt", "expected"),
    [
        (Acknowledge(), None, 1, ("delivered", None)),
        (Discard("no"), None, 1, ("failed", "no")),
        (Fail("e"), None, 1, ("retried", "e")),
        (Fail("e"), None, 3, ("retried", "e")),
        (Fail("e"), None, 4, ("failed", "e")),
        (Fail("e"), 0, 1, ("failed", "e")),
        (Fail("e"), 9, 4, ("retried", "e")),
    ],
)
def test_what_the_message_log_says(
    verdict: handling.Verdict, own: int | None, attempt: int, expected: tuple[str, str | None]
) -> None:
    message = AgentMessage(from_agent="a", to_agent="b", message_type="x", delivery_options={"max_retries": own})
    assert handling.outcome(verdict, message, attempt, 3) == expected


def test_an_error_shows_the_agents_own_frames() -> None:
    def deep(body: dict[str, Any]) -> object:
        return body["topic"]

    with pytest.raises(KeyError) as caught:
        deep({})
    text = format_error(caught.value)
    assert text.splitlines()[0] == "KeyError: 'topic'"
    assert "in deep" in text
    assert 'return body["topic"]' in text


def test_a_long_error_keeps_both_ends() -> None:
    text = format_error(ValueError("a" * 5000 + "z" * 5000))
    assert len(text) <= handling.ERROR_CHARACTERS
    assert text.startswith("ValueError: aaa")
    assert text.endswith("zzz")


def test_a_handler_without_a_limit_takes_the_hives() -> None:
    agent = Agent("a")
    agent.on("own", timeout=1)(lambda message: None)
    agent.on("hives")(lambda message: None)
    assert {name: bound.timeout for name, bound in bind(agent, Telemetry("a"), 9.0).items()} == {"own": 1, "hives": 9.0}
    assert bind(agent, Telemetry("a"), None)["hives"].timeout is None


async def test_an_unknown_type_is_rejected_with_what_would_have_worked() -> None:
    agent = Agent("a")
    agent.on("x", "y")(lambda message: None)
    handler = unknown_type(agent, "renamed", Telemetry("a"))
    with pytest.raises(Reject, match="agent renamed has no handler for message_type 'z'; it handles: x, y"):
        await handler.function(SimpleNamespace(message_type="z"))
