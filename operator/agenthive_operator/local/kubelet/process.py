"""Processes of containers: started in a session of their own, followed without a thread, found again after a crash.

Every process leads a session and a group; what it leaves behind when it ends is killed with the group, as a
container's other processes are. On Linux the kernel kills it when the kubelet dies (see ``launch``). What survives
even that is found at the next start through ``Records``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)

LAUNCHER = Path(__file__).with_name("launch.py")
CHUNK = 65_536


class StartError(Exception):
    """The program of a container cannot be started."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to start."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    account: pwd.struct_passwd | None = None

    def program(self) -> str:
        """The file of ``argv[0]``, searched as execvp would.

        Raises:
            StartError: there is none that can be executed.
        """
        name = self.argv[0] if self.argv else ""
        if "/" in name:
            found = self.cwd / name
            if not found.exists():
                raise StartError(f'exec: "{name}": no such file')
            if not os.access(found, os.X_OK) or found.is_dir():
                raise StartError(f'exec: "{name}": permission denied')
            return str(found)
        program = shutil.which(name, path=self.env.get("PATH", os.defpath))
        if program is None:
            raise StartError(f'exec: "{name}": executable file not found in $PATH')
        return program


def launch_arguments(program: str, argv: Sequence[str], account: pwd.struct_passwd | None, parent: int) -> list[str]:
    """The command line by which the launcher becomes ``program``."""
    uid, gid = ("-", "-") if account is None else (str(account.pw_uid), str(account.pw_gid))
    return [sys.executable, "-I", "-S", str(LAUNCHER), str(parent), uid, gid, program, *argv]


class Process:
    """A running process and its output. Start it on the thread of the event loop, which must be the main thread:
    the kernel's death signal follows the thread that started the process."""

    def __init__(
        self,
        command: Command,
        on_output: Callable[[str, bytes], None],
        records: Records | None = None,
        *,
        stdin: int | None = None,
    ) -> None:
        """Start it.

        Args:
            command: what to start.
            on_output: called with "stdout" or "stderr" and what was read.
            records: where it is written down, to be found after a crash.
            stdin: descriptor that it reads; the caller closes it.

        Raises:
            StartError: it cannot be started.
        """
        self._loop = asyncio.get_running_loop()
        self._on_output = on_output
        self._records = records
        self._exited: asyncio.Future[int] = self._loop.create_future()
        self._pipes: dict[int, str] = {}
        arguments = launch_arguments(command.program(), command.argv, command.account, os.getpid())
        out, out_write = os.pipe()
        err, err_write = os.pipe()
        try:
            self._popen = subprocess.Popen(
                arguments,
                env=dict(command.env),
                cwd=command.cwd,
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=out_write,
                stderr=err_write,
                start_new_session=True,
            )
        except OSError as error:
            os.close(out)
            os.close(err)
            raise StartError(f"cannot start {command.argv[0]}: {error}") from error
        finally:
            os.close(out_write)
            os.close(err_write)
        self.pid = self._popen.pid
        if records is not None:
            records.add(self.pid)
        for pipe, name in ((out, "stdout"), (err, "stderr")):
            os.set_blocking(pipe, False)
            self._pipes[pipe] = name
            self._loop.add_reader(pipe, self._read, pipe)
        self._follow()

    def _follow(self) -> None:
        if hasattr(os, "pidfd_open"):
            descriptor = os.pidfd_open(self.pid)
            self._loop.add_reader(descriptor, self._ended, descriptor)
        else:
            # No pidfd on this system: a thread waits.
            waiting = self._loop.run_in_executor(None, self._popen.wait)
            waiting.add_done_callback(lambda _: self._ended(None))

    def _ended(self, descriptor: int | None) -> None:
        if descriptor is not None:
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
        code = self._popen.wait()
        # Nothing of a container outlives its first process.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for pipe in list(self._pipes):
            self._read(pipe, last=True)
        if self._records is not None:
            self._records.remove(self.pid)
        if not self._exited.done():
            self._exited.set_result(code if code >= 0 else 128 - code)

    def _read(self, pipe: int, *, last: bool = False) -> None:
        name = self._pipes[pipe]
        while True:
            try:
                data = os.read(pipe, CHUNK)
            except BlockingIOError:
                break
            except InterruptedError:
                continue
            if not data:
                last = True
                break
            self._on_output(name, data)
            if not last:
                return  # the loop calls again: other processes get their turn
        if last:
            self._loop.remove_reader(pipe)
            os.close(pipe)
            del self._pipes[pipe]

    async def wait(self) -> int:
        """The exit code; 128 + n for a process ended by signal n."""
        return await asyncio.shield(self._exited)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return not self._exited.done()

    def signal(self, number: int) -> None:
        """Send a signal to the first process alone, as a container runtime does."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL the whole group."""
        if self.running:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    async def stop(self, number: int, grace_seconds: float) -> int:
        """Signal, wait, SIGKILL after ``grace_seconds``; the exit code."""
        self.signal(number)
        try:
            async with asyncio.timeout(grace_seconds):
                return await self.wait()
        except TimeoutError:
            self.kill()
            return await self.wait()


async def run(command: Command, timeout: float) -> tuple[int, str]:
    """Run a short command (an exec probe or hook) to its end: its exit code and the first 10 kB of its output.

    Raises:
        StartError: it cannot be started.
        TimeoutError: it took longer than ``timeout`` seconds, and was killed.
    """
    output = bytearray()
    process = Process(command, lambda _, data: output.extend(data[: 10_240 - len(output)]))
    try:
        async with asyncio.timeout(timeout):
            code = await process.wait()
    finally:
        if process.running:
            process.kill()
            await process.wait()
    return code, output.decode(errors="replace")


class Records:
    """The processes of this kubelet, one small file each: what a crashed kubelet left is found by the next one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def add(self, pid: int) -> None:
        """Write a process down. Its start time tells it from a later process with the same pid."""
        with contextlib.suppress(psutil.NoSuchProcess):
            (self.folder / str(pid)).write_text(json.dumps({"started": psutil.Process(pid).create_time()}))

    def remove(self, pid: int) -> None:
        """The process has ended."""
        (self.folder / str(pid)).unlink(missing_ok=True)

    def end_leftovers(self, timeout: float = 10.0) -> int:
        """SIGKILL what an earlier kubelet started and did not end, with all of its session; how many that were.

        Raises:
            RuntimeError: some are still there after ``timeout`` seconds.
        """
        left: list[psutil.Process] = []
        for record in self.folder.iterdir():
            started = json.loads(record.read_text() or "{}").get("started")
            if started is not None:
                left += _session(int(record.name), float(started))
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _, alive = psutil.wait_procs(left, timeout=timeout)
        # Killed, but not ours to reap: gone all the same.
        alive = [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if alive:
            raise RuntimeError(f"processes of an earlier run cannot be ended: {', '.join(str(p.pid) for p in alive)}")
        for record in list(self.folder.iterdir()):
            record.unlink()
        return len(left)


def _session(leader: int, started: float) -> list[psutil.Process]:
    """The processes of the session that ``leader``, started at ``started``, leads or led."""
    with contextlib.suppress(psutil.NoSuchProcess):
        # Two hundredths: the clock's resolution. With another start time it is another process, and so is its session.
        if abs(psutil.Process(leader).create_time() - started) > 0.02:
            return []
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == leader and process.create_time() >= started - 0.02:
                members.append(process)
    return members
