"""The store: durable writes, reads, metrics, transactions; ours and plain asyncpg by turns on one PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import asyncpg

from benchmarks.bus import last_line, reference
from benchmarks.cell import measure
from benchmarks.report import Row
from benchmarks.server import clear, postgres, valkey

ROUNDS = 3
#: Seconds that each kind of write and read is measured for at a time.
SPAN = 0.6
STEADY_RATE, STEADY_SECONDS = 500, 1.0
RECORDERS = 1000
CACHE_CALLS = 40_000
PROCESSES, WRITERS_EACH = 20, 5
PARTITIONS = {1: "1 partition", 100: "100 partitions"}
ROWS_PER_PARTITION = 2000
SIZES = {10_000: "10 thousand", 1_000_000: "1 million"}
TRANSACTIONS, SENDS, CONCURRENCY = 1500, 10, 50
CELL_SECONDS = 120.0
#: No round begins that would end after so many seconds.
BUDGET = 170.0
Progress = Callable[[str], None]
Figures = Mapping[str, list[float]]


class Figure:
    """Rows of one kind of call: how many a second, p50, p99; and the first again, beside what cannot be beaten."""

    def __init__(self, name: str, *, target: str = "", p99: str = "", limits: bool = False) -> None:
        self.per_second = Row(name, "/s", target)
        self.p50 = Row(f"{name}: p50", "ms", less_is_better=True)
        self.p99 = Row(f"{name}: p99", "ms", p99, less_is_better=True)
        self.limit = Row(f"{name}: beside the limits", "/s") if limits else None
        self.rows = [self.per_second, self.p50, self.p99, *([self.limit] if self.limit else [])]

    def add(self, found: Figures) -> None:
        """One round: ``ours``, and others by name; limits are what one connection does that has nothing else to do."""
        timed = (self.per_second, self.p50, self.p99)
        for name, values in found.items():
            if name == "ours":
                for row, value in zip(timed, values, strict=True):
                    row.rounds.append(value)
                if self.limit:
                    self.limit.rounds.append(values[0])
            elif self.limit and not name.startswith("pool"):
                self.limit.against.setdefault(name, []).append(values[0])
            else:
                for row, value in zip(timed, values, strict=True):
                    row.against.setdefault(name, []).append(value)


class Bench:
    """The rows of the store, and the server all of them are measured on."""

    def __init__(self, url: str, redis: str, progress: Progress) -> None:
        self.url = url
        self.redis = redis
        self.progress = progress
        self.began = time.monotonic()
        self.machine = Row("this machine: 10 million additions", "s", less_is_better=True)
        target = "≥ 20,000, ≥ 5 x"
        self.writes = {
            "sets": Figure("state.set, 100 writers", target=target, p99="< 15", limits=True),
            "records": Figure("metrics.record, 100 writers", target=target, p99="< 15", limits=True),
        }
        fleet = f"{PROCESSES} processes of {WRITERS_EACH} writers"
        self.fleet = {"sets": Figure(f"state.set, {fleet}"), "records": Figure(f"metrics.record, {fleet}")}
        self.steady = Figure(f"state.set at {STEADY_RATE}/s", p99="< 10")
        self.reads = Figure("state.get, 100 readers, no cache", target="≥ 40,000", p99="< 10")
        self.cached = Figure("state.get, 100 readers, cached", p99="< 2")
        self.hit_ratio = Row("cache hits, Zipf over 10,000 keys, 5 % writes", "%", "≥ 95")
        self.ingest = Figure(f"metrics.record, {RECORDERS:,} writers", limits=True)
        self.transactions = Row(f"transactions: document, mark, 1 message, {CONCURRENCY} handlers", "/s")
        self.outbox = Row(f"messages of transactions brought to Redis, {SENDS} of each", "/s")
        self.queries = {
            count: Row(f"metrics of an hour, {name}", "ms", "flat", less_is_better=True)
            for count, name in PARTITIONS.items()
        }
        self.growth = {
            (size, what): Row(f"state {what}, {name} rows", "µs", "flat", less_is_better=True)
            for what in ("read", "write")
            for size, name in SIZES.items()
        }

    @property
    def rows(self) -> list[Row]:
        """All of them, in the order of the table."""
        figures = [*self.writes.values(), *self.fleet.values(), self.steady, self.reads, self.cached, self.ingest]
        return [
            *(row for figure in figures for row in figure.rows), self.hit_ratio, self.transactions, self.outbox,
            *self.queries.values(), *self.growth.values(), self.machine,
        ]  # fmt: skip

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    def cell(self, what: str, name: str, rows: Sequence[Row], **arguments: Any) -> Any:
        """Measure a cell; one that fails is a remark, the others are measured, and the bench ends with 1."""
        self.progress(what)
        try:
            return measure(name, CELL_SECONDS, url=self.url, **arguments)
        except RuntimeError as error:
            for row in rows:
                row.failed = True
            rows[0].remarks.append(f"failed: {last_line(error)}")
            return None

    def figure(self, turn: str, figure: Figure, name: str, **arguments: Any) -> None:
        """Measure a cell that finds the rows of ``figure``."""
        if found := self.cell(f"{turn}, {figure.per_second.name}", name, figure.rows, **arguments):
            for turn_found in found:
                figure.add(turn_found)

    def round(self, turn: str) -> None:
        """Within each cell ours and the others take turns, so that a noisy minute hits both."""
        self.machine.rounds.append(reference())
        for what, figure in self.writes.items():
            self.figure(turn, figure, "store_cells:writes", kind=what, span=SPAN)
        self.figure(turn, self.steady, "store_cells:steady", rate=STEADY_RATE, span=STEADY_SECONDS)
        self.figure(turn, self.reads, "store_cells:reads", span=SPAN)
        self.figure(turn, self.ingest, "store_cells:ingest", recorders=RECORDERS, span=SPAN)
        self.read_cached(turn)
        self.transact(turn)

    def read_cached(self, turn: str) -> None:
        """Reads through the cache, and how often it has what is read."""
        clear(self.redis)
        shape: dict[str, Any] = {"redis": self.redis, "span": SPAN, "calls": CACHE_CALLS}
        rows = [*self.cached.rows, self.hit_ratio]
        if found := self.cell(f"{turn}, {self.cached.per_second.name}", "store_cache:cached", rows, **shape):
            self.hit_ratio.rounds.append(found["ratio"])
            for figures in found["turns"]:
                self.cached.add(figures)

    def transact(self, turn: str) -> None:
        """Handlings that are a transaction, beside the same rows written by hand."""
        shape: dict[str, Any] = {"redis": self.redis, "concurrency": CONCURRENCY}
        few, many = (self.transactions, 1, TRANSACTIONS), (self.outbox, SENDS, TRANSACTIONS // SENDS)
        for number, (row, sends, messages) in enumerate((few, many)):
            clear(self.redis)
            name = "store_transactions:transactions"
            found = self.cell(f"{turn}, {row.name}", name, [row], messages=messages, sends=sends, **shape)
            if found:
                row.rounds.append(found[number])
        by_hand = {"transactions": TRANSACTIONS, "concurrency": CONCURRENCY}
        if found := self.cell(f"{turn}, the same by hand", "store_transactions:plain", [self.transactions], **by_hand):
            self.transactions.against.setdefault("3 INSERTs by hand, pool of 10", []).append(found[0])

    def once(self) -> None:
        """What takes long to prepare: its rounds are its own."""
        fleet = [row for figure in self.fleet.values() for row in figure.rows]
        shape: dict[str, Any] = {"processes": PROCESSES, "writers": WRITERS_EACH, "span": SPAN, "rounds": ROUNDS}
        found = self.cell(f"{PROCESSES} processes", "store_fleet:fleet", fleet, **shape)
        for turn in range(ROUNDS if found else 0):
            for what, figure in self.fleet.items():
                figure.add({"ours": found[f"our {what}"][turn], "single rows": found[f"plain {what}"][turn]})
        queries = list(self.queries.values())
        shape = {"counts": list(PARTITIONS), "each": ROWS_PER_PARTITION, "span": SPAN}
        if found := self.cell("partitions", "store_cells:partitions", queries, **shape):
            few, *more = zip(queries, found, strict=True)
            _beside(few, more)
        rows = list(self.growth.values())
        found = self.cell("a table that grows", "store_cells:growth", rows, sizes=list(SIZES), span=SPAN / 2, parts=4)
        for what in ("read", "write") if found else ():
            few, *more = [(self.growth[size, what], cost[what]) for size, cost in zip(SIZES, found, strict=True)]
            _beside(few, more)


def _beside(first: tuple[Row, list[float]], others: Sequence[tuple[Row, list[float]]]) -> None:
    first[0].rounds += first[1]
    for row, values in others:
        row.rounds += values
        row.against[first[0].name.rpartition(", ")[2]] = first[1]


async def _settings(url: str) -> dict[str, str]:
    connection = await asyncpg.connect(url)
    try:
        return {
            name: await connection.fetchval("SELECT current_setting($1)", name)
            for name in ("server_version", "fsync", "synchronous_commit", "full_page_writes", "wal_sync_method")
        }
    finally:
        await connection.close()


def run(progress: Progress) -> list[Row]:
    """All figures of the store."""
    with postgres() as url, valkey() as redis:
        bench = Bench(url, redis, progress)
        settings = asyncio.run(_settings(url))
        if not settings["fsync"] == settings["synchronous_commit"] == "on":
            raise RuntimeError(f"the PostgreSQL to be measured does not wait for the disk: {settings}")
        bench.machine.remarks.append(
            "PostgreSQL with " + ", ".join(f"{name}={value}" for name, value in settings.items())
        )
        progress(bench.machine.remarks[-1])
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
