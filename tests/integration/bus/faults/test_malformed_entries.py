"""Ten thousand entries that are no messages, between good ones: each ends in the dead letters, the good are handled."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import redis.asyncio
from pydantic import ValidationError
from tests.integration.bus.faults.ledger import say, seeded, until

from agenthive.protocol import MAX_BODY_BYTES, AgentMessage, MessageError

MALFORMED = 10_000
GOOD_EVERY = 40
LATER = b"90000000000000"
OVERSIZED = 10
"""Bodies of more than 1 MiB among them; each costs as much memory as it says."""
Entry = dict[bytes, bytes]


def good(number: int, **changes: Any) -> dict[str, Any]:
    """The JSON of a message, with fields made wrong."""
    return {
        "message_id": f"id-{number}", "from_agent": "a", "to_agent": "worker", "message_type": "t",
        "body": {"n": number}, **changes,
    }  # fmt: skip


def entry(number: int, document: bytes, *, head: bytes = LATER) -> Entry:
    return {b"m": head + b"\nid-%d\n" % number + document}


def written(number: int, **changes: Any) -> Entry:
    return entry(number, json.dumps(good(number, **changes)).encode())


def noise(chance: random.Random, most: int = 200) -> bytes:
    return chance.randbytes(chance.randint(0, most))


def _wrong_type(chance: random.Random, n: int) -> Entry:
    field = chance.choice(
        ["message_id", "from_agent", "to_agent", "message_type", "priority", "timestamp", "ttl", "body", "reply_to"]
    )
    value = chance.choice([[], [1], {"a": 1}, -1, True, 1e400, "", "\x00" * 300, 2**70])
    if (field, value) in [
        ("body", {"a": 1}),
        ("priority", True),
        ("ttl", True),
        ("ttl", 2**70),
        ("timestamp", True),
        ("timestamp", -1),
    ]:
        value = []  # those would be good after all
    if value == "\x00" * 300 and field not in {"from_agent", "to_agent"}:
        value = []
    return written(n, **{field: value})


def _missing(chance: random.Random, n: int) -> Entry:
    document = good(n)
    del document[chance.choice(["from_agent", "to_agent", "message_type"])]
    return entry(n, json.dumps(document).encode())


def _cut(chance: random.Random, n: int) -> Entry:
    document = json.dumps(good(n)).encode()
    return entry(n, document[: chance.randint(0, len(document) - 1)])


def _flipped(chance: random.Random, n: int) -> Entry:
    document = bytearray(json.dumps(good(n)).encode())
    document[chance.choice([0, len(document) - 1])] = chance.choice(b"\x00\xff\x80x")
    return entry(n, bytes(document))


KINDS: dict[str, Callable[[random.Random, int], Entry]] = {
    "random bytes": lambda chance, n: {b"m": noise(chance)},
    "random bytes as the document": lambda chance, n: entry(n, b"\xff" + noise(chance)),
    "other fields": lambda chance, n: {b"i": b"1", noise(chance, 9) or b"x": noise(chance)},
    "a field too many": lambda chance, n: {**written(n), b"z": noise(chance)},
    "no head": lambda chance, n: {b"m": json.dumps(good(n)).encode()},
    "no id": lambda chance, n: {b"m": LATER + b"\n\n" + json.dumps(good(n)).encode()},
    "no document": lambda chance, n: {b"m": LATER + b"\nid-%d" % n},
    "an id too long": lambda chance, n: {b"m": LATER + b"\n" + b"i" * 600 + b"\n{}"},
    "a head of other digits": lambda chance, n: entry(n, b"{}", head=chance.choice([b"-1", b"9" * 13, b"1e14"])),
    "broken JSON": _cut,
    "a byte flipped": _flipped,
    "no object": lambda chance, n: entry(n, chance.choice([b"", b"null", b"[]", b"1", b'"x"', b"NaN", b"{}{}"])),
    "a field missing": _missing,
    "a wrong type": _wrong_type,
    "version 2": lambda chance, n: written(n, version=2),
    "lone surrogates": lambda chance, n: entry(n, json.dumps(good(n)).encode().replace(b'"t"', b'"\\ud800"')),
    "bad UTF-8": lambda chance, n: entry(n, json.dumps(good(n)).encode().replace(b'"t"', b'"\xc3\x28"')),
    "nested arrays": lambda chance, n: entry(n, b"[" * chance.choice([200, 5_000, 100_000])),
    "nested objects": lambda chance, n: written(n).__class__(
        entry(n, json.dumps(good(n)).encode().replace(b'{"n": %d}' % n, b'{"a":' * 500 + b"1" + b"}" * 500))
    ),
    "huge numbers": lambda chance, n: entry(n, json.dumps(good(n)).encode().replace(b'"t"', b"1" + b"0" * 5_000)),
    "options of an expired entry": lambda chance, n: entry(
        n, json.dumps(good(n)).encode(), head=b"0" * 14 + b" " + chance.choice([
            b"yabc", b"yabc l", b"yabc lx", b"yabc l-5", b"yabc l0", b"yabc l1e99", b"r-1 k", b"ax", b"b" + b"9" * 30,
        ]),
    ),
}  # fmt: skip
ODD_HEADS = [LATER + b" " + words for words in (
    b"ax", b"rx", b"r1e9", b"bx", b"lx", b"yabc", b"f", b"%%%", b"\xff\xfe", b"a" + b"9" * 40, b"d5:x", b"k", b"  ",
)]  # fmt: skip
"""Before a good document: it is handled all the same."""


async def test_ten_thousand_malformed_entries(own_valkey, connect, consume, scope, record_property) -> None:
    chance = seeded("malformed entries")
    bus = await connect(own_valkey.url)
    consumer = await consume(on=bus)
    prefix = scope.key_prefix("worker")
    kinds, injected, handled = Counter[str](), 0, Counter[int]()
    wanted: set[int] = set()

    async def work() -> None:
        while True:
            for delivery in await consumer.claim(50):
                handled[delivery.message.body["n"]] += 1
                consumer.ack(delivery).add_done_callback(lambda done: done.cancelled() or done.exception())

    working = asyncio.create_task(work())
    async with redis.asyncio.Redis.from_url(own_valkey.url, protocol=2) as raw:
        number = 0
        for start in range(0, MALFORMED, 500):
            pipe = raw.pipeline(transaction=False)
            for _ in range(500):
                number += 1
                kind = chance.choice(list(KINDS))
                kinds[kind] += 1
                fields = KINDS[kind](chance, number)
                injected += sum(len(value) for value in fields.values())
                pipe.xadd(f"{prefix}q:{chance.randint(1, 4)}", fields)
                if number % GOOD_EVERY == 0:
                    wanted.add(-number)
                    head = chance.choice(ODD_HEADS) if number % (2 * GOOD_EVERY) else LATER
                    document = json.dumps(good(-number)).encode()
                    pipe.xadd(f"{prefix}q:{chance.randint(1, 4)}", entry(-number, document, head=head))
            if start < OVERSIZED * 500:
                pipe.xadd(f"{prefix}q:2", written(start, body={"x": "y" * (MAX_BODY_BYTES + 70_000)}))
            await pipe.execute()
        expected = MALFORMED + OVERSIZED

        seen: list[object] = []

        async def buried() -> bool:
            seen[:] = [await bus.queue("worker"), len(wanted - set(handled)), sorted(set(handled) - wanted)[:5]]
            return seen[0].dead_letters >= expected and set(handled) >= wanted

        await until(buried, "all is buried or handled", seen)
        assert await raw.xlen(f"{prefix}dead") == expected
        assert set(handled) == wanted
        assert set(handled.values()) == {1}
        assert not working.done()
        await until(lambda: _empty(bus), "an empty queue")
        letters = await raw.xrange(f"{prefix}dead")
        reasons = Counter(fields[b"reason"].decode() for _, fields in letters)
        assert set(reasons) == {"malformed", "expired"}
        assert all(len(fields[b"error"]) > 10 for _, fields in letters), "an error that helps nobody"
        used = (await raw.info("memory"))["used_memory_dataset"]
        assert used < 2 * (injected + OVERSIZED * (MAX_BODY_BYTES + 70_000)) + 20_000_000
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    text = (
        f"{expected} malformed entries of {len(KINDS) + 1} kinds buried ({dict(reasons)}), {len(wanted)} good handled"
    )
    say(text)
    record_property("faults: malformed entries", text)


async def _empty(bus: Any) -> bool:
    stats = await bus.queue("worker")
    return bool(stats.backlog + stats.in_flight == 0)


def test_what_is_no_message_is_refused_with_words_for_people() -> None:
    chance = seeded("malformed documents")
    refused = []
    for number in range(5_000):
        text = b"".join(KINDS[chance.choice(list(KINDS))](chance, number).values())
        for document in (text, text.rpartition(b"\n")[2]):
            try:
                AgentMessage.from_json(document)
            except MessageError as error:
                refused.append(str(error))
    assert len(refused) > 5_000
    assert all(10 < len(text) < 5_000 for text in refused)


def _value(chance: random.Random, depth: int = 0) -> Any:
    simple = [
        None,
        True,
        -1,
        0,
        2**80,
        1e308 * 10,
        float("nan"),
        "",
        "x",
        "\ud800",
        "\x00",
        b"\xff",
        object(),
        "y" * 500,
    ]
    if depth > 3 or chance.random() < 0.6:
        return chance.choice(simple)
    if chance.random() < 0.5:
        return [_value(chance, depth + 1) for _ in range(chance.randint(0, 3))]
    return {chance.choice(["a", 1, None, "\ud800"]): _value(chance, depth + 1) for _ in range(chance.randint(0, 3))}


def test_wrong_arguments_of_a_message_are_refused_with_words_for_people() -> None:
    chance = seeded("arguments of a message")
    fields = [*AgentMessage.model_fields, "unknown"]
    refused, accepted = [], 0
    for _ in range(5_000):
        arguments = {"from_agent": "a", "to_agent": "b", "message_type": "t"}
        arguments |= {field: _value(chance) for field in chance.sample(fields, chance.randint(1, 3))}
        try:
            document = AgentMessage(**arguments).to_json()
        except ValueError as error:
            refused.append(str(error))
            continue
        accepted += 1
        AgentMessage.from_json(document)  # what can be sent can be read
    assert len(refused) > 1_000
    assert accepted > 10
    assert all(len(text) > 10 for text in refused)


def test_a_bomb_of_nesting_is_refused_by_the_sender() -> None:
    body: dict[str, Any] = {}
    for _ in range(100_000):
        body = {"a": body}
    with pytest.raises(ValidationError, match="nests deeper than"):
        AgentMessage(from_agent="a", to_agent="b", message_type="t", body=body)
    while body:  # taken apart from outside: the interpreter would do it by recursion
        body = body["a"]
