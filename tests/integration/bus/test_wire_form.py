"""What lies in the streams: written by this version, by others of its major version, and by another major version.

The documents are the golden files of tests/golden/wire.
"""

from __future__ import annotations

import re
from pathlib import Path

import orjson

from agenthive.protocol import AgentMessage, MessagePriority

GOLDEN = Path(__file__).parents[2] / "golden" / "wire"
FAR = "90000000000000"


def document(name: str) -> bytes:
    return (GOLDEN / f"{name}.json").read_bytes().rstrip(b"\n")


async def test_an_entry_is_its_expiry_and_options_the_id_and_the_document(bus, raw, scope) -> None:
    golden = AgentMessage.from_json(document("v1-minimal"))
    options = golden.delivery_options.model_copy(update={"max_retries": 2})
    low = {"message_id": "m-2", "priority": MessagePriority.LOW, "reply_to": "@0123", "delivery_options": options}
    wanted = [
        (golden, rb"\d{14}\nm-1\n" + re.escape(document("v1-minimal"))),
        (golden.model_copy(update=low), rb"\d{14} r2 y0123 l3600000\nm-2\n\{.*\}"),
    ]
    for message, form in wanted:
        await bus.send(message)
        ((_, fields),) = await raw.xrange(f"{scope.key_prefix('worker')}q:{int(message.priority)}")
        assert list(fields) == [b"m"]
        assert re.fullmatch(form, fields[b"m"]), fields


async def test_entries_of_older_and_newer_writers_are_handled_and_kept_whole(bus, consume, raw, scope) -> None:
    consumer = await consume()
    stream = f"{scope.key_prefix('worker')}q:2"
    for name, options in (("older-minimal", ""), ("newer-fields", " r0 z9")):
        wire = document(name)
        head = f"{FAR}{options}\n{orjson.loads(wire)['message_id']}\n".encode()
        await raw.xadd(stream, {"m": head + wire})
    await raw.rpush(f"{scope.key_prefix('worker')}wake", "1")
    older, newer = sorted(
        [delivery for _ in range(2) for delivery in await consumer.claim(1)], key=lambda one: one.message.message_id
    )
    assert (older.message.body, older.message.priority) == ({}, MessagePriority.MEDIUM)
    await consumer.ack(older)
    assert newer.message.body == {"n": 1}
    await consumer.reject(newer, "no luck")
    (letter,) = await bus.dead_letters("worker")
    assert letter.raw == document("newer-fields")
    report = await bus.redrive("worker", letter.id)
    assert report.done == 1
    (again,) = await consumer.claim(1)
    got = orjson.loads(again.message.to_json())
    sent = orjson.loads(document("newer-fields"))
    assert {name: got[name] for name in ("tenant", "urgency", "delivery_options")} == {
        name: sent[name] for name in ("tenant", "urgency", "delivery_options")
    }


async def test_another_major_version_goes_to_the_dead_letters_and_holds_up_nobody(
    bus, consume, raw, scope, make, until
) -> None:
    consumer = await consume()
    stream = f"{scope.key_prefix('worker')}q:2"
    for name in ("refused-version-2", "refused-version-2-alike"):
        wire = document(name)
        await raw.xadd(stream, {"m": f"{FAR}\n{orjson.loads(wire)['message_id']}\n".encode() + wire})
    await bus.send(make(7))
    assert (await consumer.claim(1))[0].message.body == {"n": 7}

    async def both() -> list:
        letters = await bus.dead_letters("worker")
        return letters if len(letters) == 2 else []

    for letter in await until(both):
        assert letter.reason == "malformed"
        assert letter.error.startswith("message of protocol version 2; this process reads version 1: upgrade")
        assert letter.raw in {document("refused-version-2"), document("refused-version-2-alike")}
