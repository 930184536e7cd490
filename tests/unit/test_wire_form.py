"""The wire form of messages, by golden files: what this version writes, and what others of its major version wrote.

A file that begins with ``v1-`` is what this version writes, byte for byte; it changes only with the major version.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import orjson
import pytest

from agenthive import protocol
from agenthive.protocol import AgentMessage, DeliveryOptions, MessageError, MessagePriority

GOLDEN = Path(__file__).parents[1] / "golden" / "wire"
MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


def document(name: str) -> bytes:
    return (GOLDEN / f"{name}.json").read_bytes().rstrip(b"\n")


FULL = AgentMessage(
    message_id="0190c7a6-8e2b-7c3d-9f10-1a2b3c4d5e6f",
    from_agent="crawler",
    to_agent="worker",
    message_type="analyse",
    priority=MessagePriority.HIGH,
    timestamp=MOMENT,
    ttl=60.5,
    body={"path": "a/b.py", "n": [1, 2.5, None, True, 2**63], "deep": {"ä": "€\u2028\U0001f41d"}, "nothing": {}},
    delivery_options=DeliveryOptions(
        require_ack=False,
        max_retries=5,
        retry_delay=0.5,
        not_before=datetime(2026, 1, 2, 4, tzinfo=UTC),
        deduplication_key="a/b.py",
        persistent=False,
    ),
    correlation_id="job-7",
    reply_to="@0123456789abcdef",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)
MINIMAL = AgentMessage(message_id="m-1", from_agent="crawler", to_agent="worker", message_type="t", timestamp=MOMENT)
WRITTEN = {
    "v1-full": FULL,
    "v1-minimal": MINIMAL,
    "v1-ordered": MINIMAL.model_copy(update={"delivery_options": DeliveryOptions(ordering_key="customer-7")}),
    "v1-reply": FULL.reply({"sum": 3}).model_copy(update={"message_id": "m-2", "timestamp": MOMENT}),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_this_version_writes(name: str) -> None:
    assert WRITTEN[name].to_json() == document(name)
    assert AgentMessage.from_json(document(name)) == WRITTEN[name]
    assert AgentMessage.from_json(document(name)).to_json() == document(name)


def test_what_an_older_writer_left_out_takes_its_default() -> None:
    before = datetime.now(UTC)
    message = AgentMessage.from_json(document("older-minimal"))
    assert message.message_id == "0190c7a6-8e2b-7c3d-9f10-1a2b3c4d5e6f"
    assert (message.priority, message.ttl, message.body) == (MessagePriority.MEDIUM, 3600, {})
    assert (message.version, message.delivery_options) == (1, DeliveryOptions())
    assert message.timestamp >= before


def test_what_a_newer_writer_added_is_kept_and_written_back() -> None:
    wire = document("newer-fields")
    message = AgentMessage.from_json(wire)
    assert (message.model_extra or {})["tenant"] == {"id": 7, "tags": ["x", "y"]}
    assert (message.delivery_options.model_extra or {})["colour"] == "blue"
    assert orjson.loads(message.to_json()) == orjson.loads(wire)
    assert orjson.loads(message.model_copy(update={"ttl": 5.0}).to_json()) == {**orjson.loads(wire), "ttl": 5.0}


@pytest.mark.parametrize("name", ["refused-version-2", "refused-version-2-alike"])
def test_another_major_version_is_refused_with_what_to_do(name: str) -> None:
    with pytest.raises(MessageError) as caught:
        AgentMessage.from_json(document(name))
    assert str(caught.value) == (
        "message of protocol version 2; this process reads version 1: upgrade the receiving agent, then redrive"
    )


@pytest.mark.parametrize("message_id", ["a\nb", "a\x00", "\t", "a\x7fb", "\n"])
def test_an_id_with_control_characters_is_refused(message_id: str) -> None:
    wire = orjson.loads(document("v1-minimal"))
    with pytest.raises(MessageError, match="message_id: "):
        AgentMessage.from_json(orjson.dumps({**wire, "message_id": message_id}))


def test_the_published_schema_knows_every_file() -> None:
    validator = jsonschema.Draft202012Validator(protocol.json_schema())
    for file in GOLDEN.glob("*.json"):
        assert validator.is_valid(orjson.loads(file.read_bytes())) == (not file.name.startswith("refused")), file.name


def test_every_file_is_looked_at() -> None:
    others = {"older-minimal", "newer-fields", "refused-version-2", "refused-version-2-alike"}
    assert {file.stem for file in GOLDEN.glob("*.json")} == {*WRITTEN, *others}
