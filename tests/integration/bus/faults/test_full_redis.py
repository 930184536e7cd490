"""Redis out of memory, and Redis that cannot write its file: sends fail clearly, and the queue can be drained."""

from __future__ import annotations

import asyncio
import resource
import subprocess
from collections.abc import Iterator

import pytest
import redis.asyncio
from tests.conftest import ValkeyServer, server_folder, wait_until
from tests.integration.bus.faults.ledger import (
    Account,
    Sending,
    all_serve,
    assert_clean,
    connected,
    drained,
    finals,
    settle,
    until,
)

from agenthive.protocol import AgentMessage
from agenthive_operator.local import servers

MESSAGES = 2000


async def test_out_of_memory(own_valkey, scope, messaging, fleet, record_property) -> None:
    """Filled until sends fail; then a worker that has never been there drains it: replies, retries, dead letters."""
    workers = fleet(own_valkey.url)
    async with (
        connected(own_valkey.url, scope, messaging) as bus,
        redis.asyncio.Redis.from_url(own_valkey.url, protocol=2) as raw,
    ):
        asking = [asyncio.create_task(bus.request(_message(-n), 60)) for n in range(1, 21)]
        sending = Sending(bus)
        # Every 20th is retried twice; the others succeed at once.
        await sending.start(MESSAGES, 50, body=lambda n: {"failures": 2 if n % 20 == 0 else 0})
        hopeless = _message(-100, failures=1000, delivery_options={"max_retries": 1})
        await bus.send(hopeless)
        await raw.config_set("maxmemory", (await raw.info("memory"))["used_memory"])
        await sending.send(range(MESSAGES, MESSAGES + 50), persist=False, body=lambda n: {"text": "x" * 10_000})
        assert sending.errors
        assert all("did not accept the message: OOM" in error for error in sending.errors)
        workers.start("pod-a")
        await drained(bus, workers, sending.accepted)
        assert {reply.body["result"]["n"] for reply in await asyncio.gather(*asking)} == set(range(-20, 0))
        (letter,) = await bus.dead_letters("worker")
        assert (letter.reason, letter.attempts) == ("failed", 2)
        states = await finals(workers)
        assert all(states[f"message-{n}"].startswith("d ") for n in sending.accepted)
        await assert_clean(workers)
        await raw.config_set("maxmemory", 0)
        await bus.send(_message(10**6))
    workers.assert_alive()
    Account("Redis out of memory", len(sending.accepted) + 21, 1, 0, 0).report(record_property)


class LimitedServer(ValkeyServer):
    """A Valkey whose writes beyond a limit fail, as on a full disk, and do not end it."""

    def start(self) -> None:
        program = ["sh", "-c", 'trap "" XFSZ; exec "$0" "$@"', str(servers.valkey_server())]
        with (self.folder / "valkey.log").open("ab") as log:
            self.process = subprocess.Popen([*program, str(self.folder / "valkey.conf")], stdout=log, stderr=log)
        wait_until(self._answers, self.process, "valkey-server")

    def limit(self, size: int) -> None:
        """Bytes a file may grow to from now on; -1 for any number."""
        assert self.process is not None
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size, -1))


@pytest.fixture
def small_disk() -> Iterator[LimitedServer]:
    with server_folder("valkey") as folder:
        server = LimitedServer(folder)
        server.start()
        yield server
        server.stop()


async def test_full_disk(small_disk, scope, messaging, fleet, record_property) -> None:
    workers = fleet(small_disk.url)
    for pod in ("pod-a", "pod-b"):
        workers.start(pod)
    async with connected(small_disk.url, scope, messaging) as bus:
        sending = Sending(bus)
        await all_serve(workers, sending, MESSAGES)
        sent = sending.start(MESSAGES, 20, pace=0.02, body=lambda n: {"seconds": n % 5 / 100})
        small_disk.limit(0)
        await until(lambda: any("MISCONF" in error for error in sending.errors), "a send refused")
        await asyncio.sleep(messaging.lease_seconds + 1)  # long enough for every lease to run out
        workers.assert_alive()
        handled = len(workers.rows())
        small_disk.limit(-1)
        await sent
        account = await settle(bus, workers, sending, "Redis cannot write to its disk", 1)
    workers.assert_alive()
    assert handled < 2 * MESSAGES, "the disk was never full"
    unclear = [error for error in sending.errors if "MISCONF" not in error or "did not accept the message" not in error]
    assert not unclear, unclear
    assert account.twice == 0 or workers.robberies(), "handled twice, and no lease was lost"
    account.details = f"{sending.resends} sends refused and sent again"
    account.report(record_property)


def _message(number: int, **body: object) -> AgentMessage:
    options = body.pop("delivery_options", {})
    return AgentMessage(
        from_agent="tester", to_agent="worker", message_type="count", message_id=f"message-{number}",
        body={"n": number, **body}, delivery_options=options,
    )  # fmt: skip
