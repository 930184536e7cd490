"""The operator's process: flags, kopf's watches, the probe endpoint, signals.

kopf runs in a thread with a loop of its own (it cancels whatever else lives in its loop when it ends) and does
nothing but watch: every event is handed to the controller in the main thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import itertools
import logging
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import aiohttp
import click
import kopf

from agenthive_operator import log
from agenthive_operator.backends.configuration import load_configuration
from agenthive_operator.backends.kube import (
    CHILDREN,
    CUSTOM,
    WATCH_SILENCE_SECONDS,
    Kube,
    Object,
    Resource,
)
from agenthive_operator.backends.lease import Election, LeaseLostError, LeaseName, own_identity, own_namespace
from agenthive_operator.backends.place import operator_place
from agenthive_operator.checked import Access, CheckedResponse
from agenthive_operator.metrics import Metrics
from agenthive_operator.pace import Pace
from agenthive_operator.probes import serving, split_address
from agenthive_operator.reconcile.cache import SELECTOR
from agenthive_operator.reconcile.context import Options
from agenthive_operator.reconcile.controller import Controller

logger = logging.getLogger(__name__)

CLIENT_NAME: Final = "agenthive-operator"
REWATCH_SECONDS: Final = 1.0
LONGEST_REWATCH_SECONDS: Final = 30.0
GC_OBJECTS: Final = 10_000
M_TRIM_THRESHOLD: Final = -1
TRIM_BYTES: Final = 128 * 1024
SWITCH_SECONDS: Final = 0.0005
LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
TLS_CLOSE_SECONDS: Final = 0.25
"""By then the connections of kopf are closed; no event tells, so aiohttp's documentation names this figure."""
EXIT_LEASE_LOST: Final = 75
"""EX_TEMPFAIL: started again, this process is the standby of the replica that acts now."""


class EndlessBackoffs:
    """Delays for kopf's retries of API requests: jittered, growing to half a minute, and never exhausted."""

    def __iter__(self) -> Iterator[float]:
        for attempt in itertools.count():
            yield random.uniform(0.1, min(30.0, 0.5 * 2 ** min(attempt, 10)))  # noqa: S311 - jitter


def is_news(record: logging.LogRecord) -> bool:
    """Whether a line of kopf's is to be logged: not each attempt at a namespace that refuses us, which we say once."""
    return "APIForbiddenError" not in record.getMessage()


class NoDiffs(kopf.DiffBaseStorage):
    """kopf compares each object with its former self, which deep-copies it, for handlers that we do not have."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:
        """Nothing of any body is compared."""
        return cast(kopf.BodyEssence, {})

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """Nothing is stored."""
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Nothing is to be stored."""


def settings(namespaces: tuple[str, ...] = ()) -> kopf.OperatorSettings:
    """kopf's settings: watch only, write nothing, never give up; nothing cluster-wide where namespaces are named."""
    chosen = kopf.OperatorSettings()
    chosen.scanning.disabled = bool(namespaces)
    chosen.posting.enabled = False
    chosen.peering.standalone = True
    chosen.networking.request_timeout = 30
    chosen.networking.connect_timeout = 10
    chosen.networking.error_backoffs = EndlessBackoffs()
    chosen.watching.connect_timeout = 10
    chosen.watching.server_timeout = 270
    # A watch that says nothing, not even a bookmark, may hang on a connection that is dead.
    chosen.watching.inactivity_timeout = WATCH_SILENCE_SECONDS
    chosen.process.ultimate_exiting_timeout = None
    # kopf has a task for each object that an event came for, and keeps it for so long: of thousands at a start.
    chosen.queueing.idle_timeout = 0.05
    # Nothing here makes kopf write to an object; should that ever change, it is not under its default names.
    chosen.persistence.finalizer = "agenthive.dev/kopf"
    chosen.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix="kopf.agenthive.dev", v1=False)
    chosen.persistence.diffbase_storage = NoDiffs()
    for resource in CHILDREN:
        chosen.watching.label_selectors[_selector(resource)] = SELECTOR
    return chosen


def _selector(resource: Resource) -> tuple[str, str, str]:
    return resource.group, resource.version, resource.plural


