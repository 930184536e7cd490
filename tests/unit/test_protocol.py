"""The message protocol: wire form, defaults, refusals, schema."""

from __future__ import annotations

import subprocess
import sys
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from agenthive import protocol
from agenthive.protocol import (
    AgentMessage,
    DeliveryOptions,
    MessageDeliveryStatus,
    MessageError,
    MessagePriority,
    new_message_id,
)

REPO = Path(__file__).parents[2]
SCHEMA = REPO / "docs" / "message.schema.json"

GOLDEN = (
    b'{"message_id":"0190c7a6-8e2b-7c3d-9f10-1a2b3c4d5e6f","from_agent":"crawler","to_agent":"analyst",'
    b'"message_type":"analyse","priority":3,"timestamp":"2026-01-02T03:04:05.678901Z","ttl":60.5,'
    b'"body":{"path":"a/b.py","n":[1,2.5,null,true],"deep":{"\xc3\xa4":"\xe2\x82\xac"}},'
    b'"delivery_options":{"require_ack":true,"max_retries":5,"retry_delay":0.5,"persistent":false},'
    b'"correlation_id":"job-7","reply_to":"@abc","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",'
    b'"version":1}'
)


def make(**fields: Any) -> AgentMessage:
    return AgentMessage(**{"from_agent": "a", "to_agent": "b", "message_type": "t", **fields})


def golden_message() -> AgentMessage:
    return AgentMessage(
        message_id="0190c7a6-8e2b-7c3d-9f10-1a2b3c4d5e6f",
        from_agent="crawler",
        to_agent="analyst",
        message_type="analyse",
        priority=MessagePriority.HIGH,
        timestamp=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
        ttl=60.5,
        body={"path": "a/b.py", "n": [1, 2.5, None, True], "deep": {"ä": "€"}},
        delivery_options=DeliveryOptions(max_retries=5, retry_delay=0.5, persistent=False),
        correlation_id="job-7",
        reply_to="@abc",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )


def test_the_wire_form_is_the_golden_one() -> None:
    assert golden_message().to_json() == GOLDEN


def test_the_golden_wire_form_reads_back() -> None:
    assert AgentMessage.from_json(GOLDEN) == golden_message()
    assert AgentMessage.from_json(GOLDEN.decode()) == golden_message()


def test_defaults() -> None:
    before = datetime.now(UTC)
    message = make()
    assert message.priority is MessagePriority.MEDIUM
    assert message.ttl == 3600
    assert message.body == {}
    assert message.version == 1
    assert message.delivery_options == DeliveryOptions()
    assert message.delivery_options.require_ack
    assert message.delivery_options.persistent
    assert message.correlation_id is message.reply_to is message.traceparent is None
    assert before <= message.timestamp <= datetime.now(UTC)
    assert message.timestamp.tzinfo is UTC


def test_an_older_writers_minimal_document_takes_the_defaults() -> None:
    message = AgentMessage.from_json(b'{"from_agent":"a","to_agent":"b","message_type":"t"}')
    assert message.priority is MessagePriority.MEDIUM
    assert message.ttl == 3600


def test_unknown_fields_of_a_newer_writer_are_kept_and_written_back() -> None:
    wire = orjson.loads(GOLDEN)
    wire["shard"] = {"id": 3}
    wire["delivery_options"]["colour"] = "blue"
    again = orjson.loads(AgentMessage.from_json(orjson.dumps(wire)).to_json())
    assert again == wire


def test_delivery_options_may_be_a_mapping() -> None:
    message = make(delivery_options={"max_retries": 1, "not_before": "2030-01-01T00:00:00+02:00"})
    assert message.delivery_options.max_retries == 1
    assert message.delivery_options.not_before == datetime(2029, 12, 31, 22, tzinfo=UTC)


