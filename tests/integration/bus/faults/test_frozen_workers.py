"""SIGSTOP beyond the lease: others take over, and nothing the thawed process says counts."""

from __future__ import annotations

import asyncio

from tests.integration.bus.faults.ledger import Sending, connected, drained, finals, seeded, settle, until

from agenthive.protocol import AgentMessage

MESSAGES = 3000
FREEZES = 3
LEASE_LOST = "the lease was lost while the handler ran"


async def test_workers_frozen_beyond_their_lease(redis_url, scope, messaging, fleet, record_property) -> None:
    chance = seeded("workers frozen")
    workers = fleet(redis_url)
    for pod in ("pod-a", "pod-b", "pod-c"):
        workers.start(pod)
    async with connected(redis_url, scope, messaging) as bus:
        sending = Sending(bus)
        sent = sending.start(MESSAGES, 20, pace=0.05, body=lambda n: {"seconds": n % 5 / 50})
        for _ in range(FREEZES):
            pod = chance.choice(await until(workers.serving, "a worker that serves"))
            workers.freeze(pod)
            await asyncio.sleep(messaging.lease_seconds + chance.uniform(0.8, 1.5))
            workers.thaw(pod)
        await sent
        account = await settle(bus, workers, sending, "SIGSTOP beyond the lease", FREEZES)
    workers.assert_alive()
    assert account.twice <= FREEZES * (3 * workers.concurrency + 64)
    account.details = f"{sum(workers.log(pod).count(LEASE_LOST) for pod in workers.processes)} late results refused"
    account.report(record_property)


async def test_what_a_thawed_process_says_is_refused(redis_url, scope, messaging, fleet) -> None:
    workers = fleet(redis_url)
    async with connected(redis_url, scope, messaging) as bus:
        workers.start("frozen")
        # Two that are acknowledged, two that fail at the first attempt, two whose asker waits for the reply.
        plain = [_message(0), _message(1), _message(2, failures=1), _message(3, failures=1)]
        for message in plain:
            await bus.send(message)
        asking = [asyncio.create_task(bus.request(_message(number), 30)) for number in (4, 5)]
        await until(lambda: len(workers.rows()) == 6, "all six are in the handlers")
        workers.freeze("frozen")
        workers.start("survivor")
        await until(lambda: len(workers.rows()) == 12, "the survivor holds all six")
        workers.thaw("frozen")
        frozen, survivor = (workers.processes[pod].pid for pod in ("frozen", "survivor"))
        await until(lambda: workers.log("frozen").count(LEASE_LOST) == 6, "six late results refused")
        assert (await bus.queue("worker")).in_flight == 6, "still the survivor's"
        assert not any(request.done() for request in asking), "a late reply was delivered"
        replies = await asyncio.gather(*asking)
        await drained(bus, workers, range(6))
        states = await finals(workers)
    assert {reply.body["result"]["n"] for reply in replies} == {4, 5}
    assert {reply.body["result"]["process"] for reply in replies} == {survivor}
    # "code finished claimed attempts accepted": the late failures of the first attempt began no third one.
    assert [states[f"message-{number}"].split()[3] for number in range(6)] == ["2"] * 6
    ended = {(row.number, row.process) for row in workers.rows() if row.event == "end"}
    assert ended >= {(number, survivor) for number in range(6)} | {(number, frozen) for number in (0, 1, 4, 5)}


def _message(number: int, **body: int) -> AgentMessage:
    return AgentMessage(
        from_agent="tester",
        to_agent="worker",
        message_type="count",
        message_id=f"message-{number}",
        body={"n": number, "seconds": 3, **body},
    )
