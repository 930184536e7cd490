"""SIGKILL of workers at random: what they held is handled again, and nothing else is."""

from __future__ import annotations

import asyncio

from tests.integration.bus.faults.ledger import Sending, connected, seeded, settle, until

MESSAGES = 3000
KILLS = 6
PODS = ("pod-a", "pod-b", "pod-c")


async def test_workers_killed_at_random(redis_url, scope, messaging, fleet, record_property) -> None:
    chance = seeded("workers killed")
    workers = fleet(redis_url)
    for pod in PODS:
        workers.start(pod)
    async with connected(redis_url, scope, messaging) as bus:
        sending = Sending(bus)
        sent = sending.start(MESSAGES, 20, pace=0.05, body=lambda n: {"seconds": n % 5 / 100})
        for number in range(KILLS):
            pod = chance.choice(await until(workers.serving, "a worker that serves"))
            await asyncio.sleep(chance.uniform(0, 0.2))
            workers.kill(pod)
            if number == KILLS // 2:  # one pod stays away beyond its lease: others return what it held
                await asyncio.sleep(2.5)
            workers.start(pod)
        await sent
        account = await settle(bus, workers, sending, "SIGKILL of workers", KILLS)
    # A killed worker held what ran and what had ended and was not yet acknowledged.
    assert 0 < account.twice <= KILLS * (3 * workers.concurrency + 64)
    account.report(record_property)
