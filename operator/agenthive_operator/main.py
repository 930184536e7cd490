"""The operator's process: flags, kopf's watches, the probe endpoint, signals.

kopf runs in a thread with a loop of its own (it cancels whatever else lives in its loop when it ends) and does
nothing but watch: every event is handed to the controller in the main thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

import click
import kopf

from agenthive_operator.backends.kube import CHILDREN, CUSTOM, Kube, Object, Resource, load_configuration
from agenthive_operator.reconcile.cache import SELECTOR
from agenthive_operator.reconcile.context import Options
from agenthive_operator.reconcile.controller import Controller, Health

logger = logging.getLogger(__name__)

CLIENT_NAME: Final = "agenthive-operator"
LOGIN_MINUTES: Final = 10
"""kopf logs in again this often, so that a rotated token is picked up."""
STUCK_SECONDS: Final = 300.0
"""A key that waits or is handled for longer means that the queue is stuck."""
SWITCH_SECONDS: Final = 0.0005
TLS_CLOSE_SECONDS: Final = 0.25
"""By then the connections of kopf are closed; no event tells, so aiohttp's documentation names this figure."""
STALLED_SECONDS: Final = 15.0
"""The controller's loop beats every second; silence for this long means that it hangs."""


class EndlessBackoffs:
    """Delays for kopf's retries of API requests: jittered, growing to half a minute, and never exhausted."""

    def __iter__(self) -> Iterator[float]:
        for attempt in itertools.count():
            yield random.uniform(0.1, min(30.0, 0.5 * 2 ** min(attempt, 10)))  # noqa: S311 - jitter


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


def settings() -> kopf.OperatorSettings:
    """kopf's settings: watch only, write nothing, never give up."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.peering.standalone = True
    chosen.networking.request_timeout = 30
    chosen.networking.connect_timeout = 10
    chosen.networking.error_backoffs = EndlessBackoffs()
    chosen.watching.connect_timeout = 10
    chosen.watching.server_timeout = 270
    chosen.process.ultimate_exiting_timeout = None
    # Nothing here makes kopf write to an object; should that ever change, it is not under its default names.
    chosen.persistence.finalizer = "agenthive.dev/kopf"
    chosen.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix="kopf.agenthive.dev", v1=False)
    chosen.persistence.diffbase_storage = NoDiffs()
    for resource in CHILDREN:
        chosen.watching.label_selectors[_selector(resource)] = SELECTOR
    return chosen


def _selector(resource: Resource) -> tuple[str, str, str]:
    return resource.group, resource.version, resource.plural


def wire(observe: Callable[[str | None, Object], None], health: Callable[[], Health]) -> kopf.OperatorRegistry:
    """Handlers: every event of both kinds and of labelled children goes to ``observe``; probes ask ``health``."""
    registry = kopf.OperatorRegistry()
    for resource in (*CUSTOM, *CHILDREN):
        # A coroutine: kopf would run a plain function in a thread pool, one hop per event.
        # rbac: agenthive.dev/agenthives list,watch
        # rbac: agenthive.dev/agents list,watch
        # rbac: apps/deployments list,watch
        # rbac: apps/statefulsets list,watch
        # rbac: core/services,secrets,configmaps,pods list,watch
        # rbac cluster: core/namespaces list,watch
        # rbac cluster: apiextensions.k8s.io/customresourcedefinitions list,watch
        @kopf.on.event(*_selector(resource), id=f"watch-{resource.plural}", registry=registry)
        async def _watch(event: Mapping[str, Any], kind: str = resource.kind, **_: Any) -> None:
            observe(event["type"], {**event["object"], "kind": kind})

    @kopf.on.login(id="login", registry=registry)
    async def _login(**_: Any) -> kopf.ConnectionInfo:
        return await login()

    @kopf.on.probe(id="controller", registry=registry, errors=kopf.ErrorsMode.PERMANENT)
    def _probe(**_: Any) -> dict[str, float]:
        return judge(health(), time.monotonic())

    return registry


async def login() -> kopf.ConnectionInfo:
    """The same credentials as the controller's, for kopf; they expire so that kopf asks again."""
    found = await load_configuration()
    header = await found.get_api_key_with_prefix("BearerToken") or ""
    scheme, _, token = header.partition(" ")
    return kopf.ConnectionInfo(
        server=found.host,
        ca_path=found.ssl_ca_cert,
        insecure=not found.verify_ssl,
        scheme=scheme or None,
        token=token or None,
        certificate_path=found.cert_file,
        private_key_path=found.key_file,
        proxy_url=found.proxy,
        expiration=datetime.now(UTC) + timedelta(minutes=LOGIN_MINUTES),
    )


