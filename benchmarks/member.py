"""A consumer process of the soak: ``python -m benchmarks.member URL HIVE POD``. It does what each message says.

SIGTERM ends it gracefully: what runs is cancelled and handed back. SIGKILL is part of the soak, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys

from agenthive.bus import Bus, BusError, Consumer, ConsumerStopped, Delivery
from agenthive.settings import HiveScope, Messaging

AGENT = "soak"
SLOTS = 20
SLOW_SECONDS = 0.1
#: Short lives, so that everything that is to expire does so while the soak watches.
MESSAGING = Messaging(
    max_retries=2, retry_delay_seconds=0.02, lease_seconds=2, status_seconds=1, deduplication_seconds=1
)


async def handle(consumer: Consumer, delivery: Delivery) -> None:
    """What the message asks for."""
    act = delivery.message.body["act"]
    if act == "slow":
        await asyncio.sleep(SLOW_SECONDS)
    if act == "fail" or (act == "retry" and delivery.attempt == 1):
        told = consumer.fail(delivery, "as it was told to", retry_after=0.02)
    elif act == "reject":
        told = consumer.reject(delivery, "as it was told to")
    else:
        told = consumer.ack(delivery, delivery.message.reply({"fine": True}) if act == "ask" else None)
    with contextlib.suppress(BusError):  # taken over, after the process had been stalled: somebody else has it
        await told


async def work(consumer: Consumer) -> None:
    """Claim and handle until the consumer is stopped; hand the rest back."""
    running: dict[asyncio.Task[None], Delivery] = {}
    while True:
        try:
            deliveries = await consumer.claim(SLOTS - len(running))
        except ConsumerStopped:
            break
        running |= {asyncio.create_task(handle(consumer, delivery)): delivery for delivery in deliveries}
        if len(running) >= SLOTS:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in [task for task in running if task.done()]:
            task.result()
            del running[task]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await consumer.release([delivery for delivery in running.values() if not delivery.completed])


async def main(url: str, hive: str, pod: str) -> None:
    """Connect, say so, work."""
    bus = await Bus.connect(url, HiveScope(hive=hive), messaging=MESSAGING)
    consumer = bus.consumer(AGENT, pod=pod)
    await consumer.start()
    loop = asyncio.get_running_loop()
    stopping: list[asyncio.Task[None]] = []
    loop.add_signal_handler(signal.SIGTERM, lambda: stopping.append(loop.create_task(consumer.stop())))
    print("ready", flush=True)
    try:
        await work(consumer)
    finally:
        await consumer.aclose()
        await bus.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
