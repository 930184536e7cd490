"""Many small processes on one PostgreSQL: 20 of them with 5 writers each, as a hive of agents is."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
from typing import Any

from benchmarks.cell import command
from benchmarks.ours import percentiles
from benchmarks.store_cells import records, sets
from benchmarks.store_load import WARM_SECONDS, Call, empty, opened, plain_pool
from benchmarks.store_plain import single_records, single_sets

START_SECONDS = 60.0


async def member(url: str, writers: int) -> dict[str, Any]:
    """One process: for each line that names who writes, and when to begin and to end, the delays that came of it.

    Both kinds have connections enough for each writer to have its own, opened before: a fleet that runs.
    """
    async with opened(url) as store, plain_pool(url, writers) as pool:
        calls: dict[str, Call] = {
            "our sets": sets(store),
            "plain sets": single_sets(pool),
            "our records": records(store),
            "plain records": single_records(pool),
        }
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            print(json.dumps(await _write(calls[order["what"]], writers, order["begins"], order["ends"])), flush=True)
    return {}


async def _write(call: Call, writers: int, begins: int, ends: int) -> list[int]:
    delays: list[int] = []
    numbers = itertools.count(time.monotonic_ns())  # each key is new, in this turn and in the next

    async def writer(who: int) -> None:
        while (started := time.monotonic_ns()) < ends:
            await call(who, next(numbers))
            if started >= begins:
                delays.append(time.monotonic_ns() - started)

    await asyncio.gather(*(writer(who) for who in range(os.getpid() * writers, (os.getpid() + 1) * writers)))
    return delays


async def fleet(url: str, processes: int, writers: int, span: float, rounds: int) -> dict[str, list[list[float]]]:
    """``processes`` of ``writers`` each; [writes a second, p50, p99 (ms)] of each round."""
    await empty(url)
    pipe = asyncio.subprocess.PIPE
    line = command("store_fleet:member", url=url, writers=writers)
    members = [
        await asyncio.create_subprocess_exec(*line, stdin=pipe, stdout=pipe, limit=2**24) for _ in range(processes)
    ]
    found: dict[str, list[list[float]]] = {}
    try:
        async with asyncio.timeout(START_SECONDS):
            for process in members:
                assert process.stdout is not None
                if await process.stdout.readline() != b"ready\n":
                    raise RuntimeError("a process of the fleet did not start")
        for _ in range(rounds):
            for what in ("our sets", "plain sets", "our records", "plain records"):
                found.setdefault(what, []).append(await _turn(members, what, span))
    finally:
        for process in members:
            if process.returncode is None:
                process.kill()
                await process.wait()
    return found


async def _turn(members: list[asyncio.subprocess.Process], what: str, span: float) -> list[float]:
    begins = time.monotonic_ns() + int(2 * WARM_SECONDS * 1e9)
    order = {"what": what, "begins": begins, "ends": begins + int(span * 1e9)}
    for process in members:
        assert process.stdin is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")
    delays: list[int] = []
    for process in members:
        assert process.stdout is not None
        delays += json.loads(await process.stdout.readline())
    return [len(delays) / span, *percentiles(delays)]
