"""The public API an agent's author writes against."""

from __future__ import annotations

import functools
from typing import Any

import pytest

import agenthive
from agenthive import Agent, Reject, Retry


@pytest.mark.parametrize("name", ["a", "summarizer", "a-1", "0", "a" * 47])
def test_names_of_agent_resources_are_names(name: str) -> None:
    assert Agent(name).name == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a.b", "a" * 48, "a\n", None, 3])
def test_other_names_are_refused(name: object) -> None:
    with pytest.raises(ValueError, match="a name is 1 to 47 lower-case"):
        Agent(name)  # type: ignore[arg-type]


def test_what_a_handler_takes_is_read_from_its_signature() -> None:
    agent = Agent("a")

    @agent.on("both")
    async def both(message, ctx):  # type: ignore[no-untyped-def]
        ...

    @agent.on("one")
    def one(message):  # type: ignore[no-untyped-def]
        ...

    @agent.on("optional")
    def optional(message, ctx=None, *, more=1):  # type: ignore[no-untyped-def]
        ...

    class Handlers:
        async def method(self, message, ctx):  # type: ignore[no-untyped-def]
            ...

        async def __call__(self, message):  # type: ignore[no-untyped-def]
            ...

    agent.on("method")(Handlers().method)
    agent.on("object")(Handlers())
    agent.on("partial")(functools.partial(both, ctx=1))
    seen = {name: (handler.is_async, handler.takes_context) for name, handler in agent.handlers.items()}
    assert seen == {
        "both": (True, True),
        "one": (False, False),
        "optional": (False, True),
        "method": (True, True),
        "object": (True, False),
        "partial": (True, False),
    }
    assert agent.handlers["both"].where.endswith("both")


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda: None, r"takes \(message, ctx\) or \(message\)"),
        (lambda a, b, c: None, "other parameters need defaults"),
        (lambda a, *, key: None, "other parameters need defaults"),
        ("no function", "must be a function, not 'no function'"),
    ],
)
def test_what_cannot_take_a_message_is_refused(function: object, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        Agent("a").on("x")(function)  # type: ignore[type-var]


def test_one_handler_may_take_several_types_and_stays_usable() -> None:
    agent = Agent("a")

    @agent.on("x", "y", timeout=3)
    def twice(message):  # type: ignore[no-untyped-def]
        return message * 2

    assert twice(2) == 4
    assert [agent.handlers[name].timeout for name in ("x", "y")] == [3, 3]
    assert repr(agent) == "Agent('a', handles=['x', 'y'])"
    with pytest.raises(TypeError):
        agent.handlers["z"] = agent.handlers["x"]  # type: ignore[index]


def test_a_type_has_one_handler_and_a_refused_registration_leaves_nothing() -> None:
    agent = Agent("a")
    agent.on("x")(lambda message: None)
    with pytest.raises(ValueError, match=r"'x' is handled by .*<lambda> already"):
        agent.on("new", "x")(lambda message: None)
    assert list(agent.handlers) == ["x"]


@pytest.mark.parametrize("types", [(), ("",), (lambda message: None,)])
def test_a_handler_names_its_types(types: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="needs the message types"):
        Agent("a").on(*types)


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_time_limit_is_positive(timeout: float) -> None:
    with pytest.raises(ValueError, match="seconds must be more than 0"):
        Agent("a").on("x", timeout=timeout)


async def test_hooks_run_in_order_and_stop_hooks_backwards() -> None:
    agent, calls = Agent("a"), []

    @agent.on_start
    async def first(ctx: object) -> None:
        calls.append(("first", ctx))

    @agent.on_start()
    def second() -> None:
        calls.append(("second", None))

    @agent.on_stop
    def third(ctx: object) -> None:
        calls.append(("third", ctx))

    @agent.on_stop()
    async def fourth() -> None:
        calls.append(("fourth", None))

    for hook in (*agent.start_hooks, *agent.stop_hooks):
        await hook.run(7)
    assert calls == [("first", 7), ("second", None), ("fourth", None), ("third", 7)]


def test_a_hook_takes_the_context_or_nothing() -> None:
    with pytest.raises(TypeError, match=r"a start hook takes \(ctx\) or \(\)"):
        Agent("a").on_start(lambda a, b: None)


def test_retry_and_reject_carry_what_was_said() -> None:
    assert (Retry().after, str(Retry())) == (None, "the handler asked for a retry")
    assert (Retry(0).after, str(Retry(2, "later"))) == (0, "later")
    assert Retry(365 * 86_400, KeyError("k")).args == ("'k'",)
    assert Reject("no").reason == "no"
    assert Reject(ValueError("odd")).reason == str(Reject(ValueError("odd"))) == "odd"
    assert Reject().reason == "the handler rejected the message"


@pytest.mark.parametrize("after", [-1, -0.001, float("nan"), float("inf"), 1e300, 10**400, "5", [1]])
def test_a_retry_waits_for_seconds_from_zero_to_a_year(after: Any) -> None:
    with pytest.raises(ValueError, match="seconds from 0 to 31536000"):
        Retry(after)


def test_everything_public_is_exported_lazily() -> None:
    for name in agenthive.__all__:
        assert getattr(agenthive, name) is not None
    assert dir(agenthive) == sorted(agenthive.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = agenthive.nothing
