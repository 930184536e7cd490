"""When schedules fire, and what `every` takes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from agenthive import Agent
from agenthive.handling import bind
from agenthive.loader import ConfigurationError
from agenthive.protocol import AgentMessage
from agenthive.runner import check_schedules
from agenthive.schedule import slots_of
from agenthive.telemetry import Telemetry


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def utc(slot: int) -> str:
    return datetime.fromtimestamp(slot / 1000, UTC).isoformat(timespec="seconds")[:19].replace("T", " ")


@pytest.mark.parametrize(
    ("when", "zone", "now", "latest", "after"),
    [
        ("*/5 * * * *", "UTC", "2026-03-01 12:03:20.5", "2026-03-01 12:00:00", "2026-03-01 12:05:00"),
        ("*/5 * * * *", "UTC", "2026-03-01 12:05", "2026-03-01 12:05:00", "2026-03-01 12:10:00"),
        ("*/5 * * * *", "UTC", "2026-03-01 12:05:00.999", "2026-03-01 12:05:00", "2026-03-01 12:10:00"),
        ("*/20 * * * * *", "UTC", "2026-03-01 12:05:21", "2026-03-01 12:05:20", "2026-03-01 12:05:40"),
        ("0 9 * * MON-FRI", "UTC", "2026-03-07 10:00", "2026-03-06 09:00:00", "2026-03-09 09:00:00"),
        ("0 0 29 2 *", "UTC", "2026-03-01", "2024-02-29 00:00:00", "2028-02-29 00:00:00"),
        ("30 6 * * *", "Asia/Kolkata", "2026-03-01 12:00", "2026-03-01 01:00:00", "2026-03-02 01:00:00"),
        # Berlin sets its clocks from 2 to 3 o'clock on 2026-03-29 at 01:00 UTC: what would be in between runs then.
        ("30 2 * * *", "Europe/Berlin", "2026-03-29 00:59", "2026-03-28 01:30:00", "2026-03-29 01:00:00"),
        ("30 2 * * *", "Europe/Berlin", "2026-03-29 01:10", "2026-03-29 01:00:00", "2026-03-30 00:30:00"),
        # And back from 3 to 2 on 2026-10-25 at 01:00 UTC: half past two comes twice and counts once.
        ("30 2 * * *", "Europe/Berlin", "2026-10-25 01:20", "2026-10-25 00:30:00", "2026-10-26 01:30:00"),
        ("30 2 * * *", "Europe/Berlin", "2026-10-25 01:40", "2026-10-25 00:30:00", "2026-10-26 01:30:00"),
        ("0 * * * *", "Europe/Berlin", "2026-10-25 01:20", "2026-10-25 01:00:00", "2026-10-25 02:00:00"),
        (30, "UTC", "2026-03-01 12:00:59.999", "2026-03-01 12:00:30", "2026-03-01 12:01:00"),
        (timedelta(hours=6), "UTC", "2026-03-01 12:00", "2026-03-01 12:00:00", "2026-03-01 18:00:00"),
    ],
)
def test_slots(when: Any, zone: str, now: str, latest: str, after: str) -> None:
    slots = slots_of(when, zone)
    assert (utc(slots.latest(ms(now))), utc(slots.after(ms(now)))) == (latest, after)


EXPRESSIONS = ("*/7 * * * *", "30 2 * * *", "0 * * * *", "15,45 1-3 * * SUN", "*/30 1-2 * * *", "59 23 L * *")


@settings(max_examples=150, deadline=None)
@given(
    when=st.sampled_from(EXPRESSIONS),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
    now=st.integers(ms("2026-03-01"), ms("2026-11-30")),
)
def test_latest_and_after_agree(when: str, zone: str, now: int) -> None:
    slots = slots_of(when, zone)
    latest, after = slots.latest(now), slots.after(now)
    assert latest <= now < after
    assert slots.latest(after) == after
    assert slots.latest(after - 1) == latest
    assert slots.after(latest) == after


@pytest.mark.parametrize(
    ("when", "options", "error", "says"),
    [
        ("* * * *", {}, ValueError, "Wrong number of fields; write five fields: minute, hour"),
        ("61 * * * *", {}, ValueError, "Bad minute"),
        ("", {}, ValueError, "Wrong number"),
        ("0 0 30 2 *", {}, ValueError, "Bad day-of-month"),
        ("0 0 */31 2 FRI#5", {}, ValueError, "never comes"),
        ("@daily", {}, ValueError, "Wrong number of fields"),
        ("* * * * *", {"timezone": "Europe/Atlantis"}, ValueError, "no such time zone"),
        ("* * * * *", {"timezone": "../etc"}, ValueError, "no such time zone"),
        (0, {}, ValueError, "at least 0.1"),
        (-1.0, {}, ValueError, "at least 0.1"),
        (float("nan"), {}, ValueError, "at least 0.1"),
        (float("inf"), {}, ValueError, "at least 0.1"),
        (30, {"timezone": "Europe/Berlin"}, ValueError, "only cron expressions have a time zone"),
        (True, {}, TypeError, "write a cron expression"),
        (None, {}, TypeError, "write a cron expression"),
        (30, {"timeout": 0}, ValueError, "seconds must be more than 0"),
        (30, {"name": "a b"}, ValueError, "a name is 1 to 64"),
        (30, {"not_before": 1}, ValueError, "has no use for it"),
        (30, {"max_retries": -1}, ValidationError, "max_retries"),
        (30, {"body": [1]}, ValidationError, "must be a JSON object"),
        (30, {"ttl": 0}, ValidationError, "greater than 0"),
    ],
)
def test_what_is_no_schedule_is_refused(when: Any, options: dict[str, Any], error: type[Exception], says: str) -> None:
    agent = Agent("a")
    with pytest.raises(error, match=says):
        agent.every(when, message_type="x", **options)
    assert not agent.schedules


def test_a_decorated_function_is_its_handler() -> None:
    agent = Agent("a")

    @agent.every("*/5 * * * *", timeout=3)
    async def sweep() -> str:
        return "swept"

    @agent.every(30, body={"deep": True}, priority=4, max_retries=0, ttl=20, catch_up=True, overlap=False)
    def poll(message: AgentMessage, ctx: object) -> None: ...

    assert (agent.handlers["sweep"].timeout, agent.handlers["sweep"].takes_message) == (3, False)
    schedule = agent.schedules["poll"]
    assert (schedule.catch_up, schedule.overlap, schedule.template.body) == (True, False, {"deep": True})
    message = schedule.message(ms("2026-03-01 12:00:30"), "renamed")
    assert message.message_id == "every:poll:2026-03-01T12:00:30Z"
    assert message.timestamp == datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)
    assert (message.from_agent, message.to_agent, message.message_type) == ("renamed", "renamed", "poll")
    assert (message.priority, message.ttl, message.delivery_options.max_retries) == (4, 20, 0)
    assert AgentMessage.from_json(message.to_json()) == message
    assert schedule.message(1500, "a").message_id == "every:poll:1970-01-01T00:00:01.500Z"
    check_schedules(agent)


async def test_a_scheduled_function_may_take_nothing() -> None:
    agent = Agent("a")

    @agent.every(5)
    async def sweep() -> str:
        return "swept"

    handler = bind(agent, Telemetry("a"), None)["sweep"]
    assert await handler.function("the message") == "swept"
    assert not handler.takes_context


class Deep(BaseModel):
    depth: int


def test_a_schedule_may_send_to_a_handler_of_on() -> None:
    agent = Agent("a")
    agent.every(30, message_type="walk", name="shallow", body=Deep(depth=1))
    agent.every("0 3 * * *", message_type="walk", name="deep", body={"depth": 9})

    with pytest.raises(ConfigurationError, match="schedule shallow sends 'walk', which nothing handles"):
        check_schedules(agent)

    @agent.on("walk")
    async def walk(body: Deep) -> None: ...

    check_schedules(agent)
    agent.every(9, message_type="walk", name="odd", body={"depth": "x"})
    with pytest.raises(ConfigurationError, match=r"schedule odd does not fit .*walk: depth: Input should be a valid i"):
        check_schedules(agent)


def test_names_and_types_are_taken_once_and_a_refusal_leaves_nothing() -> None:
    agent = Agent("a")
    agent.on("taken")(lambda message: None)
    agent.every(1, message_type="x")
    with pytest.raises(ValueError, match="there is a schedule 'x' already"):
        agent.every(1, message_type="x")

    def taken() -> None: ...

    with pytest.raises(ValueError, match="'taken' is handled by"):
        agent.every(1)(taken)

    def needs(a: object, b: object, c: object) -> None: ...

    with pytest.raises(TypeError, match=r"takes \(message, ctx\) or \(message\) or \(\)"):
        agent.every(1)(needs)
    assert list(agent.schedules) == ["x"]
    assert list(agent.handlers) == ["taken"]
