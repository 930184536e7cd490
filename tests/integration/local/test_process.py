"""Processes, their records, logs, addresses, volumes and the folder's lock: the parts on real files and processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from agenthive_operator.local.folder import AlreadyUpError, Folder
from agenthive_operator.local.images import postgres_entrypoint
from agenthive_operator.local.kubelet import logs, volumes
from agenthive_operator.local.kubelet.addresses import Addresses, blocks
from agenthive_operator.local.kubelet.logs import LogQuery, LogWriter, Snapshot, follow
from agenthive_operator.local.kubelet.process import Command, Process, Records, StartError, run
from agenthive_operator.local.objects import utc_now

ENV = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def command(*argv: str, cwd: Path | None = None) -> Command:
    return Command(argv, ENV, cwd or Path("/"))


async def until(check, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.02)


async def test_output_and_exit_codes() -> None:
    seen: list[tuple[str, bytes]] = []
    process = Process(command("sh", "-c", "echo out; echo err >&2; exit 7"), lambda *said: seen.append(said))
    assert await process.wait() == 7
    assert sorted(seen) == [("stderr", b"err\n"), ("stdout", b"out\n")]
    killed = Process(command("sleep", "60"), lambda *_: None)
    assert await killed.stop(signal.SIGTERM, 5) == 128 + signal.SIGTERM
    assert not killed.running


@pytest.mark.parametrize(
    ("program", "message"),
    [("no-such", "not found in \\$PATH"), ("/no/such", "no such file"), ("/etc/passwd", "permission denied")],
)
async def test_what_cannot_be_started_is_named(program, message) -> None:
    with pytest.raises(StartError, match=message):
        Process(command(program), lambda *_: None)


async def test_short_commands() -> None:
    assert await run(command("sh", "-c", "echo hi; exit 3"), 10) == (3, "hi\n")
    with pytest.raises(TimeoutError):
        await run(command("sleep", "60"), 0.1)


async def test_records_are_kept_while_a_process_runs(tmp_path) -> None:
    records = Records(tmp_path / "processes")
    process = Process(command("sleep", "60"), lambda *_: None, records)
    assert [path.name for path in records.folder.iterdir()] == [str(process.pid)]
    process.kill()
    await process.wait()
    assert list(records.folder.iterdir()) == []


async def test_leftovers_of_a_killed_kubelet(tmp_path) -> None:
    """A kubelet that is killed takes its processes along; a grandchild it leaves is ended by the next one."""
    script = f"""
import asyncio, os, pathlib, sys
from agenthive_operator.local.kubelet.process import Command, Process, Records
async def main():
    records = Records(pathlib.Path({str(tmp_path / "processes")!r}))
    shell = Command(["sh", "-c", "sleep 600 & echo $!; wait"], dict(os.environ), pathlib.Path("/"))
    process = Process(shell, lambda _, data: print(process.pid, data.decode().strip(), flush=True), records)
    await process.wait()
