"""Connections cut after any number of bytes: what was asked was done, half done or not done, or is yet to be done."""

from __future__ import annotations

import asyncio
import signal

import pytest
from tests.integration.bus.faults.ledger import Sending, connected, seeded, settle, until
from tests.integration.bus.faults.proxy import CuttingProxy, ScriptedProxy

from agenthive.bus.completions import Batch
from agenthive.bus.library import library
from agenthive.bus.wire import ReplyError

MESSAGES = 4000
CUTS = 300


async def test_connections_cut_in_the_middle(valkey, scope, messaging, fleet, record_property) -> None:
    chance = seeded("connections cut")
    async with CuttingProxy(valkey.port, chance) as proxy:
        url = valkey.url.replace(f":{valkey.port}/", f":{proxy.port}/")
        workers = fleet(valkey.url)
        proxy.cutting = False  # neither a worker nor a bus starts where Redis cannot be reached
        for pod in ("pod-a", "pod-b"):
            workers.start(pod, url)
        async with connected(url, scope, messaging) as bus:
            sending = Sending(bus)
            await sending.send([0])
            await until(lambda: all("serving" in workers.log(pod) for pod in workers.processes), "both serve")
            proxy.cutting = True
            sent = sending.start(MESSAGES, 20, pace=0.02, body=lambda n: {"seconds": n % 5 / 100})
            await until(lambda: proxy.cuts.total() >= CUTS or sent.done(), f"{CUTS} cuts; {proxy.cuts}")
            await sent
            proxy.cutting = False
            account = await settle(bus, workers, sending, "connections cut", proxy.cuts.total())
    workers.assert_alive()
    account.details = f"{dict(proxy.cuts)}, {sending.resends} sends refused and sent again"
    account.report(record_property)
    assert account.twice == 0 or workers.robberies(), "handled twice, and no lease was lost"


async def test_a_claim_that_arrives_late_claims_nothing(bus, consume, make) -> None:
    consumer = await consume()
    late = consumer._command(Batch([], []), 5, False, False)
    consumer._lost += 1
    await consumer._compare()
    await bus.send(make(1))
    (answer,) = await consumer._lane.execute([late])
    assert isinstance(answer, ReplyError)
    assert "said before the connection was lost" in str(answer)
    async with asyncio.timeout(10):
        (delivery,) = await consumer.claim(5)
    await consumer.ack(delivery)
    stats = await bus.queue("worker")
    assert (stats.backlog, stats.in_flight) == (0, 0)


async def test_a_hand_back_that_arrives_late_hands_nothing_back(valkey, bus, connect, consume, make) -> None:
    """Its connection was lost too: it was said again, and the message claimed again, before the first try arrives."""
    async with ScriptedProxy(valkey.port, "turn", ["answer", "late"]) as proxy:
        consumer = await consume(on=await connect(valkey.url.replace(f":{valkey.port}/", f":{proxy.port}/")))
        await bus.send(make(1))
        async with asyncio.timeout(10):
            (delivery,) = await consumer.claim(1)
        assert proxy.script == []
        assert b"said before the connection was lost" in await proxy.deliver()
        stats = await bus.queue("worker")
        assert (stats.backlog, stats.in_flight) == (0, 1), "it is still being handled"
        await consumer.ack(delivery)
        await consumer.aclose()


async def test_a_message_that_arrives_late_is_no_second_one(bus, consume, make) -> None:
    """It was sent again over a new connection, and handled, before the first try arrives."""
    message, sender, gate = make(1), bus._sender, bus._of("worker").gate
    item = (2, message.message_id, message.to_json(), 60_000, "")
    late = library().call("send", gate, f"00 {sender._name}", 1000, *item)
    repeated = library().call("send", gate, f"11 {sender._name}", 1000, *item)
    consumer = await consume()
    (answer,) = await sender._lane.execute([repeated])
    assert answer == b"1"
    (delivery,) = await consumer.claim(5)
    await consumer.ack(delivery)
    (answer,) = await sender._lane.execute([late])
    assert isinstance(answer, ReplyError)
    assert (await bus.queue("worker")).backlog == 0


async def test_a_message_sent_again_after_a_timeout_is_one_message(own_valkey, connect, consume, make, until) -> None:
    bus = await connect(own_valkey.url)
    consumer = await consume(on=bus)
    await bus.send(make(0))
    (delivery,) = await consumer.claim(1)
    await consumer.ack(delivery)
    message = make(1)
    own_valkey.process.send_signal(signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await bus.send(message)
    own_valkey.process.send_signal(signal.SIGCONT)
    async with asyncio.timeout(10):
        (delivery,) = await consumer.claim(1)
    await consumer.ack(delivery)
    assert await bus.send(message) == message.message_id
    assert (await bus.queue("worker")).backlog == 0, "it was handled already"
