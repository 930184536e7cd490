"""One container: prepared, started, probed, ended, started again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from agenthive_operator.local.client import ApiClient, ApiError
from agenthive_operator.local.images import BIND, Image, ImageContext, image_for
from agenthive_operator.local.kubelet import access, environment, probes, sources, volumes
from agenthive_operator.local.kubelet.backoff import CrashLoop, restarts
from agenthive_operator.local.kubelet.environment import ConfigError
from agenthive_operator.local.kubelet.events import Recorder
from agenthive_operator.local.kubelet.logs import LogWriter, tail_text
from agenthive_operator.local.kubelet.process import Command, Process, Records, StartError, run
from agenthive_operator.local.kubelet.rewrite import Rewrite, ServiceName, Target, service_names
from agenthive_operator.local.kubelet.status import ContainerState
from agenthive_operator.local.objects import format_time, uid_of, utc_now
from agenthive_operator.local.resources import Obj

logger = logging.getLogger(__name__)

#: Longest message read from the termination log, bytes; the real kubelet's.
MAX_MESSAGE = 4096
#: How long a start is held up for a Service without a ready endpoint, seconds.
SERVICE_WAIT_SECONDS = 30.0
#: Between two tries to prepare a container that lacks something, seconds.
PREPARE_RETRY_SECONDS = (0.25, 5.0)
TERMINATION_LOG = "AGENTHIVE_TERMINATION_LOG"


@dataclass(slots=True)
class Host:
    """What the containers of one kubelet share."""

    client: ApiClient
    names: sources.Names
    records: Records
    event: Recorder
    #: How the control plane's own user reaches the API.
    kubeconfig: Path
    #: Seconds of the first CrashLoopBackOff.
    backoff_base: float
    #: The logs being written, by their folder.
    writers: dict[Path, LogWriter] = field(default_factory=dict)


@dataclass(slots=True)
class PodView:
    """What a container knows of its pod; ``pod`` is kept current."""

    pod: Obj
    folders: Mapping[str, Path]
    private: Path
    logs: Path
    address: str
    #: Called when a container's state changed.
    changed: Callable[[], None]


class Container:
    """Runs one container of a pod until it is not to be started again."""

    def __init__(self, host: Host, view: PodView, spec: Obj, state: ContainerState, *, policy: str) -> None:
        self.spec = spec
        self.state = state
        self._host = host
        self._view = view
        self._policy = policy
        self._image: Image = image_for(spec["image"])
        self._process: Process | None = None
        self._stopping = False
        self._environment: dict[str, str] = {}
        self._rewrite = Rewrite()
        self._cwd = view.private
        self._started = asyncio.Event()
        self._began = 0.0

    @property
    def log_folder(self) -> Path:
        """Where the logs of this container lie."""
        return self._view.logs / str(self.spec["name"])

    async def run(self) -> None:
        """Start it, again and again as the restart policy wants. Returns when it has ended for good."""
        crash = CrashLoop(self._host.backoff_base)
        while True:
            await self._prepare()
            code = await self._once()
            if self._stopping or not restarts(self._policy, code):
                return
            delay = crash.after_exit(time.monotonic() - self._began)
            self.state.last = self.state.state
            if delay:
                name = f"{self.spec['name']} in pod {self._view.pod['metadata']['name']}"
                self._wait("CrashLoopBackOff", f"back-off {delay:g}s restarting failed container {name}")
                self._event("Warning", "BackOff", f"Back-off restarting failed container {name}")
                await asyncio.sleep(delay)
            self.state.restart_count += 1

    async def stop(self, grace_seconds: float) -> None:
        """End the process: preStop hook, the image's stop signal, SIGKILL after the grace period. Never restarted."""
        self._stopping = True
        process = self._process
        if process is None:
            return
        deadline = time.monotonic() + grace_seconds
        hook = (self.spec.get("lifecycle") or {}).get("preStop")
        if hook and grace_seconds > 0:
            await self._hook(hook, grace_seconds)
        await process.stop(self._image.stop_signal, max(0.0, deadline - time.monotonic()))

    def kill(self) -> None:
        """SIGKILL, now."""
        self._stopping = True
        if self._process is not None:
            self._process.kill()

    async def _prepare(self) -> None:
        """Environment, paths and names; waits as long as something is missing, and says for what."""
        pause, longest = PREPARE_RETRY_SECONDS
        while True:
            try:
                await self._resolve()
            except ConfigError as error:
                self._wait("CreateContainerConfigError", str(error))
                self._event("Warning", "Failed", f"Error: {error}")
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                self._wait("CreateContainerConfigError", f"cannot be prepared: {error or type(error).__name__}")
            else:
                return
            await asyncio.sleep(pause)
            pause = min(longest, pause * 2)

    async def _resolve(self) -> None:
        pod, spec = self._view.pod, self.spec
        wanted = environment.references(spec)
        found = await sources.fetch(self._host.client, pod["metadata"]["namespace"], wanted)
        base = self._image.base_env() | {
            "HOSTNAME": pod["spec"].get("hostname") or pod["metadata"]["name"],
            BIND: self._view.address,
        }
        if access.wants_access(pod):
            file = self._folder / "kubeconfig"
            access.write_kubeconfig(self._host.kubeconfig, file, await access.token_of(self._host.client, pod))
            base["KUBECONFIG"] = str(file)
        message_path = spec.get("terminationMessagePath") or "/dev/termination-log"
        paths = volumes.mount_paths(spec, self._view.folders) | {message_path: str(self._message_file)}
        given = self._image.defaults() | {TERMINATION_LOG: message_path}
        if "/tmp" in paths:  # noqa: S108 - a path of the container
            given["TMPDIR"] = "/tmp"  # noqa: S108
        located = {**pod, "status": {**(pod.get("status") or {}), "podIP": self._view.address}}
        variables = environment.environment(spec, located, found, base={**base, **given})
        command = environment.command_line(spec.get("command") or [], variables)
        args = environment.command_line(spec.get("args") or [], variables)
        texts = [value for name, value in variables.items() if base.get(name) != value]
        targets = await self._targets([*texts, *command, *args])
        self._rewrite = Rewrite(paths, targets)
        # What comes from this machine (PATH, HOME) already speaks of this machine.
        self._environment = self._image.environment(
            {name: value if base.get(name) == value else self._rewrite.text(value) for name, value in variables.items()}
        )
        self._command = [self._rewrite.text(word) for word in command]
        self._args = [self._rewrite.text(word) for word in args]
        self._cwd = self._working_folder()

    async def _targets(self, texts: list[str]) -> Mapping[ServiceName, Target]:
        """Addresses of the Services in ``texts``; a start waits a while for those without a ready endpoint."""
        names = service_names(texts)
        deadline = time.monotonic() + SERVICE_WAIT_SECONDS
        while True:
            resolution = self._host.names.resolve(names, self._view.pod)
            left = deadline - time.monotonic()
            if not resolution.waiting or left <= 0:
                return resolution.targets
            self._wait("ContainerCreating", f"waiting for a ready endpoint of {sources.describe(resolution.waiting)}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._host.names.changed()

    def _working_folder(self) -> Path:
        for wanted in (self.spec.get("workingDir"), self._image.working_dir):
            mapped = self._rewrite.path(wanted) if wanted else None
            if mapped is not None:
                return Path(mapped)
        # Not a folder of this machine: a container sees none of those.
        folder = self._folder / "work"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        volumes.give(folder, self._image.account)
        return folder

    @property
    def _folder(self) -> Path:
        return self._view.private / str(self.spec["name"])

    @property
    def _message_file(self) -> Path:
        return self._folder / "termination-log"

    async def _once(self) -> int:
        """One life of the container: its exit code."""
        self._started.clear()
        self.state.started = self.state.ready = False
        self._began = time.monotonic()
        started_at = format_time(utc_now())
        self._message_file.unlink(missing_ok=True)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o711)
        self._message_file.touch(mode=0o600)
        volumes.give(self._message_file, self._image.account)
        log = LogWriter(self.log_folder, self.state.restart_count)
        self._host.writers[self.log_folder] = log
        self.state.container_id = f"process://{uid_of(self._view.pod)}/{self.spec['name']}/{self.state.restart_count}"
        try:
            code, reason, message = await self._life(log, started_at)
        finally:
            self._process = None
            log.close()
            self._host.writers.pop(self.log_folder, None)
        self.state.started = self.state.ready = False
        self.state.state = {
            "terminated": {
                "exitCode": code,
                "reason": reason,
                "startedAt": started_at,
                "finishedAt": format_time(utc_now()),
                "containerID": self.state.container_id,
            }
            | ({"message": message} if message else {})
        }
        self._view.changed()
        return code

    async def _life(self, log: LogWriter, started_at: str) -> tuple[int, str, str]:
        """(exit code, reason, message) of one start."""
        try:
            context = ImageContext(self._environment, self._rewrite, self._folder)
            invocation = self._image.invocation(self._command, self._args, context)
            argv = [self._image.locate(invocation.argv[0]), *invocation.argv[1:]]
            command = Command(argv, self._environment, self._cwd, invocation.account)
            if self._stopping:
                return 137, "Error", ""
            self._process = process = Process(command, log.write, self._host.records)
        except (StartError, ConfigError, OSError) as error:
            self._event("Warning", "Failed", f"Error: {error}")
            return 128, "StartError", str(error)
        self.state.state = {"running": {"startedAt": started_at}}
        self._event("Normal", "Started", f"Started container {self.spec['name']}")
        asking = self._start_probes()
        self._view.changed()
        try:
            code = await process.wait()
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            process.kill()
        return code, "Completed" if code == 0 else "Error", self._message(code, log)

    def _message(self, code: int, log: LogWriter) -> str:
        message = ""
        with contextlib.suppress(FileNotFoundError):
            message = self._message_file.read_bytes()[:MAX_MESSAGE].decode(errors="replace")
        if not message and code != 0 and self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            log.close()
            message = tail_text(self.log_folder, self.state.restart_count)
        return message

    def _start_probes(self) -> list[asyncio.Task[None]]:
        named = {kind: self.spec.get(f"{kind}Probe") for kind in probes.Kind}
        if not named[probes.Kind.STARTUP]:
            self._on_started()
        return [
            asyncio.create_task(self._probe(kind, probe), name=f"{self.spec['name']}-{kind}")
            for kind, probe in named.items()
            if probe
        ]

    def _on_started(self) -> None:
        self.state.started = True
        self.state.ready = not self.spec.get("readinessProbe")
        self._started.set()
        self._view.changed()

    async def _probe(self, kind: probes.Kind, probe: Obj) -> None:
        settings = probes.Settings.of(probe)
        verdict = probes.Verdict(settings)
        if kind is not probes.Kind.STARTUP:
            await self._started.wait()
        await asyncio.sleep(max(0.0, self._began + settings.initial_delay - time.monotonic()))
        while True:
            result = await probes.ask(probe, self.spec, self._view.address, self._exec)
            if not result.success:
                self._event("Warning", "Unhealthy", f"{kind.capitalize()} probe failed: {result.message}")
            if verdict.observe(result.success) and self._act(kind, result):
                return
            await asyncio.sleep(settings.period)

    def _act(self, kind: probes.Kind, result: probes.Result) -> bool:
        """Carry out a verdict; whether the probe is done."""
        if kind is probes.Kind.READINESS:
            self.state.ready = result.success
            self._view.changed()
            return False
        if not result.success:
            name = self.spec["name"]
            self._event("Normal", "Killing", f"Container {name} failed {kind} probe, will be restarted")
            grace = (self.spec.get(f"{kind}Probe") or {}).get("terminationGracePeriodSeconds")
            if grace is None:
                grace = self._view.pod["spec"].get("terminationGracePeriodSeconds", 30)
            if self._process is not None:
                self._ending = asyncio.create_task(self._process.stop(self._image.stop_signal, float(grace)))
            return True
        if kind is probes.Kind.STARTUP:
            self._on_started()
            return True
        return False

    def command(self, words: list[str]) -> Command:
        """``words``, at least one, as they run beside the container's process.

        Raises:
            StartError: it is not running.
        """
        if self._process is None:
            raise StartError(f"container {self.spec['name']} is not running")
        words = [self._rewrite.text(word) for word in words]
        argv = [self._image.locate(words[0]), *words[1:]]
        return Command(argv, self._environment, self._cwd, self._image.account)

    async def _exec(self, words: list[str], timeout: float) -> tuple[int, str]:
        if not words:
            return 1, "the exec action names no command"
        try:
            return await run(self.command(words), timeout)
        except StartError as error:
            return 126, str(error)

    async def _hook(self, hook: Obj, grace_seconds: float) -> None:
        if "sleep" in hook:
            await asyncio.sleep(min(grace_seconds, float(hook["sleep"]["seconds"])))
            return
        result = await probes.ask({**hook, "timeoutSeconds": grace_seconds}, self.spec, self._view.address, self._exec)
        if not result.success:
            self._event("Warning", "FailedPreStopHook", f"PreStopHook failed: {result.message}")

    def _wait(self, reason: str, message: str) -> None:
        self.state.state = {"waiting": {"reason": reason, "message": message}}
        self.state.ready = False
        self._view.changed()

    def _event(self, kind: str, reason: str, message: str) -> None:
        self._host.event(self._view.pod, kind, reason, message)