def test_timestamps_become_utc() -> None:
    moment = datetime(2026, 5, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    message = make(timestamp=moment)
    assert message.timestamp == moment
    assert message.timestamp.utcoffset() == timedelta(0)
    assert b"2026-05-01T10:00:00Z" in message.to_json()


def test_the_enums_hold_what_the_contract_says() -> None:
    assert {p.name: int(p) for p in MessagePriority} == {"LOW": 1, "MEDIUM": 2, "HIGH": 3, "CRITICAL": 4}
    assert {s.name: s.value for s in MessageDeliveryStatus} == {
        "PENDING": "pending", "DELIVERED": "delivered", "FAILED": "failed", "EXPIRED": "expired",
    }  # fmt: skip


class Colour:
    pass


class Size(Enum):
    SMALL = "s"
    LARGE = (1, 2)


class Shout(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "LOUD"


@dataclass
class Point:
    x: int
    day: date


class Model(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")

    at: float
    size: Size = Field(Size.SMALL, serialization_alias="bigness")


def nested(levels: int) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for _ in range(levels):
        body = {"a": body}
    return body


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"from_agent": ""}, "from_agent"),
        ({"to_agent": ""}, "to_agent"),
        ({"message_type": ""}, "message_type"),
        ({"message_type": "  "}, "message_type"),
        ({"message_id": ""}, "message_id"),
        ({"timestamp": datetime(2026, 1, 1)}, "with a time zone"),
        ({"ttl": 0}, "greater than 0"),
        ({"ttl": -1}, "greater than 0"),
        ({"ttl": float("nan")}, "finite"),
        ({"ttl": float("inf")}, "finite"),
        ({"priority": 5}, "priority"),
        ({"priority": 0}, "priority"),
        ({"version": 0}, "version"),
        ({"body": [1]}, "must be a JSON object"),
        ({"body": "text"}, "must be a JSON object"),
        ({"body": None}, "must be a JSON object"),
        ({"body": {"x": Colour()}}, r"body\.x is a Colour"),
        ({"body": {"x": [1, {2}]}}, r"body\.x\[1\] is a set"),
        ({"body": {"x": b"raw"}}, r"body\.x is a bytes"),
        ({"body": {"x": MessagePriority}}, r"body\.x is a EnumType"),
        ({"body": Colour()}, "must be a JSON object .a dict or a model., not Colour"),
        ({"body": Point}, "body is a type"),
        ({"body": RootModel[list[int]]([1])}, "must be a JSON object"),
        ({"body": {"x": Model(at=float("inf"))}}, r"body\.x\.at is inf"),
        ({"body": {"x": Decimal(1)}}, r"body\.x is a Decimal"),
        ({"body": {"x": float("nan")}}, r"body\.x is nan"),
        ({"body": {"x": 2**64}}, "more than 64 bits"),
        ({"body": {MessageDeliveryStatus.FAILED: 1, 2: "x"}}, "keys of a JSON object are strings"),
        ({"body": {1: "x"}}, "keys of a JSON object are strings"),
        ({"body": {"x": "\ud800"}}, "cannot be written as JSON"),
        ({"body": {"x": "y" * protocol.MAX_BODY_BYTES}}, "the limit is 1048576"),
        ({"body": nested(protocol.MAX_BODY_DEPTH + 1)}, "nests deeper than 100"),
        ({"delivery_options": {"max_retries": -1}}, "max_retries"),
        ({"delivery_options": {"not_before": datetime(2026, 1, 1)}}, "with a time zone"),
        ({"delivery_options": {"ordering_key": "k", "not_before": datetime.now(UTC)}}, "exclude each other"),
        ({"delivery_options": {"ordering_key": "k", "require_ack": False}}, "exclude each other"),
        ({"delivery_options": {"on_fail": "halt"}}, "needs an ordering_key"),
        ({"delivery_options": {"ordering_key": "k", "on_fail": "stop"}}, "'continue' or 'halt'"),
        ({"delivery_options": {"retry_delay": float("inf")}}, "retry_delay"),
    ],
)
def test_bad_input_is_refused_with_a_text_that_says_what(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        make(**fields)


@pytest.mark.parametrize(
    ("wire", "says"),
    [
        (b"", "Invalid JSON"),
        (b"{", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[]", "should be an object"),
        (b'{"to_agent":"b","message_type":"t"}', "from_agent: Field required"),
        (b'{"from_agent":"a","to_agent":"b","message_type":"t","body":[1]}', "body: "),
        (b'{"from_agent":"a","to_agent":"b","message_type":"t","body":{"x":NaN}}', "Invalid JSON"),
        (b'{"from_agent":"a","to_agent":"b","message_type":"t","body":{"x":-Infinity}}', "Invalid JSON"),
        (b'{"from_agent":"a","to_agent":"b","message_type":"t","timestamp":"2026-01-01T00:00:00"}', "timestamp: "),
        (b'{"from_agent":"a","body":' + b'{"a":' * 5000 + b"1" + b"}" * 5001, "recursion"),
        (b" " * (protocol.MAX_MESSAGE_BYTES + 1), "the limit is"),
    ],
)  # fmt: skip
def test_a_bad_document_is_a_message_error(wire: bytes, says: str) -> None:
    with pytest.raises(MessageError, match=says):
        AgentMessage.from_json(wire)


def test_several_mistakes_are_all_named() -> None:
    with pytest.raises(MessageError, match=r"to_agent: .*; message_type: .*; ttl: "):
        AgentMessage.from_json(b'{"from_agent":"a","to_agent":"","ttl":-1}')


def test_the_word_nan_in_a_text_is_only_text() -> None:
    message = make(body={"text": "NaN and Infinity"})
    assert AgentMessage.from_json(message.to_json()) == message


def test_the_largest_and_deepest_bodies_pass() -> None:
    for body in ({"x": "y" * (protocol.MAX_BODY_BYTES - 8)}, nested(protocol.MAX_BODY_DEPTH - 1)):
        message = make(body=body)
        assert AgentMessage.from_json(message.to_json()) == message


def test_a_message_keeps_a_body_of_its_own() -> None:
    body = {"list": [1, (2, 3)]}
    message = make(body=body)
    body["list"].append(4)
    assert message.body == {"list": [1, [2, 3]]}


MOMENT = datetime(2026, 1, 2, 3, tzinfo=UTC)
NUMBER = uuid.UUID(int=7)


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        (MessagePriority.HIGH, 3),
        (MessageDeliveryStatus.FAILED, "failed"),
        (Size.LARGE, [1, 2]),
        (Shout("quiet"), "quiet"),
        (MOMENT, "2026-01-02T03:00:00+00:00"),
        (MOMENT.date(), "2026-01-02"),
        (MOMENT.time(), "03:00:00"),
        (NUMBER, "00000000-0000-0000-0000-000000000007"),
        (Point(1, MOMENT.date()), {"x": 1, "day": "2026-01-02"}),
        (Model(at=2.5), {"at": 2.5, "bigness": "s"}),
        ([Model(at=1, size=Size.LARGE)], [{"at": 1.0, "bigness": [1, 2]}]),
    ],
)
def test_values_with_one_obvious_form_in_json_take_it(value: object, becomes: object) -> None:
    message = make(body={"x": value})
    assert message.body == {"x": becomes}
    assert AgentMessage.from_json(message.to_json()) == message
    assert type(make(body={"x": Shout("a")}).body["x"]) is str
    assert make(body={MessageDeliveryStatus.FAILED: 1}).to_json().count(b'"failed":1') == 1


