"""What every verb starts from: the options kubectl users expect, the connection, and commands in pods."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
import click
import orjson
import yaml
from kubernetes.aio import config

from agenthive_operator.api.podtemplate import AGENT_CONTAINER
from agenthive_operator.backends.configuration import kubeconfig_path, load_configuration
from agenthive_operator.backends.kube import AGENT, AGENT_HIVE, POD, ApiError, Kube, Object
from agenthive_operator.plan.names import AGENT_LABEL, HIVE_LABEL

USER_AGENT: Final = "kubectl-hive"
PROTOCOL: Final = "v5.channel.k8s.io"
STDIN, STDOUT, STDERR, ERROR, CLOSE = 0, 1, 2, 3, 255

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Asked:
    """What the options said; None where they said nothing."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None
    output: str | None = None

    @property
    def json(self) -> bool:
        """Whether a machine reads the answer."""
        return self.output == "json"

    def over(self, outer: Asked | None) -> Asked:
        """These options, with those given before the verb where these say nothing."""
        names = [field.name for field in fields(self)]
        return Asked(*(getattr(self, name) or getattr(outer, name, None) for name in names))


def options(function: F) -> F:
    """Add --kubeconfig, --context, --namespace and --output; the verb gets them as ``asked``."""

    @click.option("--kubeconfig", metavar="FILE", help="Default: KUBECONFIG, else ~/.kube/config.")
    @click.option("--context", metavar="NAME", help="Of the kubeconfig. Default: its current one.")
    @click.option("-n", "--namespace", metavar="NAME", help="Default: that of the context.")
    @click.option("-o", "--output", type=click.Choice(["table", "json"]), help="For people (default) or for programs.")
    @functools.wraps(function)
    def command(
        *args: Any, kubeconfig: str | None, context: str | None, namespace: str | None, output: str | None, **rest: Any
    ) -> Any:
        outer = click.get_current_context().obj
        asked = Asked(kubeconfig, context, namespace, output).over(outer if isinstance(outer, Asked) else None)
        return function(*args, asked=asked, **rest)

    return command  # type: ignore[return-value]


