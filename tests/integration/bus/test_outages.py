"""Redis that dies, comes back empty, refuses, or is not there."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections import Counter

import pytest
import redis.asyncio

from agenthive.bus import Bus, BusUnavailable, LeaseLost
from agenthive.protocol import MessageDeliveryStatus
from agenthive.settings import CircuitBreaker, HiveScope, Messaging, RedisPool


async def handle(consumer, seen: Counter) -> None:
    while True:
        for delivery in await consumer.claim(20):
            seen[delivery.message.body["n"]] += 1
            consumer.ack(delivery).add_done_callback(lambda done: done.exception())


async def test_nothing_accepted_is_lost_when_redis_is_killed(own_valkey, connect, consume, make, until) -> None:
    bus = await connect(own_valkey.url, retry_delay_seconds=0.1)
    await always_fsync(own_valkey)
    seen = Counter()
    workers = [asyncio.create_task(handle(await consume(on=bus), seen)) for _ in range(2)]
    accepted: set[int] = set()

    async def sender(start: int) -> None:
        for n in range(start, start + 100):
            await asyncio.sleep(0.01)
            while n not in accepted:
                try:
                    await bus.send(make(n, message_id=f"message-{n}"))
                    accepted.add(n)
                except BusUnavailable:
                    await asyncio.sleep(0.05)

    senders = [asyncio.create_task(sender(start)) for start in range(0, 1000, 100)]
    for quota in (200, 600):
        await until(lambda quota=quota: len(accepted) > quota)
        own_valkey.kill()
        await asyncio.to_thread(own_valkey.start)
        await always_fsync(own_valkey)
    await asyncio.gather(*senders)
    await until(lambda: set(seen) == set(range(1000)), 30)

    async def drained() -> bool:
        stats = await bus.queue("worker")
        return stats.backlog + stats.in_flight + stats.delayed == 0

    await until(drained)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    assert (await bus.queue("worker")).dead_letters == 0


async def always_fsync(server) -> None:
    """What a killed Redis may lose under ``everysec`` is its own affair, not the bus's."""
    async with redis.asyncio.Redis.from_url(server.url, protocol=2) as raw:
        await raw.config_set("appendfsync", "always")


async def test_an_acknowledgement_survives_the_loss_of_its_answer(own_valkey, connect, consume, make) -> None:
    bus = await connect(own_valkey.url)
    consumer = await consume(on=bus)
    message = make(1)
    await bus.send(message)
    (delivery,) = await consumer.claim(1)
    own_valkey.kill()
    acknowledging = consumer.ack(delivery)
    await asyncio.sleep(0.1)
    assert not acknowledging.done()
    own_valkey.start()
    async with asyncio.timeout(10):
        await acknowledging
    assert (await bus.find("worker", message.message_id)).status is MessageDeliveryStatus.DELIVERED


@pytest.mark.parametrize("ending", ["ack", "reply", "fail", "reject", "release"])
async def test_a_completion_repeated_after_a_lost_answer_is_no_lost_lease(bus, consume, make, ending, raw) -> None:
    """The server did it, the answer never came: the repetition must see that it was us."""
    consumer = await consume()
    await bus.send(make(1, reply_to="@0123"))
    (delivery,) = await consumer.claim(1)

    def complete():
        delivery.completed = False
        return {
            "ack": lambda: consumer.ack(delivery),
            "reply": lambda: consumer.ack(delivery, delivery.message.reply({})),
            "fail": lambda: consumer.fail(delivery, "x", retry_after=60),
            "reject": lambda: consumer.reject(delivery, "x"),
            "release": lambda: consumer._hand_back(delivery),
        }[ending]()

    await complete()
    before = await bus.queue("worker")
    command = consumer._command
    consumer._command = lambda batch, wanted, again, pass_wake: command(batch, wanted, True, pass_wake)
    await complete()
    assert await bus.queue("worker") == before, "it is done once"


async def test_a_repeated_acknowledgement_leaves_a_new_message_of_the_same_id_alone(bus, consume, make) -> None:
    consumer = await consume()
    message = make(1)
    await bus.send(message)
    (delivery,) = await consumer.claim(1)
    await consumer.ack(delivery)
    await bus.send(message)
    delivery.completed = False
    command = consumer._command
    consumer._command = lambda batch, wanted, again, pass_wake: command(batch, wanted, True, pass_wake)
    await consumer.ack(delivery)
    assert (await bus.status("worker", message.message_id)).status is MessageDeliveryStatus.PENDING
    assert (await bus.queue("worker")).backlog == 1


async def test_an_acknowledgement_the_server_did_before_it_robbed_us_was_good(bus, consume, make, raw, scope) -> None:
    consumer = await consume()
    await bus.send(make(1))
    await bus.send(make(2))
    first, second = await consumer.claim(2)
    await consumer.ack(first)
    first.completed = False
    command = consumer._command
    consumer._command = lambda batch, wanted, again, pass_wake: command(batch, wanted, True, pass_wake)
    await raw.zrem(f"{scope.key_prefix('worker')}consumers", consumer.name)
    done, lost = consumer.ack(first), consumer.ack(second)
    await done
    with pytest.raises(LeaseLost):
        await lost


