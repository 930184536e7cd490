"""Two replicas, one acts: who writes when, as the API server sees it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .conftest import Cluster
from .replicas import Replica, busy_hive, replica

LOST = 75
WATCHED_SECONDS = 1.0


async def leads(cluster: Cluster, leader: Replica, *others: Replica) -> None:
    """The one holds the Lease and writes, the others are healthy and write nothing."""
    lease = await cluster.need("Lease", "agenthive-operator")
    assert lease["spec"]["holderIdentity"].startswith(f"{leader.name}_"), leader.log.read_text()
    before = {other.name: len(other.recorder.writes()) for other in others}
    seen = len(leader.recorder.writes())
    await asyncio.sleep(WATCHED_SECONDS)
    assert len(leader.recorder.writes()) > seen
    assert {other.name: len(other.recorder.writes()) for other in others} == before
    for other in others:
        figures = await other.figures()
        assert figures is not None
        assert (figures["leads"], figures["queue"]) == (0.0, 0.0)


def handed_over(old: Replica, new: Replica, since: float) -> None:
    """Of the two only the new one wrote after it began to."""
    first = new.recorder.writes(since)[0].at
    late = old.recorder.writes(first)
    assert not late, f"{old.name} wrote {late[0]} after {new.name} had begun"
    assert not new.recorder.writes()[: -len(new.recorder.writes(since))], f"{new.name} wrote before its turn"


async def test_hand_over_of_a_stopped_and_of_a_killed_replica(
    cluster: Cluster, api_server: Any, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    async with busy_hive(cluster), replica(cluster, api_server, tmp_path, "a") as a:
        await a.wrote(cluster, 0.0)
        async with replica(cluster, api_server, tmp_path, "b") as b:
            await leads(cluster, a, b)
            told = a.signal(signal.SIGTERM)
            taken = await b.wrote(cluster, told) - told
            assert await a.ended() == 0, a.log.read_text()
            assert "Traceback" not in a.log.read_text()
            handed_over(a, b, told)
            assert taken < 2.0, f"{taken:.2f} s after SIGTERM"
            async with replica(cluster, api_server, tmp_path, "c") as c:
                await leads(cluster, b, c)
                told = b.signal(signal.SIGKILL)
                followed = await c.wrote(cluster, told) - told
                handed_over(b, c, told)
                assert followed < 15.0, f"{followed:.2f} s after SIGKILL"
                lease = await cluster.need("Lease", "agenthive-operator")
                assert lease["spec"]["leaseTransitions"] == 2
                assert lease["spec"]["leaseDurationSeconds"] == 10
                assert c.log.read_text().count("leads: it took the Lease") == 1
                await leads(cluster, c)
    record_property("seconds after SIGTERM, SIGKILL", f"{taken:.2f}, {followed:.2f}")


async def test_a_frozen_and_a_cut_off_replica_write_no_more(cluster: Cluster, api_server: Any, tmp_path: Path) -> None:
    async with busy_hive(cluster) as load, replica(cluster, api_server, tmp_path, "a") as a:
        await a.wrote(cluster, 0.0)
        async with replica(cluster, api_server, tmp_path, "b") as b:
            # What it had handed to its connections when it froze would be on its way: here that is nothing.
            await load.rest()
            told = a.signal(signal.SIGSTOP)
            load.resume()
            await b.wrote(cluster, told)
            woken = a.signal(signal.SIGCONT)  # with a watch that has much to tell, and work half done
            assert await a.ended() == LOST, a.log.read_text()
            assert "is lost" in a.log.read_text()
            assert a.recorder.writes(woken) == []
            handed_over(a, b, told)
            async with replica(cluster, api_server, tmp_path, "c") as c:
                await leads(cluster, b, c)
                b.recorder.refusing = True  # it is told of every change, and nothing that it writes is taken
                renewed = b.recorder.claims()[-1].at
                cut = asyncio.get_running_loop().time()
                first = await c.wrote(cluster, cut)
                assert await b.ended() == LOST, b.log.read_text()
                attempts = b.recorder.writes(cut)
                assert attempts, "it was to try"
                assert attempts[-1].at < renewed + 6.5, "the last renewal that can have succeeded began before the cut"
                assert attempts[-1].at < first - 3.0
                handed_over(b, c, cut)


async def test_a_replica_that_hears_nothing_ends(cluster: Cluster, api_server: Any, tmp_path: Path) -> None:
    async with busy_hive(cluster), replica(cluster, api_server, tmp_path, "a") as a:
        await a.wrote(cluster, 0.0)
        a.recorder.swallowing.set()
        # 6 s until the lease is lost for it, and at most 10 for the watches, whose server answers nothing, to end.
        assert await a.ended(20) == LOST, a.log.read_text()
        assert "could not be renewed" in a.log.read_text()
