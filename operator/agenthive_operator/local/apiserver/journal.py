"""The file that lets the server's state survive: one JSON document a line, appended before an answer is sent.

Written without a buffer of our own, so SIGKILL of the server loses nothing; no fsync, so a power cut may.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson

from .errors import Json

log = logging.getLogger(__name__)

FORMAT = 1


class JournalError(RuntimeError):
    """The state file cannot be read."""


class Journal:
    """An append-only file of changes.

    Args:
        path: The file; its folder must exist. Created with mode 0600, for it holds Secrets.

    Raises:
        JournalError: From ``load``: the file is none of ours or damaged before its end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.compacted = 0
        self._file: int | None = None

    def load(self) -> Iterator[Json]:
        """The changes in order. A last line that was cut off by a crash is left out."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    log.warning("%s: line %d was cut off by a crash and is left out", self.path, number)
                    return
                try:
                    change: Json = orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    raise JournalError(f"{self.path}, line {number}: not JSON ({error}); move the file away") from error
                if number == 1 and change.get("format") != FORMAT:
                    raise JournalError(f"{self.path}: not a state file of this version; move it away to start empty")
                yield change

    def rewrite(self, header: Json, changes: Iterable[bytes]) -> None:
        """Replace the file by a header and ``changes`` (compaction), atomically, and open it for appending."""
        self.close()
        fresh = self.path.with_name(self.path.name + ".new")
        file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(file, "wb") as stream:
            stream.write(orjson.dumps({"format": FORMAT, **header}) + b"\n")
            for change in changes:
                stream.write(change)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(self.path)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self.size = self.compacted = self.path.stat().st_size

    def append(self, change: bytes) -> None:
        """Write one change; ``change`` ends with a newline.

        Raises:
            OSError: The disk is full or gone; the caller's request fails.
        """
        assert self._file is not None, "rewrite() opens the journal"
        written = os.write(self._file, change)
        if written != len(change):
            os.ftruncate(self._file, self.size)
            raise OSError(f"{self.path}: only {written} of {len(change)} bytes were written; is the disk full?")
        self.size += written

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