def test_a_model_or_a_dataclass_is_a_body() -> None:
    assert make(body=Model(at=1)).body == {"at": 1.0, "bigness": "s"}
    assert make(body=Point(1, MOMENT.date())).body == {"x": 1, "day": "2026-01-02"}


def test_a_message_is_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make().ttl = 5


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(body=st.dictionaries(st.text(), json_values, max_size=5), priority=st.sampled_from(MessagePriority))
def test_any_json_body_survives_the_wire(body: dict[str, Any], priority: MessagePriority) -> None:
    message = make(body=body, priority=priority)
    assert AgentMessage.from_json(message.to_json()) == message


@given(st.binary(max_size=200))
def test_random_bytes_are_a_message_error(data: bytes) -> None:
    with pytest.raises(MessageError, match=r"^not a valid message: "):
        AgentMessage.from_json(data)


def test_ids_are_unique_uuid7_and_sorted_by_time() -> None:
    ids = [new_message_id() for _ in range(2000)]
    assert len(set(ids)) == len(ids)
    parsed = [uuid.UUID(text) for text in ids]
    assert all(value.version == 7 and value.variant == uuid.RFC_4122 for value in parsed)
    stamps = [value.int >> 80 for value in parsed]
    assert stamps == sorted(stamps)


def test_a_reply_answers_its_request() -> None:
    request = make(priority=MessagePriority.CRITICAL, traceparent="00-x", reply_to="@p")
    reply = request.reply({"sum": 3})
    assert reply.message_type == "reply"
    assert (reply.from_agent, reply.to_agent) == ("b", "a")
    assert reply.correlation_id == request.message_id
    assert reply.body == {"result": {"sum": 3}}
    assert reply.priority is MessagePriority.CRITICAL
    assert reply.traceparent == "00-x"
    assert reply.reply_to is None
    assert request.reply(None).body == {"result": None}


def test_the_published_schema_is_current() -> None:
    printed = subprocess.run([sys.executable, "-m", "agenthive.protocol"], capture_output=True, check=True).stdout
    assert SCHEMA.read_bytes() == printed, "run: python -m agenthive.protocol > docs/message.schema.json"


def test_the_schema_accepts_the_wire_form_and_refuses_bad_ones() -> None:
    validator = jsonschema.Draft202012Validator(protocol.json_schema())
    validator.validate(orjson.loads(GOLDEN))
    validator.validate(orjson.loads(make().to_json()))
    for bad in ({"ttl": 0}, {"body": []}, {"priority": 9}, {"from_agent": ""}):
        assert not validator.is_valid({**orjson.loads(GOLDEN), **bad})
