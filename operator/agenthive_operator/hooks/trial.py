"""``helm test``: apply a tiny hive with an agent, ask it something, look at the answer, and clear everything away.

What is asked goes the way of ``kubectl hive ask``: a command in the agent's pod, by the exec API.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

import click
import orjson
from kubernetes.aio import config

from agenthive_operator.api.meta import GROUP
from agenthive_operator.backends.kube import AGENT, AGENT_HIVE, BY_KIND, CONFIG_MAP, ApiError, Kube, Object
from agenthive_operator.hooks.patience import LOOK_SECONDS, patiently
from agenthive_operator.plugin.session import Session, is_ready
from agenthive_operator.plugin.why import conditions, explain, gather

USER_AGENT: Final = "agenthive-trial"
CLEAR_SECONDS: Final = 60.0
"""How long the trial's own objects are waited for once they are deleted."""
ASK_SECONDS: Final = 30.0
CODE: Final = """\
from agenthive import Agent

agent = Agent("trial")


@agent.on("echo")
async def echo(message, ctx):
    return message.body
"""

Say = Callable[[str], None]


def manifests(name: str, namespace: str) -> list[Object]:
    """The agent's code, a hive that keeps nothing, and an agent of one small pod. Pure."""

    def body(kind: str, spec: Object) -> Object:
        resource = BY_KIND[kind]
        metadata = {"name": name, "namespace": namespace, "labels": {f"{GROUP}/trial": name}}
        return {"apiVersion": resource.api_version, "kind": kind, "metadata": metadata, **spec}

    # Neither a volume nor an admin Secret is to stay.
    server: Object = {"managed": {"ephemeral": True}}
    hive = {"redis": server, "postgres": server, "deletionPolicy": "Delete"}
    agent = {
        "hiveRef": {"name": name}, "entrypoint": "trial:agent", "codeFrom": {"configMapRef": {"name": name}},
        "drainSeconds": 5,
    }  # fmt: skip
    return [
        body(CONFIG_MAP.kind, {"data": {"trial.py": CODE}}),
        body(AGENT_HIVE.kind, {"spec": hive}),
        body(AGENT.kind, {"spec": agent}),
    ]


def is_well(agent: Object) -> bool:
    """Whether the operator says, of the Agent as it is now, that it is ready. Pure."""
    ready = conditions(agent).get("Ready", {})
    return ready.get("status") == "True" and ready.get("observedGeneration") == agent["metadata"].get("generation")


class Trial:
    """One trial, under a name of its own."""

    def __init__(self, kube: Kube, namespace: str, say: Say) -> None:
        self.name = f"trial-{secrets.token_hex(4)}"
        self._kube = kube
        self._namespace = namespace
        self._session = Session(kube, namespace)
        self._say = say
        self._made: list[Object] = []

    async def run(self, seconds: float) -> None:
        """Apply, ask, and clear away whatever came of it.

        Raises:
            click.ClickException: there was no answer in time, or a wrong one.
            ApiError: a request was refused.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._apply()
                await self._ask(await self._ready_pod())
        except TimeoutError as error:
            raise click.ClickException(f"no answer within {seconds:.0f} s. {await self._why()}") from error
        finally:
            await self._clear()
        self._say("the trial went well")

    async def _apply(self) -> None:
        for body in manifests(self.name, self._namespace):
            self._made.append(await self._kube.create(body))
        self._say(f"applied hive and agent {self.name} in namespace {self._namespace}")

    async def _ready_pod(self) -> str:
        began = time.monotonic()
        while True:
            agent = await patiently(self._agent)
            if agent is not None and is_well(agent):
                for pod in await patiently(self._pods):
                    if is_ready(pod):
                        self._say(f"the agent is ready after {time.monotonic() - began:.1f} s")
                        return str(pod["metadata"]["name"])
            await asyncio.sleep(LOOK_SECONDS)

    async def _agent(self) -> Object | None:
        return await self._kube.get(AGENT, self._namespace, self.name)

    async def _hive(self) -> Object | None:
        return await self._kube.get(AGENT_HIVE, self._namespace, self.name)

    async def _pods(self) -> list[Object]:
        return await self._session.pods_of(self.name, self.name)

    async def _ask(self, pod: str) -> None:
        question: dict[str, Any] = {"word": secrets.token_hex(8)}
        words = ["agenthive", "--output=json", "ask", f"--timeout={ASK_SECONDS:g}", "--", self.name, "echo", "-"]
        ran = await self._session.run(pod, words, orjson.dumps(question), quiet=True)
        if ran.code:
            said = (ran.err or ran.out).decode(errors="replace").strip()
            raise click.ClickException(f"asking the agent failed with exit code {ran.code}: {said[-2000:]}")
        if orjson.loads(ran.out) != question:
            raise click.ClickException(f"the agent was sent {question} and answered {ran.out.decode()[:500]}")
        self._say("it answered what it was asked")

    async def _why(self) -> str:
        """What keeps the agent from being ready, as ``kubectl hive why`` says it."""
        try:
            return explain(await gather(self._session, AGENT.kind, self.name))[1]
        except (ApiError, click.ClickException) as error:
            return f"Nothing can be said about the agent: {error}"

    async def _clear(self) -> None:
        """Delete what was made and wait until it is gone; what stays is told, and the trial's own result counts."""
        try:
            # The agent before its hive, the code last: a pod that starts meanwhile still finds it.
            for obj in reversed(self._made):
                metadata = obj["metadata"]
                await self._kube.delete(
                    BY_KIND[obj["kind"]], metadata["namespace"], metadata["name"], uid=metadata["uid"]
                )
            async with asyncio.timeout(CLEAR_SECONDS):
                while await patiently(self._hive) is not None:  # noqa: ASYNC110 - another process takes it apart
                    await asyncio.sleep(LOOK_SECONDS)
        except (ApiError, TimeoutError) as error:
            why = str(error) or "not in time"
            self._say(
                f"WARNING: the trial's objects are not cleared away ({why}); delete them: kubectl delete "
                f"agent,hive,configmap -n {self._namespace} -l {GROUP}/trial={self.name}"
            )
        else:
            self._say("cleared away")


async def _run(namespace: str, seconds: float) -> None:
    async with await Kube.connect(user_agent=USER_AGENT) as kube:
        await Trial(kube, namespace, click.echo).run(seconds)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--namespace", required=True, help="Where the hive is made; the operator has to watch it.")
@click.option("--timeout-seconds", type=click.FloatRange(min=1), default=180.0, help="Until the answer is there.")
def main(namespace: str, timeout_seconds: float) -> None:
    """Apply a tiny hive with an agent, ask the agent something, and clear everything away."""
    try:
        asyncio.run(_run(namespace, timeout_seconds))
    except (ApiError, config.ConfigException) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