asyncio.run(main())
"""
    kubelet = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE)
    child, grandchild = map(int, (await kubelet.stdout.readline()).split())
    assert psutil.pid_exists(grandchild)
    kubelet.kill()
    await kubelet.wait()
    if sys.platform == "linux":
        await until(lambda: not alive(child))
        assert alive(grandchild), "the kernel ends the kubelet's own children only"
    assert Records(tmp_path / "processes").end_leftovers() >= 1
    assert not alive(child)
    assert not alive(grandchild)
    assert list((tmp_path / "processes").iterdir()) == []


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_pid_that_belongs_to_somebody_else_is_left_alone(tmp_path) -> None:
    records = Records(tmp_path)
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        (tmp_path / str(other.pid)).write_text('{"started": 12345.0}')
        assert records.end_leftovers() == 0
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def text(folder: Path, incarnation: int, **query) -> str:
    snapshot = Snapshot(folder, incarnation)
    try:
        return b"".join(snapshot.read(LogQuery(**query))).decode()
    finally:
        snapshot.close()


async def test_logs_are_rotated_and_read_in_order(tmp_path) -> None:
    log = LogWriter(tmp_path, 0, max_bytes=400, max_files=3)
    for number in range(30):
        log.write("stdout", f"line {number}\n".encode())
    log.write("stderr", b"unfinished")
    log.close()
    shown = text(tmp_path, 0).splitlines()
    assert shown[-2:] == ["line 29", "unfinished"]
    assert shown[:-1] == [f"line {n}" for n in range(30 - len(shown) + 1, 30)], "the oldest are gone, the rest is whole"
    assert len(logs.files(tmp_path, 0)) == 3
    assert text(tmp_path, 0, tail=2) == "line 29\nunfinished\n"
    assert text(tmp_path, 0, tail=0) == ""
    assert text(tmp_path, 0, limit_bytes=4) == "line"
    assert text(tmp_path, 0, since=utc_now() + timedelta(hours=1)) == ""
    assert logs.tail_text(tmp_path, 0, lines=1) == "unfinished\n"


async def test_long_lines_come_back_whole(tmp_path) -> None:
    log = LogWriter(tmp_path, 0)
    long = "x" * 40_000
    log.write("stdout", f"{long}\nshort\n".encode())
    log.close()
    assert text(tmp_path, 0) == f"{long}\nshort\n"


async def test_two_incarnations_are_kept(tmp_path) -> None:
    for number in range(4):
        log = LogWriter(tmp_path, number)
        log.write("stdout", b"x\n")
        log.close()
    assert logs.incarnations(tmp_path) == [2, 3]
    assert logs.incarnations(tmp_path / "none") == []


async def test_a_follower_sees_everything_once(tmp_path) -> None:
    log = LogWriter(tmp_path, 0, max_bytes=300)
    log.write("stdout", b"0\n1\n")
    seen: list[str] = []

    async def read() -> None:
        async for entry in follow(tmp_path, 0, log, LogQuery()):
            seen.append(entry.decode())  # noqa: PERF401 - watched while it grows

    reading = asyncio.create_task(read())
    await until(lambda: len(seen) == 2)
    for number in range(2, 40):
        log.write("stdout", f"{number}\n".encode())
    log.close()
    await reading
    assert "".join(seen).split() == [str(n) for n in range(40)]


def test_addresses_last_and_never_clash(tmp_path) -> None:
    first = Addresses(tmp_path / "a.json", tmp_path)
    second = Addresses(tmp_path / "b.json", tmp_path)
    try:
        assert first.block != second.block, "the same folder's favourite block is taken"
        lasting = first.allocate("n/db-0", lasting=True)
        passing = [first.allocate("n/x", lasting=False) for _ in range(300)]
        assert len({lasting, *passing, first.node}) == 302
        first.release(passing[0])
        assert first.allocate("n/y", lasting=False) not in passing, "an address rests before it is used again"
    finally:
        first.close()
    again = Addresses(tmp_path / "a.json", tmp_path)
    assert (again.block, again.allocate("n/db-0", lasting=True)) == (first.block, lasting)
    again.close()
    second.close()
    assert next(blocks(tmp_path, 7)) == 7
    assert len(set(blocks(tmp_path, None))) == 235


def test_volumes_change_at_once_and_exactly(tmp_path) -> None:
    folder = tmp_path / "v"
    assert volumes.write(folder, {"a": b"1", "deep/b": b"2"}, None)
    assert not volumes.write(folder, {"a": b"1", "deep/b": b"2"}, None)
    assert (folder / "deep" / "b").read_bytes() == b"2"
    assert oct((folder / "a").resolve().stat().st_mode & 0o777) == "0o600"
    assert oct(folder.stat().st_mode & 0o777) == "0o700"
    assert volumes.write(folder, {"a": b"3"}, None)
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith("..")) == ["a"]
    assert (folder / "a").read_bytes() == b"3"
    assert len([path for path in folder.iterdir() if path.name.startswith("..")]) == 2


def test_one_control_plane_per_folder(tmp_path) -> None:
    folder = Folder.at(tmp_path / "x")
    assert folder.holder() is None
    with folder.lock() as lock:
        lock.describe(server="s")
        assert folder.holder() == {"pid": os.getpid(), "server": "s"}
        with pytest.raises(AlreadyUpError, match=f"pid {os.getpid()}"):
            folder.lock()
    assert folder.holder() is None


def test_a_stale_pid_file_is_removed(tmp_path) -> None:
    pid_file = tmp_path / "postmaster.pid"
    for stale in (str(os.getpid()), "999999", "no number", ""):
        pid_file.write_text(f"{stale}\n{tmp_path}\n")
        postgres_entrypoint.remove_stale_pid_file(tmp_path)
        assert not pid_file.exists()
    postgres_entrypoint.remove_stale_pid_file(tmp_path)


def test_a_folder_with_something_else_is_not_initialised(tmp_path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").touch()
    config = postgres_entrypoint.Config.of({"POSTGRES_PASSWORD": "x", "PGDATA": str(tmp_path / "data")})
    with pytest.raises(postgres_entrypoint.EntrypointError, match="not empty"):
        postgres_entrypoint.prepare(config, None)