class Session:
    """A connection to the cluster, and the namespace in question."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.kube = kube
        self.namespace = namespace

    async def agent(self, name: str) -> Object:
        """The Agent of that name. Raises ``click.ClickException``."""
        found = await self.kube.get(AGENT, self.namespace, name)
        if found is None:
            raise click.ClickException(
                f"there is no Agent {name!r} in namespace {self.namespace!r}; see kubectl get agents -A"
            )
        return found

    async def hive(self, name: str | None) -> Object:
        """The hive of that name, or the only one. Raises ``click.ClickException``."""
        if name is not None:
            found = await self.kube.get(AGENT_HIVE, self.namespace, name)
            if found is None:
                raise click.ClickException(
                    f"there is no AgentHive {name!r} in namespace {self.namespace!r}; see kubectl get hives -A"
                )
            return found
        hives, _ = await self.kube.list(AGENT_HIVE, self.namespace)
        if len(hives) == 1:
            return hives[0]
        if not hives:
            raise click.ClickException(
                f"there is no AgentHive in namespace {self.namespace!r}; see kubectl get hives -A"
            )
        names = ", ".join(sorted(hive["metadata"]["name"] for hive in hives))
        raise click.UsageError(f"which hive? There are {names}")

    async def agents_of(self, hive: str) -> list[Object]:
        """The Agents of a hive, by name."""
        agents, _ = await self.kube.list(AGENT, self.namespace)
        return sorted(
            (agent for agent in agents if agent["spec"]["hiveRef"]["name"] == hive),
            key=lambda agent: str(agent["metadata"]["name"]),
        )

    async def pods_of(self, hive: str, agent: str | None = None) -> list[Object]:
        """The pods of a hive's agents, or of one of them."""
        labels = f"{HIVE_LABEL}={hive},{AGENT_LABEL}" + (f"={agent}" if agent else "")
        pods, _ = await self.kube.list(POD, self.namespace, labels=labels)
        return pods

    async def ready_pod(self, hive: str, agent: str, *, any_agent: bool = False) -> str:
        """A ready pod of an agent, or with ``any_agent`` of another of its hive where it has none.

        Raises:
            click.ClickException: none is ready.
        """
        own = await self.pods_of(hive, agent)
        for pods in (own, await self.pods_of(hive) if any_agent else []):
            for pod in pods:
                if is_ready(pod):
                    return str(pod["metadata"]["name"])
        whose = f"hive {hive}" if any_agent else f"agent {agent}"
        raise click.ClickException(
            f"no pod of {whose} is ready, and what asks the bus runs in one; "
            + (f"kubectl hive why {agent} -n {self.namespace} says what is wrong" if own else self.podless(agent))
        )

    def podless(self, agent: str) -> str:
        """What a person reads of an Agent that has no pod at all."""
        return (
            f"agent {agent} has none: where it is scaled to zero, kubectl scale agent/{agent} --replicas=1 "
            f"-n {self.namespace}; where its hive is suspended, end that; else ask kubectl hive why {agent} "
            f"-n {self.namespace}"
        )

    async def run(self, pod: str, command: Sequence[str], stdin: bytes | None = None, *, quiet: bool = False) -> Ran:
        """Run a command in the agent container of a pod; what it prints is passed on, unless ``quiet``.

        Raises:
            click.ClickException: it could not be run.
        """
        query = [("container", AGENT_CONTAINER), ("stdout", "true"), ("stderr", "true")]
        query += [("command", word) for word in command] + ([("stdin", "true")] if stdin is not None else [])
        try:
            socket = await self.kube.socket(POD.path(self.namespace, pod, "exec"), query, PROTOCOL)
        except ApiError as error:
            raise click.ClickException(refusal(error, pod, self.namespace)) from error
        try:
            if stdin is not None:
                await socket.send_bytes(bytes([STDIN]) + stdin)
                await socket.send_bytes(bytes([CLOSE, STDIN]))
            return await _collect(socket, quiet=quiet)
        finally:
            await socket.close()


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended and what it printed."""

    code: int
    out: bytes
    err: bytes


async def _collect(socket: aiohttp.ClientWebSocketResponse, *, quiet: bool) -> Ran:
    texts: dict[int, bytearray] = {STDOUT: bytearray(), STDERR: bytearray()}
    async for message in socket:
        if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
            continue
        channel, data = message.data[0], message.data[1:]
        if channel == ERROR and data:
            return Ran(exit_code(orjson.loads(data)), bytes(texts[STDOUT]), bytes(texts[STDERR]))
        if channel in texts and data:
            texts[channel] += data
            if not quiet:
                click.echo(data if channel == STDOUT else said_here(data), nl=False, err=channel == STDERR)
    raise click.ClickException(
        "the connection to the pod ended before the command did: it may or may not have been done"
    )


def said_here(text: bytes) -> bytes:
    """What the runtime's command says of how it was called, as if it had been called here."""
    return re.sub(rb"(?m)^(Usage: |Try ')?agenthive(?=[ :])", rb"\1kubectl hive", text)


def exit_code(status: Mapping[str, Any]) -> int:
    """The exit code in the Status that ends a command.

    Raises:
        click.ClickException: the command could not be run.
    """
    if status.get("status") == "Success":
        return 0
    for cause in (status.get("details") or {}).get("causes") or ():
        if cause.get("reason") == "ExitCode":
            return int(cause["message"])
    raise click.ClickException(
        f"the command could not be run in the pod: {status.get('message', 'no reason is given')}"
    )