async def test_messages_of_a_claim_whose_answer_was_lost_are_handed_back(bus, consume, make) -> None:
    consumer = await consume()
    for n in range(3):
        await bus.send(make(n, priority=n + 1))
    kept = await consumer.claim(1)
    ask, lost = consumer._ask, []

    async def lose(turn):
        answer = await ask(turn)
        if answer[2] and not lost:
            lost.append(answer)
            consumer._lane._connection.abort()
            await consumer._reconnect()
            return None
        return answer

    consumer._ask = lose
    async with asyncio.timeout(5):
        deliveries = await consumer.claim(5)
        while len(deliveries) < 2:
            deliveries += await consumer.claim(5)
    assert lost
    assert [d.attempt for d in deliveries] == [1, 1], "they were never handled"
    for delivery in (*kept, *deliveries):
        await consumer.ack(delivery)
    stats = await bus.queue("worker")
    assert (stats.backlog, stats.in_flight) == (0, 0)


@contextlib.asynccontextmanager
async def forgotten(server):
    """Redis comes back without what it did within the block, as after a loss of power or an unfinished replication."""
    await always_fsync(server)
    files, kept = server.folder / "appendonlydir", server.folder / "kept"
    shutil.copytree(files, kept)
    yield
    server.kill()
    shutil.rmtree(files)
    kept.rename(files)
    await asyncio.to_thread(server.start)


async def test_an_acknowledgement_that_redis_forgets_is_no_message_in_flight_for_ever(
    own_valkey, connect, consume, make
) -> None:
    bus = await connect(own_valkey.url)
    consumer = await consume(on=bus)
    await bus.send(make(1))
    await bus.send(make(2))
    first, second = await consumer.claim(2)
    async with forgotten(own_valkey):
        await consumer.ack(first)
    async with asyncio.timeout(10):
        (again,) = await consumer.claim(1)
    assert again.message == first.message
    await consumer.ack(again)
    await consumer.ack(second)
    stats = await bus.queue("worker")
    assert (stats.backlog, stats.in_flight) == (0, 0)


async def test_a_claim_that_redis_forgets_is_given_up(own_valkey, connect, consume, make) -> None:
    # What is in the entry's place after a failover may be a message of somebody else.
    bus = await connect(own_valkey.url)
    consumer = await consume(on=bus)
    await bus.send(make(1))
    async with forgotten(own_valkey):
        (held,) = await consumer.claim(1)
    async with asyncio.timeout(10):
        (again,) = await consumer.claim(1)
    with pytest.raises(LeaseLost):
        await consumer.ack(held)
    await consumer.ack(again)
    assert (await bus.queue("worker")).in_flight == 0


async def test_a_queue_that_vanished_is_made_anew(own_valkey, connect, consume, make, until) -> None:
    bus = await connect(own_valkey.url)
    consumer = await consume(on=bus)
    await bus.send(make(1))
    (held,) = await consumer.claim(1)
    async with redis.asyncio.Redis.from_url(own_valkey.url, protocol=2) as raw:
        await raw.flushall()
        await raw.function_flush()
    with pytest.raises(LeaseLost):
        await consumer.ack(held)
    claim = asyncio.create_task(consumer.claim(1))
    await bus.send(make(2))
    async with asyncio.timeout(10):
        (delivery,) = await claim
    assert delivery.message.body == {"n": 2}
    await consumer.ack(delivery)
    assert await bus.agents() == ["worker"]


async def test_while_redis_is_down_senders_fail_fast_and_recover(own_valkey, scope, make, until) -> None:
    pool = RedisPool(circuit_breaker=CircuitBreaker(failure_threshold=3, reset_seconds=3))
    bus = await Bus.connect(own_valkey.url, scope, pool=pool)
    try:
        await bus.send(make(1))
        own_valkey.kill()
        with pytest.raises(BusUnavailable, match="cannot be reached"):
            await bus.send(make(2))
        assert not bus.available
        # Refused without a try, which would say what it met.
        with pytest.raises(BusUnavailable, match="is down"):
            await bus.send(make(3))
        with pytest.raises(BusUnavailable, match="is down"):
            await bus.queue("worker")
        own_valkey.start()

        async def sent() -> bool:
            try:
                await bus.send(make(4))
            except BusUnavailable:
                return False
            return True

        await until(sent)
        assert bus.available
        assert (await bus.queue("worker")).backlog == 2
    finally:
        await bus.aclose()


async def test_a_short_outage_is_no_error_for_a_sender(own_valkey, connect, make) -> None:
    bus = await connect(own_valkey.url)
    await bus.send(make(1))
    own_valkey.kill()
    sending = asyncio.create_task(bus.send(make(2)))
    await asyncio.to_thread(own_valkey.start)
    await sending
    assert (await bus.queue("worker")).backlog == 2