def wire(
    observe: Callable[[str | None, Object], None], *traces: Callable[[], aiohttp.TraceConfig]
) -> kopf.OperatorRegistry:
    """Handlers: every event of both kinds and of labelled children goes to ``observe``, every request to ``traces``."""
    registry = kopf.OperatorRegistry()
    for resource in (*CUSTOM, *CHILDREN):
        # A coroutine: kopf would run a plain function in a thread pool, one hop per event.
        # rbac: agenthive.dev/agenthives list,watch
        # rbac: agenthive.dev/agents list,watch
        # rbac: apps/deployments list,watch
        # rbac: apps/statefulsets list,watch
        # rbac: core/services,secrets,configmaps,pods list,watch
        # rbac: policy/poddisruptionbudgets list,watch
        # rbac: networking.k8s.io/networkpolicies list,watch
        # rbac cluster: apiextensions.k8s.io/customresourcedefinitions list,watch
        @kopf.on.event(*_selector(resource), id=f"watch-{resource.plural}", registry=registry)
        async def _watch(event: Mapping[str, Any], kind: str = resource.kind, **_: Any) -> None:
            observe(event["type"], {**event["object"], "kind": kind})

    @kopf.on.login(id="login", registry=registry)
    async def _login(**_: Any) -> kopf.AiohttpSession:
        return await login([trace() for trace in traces])

    return registry


async def login(traces: list[aiohttp.TraceConfig]) -> kopf.AiohttpSession:
    """The same server and credentials as the controller's, for kopf."""
    found = await load_configuration()
    access = kopf.ConnectionInfo(
        server=found.host,
        ca_path=found.ssl_ca_cert,
        insecure=not found.verify_ssl,
        certificate_path=found.cert_file,
        private_key_path=found.key_file,
    )
    # As kopf itself would make it, but for the trace.
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=access.as_ssl_context()),
        headers=access.as_http_headers(),
        proxy=found.proxy,
        trace_configs=[*traces, Access(found).tracing()],
        response_class=CheckedResponse,
    )
    return kopf.AiohttpSession(server=found.host, aiohttp_session=session)


