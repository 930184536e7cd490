"""The operator with many Agents: how soon all is in place, what that costs, that nothing goes on afterwards, a restart.

Each trial has an API server of its own (the built-in emulator, or those programs that KUBEBUILDER_ASSETS names), the
operator as its own process beside it, and one Redis and one PostgreSQL behind all hives. No controller and no kubelet
run: once all Deployments are there, the bench reports their pods ready, and the operator brings the statuses about.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.bus import last_line, reference
from benchmarks.operator_cluster import AGENTS, AGENTS_EACH, Cluster, Program, cluster, together, until
from benchmarks.operator_cluster import agent as agent_body
from benchmarks.report import Row
from benchmarks.server import clear, postgres, valkey

SIZES = (100, 1000, 3000)
MAIN = 1000
#: Seconds that the steady state is watched for; what a five-minute resync adds comes on top of it.
STEADY_SECONDS = 15.0
#: No writes for so long: everything has come to rest.
QUIET_SECONDS = 2.0
#: No trial that can be left out begins after so many seconds.
BUDGET = 130.0
OPERATOR = ("-m", "agenthive_operator")
PEER = ("-m", "benchmarks.operator_peer")
PEER_NAME = "kopf handler"
Progress = Callable[[str], None]


@dataclass
class Trial:
    """What was measured with one number of Agents. Seconds, MiB, and numbers of requests."""

    in_place: float = 0.0
    applied: float = 0.0
    rested: float = 0.0
    idle: float = 0.0
    resident: float = 0.0
    resident_again: float = 0.0
    cpu: float = 0.0
    server_cpu: float = 0.0
    writes: Counter[str] = field(default_factory=Counter)
    steady_reads: float = 0.0
    steady_writes: float = 0.0
    steady_cpu: float = 0.0
    restart: float = 0.0
    restart_writes: float = 0.0


async def measure(agents: int, redis: str, url: str, *, admin: bool = False, whole: bool = True) -> Trial:
    """One trial; not ``whole``: only until all Deployments are in place."""
    found = Trial()
    async with cluster() as api:
        program = api.start(*OPERATOR)
        await until("the operator is up", lambda: program.printed("synced: "))
        await until("its watches are", lambda: {"watch agents", "watch deployments"} <= api.requests.reads().keys())
        found.idle, cpu, server_cpu = program.resident, program.cpu, api.server_cpu()
        began = time.monotonic()
        await api.apply(agents // AGENTS_EACH, redis, url, admin=admin)
        found.applied = time.monotonic() - began
        await until("all Deployments are there", lambda: created(api) >= agents)
        found.in_place = time.monotonic() - began
        found.cpu, found.server_cpu = program.cpu - cpu, api.server_cpu() - server_cpu
        if not whole:
            return found
        await rest(api)
        await api.report_ready()
        await until("all Agents are ready", lambda: all_ready(api))
        await rest(api)
        found.rested = time.monotonic() - began
        found.writes, found.resident = api.requests.writes(), program.resident
        api.requests.forget()
        cpu = program.cpu
        await asyncio.sleep(STEADY_SECONDS)
        found.steady_cpu = (program.cpu - cpu) / STEADY_SECONDS * 100
        per_minute = 60 / STEADY_SECONDS
        found.steady_writes = api.requests.writes().total() * per_minute
        found.steady_reads = api.requests.reads().total() * per_minute
        await restart(api, program, found)
    return found


def created(api: Cluster) -> int:
    """How many Deployments were made."""
    counted = api.requests.look()
    return counted["patch", "deployments", 201] + counted["create", "deployments", 201]


async def rest(api: Cluster) -> None:
    """Wait until nothing has been written for a while."""
    total = -1
    while total != (total := api.requests.writes().total()):
        await asyncio.sleep(QUIET_SECONDS)


async def all_ready(api: Cluster) -> bool:
    """Whether every Agent says so; asked seldom, as it costs the server something."""
    await asyncio.sleep(0.5)
    found, _ = await api.client.list(AGENTS)
    return all(
        any(entry["type"] == "Ready" and entry["status"] == "True" for entry in each["status"]["conditions"])
        for each in found
    )


async def restart(api: Cluster, program: Program, found: Trial) -> None:
    """End the operator, start it again, until it looked at everything once."""
    await asyncio.to_thread(program.stop)
    api.requests.forget()
    began = time.monotonic()
    again = api.start(*OPERATOR)
    await until("everything was looked at again", lambda: again.printed("looked at everything once"))
    found.restart = time.monotonic() - began
    await asyncio.sleep(QUIET_SECONDS)
    found.restart_writes, found.resident_again = api.requests.writes().total(), again.resident


async def measure_peer(agents: int) -> Trial:
    """The same Agents under the prototype, until all Deployments are in place."""
    found = Trial()
    async with cluster() as api:
        program = api.start(*PEER)
        await until("it watches", lambda: program.printed() and "watch agents" in api.requests.reads())
        found.idle, cpu = program.resident, program.cpu
        began = time.monotonic()
        await together(api.client.create(AGENTS, agent_body(number)) for number in range(agents))
        await until("all Deployments are there", lambda: created(api) >= agents)
        found.in_place = time.monotonic() - began
        await rest(api)
        found.resident, found.cpu, found.writes = program.resident, program.cpu - cpu, api.requests.writes()
    return found


class Bench:
    """The rows, and the trials that fill them."""

    def __init__(self, redis: str, url: str, progress: Progress) -> None:
        self.redis = redis
        self.url = url
        self.progress = progress
        self.began = time.monotonic()
        self.machine = Row("this machine: 10 million additions", "s", less_is_better=True)

        def rows(what: str, unit: str, target: str = "") -> dict[int, Row]:
            return {
                size: Row(f"{what}, {size:,} Agents", unit, target if size == MAIN else "", less_is_better=True)
                for size in SIZES
            }

        self.in_place = rows("all Deployments in place", "s", "≤ 10")
        self.logins = rows("the same with a login each", "s")
        self.writes = rows("API writes per Agent until steady", "", "≤ 8")
        self.cpu = rows("CPU of the operator until in place", "s")
        self.resident = rows("memory of the operator", "MiB", "≤ 200")
        self.resident_again = rows("memory after a restart", "MiB", "≤ 200")
        self.steady_writes = rows("writes in the steady state", "/min", "0")
        self.steady_reads = rows("other requests in the steady state", "/min")
        self.steady_cpu = rows("CPU in the steady state", "% of a core")
        self.restart = rows("restart until all was looked at", "s", "≤ 5")
        self.restart_writes = rows("writes of a restart", "", "0")

    @property
    def rows(self) -> list[Row]:
        """All of them that have something to say, in the order of the table."""
        tables = (
            self.in_place, self.logins, self.writes, self.cpu, self.resident, self.resident_again, self.steady_writes,
            self.steady_reads, self.steady_cpu, self.restart, self.restart_writes,
        )  # fmt: skip
        filled = [row for table in tables for row in table.values() if row.rounds or row.failed]
        return [*filled, self.machine]

    def trial(self, size: int) -> None:
        """Everything of one size."""
        self.progress(f"{size:,} Agents")
        clear(self.redis)
        row = self.in_place[size]
        try:
            found = asyncio.run(measure(size, self.redis, self.url))
        except RuntimeError as error:
            row.failed = True
            row.remarks.append(f"failed: {last_line(error)}")
            return
        row.rounds.append(found.in_place)
        row.remarks.append(
            f"applying them alone took {found.applied:.1f} s; CPU of the API server {found.server_cpu:.1f} s; at rest, "
            f"pods reported ready, after {found.rested:.1f} s"
        )
        self.writes[size].rounds.append(found.writes.total() / size)
        each = ", ".join(f"{what} {count:,}" for what, count in found.writes.most_common())
        self.writes[size].remarks.append(f"{each}; those of the hives are among them")
        self.cpu[size].rounds.append(found.cpu)
        self.resident[size].rounds.append(found.resident)
        self.resident[size].remarks.append(f"{found.idle:.0f} MiB before there was anything")
        self.resident_again[size].rounds.append(found.resident_again)
        self.steady_writes[size].rounds.append(found.steady_writes)
        self.steady_writes[size].remarks.append(f"watched for {STEADY_SECONDS:.0f} s")
        self.steady_reads[size].rounds.append(found.steady_reads)
        self.steady_cpu[size].rounds.append(found.steady_cpu)
        self.restart[size].rounds.append(found.restart)
        self.restart_writes[size].rounds.append(found.restart_writes)

    def peer(self, size: int) -> None:
        """The prototype, beside ours in the same run."""
        self.progress(f"{size:,} Agents, {PEER_NAME}")
        try:
            found = asyncio.run(measure_peer(size))
        except RuntimeError as error:
            self.in_place[size].remarks.append(f"{PEER_NAME} failed: {last_line(error)}")
            return
        self.in_place[size].against[PEER_NAME] = [found.in_place]
        self.writes[size].against[PEER_NAME] = [found.writes.total() / size]
        self.cpu[size].against[PEER_NAME] = [found.cpu]
        self.resident[size].against[PEER_NAME] = [found.resident]

    def with_logins(self, size: int) -> None:
        """A database login for each Agent."""
        self.progress(f"{size:,} Agents with a login each")
        clear(self.redis)
        row = self.logins[size]
        try:
            row.rounds.append(asyncio.run(measure(size, self.redis, self.url, admin=True, whole=False)).in_place)
        except RuntimeError as error:
            row.failed = True
            row.remarks.append(f"failed: {last_line(error)}")

    def spent(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began


def run(progress: Progress) -> list[Row]:
    """All figures of the operator."""
    wanted = [int(size) for size in os.environ.get("AGENTHIVE_BENCH_AGENTS", "").split(",") if size] or list(SIZES)
    with postgres() as url, valkey() as redis:
        bench = Bench(redis, url, progress)
        bench.machine.rounds.append(reference())
        for size in wanted:
            if size > MAIN and bench.spent() > BUDGET:
                progress(f"this machine is busy or slow: {size:,} Agents are left out")
                continue
            bench.trial(size)
            if size == MAIN:
                bench.peer(size)
                bench.with_logins(size)
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        bench.machine.remarks.append(
            f"{os.cpu_count()} cores, Python {platform.python_version()}, load (1, 5, 15 min) {load}"
        )
        return bench.rows
