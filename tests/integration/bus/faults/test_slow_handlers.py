"""Handlers that take longer than the lease: renewed meanwhile, whatever they do to the event loop."""

from __future__ import annotations

from tests.integration.bus.faults.ledger import Sending, connected, settle, until

QUICK = 2000


async def test_handlers_slower_than_the_lease(redis_url, scope, messaging, fleet, record_property) -> None:
    workers = fleet(redis_url)
    for pod in ("pod-a", "pod-b"):
        workers.start(pod)
    async with connected(redis_url, scope, messaging) as bus:
        sending = Sending(bus)
        slow = 1.5 * messaging.lease_seconds + 0.5
        # One that computes and blocks the loop of its process, some that wait in threads or in the loop.
        await sending.send([0], kind="spin", body=lambda n: {"seconds": slow})
        await sending.send(range(1, 5), kind="thread", body=lambda n: {"seconds": slow})
        await sending.send(range(5, 9), body=lambda n: {"seconds": slow})
        await until(workers.serving, "a handler runs")
        await sending.send(range(9, QUICK), pace=0.0005)
        account = await settle(bus, workers, sending, "handlers slower than the lease", 9)
    rows = workers.rows()
    for number in range(9):
        begin, end = (row.time for row in rows if row.number == number)
        assert end - begin > messaging.lease_seconds, "it was no slow one"
    assert account.twice == 0
    assert workers.robberies() == 0
    account.report(record_property)