def refusal(error: ApiError, pod: str, namespace: str) -> str:
    """What to do about an exec that was refused."""
    if error.status in {401, 403}:
        return (
            f"you may not run commands in pod {pod}: that is the right to create (and get) pods/exec in namespace "
            f"{namespace}. Who may grant it: kubectl create role agenthive-exec -n {namespace} --verb=create,get "
            f"--resource=pods/exec, then kubectl create rolebinding agenthive-exec -n {namespace} "
            "--role=agenthive-exec --user=YOU"
        )
    return f"nothing could be run in pod {pod}: {error}"


def is_ready(pod: Object) -> bool:
    """Whether a pod is ready and stays."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


@asynccontextmanager
async def session_of(asked: Asked) -> AsyncIterator[Session]:
    """The cluster and namespace that the options name.

    Raises:
        click.ClickException: there is none, or it refuses.
    """
    _name_kubeconfig(asked.kubeconfig)
    where = _kubeconfig(asked.context)
    try:
        kube = Kube(await load_configuration(asked.context), user_agent=USER_AGENT)
        namespace = asked.namespace or _namespace(asked.context)
    except config.ConfigException as error:
        raise click.ClickException(f"no cluster to ask: {where} does not say where one is ({error})") from error
    except (TypeError, KeyError) as error:  # the package takes any YAML for a kubeconfig
        raise click.ClickException(f"no cluster to ask: {where} is no kubeconfig") from error
    async with kube:
        try:
            yield Session(kube, namespace)
        except ApiError as error:
            raise click.ClickException(failure(error)) from error


def failure(error: ApiError) -> str:
    """What a person reads of a request that failed."""
    if error.status == 0:
        return f"the API server cannot be reached ({error.message}); see kubectl cluster-info"
    if error.status == 401:
        return "the API server does not know you: log in again, or see what user the kubeconfig names"
    message = re.sub(r"^[A-Z]+ /\S+: ", "", error.message)  # the request itself tells a person nothing
    return f"you may not: {message}" if error.status == 403 else message


def _name_kubeconfig(file: str | None) -> None:
    """Have ``file`` read wherever a kubeconfig is. Raises ``click.UsageError`` where there is none."""
    if file is None:
        return
    if not Path(file).is_file():
        raise click.UsageError(f"--kubeconfig: there is no file {file}")
    os.environ["KUBECONFIG"] = file


def _kubeconfig(context: str | None) -> str:
    """The kubeconfig that counts, as people call it.

    Raises:
        click.ClickException: there is none, or none with that context.
    """
    if not (named := kubeconfig_path()):
        if "KUBERNETES_SERVICE_HOST" in os.environ:
            return "the service account of this pod"
        raise click.ClickException("no cluster to ask: set KUBECONFIG, give --kubeconfig, or have a ~/.kube/config")
    files = [file for file in named.split(os.pathsep) if Path(file).exists()]
    if not files:
        raise click.ClickException(f"no cluster to ask: KUBECONFIG is {named}, and there is no such file")
    where = os.pathsep.join(files)
    if context is not None and context not in (known := _contexts(files)):
        raise click.ClickException(f"there is no context {context} in {where}; there are: {', '.join(known) or 'none'}")
    return where


def _contexts(files: Sequence[str]) -> list[str]:
    """The names of all contexts; of a file that is no kubeconfig none, about which loading it says more."""
    found = []
    for file in files:
        with suppress(OSError, yaml.YAMLError):
            document = yaml.safe_load(Path(file).read_text())
            contexts = document.get("contexts") if isinstance(document, dict) else None
            found += [str(entry["name"]) for entry in contexts or () if isinstance(entry, dict) and "name" in entry]
    return found


def _namespace(context: str | None) -> str:
    if not (named := kubeconfig_path()):
        return "default"  # in a pod
    load: Any = config  # the package carries no annotations
    contexts, active = load.list_kube_config_contexts(config_file=named)
    chosen = next((found for found in contexts if found["name"] == context), active)
    return str(chosen["context"].get("namespace") or "default")


def stdout_is_terminal() -> bool:
    """Whether a person watches."""
    return sys.stdout.isatty()