async def test_a_sender_waits_for_redis_no_longer_than_it_said(own_valkey, scope, make) -> None:
    patient = RedisPool(circuit_breaker=CircuitBreaker(failure_threshold=1000))
    bus = await Bus.connect(own_valkey.url, scope, pool=patient)
    try:
        await bus.send(make(1))
        own_valkey.kill()
        async with asyncio.timeout(15):
            with pytest.raises(BusUnavailable, match="cannot be reached"):
                await bus.send(make(2), wait=0.2)
        assert bus.available, "the circuit did not end the wait"
        own_valkey.start()
        await bus.send(make(3), wait=30)
    finally:
        await bus.aclose()


async def test_a_full_redis_refuses_senders_and_can_be_drained(own_valkey, connect, consume, make, claim_all) -> None:
    bus = await connect(own_valkey.url)
    consumer = await consume(on=bus)
    for n in range(20):
        await bus.send(make(n))
    async with redis.asyncio.Redis.from_url(own_valkey.url, protocol=2) as raw:
        await raw.config_set("maxmemory", 1)
    with pytest.raises(BusUnavailable, match="OOM"):
        await bus.send(make(21))
    for n, delivery in enumerate(await claim_all(consumer, 20)):
        if n % 2:
            await consumer.ack(delivery)
        else:
            await consumer.reject(delivery, "x")
    assert (await bus.queue("worker")).backlog == 0


async def test_no_server() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(BusUnavailable, match=r"Redis at redis://127\.0\.0\.1:\d+/0 cannot be reached"):
            await Bus.connect(url, HiveScope())


async def test_a_wrong_password_is_named_without_showing_it(redis_url) -> None:
    wrong = redis_url.replace("redis://:", "redis://:wrong")
    with pytest.raises(BusUnavailable, match="refuses the user name or password") as caught:
        await Bus.connect(wrong, HiveScope())
    assert "wrong" not in str(caught.value).replace("WRONGPASS", "")


async def test_something_that_is_not_redis() -> None:
    async def greet(reader, writer) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(BusUnavailable, match="does not speak the Redis protocol"):
            await Bus.connect(f"redis://127.0.0.1:{port}", HiveScope())


async def test_a_server_that_is_silent() -> None:
    hold = asyncio.Event()

    async def ignore(reader, writer) -> None:
        await hold.wait()
        writer.close()

    server = await asyncio.start_server(ignore, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        pool = RedisPool(connect_timeout_seconds=0.1, socket_timeout_seconds=0.1)
        with pytest.raises(BusUnavailable, match="no answer within"):
            await Bus.connect(f"redis://127.0.0.1:{port}", HiveScope(), pool=pool)
        hold.set()


async def test_an_old_server_is_refused() -> None:
    replies = {b"PING": b"+PONG\r\n", b"CLIENT": b"+OK\r\n"}
    info = b"# Server\r\nredis_version:6.2.7\r\n"

    async def serve(reader, writer) -> None:
        while line := await reader.readline():
            words = []
            for _ in range(int(line[1:])):
                size = int((await reader.readline())[1:])
                words.append((await reader.readexactly(size + 2))[:-2])
            writer.write(replies.get(words[0], b"$%d\r\n%s\r\n" % (len(info), info)))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(BusUnavailable, match=r"is version 6\.2\.7; the bus needs Redis 7\.0"):
            await Bus.connect(f"redis://127.0.0.1:{port}", HiveScope(), messaging=Messaging())


async def test_what_a_lost_answer_handed_out_goes_back_however_late_redis_tells(
    own_valkey, scope, connect, consume, make, until, caplog
) -> None:
    """The connection ends with a claim's answer, and Redis then refuses for a while to say what is held."""
    consumer = await consume(on=await connect(own_valkey.url))
    prefix = scope.key_prefix("worker")
    async with redis.asyncio.Redis.from_url(own_valkey.url, protocol=2) as raw:
        claim = asyncio.create_task(consumer.claim(1))
        await until(lambda: consumer._parking.parked)
        message = make()
        async with raw.pipeline(transaction=True) as lost:
            lost.xadd(
                f"{prefix}q:2", {"m": b"99999999999999\n%b\n%b" % (message.message_id.encode(), message.to_json())}
            )
            lost.xreadgroup("agents", consumer.name, {f"{prefix}q:2": ">"})
            lost.acl_setuser("default", enabled=True, commands=["-fcall"])
            await lost.execute()
        await raw.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await until(lambda: "NOPERM" in caplog.text)
        await raw.acl_setuser("default", enabled=True, commands=["+fcall"])
    async with asyncio.timeout(10):
        (delivery,) = await claim
    assert delivery.message.message_id == message.message_id
    await consumer.ack(delivery)
