"""``agenthive local up | down | status``: the control plane of one folder, for people."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import click
import psutil

from agenthive.cli.output import print_json, print_table
from agenthive_operator.local.client import ApiClient, ApiError, Connection
from agenthive_operator.local.folder import DEFAULT_FOLDER, DOWN_SECONDS, AlreadyUpError, Folder, FolderLock
from agenthive_operator.local.kubelet.process import Records, StartError
from agenthive_operator.local.objects import condition, is_ready
from agenthive_operator.local.resources import PODS, Obj, Resource

if TYPE_CHECKING:
    from agenthive_operator.local.supervisor import Options, Report

HIVES = Resource("agenthive.dev", "v1alpha1", "agenthives", "AgentHive")
AGENTS = Resource("agenthive.dev", "v1alpha1", "agents", "Agent")

#: By this a detached control plane tells `up` how it goes: the number of an open pipe.
PROGRESS_VARIABLE = "AGENTHIVE_LOCAL_PROGRESS"
READY = "ready"

folder_option = click.option(
    "--dir",
    "path",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_FOLDER,
    show_default=True,
    envvar="AGENTHIVE_LOCAL_DIR",
    help="Folder of the control plane: state, volumes, logs, kubeconfig.",
)


@click.group()
def local() -> None:
    """Run a whole control plane on this machine: no container engine, no cluster."""


@local.command()
@folder_option
@click.option("--detach", "-d", is_flag=True, help="Return when everything is ready and leave it running.")
@click.option(
    "--kubeconfig",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Start the operator alone, against the cluster of this file.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of the API server (default: a free one).")
@click.option(
    "--audit-log-path",
    "audit",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File that gets a line for each request to the API server (default: none).",
)
@click.option("--bare", is_flag=True, help="Without operator and CRDs: for a Helm chart that brings them.")
def up(path: Path, detach: bool, kubeconfig: Path | None, port: int, audit: Path | None, bare: bool) -> None:
    """Start the control plane; Ctrl-C stops all of it. State stays in the folder and is there at the next start."""
    if kubeconfig is not None and audit is not None:
        raise click.UsageError("--audit-log-path is for an API server started here: leave it or --kubeconfig out")
    if bare and kubeconfig is not None:
        raise click.UsageError("--kubeconfig starts the operator alone, which --bare leaves out: give one of them")
    folder = Folder.at(path)
    if detach:
        _up_detached(folder, kubeconfig, port, audit, bare=bare)
        return
    progress = _progress()
    _log_to_stderr()
    try:
        with folder.lock() as lock:
            # Late: the other commands do without all of that.
            import uvloop  # noqa: PLC0415

            from agenthive_operator.local.supervisor import Options  # noqa: PLC0415

            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_up(Options(folder, kubeconfig, port, audit, bare), lock, progress))
    except (RuntimeError, OSError, ValueError, StartError, ApiError, aiohttp.ClientError) as error:
        # What keeps a control plane from coming up; our own errors are RuntimeErrors with a text meant for people.
        raise click.ClickException(str(error) or type(error).__name__) from error


async def _up(options: Options, lock: FolderLock, report: Report) -> None:
    """Run until a signal comes; a signal during the start ends what has been started."""
    stop, ready = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(_serve(options, lock, report, stop, ready), name="control-plane")

    def asked() -> None:
        if not stop.is_set():
            stop.set()
            if not ready.is_set():
                serving.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, asked)
    try:
        await serving
    except asyncio.CancelledError:
        report("stopped before it was ready")


async def _serve(options: Options, lock: FolderLock, report: Report, stop: asyncio.Event, ready: asyncio.Event) -> None:
    from agenthive_operator.local.supervisor import control_plane  # noqa: PLC0415

    began = time.monotonic()
    async with control_plane(options, lock, report):
        report(f"up after {time.monotonic() - began:.1f} s; end it with Ctrl-C or 'agenthive local down'")
        report(f"export KUBECONFIG={options.kubeconfig or options.folder.kubeconfig}")
        ready.set()
        report(READY)
        await stop.wait()
        report("stopping")
    report("stopped")


def _progress() -> Report:
    """Where progress is reported: the pipe of a waiting `up --detach`, else the terminal."""
    pipe = os.environ.pop(PROGRESS_VARIABLE, None)
    if pipe is None:
        return lambda text: None if text == READY else click.echo(text)
    descriptor: int | None = int(pipe)

    def tell(text: str) -> None:
        nonlocal descriptor
        click.echo(text)
        if descriptor is None:
            return
        try:
            os.write(descriptor, text.encode() + b"\n")
        except BrokenPipeError:
            text = READY  # `up` was interrupted: nobody listens, and we go on
        if text == READY:
            os.close(descriptor)
            descriptor = None

    return tell


def _log_to_stderr() -> None:
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


def _up_detached(folder: Folder, kubeconfig: Path | None, port: int, audit: Path | None, *, bare: bool) -> None:
    if (holder := folder.holder()) is not None:
        raise click.ClickException(str(AlreadyUpError(folder.root, holder.get("pid"))))
    folder.create()
    argv = [sys.executable, "-P", "-m", "agenthive_operator.local.cli", "up", "--dir", str(folder.root)]
    argv += ["--port", str(port)]
    if bare:
        argv.append("--bare")
    if kubeconfig is not None:
        argv += ["--kubeconfig", str(kubeconfig.absolute())]
    if audit is not None:
        argv += ["--audit-log-path", str(audit.absolute())]
    read, write = os.pipe()
    with folder.log.open("ab") as log, os.fdopen(read, "rb") as progress:
        size = folder.log.stat().st_size
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[write],
                env={**os.environ, PROGRESS_VARIABLE: str(write)},
            )
        finally:
            os.close(write)
        for line in progress:
            text = line.decode().rstrip("\n")
            if text == READY:
                # It lives on: not ours to wait for.
                process.returncode = 0
                return
            click.echo(text)
        code = process.wait()
    with folder.log.open("rb") as log:
        log.seek(size)
        said = log.read().decode(errors="replace").strip()
    raise click.ClickException(
        f"the control plane ended with {code}; it said (all of it is in {folder.log}):\n{said[-4000:]}"
    )


@local.command()
@folder_option
def down(path: Path) -> None:
    """Stop the control plane in order; state stays in the folder."""
    folder = Folder.at(path)
    holder = folder.holder()
    if holder is None:
        ended = Records(folder.processes).end_leftovers() if folder.processes.exists() else 0
        click.echo(f"nothing runs on {folder.root}" + (f"; ended {ended} processes left behind" if ended else ""))
        return
    pid = int(holder.get("pid", 0))
    if not pid:
        raise click.ClickException(f"the lock on {folder.root} is held, but its file names no pid")
    os.kill(pid, signal.SIGTERM)
    if not _wait_down(folder, pid, DOWN_SECONDS):
        click.echo(f"not down after {DOWN_SECONDS:.0f} s: killing it", err=True)
        os.kill(pid, signal.SIGKILL)
        _wait_down(folder, pid, 10)
        Records(folder.processes).end_leftovers()
    click.echo(f"stopped (pid {pid}); state stays in {folder.root}")


def _wait_down(folder: Folder, pid: int, seconds: float) -> bool:
    """Wait until the lock is free and the process that held it has ended."""
    deadline = time.monotonic() + seconds
    while folder.holder() is not None or _runs(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@local.command()
@folder_option
@click.option("--output", "-o", type=click.Choice(["table", "json"]), default="table", help="What to print.")
def status(path: Path, output: str) -> None:
    """Show whether the control plane runs, and its hives, agents and pods. Exit code 1 when it is down."""
    folder = Folder.at(path)
    report = asyncio.run(_status(folder))
    if output == "json":
        print_json(report)
    else:
        _print_status(report)
    if not report["up"]:
        raise SystemExit(1)


async def _status(folder: Folder) -> dict[str, Any]:
    holder = folder.holder()
    report: dict[str, Any] = {"dir": str(folder.root), "up": holder is not None}
    if holder is None:
        return report
    report |= {key: holder.get(key) for key in ("pid", "server", "kubeconfig")}
    report["started"] = holder.get("started")
    kubeconfig = Path(holder.get("kubeconfig") or folder.kubeconfig)
    try:
        async with ApiClient(Connection.from_kubeconfig(kubeconfig)) as client:
            report["operator"] = "left out" if holder.get("bare") else await _operator_health(holder.get("probe"))
            for name, resource in (("hives", HIVES), ("agents", AGENTS), ("pods", PODS)):
                report[name] = [_row(item) for item in await _items(client, resource)]
    except (ApiError, aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        # Starting, or its API server is being restarted: say so rather than fail.
        report["error"] = f"the API server does not answer: {error or type(error).__name__}"
    return report


async def _items(client: ApiClient, resource: Resource) -> list[Obj]:
    """All objects of a kind; none where nobody has applied its CRD."""
    try:
        return (await client.list(resource))[0]
    except ApiError as error:
        if error.status != 404:
            raise
        return []


async def _operator_health(probe: str | None) -> str:
    if probe is None:
        return "starting"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3)) as session,
            session.get(f"http://{probe}/healthz") as answer,
        ):
            return "healthy" if answer.status == 200 else f"unhealthy ({answer.status})"
    except (aiohttp.ClientError, TimeoutError, OSError):
        return "not answering"


def _row(obj: Obj) -> dict[str, Any]:
    meta, state = obj["metadata"], obj.get("status") or {}
    row = {"namespace": meta["namespace"], "name": meta["name"]}
    if obj["kind"] == "Pod":
        containers = state.get("containerStatuses") or []
        return row | {
            "ready": is_ready(obj),
            "phase": state.get("phase", "Pending"),
            "restarts": sum(each.get("restartCount", 0) for each in containers),
            "address": state.get("podIP"),
        }
    ready = condition(obj, "Ready") or {}
    return row | {
        "ready": ready.get("status") == "True",
        "reason": ready.get("reason"),
        "message": ready.get("message"),
    }


def _print_status(report: dict[str, Any]) -> None:
    if not report["up"]:
        click.echo(f"nothing runs on {report['dir']}")
        return
    click.echo(
        f"up (pid {report['pid']}): {report['server'] or 'starting'}, operator {report.get('operator', 'unknown')}"
    )
    click.echo(f"export KUBECONFIG={report['kubeconfig']}")
    if "error" in report:
        click.echo(report["error"])
        return
    rows = [
        (
            kind,
            item["namespace"],
            item["name"],
            "yes" if item["ready"] else "no",
            item.get("phase") or item.get("reason"),
        )
        for kind, group in (("hive", "hives"), ("agent", "agents"), ("pod", "pods"))
        for item in report[group]
    ]
    print_table(["kind", "namespace", "name", "ready", "state"], rows, empty="no hives yet: kubectl apply one")


if __name__ == "__main__":
    local()
