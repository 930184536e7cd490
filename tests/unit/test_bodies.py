"""Which handlers get their message's body as a model, and what they get."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from agenthive import Agent, AgentMessage, Reject, bodies
from agenthive.handling import bind
from agenthive.telemetry import Telemetry

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForCheckers


class Strict(BaseModel):
    """What is strict still reads dates from JSON, which has none."""

    model_config = ConfigDict(strict=True)

    text: str
    day: date = date(2026, 1, 1)


class Special(AgentMessage):
    pass


@dataclass
class Point:
    x: int


class Options(TypedDict):
    deep: bool


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]


def wanted(function: Any) -> Any:
    agent = Agent("a")
    agent.on("x")(function)
    return agent.handlers["x"].body_type


def test_no_annotation_or_the_message_gets_the_message() -> None:
    def plain(message, ctx): ...  # type: ignore[no-untyped-def]
    def message(message: AgentMessage): ...  # type: ignore[no-untyped-def]
    def anything(message: Any): ...  # type: ignore[no-untyped-def]
    def quoted(message: agenthive_is_imported_by_checkers.AgentMessage): ...  # type: ignore # noqa: F821
    def special(message: Special): ...  # type: ignore[no-untyped-def]
    def several(*messages: AgentMessage): ...  # type: ignore[no-untyped-def]

    assert [wanted(f) for f in (plain, message, anything, quoted, special, several, lambda m: m)] == [None] * 7
    assert all(handler.read_body is None for handler in _agent_with(plain).handlers.values())


def _agent_with(function: Any) -> Agent:
    agent = Agent("a")
    agent.on("x")(function)
    return agent


def test_what_a_json_object_can_become_is_a_body() -> None:
    def model(body: Strict, ctx: OnlyForCheckers): ...  # type: ignore[no-untyped-def]
    def point(body: Point): ...  # type: ignore[no-untyped-def]
    def options(body: Options): ...  # type: ignore[no-untyped-def]
    def pet(body: Pet): ...  # type: ignore[no-untyped-def]
    def mapping(body: dict[str, int]): ...  # type: ignore[no-untyped-def]
    def abstract(body: Mapping[str, Any]): ...  # type: ignore[no-untyped-def]

    class Handlers:
        async def method(self, body: Strict) -> None: ...

        async def __call__(self, body: Strict, ctx: Any) -> None: ...

    functions = (model, point, options, pet, mapping, abstract)
    assert [wanted(f) for f in functions] == [Strict, Point, Options, Pet, dict[str, int], Mapping[str, Any]]
    for function in (Handlers().method, Handlers(), functools.partial(model, ctx=None)):
        assert wanted(function) is Strict


def test_a_model_defined_beside_the_handler_is_found() -> None:
    class Local(BaseModel):
        n: int

    def handle(body: Local): ...  # type: ignore[no-untyped-def]

    agent = Agent("a")
    agent.on("x")(handle)
    assert agent.handlers["x"].body_type is Local


def test_what_cannot_be_resolved_or_be_a_body_is_refused() -> None:
    def unknown(body: OnlyForCheckers): ...  # type: ignore[no-untyped-def]
    def number(body: int): ...  # type: ignore[no-untyped-def]
    def listed(body: list[Strict]): ...  # type: ignore[no-untyped-def]
    def maybe(body: Strict | None): ...  # type: ignore[no-untyped-def]

    with pytest.raises(TypeError, match=r"unknown: the annotation 'OnlyForCheckers' .* not under `if TYPE_CHECKING:`"):
        wanted(unknown)
    for function, name in ((number, "int"), (listed, "list"), (maybe, "Strict | None")):
        with pytest.raises(TypeError, match=r"body is annotated .*; the first parameter is the message .AgentMessage"):
            wanted(function)
        with pytest.raises(TypeError, match=name.replace("|", r"\|")):
            wanted(function)


def test_what_pydantic_cannot_read_is_refused_at_registration() -> None:
    class Odd:
        pass

    @dataclass
    class Holder:
        odd: Odd

    Holder.__annotations__["odd"] = Odd
    with pytest.raises(TypeError, match="Holder cannot be read from JSON: Unable to generate"):
        bodies.reader(Holder)


def bound(function: Any) -> Any:
    return bind(_agent_with(function), Telemetry("a"), None)["x"]


def message(**body: Any) -> AgentMessage:
    return AgentMessage(from_agent="a", to_agent="b", message_type="x", body=body)


def test_a_plain_handler_is_called_as_it_is() -> None:
    def handle(message, ctx): ...  # type: ignore[no-untyped-def]

    assert bound(handle).function is handle


async def test_a_typed_handler_gets_the_body() -> None:
    async def both(body: Strict, ctx: str) -> Any:
        return body, ctx

    async def alone(body: Strict) -> Any:
        return body

    def plain(body: Point, ctx: str) -> Any:
        return body, ctx

    given = Strict(text="t", day=date(2026, 2, 3))
    asked = message(text="t", day="2026-02-03")
    assert await bound(both).function(asked, "ctx") == (given, "ctx")
    assert await bound(alone).function(asked) == given
    assert bound(plain).function(message(x="3"), "ctx") == (Point(3), "ctx")
    assert bound(both).where.endswith("both")
    big = 2**80

    def large(body: dict[str, int]) -> Any:
        return body

    wire = message().to_json().replace(b'"body":{}', f'"body":{{"n":{big}}}'.encode())
    assert bound(large).function(AgentMessage.from_json(wire)) == {"n": big}


def test_a_body_that_does_not_fit_is_rejected_with_every_field() -> None:
    def handle(body: Strict) -> None:
        raise AssertionError("called")

    with pytest.raises(Reject) as caught:
        bound(handle).function(message(text=3, day="never", more=1))
    assert str(caught.value) == (
        "the body is no Strict: text: Input should be a valid string; "
        "day: Input should be a valid date in the format YYYY-MM-DD, input is too short"
    )


def test_a_reply_is_read_or_said_not_to_fit() -> None:
    assert bodies.read({"x": 1}, Point, "the reply") == Point(1)
    assert bodies.read([{"kind": "cat"}], list[Pet], "the reply") == [Cat(kind="cat")]
    assert bodies.read({"kind": "dog"}, Annotated[Cat | Dog, ["unhashable"]], "the reply") == Dog(kind="dog")
    with pytest.raises(ValueError, match="the reply is no Point: x: Field required"):
        bodies.read({}, Point, "the reply")
    with pytest.raises(TypeError, match="cannot be read from JSON"):
        bodies.read({}, sys, "the reply")