@dataclass(slots=True)
class Watches:
    """kopf in its own thread. ``ended`` is set when it ended, wanted or not."""

    registry: kopf.OperatorRegistry
    namespaces: tuple[str, ...]
    stop: threading.Event
    on_end: Callable[[], None]

    def start(self) -> threading.Thread:
        """Start the thread."""
        thread = threading.Thread(target=self._run, name="kopf", daemon=True)
        thread.start()
        return thread

    async def _watch(self) -> None:
        try:
            await kopf.operator(
                registry=self.registry,
                settings=settings(self.namespaces),
                standalone=True,
                clusterwide=not self.namespaces,
                namespaces=self.namespaces,
                stop_flag=self.stop,
                # kopf would ask for the account's name, which a pod's need not have.
                identity=cast(Any, CLIENT_NAME),
            )
        finally:
            await asyncio.sleep(TLS_CLOSE_SECONDS)

    def _run(self) -> None:
        """Whatever ends kopf (an event that is an error, the page of a load balancer), it is begun again."""
        delay = REWATCH_SECONDS
        try:
            while not self.stop.is_set():
                began, why = time.monotonic(), "they ended"
                try:
                    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                        runner.run(self._watch())
                except asyncio.CancelledError:
                    logger.debug("kopf was cancelled")
                except Exception as error:
                    # The edge of the thread: lists go on meanwhile.
                    why = f"{type(error).__name__}: {error}"
                if time.monotonic() - began > LONGEST_REWATCH_SECONDS:
                    delay = REWATCH_SECONDS
                if not self.stop.is_set():
                    logger.warning("the watches broke off and begin again in %.0f s: %s", delay, why[:500])
                    self.stop.wait(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                    delay = min(LONGEST_REWATCH_SECONDS, delay * 2)
        finally:
            self.on_end()


async def operate(
    options: Options, *, probe_address: str | None, stop: asyncio.Event, lease: LeaseName | None = None
) -> bool:
    """Run the operator until ``stop`` is set; True if it ended because it was asked to.

    With ``lease`` it acts only while it holds that Lease, and raises ``LeaseLostError`` when it loses it.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        election: Election | None = None
        if lease is not None:
            election = Election(await stack.enter_async_context(await Kube.connect()), lease)
        metrics = Metrics()
        kube = Kube(
            await load_configuration(),
            guard=election.check if election else None,
            trace=metrics.tracing(),
            renew=load_configuration,
        )
        await stack.enter_async_context(kube)
        controller = Controller(kube, options, election.acquired if election else None, metrics.reconciled)
        metrics.read = controller.snapshot
        await stack.enter_async_context(serving(probe_address, lambda: controller.health, metrics))
        running = asyncio.create_task(controller.run(), name="controller")
        running.add_done_callback(lambda _: ended.set())
        stopping = asyncio.create_task(stop.wait())
        leading: asyncio.Task[None] | None = None
        lost: BaseException | None = None

        def observe(kind: str | None, obj: Object) -> None:
            loop.call_soon_threadsafe(controller.observe, kind, obj)

        def relisted(resource: Resource, namespace: str | None) -> None:
            loop.call_soon_threadsafe(controller.relisted, resource, namespace)

        def kopf_ended() -> None:
            with contextlib.suppress(RuntimeError):  # our loop is closed already: then nobody waits for this
                loop.call_soon_threadsafe(ended.set)

        flag = threading.Event()
        registry = wire(observe, metrics.tracing, Pace(relisted).tracing)
        watches = Watches(registry, options.namespaces, flag, kopf_ended)
        thread: threading.Thread | None = None
        synced = asyncio.create_task(controller.synced.wait())
        try:
            await asyncio.wait({stopping, synced, running}, return_when=asyncio.FIRST_COMPLETED)
            if synced.done() and not stop.is_set():
                thread = watches.start()
                if election is not None:
                    leading = asyncio.create_task(election.run(), name="election")
                    leading.add_done_callback(lambda _: ended.set())
                waiting = asyncio.create_task(ended.wait())
                await asyncio.wait({stopping, waiting}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
        finally:
            flag.set()
            for task in (stopping, synced, running):
                task.cancel()
            # Until what is in flight has ended the Lease is kept and renewed.
            results = await asyncio.gather(running, stopping, synced, return_exceptions=True)
            if leading is not None and election is not None:
                leading.cancel()
                (lost,) = await asyncio.gather(leading, return_exceptions=True)
                await election.resign()
            if thread is not None:
                await asyncio.to_thread(thread.join, 10)
        for failure in (None if stop.is_set() else lost, results[0]):
            if isinstance(failure, BaseException) and not isinstance(failure, asyncio.CancelledError):
                raise failure
    return stop.is_set()


async def _serve(options: Options, probe_address: str | None, lease: LeaseName | None) -> bool:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return await operate(options, probe_address=probe_address, stop=stop, lease=lease)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed: it is not on every platform."""
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        return None
    return uvloop.new_event_loop


def checked_namespaces(namespaces: tuple[str, ...]) -> tuple[str, ...]:
    """The namespaces to watch, each once. Raises ``click.BadParameter`` for what cannot be the name of one."""
    for namespace in namespaces:
        if not LABEL.fullmatch(namespace):
            raise click.BadParameter(
                f"{namespace!r} is no name of a namespace; write one name, and the option again for another",
                param_hint="--namespace",
            )
    return tuple(dict.fromkeys(namespaces))


def checked_address(address: str) -> None:
    """Raises ``click.BadParameter`` for what is no ``host:port``."""
    try:
        split_address(address)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--probe-address") from error


def lease_of(name: str, namespace: str | None) -> LeaseName:
    """The Lease of this operator and this replica's identity in it. Raises ``click.UsageError``."""
    found = namespace or own_namespace()
    if not found:
        raise click.UsageError(
            "--leader-elect needs a namespace for its Lease; this is no pod: give --lease-namespace, or POD_NAMESPACE"
        )
    return LeaseName(found, name, own_identity())


def be_thrifty() -> None:
    """Settings of the process for its thousands of small, lasting objects.

    The collector of cycles looks for them every 700 new objects by default, and a list of a thousand Deployments is a
    hundred thousand. glibc learns from large blocks that were freed to keep what it has: the answers of lists would
    stay in the process.
    """
    gc.set_threshold(GC_OBJECTS, 20, 20)
    with contextlib.suppress(AttributeError, OSError):  # another C library, which has no such knob
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--namespace", "namespaces", multiple=True, envvar="AGENTHIVE_OPERATOR_NAMESPACES",
    help="Namespace to watch; may be given several times. None: the whole cluster.",
)  # fmt: skip
@click.option(
    "--leader-elect/--no-leader-elect", default=False, envvar="AGENTHIVE_LEADER_ELECT",
    help="Act only while holding a Lease, so that several replicas can run and one of them acts.",
)  # fmt: skip
@click.option(
    "--lease-name", default="agenthive-operator", envvar="AGENTHIVE_LEASE_NAME",
    help="Name of that Lease: the same for all replicas.",
)  # fmt: skip
@click.option(
    "--lease-namespace", default=None, envvar="AGENTHIVE_LEASE_NAMESPACE",
    help="Namespace of that Lease; none: that of the pod.",
)  # fmt: skip
@click.option(
    "--resolve-services/--no-resolve-services", default=False, envvar="AGENTHIVE_RESOLVE_SERVICES",
    help="Read addresses of Services from the API: for an operator outside of the cluster's DNS.",
)  # fmt: skip
@click.option(
    "--runtime-image", default=Options().runtime_image, envvar="AGENTHIVE_RUNTIME_IMAGE",
    help="Image of agents for which neither the Agent nor its hive names one.",
)  # fmt: skip
@click.option(
    "--probe-address", default=None, envvar="AGENTHIVE_PROBE_ADDRESS",
    help="host:port at which /healthz, /readyz and /metrics are served; none: not served.",
)  # fmt: skip
@click.option(
    "--cleanup-seconds", default=Options().cleanup_seconds, type=click.FloatRange(min=0),
    envvar="AGENTHIVE_CLEANUP_SECONDS",
    help="How long the deletion of a hive waits for servers to clean, beyond the drain of its agents.",
)  # fmt: skip
@click.option(
    "--resync-seconds", default=Options().resync_seconds, type=click.FloatRange(min=1),
    envvar="AGENTHIVE_RESYNC_SECONDS", help="How often everything is listed and compared.",
)  # fmt: skip
@click.option(
    "--log-level", default="INFO", envvar="AGENTHIVE_LOG_LEVEL",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False), help="Least severe log lines.",
)  # fmt: skip
@click.option(
    "--log-format", default="auto", envvar="AGENTHIVE_LOG_FORMAT", type=click.Choice(["auto", "json", "text"]),
    help="Form of log lines; auto: text on a terminal, JSON elsewhere.",
)  # fmt: skip
def main(
    namespaces: tuple[str, ...],
    leader_elect: bool,
    lease_name: str,
    lease_namespace: str | None,
    resolve_services: bool,
    runtime_image: str,
    probe_address: str | None,
    cleanup_seconds: float,
    resync_seconds: float,
    log_level: str,
    log_format: str,
) -> None:
    """Run the AgentHive operator against the cluster of KUBECONFIG or of the pod it runs in."""
    log.configure(log_level, log_format)
    if probe_address is not None:
        checked_address(probe_address)
    lease = lease_of(lease_name, lease_namespace) if leader_elect else None
    if namespaces:
        logging.getLogger("kopf._cogs.clients.watching").addFilter(is_news)
    options = Options(
        namespaces=checked_namespaces(namespaces),
        runtime_image=runtime_image,
        resolve_services=resolve_services,
        cleanup_seconds=cleanup_seconds,
        resync_seconds=resync_seconds,
        place=operator_place(),
    )
    # Two threads share the interpreter, kopf's and ours, and ours does much I/O: with the default of 5 ms each system
    # call of ours may wait that long to go on.
    sys.setswitchinterval(SWITCH_SECONDS)
    be_thrifty()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            asked = runner.run(_serve(options, probe_address, lease))
        except LeaseLostError as error:
            logger.critical("%s. This process ends; started again it waits for its turn", error)
            raise SystemExit(EXIT_LEASE_LOST) from error
    if not asked:
        raise SystemExit("the operator ended without having been asked to; see the log above")
