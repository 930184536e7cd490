"""The control plane's own processes (API server, operator): logged to a file, started again when they die."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from agenthive_operator.local.kubelet.process import Command, Process, Records, StartError

logger = logging.getLogger(__name__)

MAX_LOG_BYTES = 10 * 1024 * 1024
#: Delays before a child that died is started again, seconds: the first, doubling up to the last.
RESTART_SECONDS = (0.2, 30.0)
#: A child that ran this long, seconds, starts over with the first delay.
GOOD_SECONDS = 60.0
STOP_SECONDS = 12.0


class LogFile:
    """A plain log: two files of at most ``MAX_LOG_BYTES``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.open("ab", buffering=0)

    def write(self, stream: str, data: bytes) -> None:
        """Append what a process printed."""
        if self._file.tell() > MAX_LOG_BYTES:
            self._file.close()
            self._path.rename(self._path.with_name(self._path.name + ".1"))
            self._file = self._path.open("ab", buffering=0)
        self._file.write(data)

    def close(self) -> None:
        """Close."""
        self._file.close()


class Child:
    """A program that is to run as long as the control plane does."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        log: Path,
        records: Records,
        stop_signal: int = signal.SIGTERM,
    ) -> None:
        self.name = name
        self.restarts = 0
        self._command = Command(list(argv), env, cwd)
        self._log = LogFile(log)
        self._records = records
        self._stop_signal = stop_signal
        self._process: Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._exit_code: int | None = None

    @property
    def pid(self) -> int | None:
        """The pid of the running process."""
        return self._process.pid if self._process is not None and self._process.running else None

    @property
    def exit_code(self) -> int | None:
        """How it ended last; None when it never has."""
        return self._exit_code

    def start(self) -> None:
        """Start it, and keep it running.

        Raises:
            StartError: the program is not there.
        """
        self._process = Process(self._command, self._log.write, self._records)
        self._keeper = asyncio.create_task(self._keep(), name=self.name)

    async def stop(self) -> None:
        """Signal, wait, SIGKILL after ``STOP_SECONDS``. Stopping again does nothing."""
        if self._keeper is None:
            return
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)
        self._keeper = None
        if self._process is not None and self._process.running:
            await self._process.stop(self._stop_signal, STOP_SECONDS)
        self._log.close()

    async def _keep(self) -> None:
        first, longest = RESTART_SECONDS
        delay = first
        while True:
            began = time.monotonic()
            assert self._process is not None
            code = await self._process.wait()
            self._exit_code = code
            if time.monotonic() - began > GOOD_SECONDS:
                delay = first
            logger.warning("%s ended with %d; again in %.1f s", self.name, code, delay)
            while True:
                await asyncio.sleep(delay)
                delay = min(longest, delay * 2)
                try:
                    self._process = Process(self._command, self._log.write, self._records)
                    break
                except (StartError, OSError) as error:
                    logger.warning("%s cannot be started: %s; again in %.1f s", self.name, error, delay)
            self.restarts += 1
