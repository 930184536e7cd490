"""The bus: what a worker handles, what a sender sends, how long a message takes, what fleets and agents cost."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.cell import CELL_SECONDS, measure
from benchmarks.peers import PEERS, installed
from benchmarks.report import Row
from benchmarks.server import clear, valkey

ROUNDS = 3
#: Seconds the whole may take. Each row is measured once before any is measured again; no round begins that would end
#: after this time, and then the others are left out rather than we.
BUDGET = 330.0
STARTS = 5
MESSAGES = 40_000
#: Others take a hundredth of a second for what takes us a thousandth: fewer are as good.
PEER_MESSAGES = 600
RATES = {1000: 10, 10_000: 100}
"""Messages a second → handlers at a time of the latency rows; the second needs more than an agent's default."""
PEER_RATES = (1000, 500, 250, 100)
#: A median above this (ms) means a queue that grows, not a latency.
FELL_BEHIND = 100.0
#: A queue is filled and measured up to the size that can be reached in so many seconds.
GROWTH_SECONDS = 60.0
AGENTS, REPLICAS, IDLE = 100, 10, 100
SIZES = {1000: "1 thousand", 10_000: "10 thousand", 100_000: "100 thousand", 1_000_000: "1 million"}
Progress = Callable[[str], None]


class Bench:
    """The rows of the bus, and the server all of them are measured on."""

    def __init__(self, url: str, progress: Progress) -> None:
        self.url = url
        self.progress = progress
        self.began = time.monotonic()
        self.machine = Row("this machine: 10 million additions", "s", less_is_better=True)
        self.handled = {
            100: Row("messages handled, concurrency 100", "/s", "≥ 30,000, ≥ ½ raw"),
            10: Row("messages handled, concurrency 10", "/s", "≥ 12,000"),
        }
        self.sent = Row("awaited sends, 100 senders", "/s", "≥ 25,000")
        self.latency = {
            (rate, part): Row(
                f"send → handler at {rate:,}/s, {part}", "ms", target if rate == 1000 else "", less_is_better=True
            )
            for rate in RATES
            for part, target in (("p50", "< 1"), ("p99", "< 3"))
        }
        pods = f"1 agent, {IDLE} idle consumers"
        self.idle = [
            Row(f"{pods}: handled", "/s", "≥ 15,000"),
            Row(f"{pods}: p50 at 1,000/s", "ms", less_is_better=True),
            Row(f"{pods}: p99 at 1,000/s", "ms", less_is_better=True),
        ]
        fleet = f"{AGENTS} agents of {REPLICAS} consumers"
        self.fleet = [
            Row(f"{fleet}: handled", "/s"),
            Row(f"{fleet}: p50 at 1,000/s", "ms", less_is_better=True),
            Row(f"{fleet}: p99 at 1,000/s", "ms", less_is_better=True),
        ]
        self.growth = {
            size: Row(f"claim and ack, {name} waiting", "µs", "flat", less_is_better=True)
            for size, name in SIZES.items()
        }
        self.memory = Row("Redis memory per waiting message", "B", less_is_better=True)
        self.started = Row("agent: start → first message handled", "s", "< 0.7", less_is_better=True)
        self.resident = Row("agent: resident memory, idle", "MiB", "< 60", less_is_better=True)
        self.peers = list(installed())
        for missing in sorted(set(PEERS) - set(self.peers)):
            self._remark(self.handled[100], f"{missing} is not installed")

    @property
    def rows(self) -> list[Row]:
        """All of them, in the order of the table."""
        return [
            *self.handled.values(), self.sent, *self.latency.values(), *self.idle, *self.fleet,
            *self.growth.values(), self.memory, self.started, self.resident, self.machine,
        ]  # fmt: skip

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    def _remark(self, row: Row, text: str) -> None:
        self.progress(text)
        if text not in row.remarks:
            row.remarks.append(text)

    def cell(self, what: str, name: str, *, seconds: float = CELL_SECONDS, **arguments: Any) -> Any:
        """Measure one cell on an empty server."""
        self.progress(what)
        clear(self.url)
        return measure(name, seconds, url=self.url, **arguments)

    def ours(self, what: str, name: str, rows: Sequence[Row], **arguments: Any) -> Any:
        """Measure a cell of ours. One that fails is a remark: the others are measured, and the bench ends with 1."""
        try:
            found = self.cell(what, name, **arguments)
        except RuntimeError as error:
            for row in rows:
                row.failed = True
            self._remark(rows[0], f"failed: {last_line(error)}")
            return None
        for row, value in zip(rows, found if isinstance(found, list) else [found], strict=False):
            row.rounds.append(value)
        return found

    def peer(self, what: str, name: str, rows: Sequence[Row], label: str, **arguments: Any) -> Any:
        """Measure a cell of others; one that fails is told and left out, for it is not what is under test."""
        if label in PEERS:
            arguments.setdefault("peer", label)
        if self.spent > BUDGET:
            self._remark(rows[0], f"{label} left out of a round: no time left")
            return None
        try:
            found = self.cell(f"{what}: {label}", name, **arguments)
        except RuntimeError as error:
            self._remark(rows[0], f"{label} left out of a round: {last_line(error)}")
            return None
        for row, value in zip(rows, found if isinstance(found, list) else [found], strict=False):
            row.against.setdefault(label, []).append(value)
        return found

    def round(self, turn: str) -> None:
        """Ours and the others take turns, so that a noisy minute hits both."""
        self.machine.rounds.append(reference())
        for concurrency, row in self.handled.items():
            what = f"{turn}, {row.name}"
            self.ours(what, "ours:throughput", [row], messages=MESSAGES, concurrency=concurrency)
            for peer in self.peers:
                self.peer(what, "others:throughput", [row], peer, messages=PEER_MESSAGES, concurrency=concurrency)
        self.peer(turn, "others:raw_throughput", [self.handled[100]], "raw redis-py", messages=MESSAGES)
        what = f"{turn}, {self.sent.name}"
        self.ours(what, "ours:sends", [self.sent], messages=MESSAGES)
        self.peer(what, "others:raw_call_sends", [self.sent], "raw call of 100", messages=MESSAGES)
        self.peer(what, "others:raw_pipeline_sends", [self.sent], "raw pipeline of 100", messages=MESSAGES)
        for peer in self.peers:
            self.peer(what, "others:sends", [self.sent], peer, messages=PEER_MESSAGES)
        for rate, concurrency in RATES.items():
            rows = [self.latency[rate, "p50"], self.latency[rate, "p99"]]
            shape = {"rate": rate, "messages": 2 * rate, "concurrency": concurrency}
            found = self.ours(f"{turn}, latency at {rate:,}/s", "ours:latency", rows, **shape)
            if found and (found[2] < 0.95 * rate or found[0] > FELL_BEHIND):
                self._remark(
                    rows[0],
                    f"not kept: the sender reached {found[2]:,.0f}/s and the queue grew, p50 {found[0]:,.0f} ms",
                )

    def peer_latency(self, peer: str) -> None:
        """Latency of a peer, at 1,000/s or the next lower rate that it can keep: elsewhere its queue just grows."""
        rows = [self.latency[1000, "p50"], self.latency[1000, "p99"]]
        able = min(row.others.get(peer, math.inf) for row in (self.sent, self.handled[10]))
        for rate in PEER_RATES:
            if rate > able:
                self._remark(rows[0], f"{peer} cannot keep {rate:,}/s on this machine: it does {able:,.0f}/s at most")
                continue
            label = peer if rate == PEER_RATES[0] else f"{peer} at {rate}/s"
            shape = {"peer": peer, "rate": rate, "messages": 2 * rate, "concurrency": RATES[1000]}
            found = self.peer("latency", "others:latency", rows, label, **shape)
            if not found:
                return
            p50, _, reached = found
            if p50 < FELL_BEHIND and reached > 0.95 * rate:
                return
            for row in rows:
                del row.against[label]
            self._remark(
                rows[0],
                f"{peer} cannot keep {rate:,}/s on this machine (sender at {reached:,.0f}/s, p50 {p50:,.0f} ms)",
            )

    def once(self) -> None:
        """What needs no rounds of its own."""
        if "taskiq" in self.peers:
            self.peer_latency("taskiq")
        idle = {"rate": 1000, "timed": 2000, "consumers": IDLE, "messages": MESSAGES // 2}
        self.ours(self.idle[0].name, "fleets:idle_pods", self.idle, **idle)
        self.peer(self.idle[0].name, "fleets:raw_idle_pods", self.idle, f"{IDLE} blocked readers", **idle)
        fleet = {"rate": 1000, "timed": 2000, "consumers": REPLICAS, "agents": AGENTS, "messages": MESSAGES // 2}
        self.ours(self.fleet[0].name, "fleets:fleet", self.fleet, seconds=90.0, **fleet)
        self.grow()
        for number in range(1, STARTS + 1):
            self.ours(f"start {number} of {STARTS}", "ours:start", [self.started, self.resident])

    def grow(self) -> None:
        """Cost per message as the queue grows; the shortest queue is what the others are held against."""
        rows = list(self.growth.values())
        shape: dict[str, Any] = {"sizes": list(SIZES), "messages": 2000, "parts": 5, "limit": GROWTH_SECONDS}
        try:
            found = self.cell("a queue that grows", "fleets:growth", seconds=2 * GROWTH_SECONDS, **shape)
        except RuntimeError as error:
            for row in (*rows, self.memory):
                row.failed = True
            self._remark(rows[0], f"failed: {last_line(error)}")
            return
        for row, cost in zip(rows, found["costs"], strict=False):
            row.rounds += cost
            if row is not rows[0]:
                row.against[f"{SIZES[1000]} waiting"] = found["costs"][0]
        for row in rows[len(found["costs"]) :]:
            self._remark(row, f"not reached within {GROWTH_SECONDS:.0f} s")
        self.memory.rounds.append(found["memory"][-1])


def run(progress: Progress) -> list[Row]:
    """All figures of the bus."""
    with valkey() as url:
        bench = Bench(url, progress)
        bench.round(f"round 1 of {ROUNDS}")
        each = bench.spent
        bench.once()
        for number in range(2, ROUNDS + 1):
            if bench.spent + each > BUDGET:
                progress(f"this machine is busy or slow: {number - 1} rounds have to do")
                break
            bench.round(f"round {number} of {ROUNDS}")
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        bench.machine.remarks.append(
            f"{os.cpu_count()} cores, Python {platform.python_version()}, load (1, 5, 15 min) {load}"
        )
        return bench.rows


def reference() -> float:
    """Seconds of a fixed loop, to compare machines by."""
    started = time.perf_counter()
    total = 0
    for number in range(10_000_000):
        total += number
    return time.perf_counter() - started


def last_line(error: RuntimeError) -> str:
    """What went wrong, without the traceback."""
    return str(error).strip().splitlines()[-1]
