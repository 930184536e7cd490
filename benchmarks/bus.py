"""The bus: what a worker handles, what a sender sends, how long a message takes, what an agent costs."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.cell import measure
from benchmarks.report import Row
from benchmarks.server import clear, valkey

ROUNDS = 3
#: On a machine too busy for all rounds, no further one begins after this time, seconds.
BUDGET_SECONDS = 100.0
STARTS = 5
MESSAGES = 40_000
#: Others take a hundredth of a second for what takes us a thousandth: fewer are as good.
PEER_MESSAGES = 1000
RATE = 1000
Progress = Callable[[str], None]


class Bench:
    """The rows of the bus, and the server all of them are measured on."""

    def __init__(self, url: str, progress: Progress) -> None:
        self.url = url
        self.progress = progress
        self.peers = list(peers())
        self.handled = {
            100: Row("messages handled, concurrency 100", "/s", "≥ 30,000, ≥ half of raw"),
            10: Row("messages handled, concurrency 10", "/s", "≥ 12,000"),
        }
        self.sent = Row("awaited sends, 100 senders", "/s", "≥ 25,000")
        self.p50 = Row("send → handler at 1,000/s, p50", "ms", "< 1", less_is_better=True)
        self.p99 = Row("send → handler at 1,000/s, p99", "ms", "< 3", less_is_better=True)
        self.started = Row("agent: start → first message handled", "s", "< 0.7", less_is_better=True)
        self.resident = Row("agent: resident memory, idle", "MiB", "< 60", less_is_better=True)

    @property
    def rows(self) -> list[Row]:
        """All of them, in the order of the table."""
        return [*self.handled.values(), self.sent, self.p50, self.p99, self.started, self.resident]

    def cell(self, what: str, name: str, **arguments: Any) -> Any:
        """Measure one cell on an empty server."""
        self.progress(what)
        clear(self.url)
        return measure(name, url=self.url, **arguments)

    def peer(self, what: str, name: str, rows: list[Row], peer: str, **arguments: Any) -> None:
        """Measure a cell of others; one that fails is told and left out, for it is not what is under test."""
        try:
            found = self.cell(f"{what}: {peer}", name, **arguments)
        except RuntimeError as error:
            self.progress(f"left out: {str(error).splitlines()[-1]}")
            return
        for row, value in zip(rows, found if isinstance(found, list) else [found], strict=True):
            row.against.setdefault(peer, []).append(value)

    def round(self, turn: str) -> None:
        """Ours and the others take turns, so that a noisy minute hits both."""
        for concurrency, row in self.handled.items():
            what = f"{turn}, {row.name}"
            row.rounds.append(self.cell(what, "ours:throughput", messages=MESSAGES, concurrency=concurrency))
            for peer in self.peers:
                name = f"others:{peer}_throughput"
                self.peer(what, name, [row], peer, messages=PEER_MESSAGES, concurrency=concurrency)
        self.peer(turn, "others:raw_throughput", [self.handled[100]], "raw redis-py", messages=MESSAGES)
        what = f"{turn}, {self.sent.name}"
        self.sent.rounds.append(self.cell(what, "ours:sends", messages=MESSAGES))
        self.peer(what, "others:raw_sends", [self.sent], "raw redis-py", messages=MESSAGES)
        for peer in self.peers:
            self.peer(what, f"others:{peer}_sends", [self.sent], peer, messages=PEER_MESSAGES)
        p50, p99 = self.cell(f"{turn}, latency", "ours:latency", rate=RATE, messages=3 * RATE)
        self.p50.rounds.append(p50)
        self.p99.rounds.append(p99)

    def once(self) -> None:
        """What needs no rounds of its own."""
        if "taskiq" in self.peers:
            rows = [self.p50, self.p99]
            self.peer("latency", "others:taskiq_latency", rows, "taskiq", rate=RATE, messages=2 * RATE)
        for number in range(1, STARTS + 1):
            seconds, mebibytes = self.cell(f"start {number} of {STARTS}", "ours:start")
            self.started.rounds.append(seconds)
            self.resident.rounds.append(mebibytes)


def run(progress: Progress) -> list[Row]:
    """All figures of the bus."""
    began = time.monotonic()
    with valkey() as url:
        bench = Bench(url, progress)
        for number in range(1, ROUNDS + 1):
            bench.round(f"round {number} of {ROUNDS}")
            if time.monotonic() - began > BUDGET_SECONDS and number < ROUNDS:
                progress(f"this machine is busy: {number} rounds have to do")
                break
        bench.once()
        return bench.rows


def peers() -> Iterator[str]:
    """The task queues that are installed (dependency group ``bench``)."""
    for peer, module in (("taskiq", "taskiq_redis"), ("saq", "saq")):
        if importlib.util.find_spec(module) is not None:
            yield peer