def judge(seen: Health, now: float) -> dict[str, float]:
    """What /healthz answers; raises ``kopf.PermanentError``, which makes it a failure, when something is stuck."""
    figures = {
        "queue": float(seen.depth),
        "oldestWaitSeconds": round(seen.oldest_wait, 1),
        "oldestInFlightSeconds": round(seen.oldest_in_flight, 1),
        "secondsSinceEvent": round(now - seen.last_event, 1) if seen.last_event else 0.0,
        "objects": float(seen.objects),
    }
    if seen.synced and now - seen.beat > STALLED_SECONDS:
        raise kopf.PermanentError(f"the controller's loop has not turned for {now - seen.beat:.0f} s")
    if seen.oldest_wait > STUCK_SECONDS:
        raise kopf.PermanentError(f"the queue is stuck: a key has waited for {seen.oldest_wait:.0f} s")
    return figures


@dataclass(slots=True)
class Watches:
    """kopf in its own thread. ``ended`` is set when it ended, wanted or not."""

    registry: kopf.OperatorRegistry
    namespaces: tuple[str, ...]
    liveness: str | None
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
                settings=settings(),
                standalone=True,
                clusterwide=not self.namespaces,
                namespaces=self.namespaces,
                liveness_endpoint=self.liveness,
                stop_flag=self.stop,
                # kopf would ask for the account's name, which a pod's need not have.
                identity=cast(Any, CLIENT_NAME),
            )
        finally:
            await asyncio.sleep(TLS_CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(self._watch())
        except asyncio.CancelledError:
            logger.debug("kopf was cancelled")
        except Exception:
            # The edge of the thread: without watches this process is of no use, and its end is noticed below.
            logger.exception("the watches ended")
        finally:
            self.on_end()


async def operate(options: Options, *, probe_address: str | None, stop: asyncio.Event) -> bool:
    """Run the operator until ``stop`` is set; True if it ended because it was asked to."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    async with Kube(await load_configuration()) as kube:
        controller = Controller(kube, options)
        running = asyncio.create_task(controller.run(), name="controller")
        running.add_done_callback(lambda _: ended.set())
        stopping = asyncio.create_task(stop.wait())

        def observe(kind: str | None, obj: Object) -> None:
            loop.call_soon_threadsafe(controller.observe, kind, obj)

        def kopf_ended() -> None:
            with contextlib.suppress(RuntimeError):  # our loop is closed already: then nobody waits for this
                loop.call_soon_threadsafe(ended.set)

        flag = threading.Event()
        liveness = f"http://{probe_address}/healthz" if probe_address else None
        watches = Watches(wire(observe, lambda: controller.health), options.namespaces, liveness, flag, kopf_ended)
        thread: threading.Thread | None = None
        synced = asyncio.create_task(controller.synced.wait())
        try:
            await asyncio.wait({stopping, synced, running}, return_when=asyncio.FIRST_COMPLETED)
            if synced.done() and not stop.is_set():
                thread = watches.start()
                waiting = asyncio.create_task(ended.wait())
                await asyncio.wait({stopping, waiting}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
        finally:
            flag.set()
            for task in (stopping, synced, running):
                task.cancel()
            results = await asyncio.gather(running, stopping, synced, return_exceptions=True)
            if thread is not None:
                await asyncio.to_thread(thread.join, 10)
        failure = results[0]
        if isinstance(failure, BaseException) and not isinstance(failure, asyncio.CancelledError):
            raise failure
    return stop.is_set()


async def _serve(options: Options, probe_address: str | None) -> bool:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return await operate(options, probe_address=probe_address, stop=stop)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed: it is not on every platform."""
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        return None
    return uvloop.new_event_loop


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--namespace", "namespaces", multiple=True, envvar="AGENTHIVE_OPERATOR_NAMESPACES",
    help="Namespace to watch; may be given several times. None: the whole cluster.",
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
    help="host:port on which /healthz is served; none: not served.",
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
def main(
    namespaces: tuple[str, ...],
    resolve_services: bool,
    runtime_image: str,
    probe_address: str | None,
    cleanup_seconds: float,
    resync_seconds: float,
    log_level: str,
) -> None:
    """Run the AgentHive operator against the cluster of KUBECONFIG or of the pod it runs in."""
    logging.basicConfig(
        level=log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("kopf").setLevel(max(logging.WARNING, logging.getLevelName(log_level.upper())))
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)  # warns that a thread gets no signals
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    options = Options(
        namespaces=namespaces,
        runtime_image=runtime_image,
        resolve_services=resolve_services,
        cleanup_seconds=cleanup_seconds,
        resync_seconds=resync_seconds,
    )
    # Two threads share the interpreter, kopf's and ours, and ours does much I/O: with the default of 5 ms each system
    # call of ours may wait that long to go on.
    sys.setswitchinterval(SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        asked = runner.run(_serve(options, probe_address))
    if not asked:
        raise SystemExit("the operator ended without having been asked to; see the log above")
