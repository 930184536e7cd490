"""Container logs: written with a time on each line, rotated by size, read back as `kubectl logs` asks.

The format is that of container runtimes, so the files can be read by what reads those:
``2026-01-31T12:00:00.000000Z stdout F the line``; P instead of F marks a line that goes on.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from agenthive_operator.local.objects import parse_time

MAX_BYTES = 10 * 1024 * 1024
MAX_FILES = 3
#: A line longer than this is written in parts, as runtimes do.
MAX_LINE = 16_384
KEPT_INCARNATIONS = 2
#: Writes a follower may be behind.
MAX_BEHIND = 10_000


class LogWriter:
    """The log of one incarnation of a container: ``<folder>/<restart>.log`` and its rotated predecessors."""

    def __init__(
        self, folder: Path, incarnation: int, *, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{incarnation}.log"
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._file: BinaryIO | None = self.path.open("ab", buffering=0)
        self._size = self._file.tell()
        self._partial = {"stdout": b"", "stderr": b""}
        self._followers: list[asyncio.Queue[bytes | None]] = []
        _drop_old(folder, incarnation)

    def write(self, stream: str, data: bytes) -> None:
        """Add output of the process."""
        *lines, rest = (self._partial[stream] + data).split(b"\n")
        self._partial[stream] = b""
        stamp = _stamp()
        out = [_entry(stamp, stream, line) for line in lines]
        while len(rest) >= MAX_LINE:
            out.append(_part(stamp, stream, b"P", rest[:MAX_LINE]))
            rest = rest[MAX_LINE:]
        self._partial[stream] = rest
        self._append(b"".join(out))

    def close(self) -> None:
        """The process has ended: an unfinished line is written, followers see the end."""
        if self._file is None:
            return
        for stream, rest in self._partial.items():
            if rest:
                self._append(_entry(_stamp(), stream, rest))
        self._file.close()
        self._file = None
        self._tell(None)

    @property
    def closed(self) -> bool:
        """Whether nothing will be added."""
        return self._file is None

    def subscribe(self) -> asyncio.Queue[bytes | None]:
        """A queue of whatever is added from now on, None at the end. A follower that does not keep up is cut off."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        if self.closed:
            queue.put_nowait(None)
        else:
            self._followers.append(queue)
        return queue

    def unsubscribe(self, queue: asyncio.Queue[bytes | None]) -> None:
        """The follower is gone."""
        if queue in self._followers:
            self._followers.remove(queue)

    def _append(self, data: bytes) -> None:
        if not data or self._file is None:
            return
        if self._size and self._size + len(data) > self._max_bytes:
            self._rotate()
        self._file.write(data)
        self._size += len(data)
        self._tell(data)

    def _tell(self, data: bytes | None) -> None:
        for queue in list(self._followers):
            if data is None or queue.qsize() >= MAX_BEHIND:
                self._followers.remove(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(data)

    def _rotate(self) -> None:
        assert self._file is not None
        self._file.close()
        for number in range(self._max_files - 1, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            if older.exists():
                if number == self._max_files - 1:
                    older.unlink()
                else:
                    older.rename(self.path.with_name(f"{self.path.name}.{number + 1}"))
        self.path.rename(self.path.with_name(f"{self.path.name}.1"))
        self._file = self.path.open("ab", buffering=0)
        self._size = 0


def _stamp() -> bytes:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").encode()


def _entry(stamp: bytes, stream: str, line: bytes) -> bytes:
    parts = [
        _part(stamp, stream, b"P", line[i : i + MAX_LINE]) for i in range(0, max(0, len(line) - MAX_LINE), MAX_LINE)
    ]
    rest = line[len(parts) * MAX_LINE :]
    return b"".join(parts) + _part(stamp, stream, b"F", rest)


def _part(stamp: bytes, stream: str, tag: bytes, line: bytes) -> bytes:
    return b" ".join((stamp, stream.encode(), tag, line)) + b"\n"


def _drop_old(folder: Path, incarnation: int) -> None:
    for path in folder.iterdir():
        number = path.name.split(".", 1)[0]
        if number.isdigit() and int(number) <= incarnation - KEPT_INCARNATIONS:
            path.unlink()


def incarnations(folder: Path) -> list[int]:
    """The incarnations that have a log, oldest first."""
    if not folder.is_dir():
        return []
    return sorted({int(n) for path in folder.iterdir() if (n := path.name.split(".", 1)[0]).isdigit()})


@dataclass(frozen=True, slots=True)
class LogQuery:
    """What to show of a log."""

    tail: int | None = None
    since: datetime | None = None
    timestamps: bool = False
    limit_bytes: int | None = None


def files(folder: Path, incarnation: int) -> list[Path]:
    """The files of one incarnation, oldest first."""
    current = folder / f"{incarnation}.log"
    rotated = sorted(folder.glob(f"{incarnation}.log.*"), key=lambda path: -int(path.suffix[1:]))
    return [*rotated, *([current] if current.exists() else [])]


def _show(entry: bytes, query: LogQuery) -> bytes | None:
    """The text of one entry as the query wants it; None when it is too old."""
    stamp, _, rest = entry.partition(b" ")
    _, _, rest = rest.partition(b" ")
    tag, _, line = rest.partition(b" ")
    if query.since is not None:
        moment = parse_time(stamp.decode())
        if moment is not None and moment < query.since:
            return None
    text = line.rstrip(b"\n") if tag == b"P" else line
    return stamp + b" " + text if query.timestamps else text


class Snapshot:
    """The files of one incarnation as they are now: what is added or rotated later does not change it."""

    def __init__(self, folder: Path, incarnation: int) -> None:
        self._files: list[tuple[BinaryIO, int]] = []
        for path in files(folder, incarnation):
            file = path.open("rb")
            self._files.append((file, os.fstat(file.fileno()).st_size))

    def close(self) -> None:
        """Close the files."""
        for file, _ in self._files:
            file.close()

    def read(self, query: LogQuery) -> Iterator[bytes]:
        """The text, entry by entry."""
        entries: Iterable[bytes] = self._entries()
        if query.tail is not None:
            entries = deque(entries, maxlen=query.tail)
        left = query.limit_bytes
        for entry in entries:
            text = _show(entry, query)
            if text is None:
                continue
            if left is not None:
                text = text[:left]
                left -= len(text)
            yield text
            if left == 0:
                return

    def _entries(self) -> Iterator[bytes]:
        for file, size in self._files:
            while file.tell() < size and (entry := file.readline()):
                yield entry


async def follow(folder: Path, incarnation: int, writer: LogWriter | None, query: LogQuery) -> AsyncIterator[bytes]:
    """The log's text, then, while the container runs (``writer``), what is added until it ends."""
    added = writer.subscribe() if writer is not None else None
    snapshot = Snapshot(folder, incarnation)  # no await since the subscription: nothing is lost or told twice
    try:
        for text in snapshot.read(query):
            yield text
        while writer is not None and added is not None:
            data = await added.get()
            if data is None:
                return
            for entry in data.splitlines(keepends=True):
                if (shown := _show(entry, query)) is not None:
                    yield shown
    finally:
        snapshot.close()
        if writer is not None and added is not None:
            writer.unsubscribe(added)


def tail_text(folder: Path, incarnation: int, *, lines: int = 80, max_bytes: int = 2048) -> str:
    """The end of a log, for a container that died without a message."""
    snapshot = Snapshot(folder, incarnation)
    try:
        text = b"".join(snapshot.read(LogQuery(tail=lines)))
    finally:
        snapshot.close()
    return text[-max_bytes:].decode(errors="replace")
