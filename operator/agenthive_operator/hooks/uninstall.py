"""Before a release goes: nothing may be left that waits for an operator which is not there any more.

1. Where the definitions go with the release (``--delete``), every hive and Agent is deleted, while the operator runs.
2. What is being deleted gets its time to end.
3. The operator is scaled to zero, and its pods are waited for: it would put back what comes off next.
4. The finalizer ``agenthive.dev/cleanup``, and no other, comes off whatever has it.

Each step has a deadline. Hives that are kept run on, and the operator of a later release puts the finalizer back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import click
from kubernetes.aio import config

from agenthive_operator.backends.kube import CUSTOM, DEPLOYMENT, POD, ApiError, Kube, Object, Resource
from agenthive_operator.hooks.patience import LOOK_SECONDS, patiently
from agenthive_operator.plan.names import FINALIZER

USER_AGENT: Final = "agenthive-uninstall"
STOP_SECONDS: Final = 45.0
"""How long the operator's pods are waited for: a little more than their grace period."""
LIFT_SECONDS: Final = 30.0
"""How long the finalizers may take to come off."""
SAID: Final = 10
"""So many names stand in a line."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be taken down.

    ``watched``: the operator's namespaces; empty means all. ``seconds``: how long deletions are waited for.
    """

    namespace: str
    deployment: str
    watched: tuple[str, ...] = ()
    delete: bool = False
    seconds: float = 180.0


class LeftError(RuntimeError):
    """The finalizer is still on some objects; the text names them."""


def label(obj: Object) -> str:
    """``Kind namespace/name``. Pure."""
    return f"{obj['kind']} {obj['metadata']['namespace']}/{obj['metadata']['name']}"


def named(objects: list[Object]) -> str:
    """Some objects, for a line of text. Pure."""
    more = f" and {len(objects) - SAID} more" if len(objects) > SAID else ""
    return ", ".join(label(obj) for obj in objects[:SAID]) + more


def waits(obj: Object) -> bool:
    """Whether the object is being deleted. Pure."""
    return "deletionTimestamp" in obj["metadata"]


def holds(obj: Object) -> bool:
    """Whether the operator's finalizer is on it. Pure."""
    return FINALIZER in (obj["metadata"].get("finalizers") or ())


def without_finalizer(obj: Object) -> Object:
    """The patch that takes the operator's finalizer off, and leaves those of others. Pure."""
    metadata = obj["metadata"]
    rest = [name for name in metadata.get("finalizers") or () if name != FINALIZER]
    # The version makes the server refuse this when somebody else changed the list meanwhile.
    return {"metadata": {"finalizers": rest, "resourceVersion": metadata["resourceVersion"]}}


class Uninstall:
    """The steps, one after another."""

    def __init__(self, kube: Kube, asked: Asked, say: Say) -> None:
        self._kube = kube
        self._asked = asked
        self._say = say
        self._unread: set[str] = set()

    async def run(self) -> None:
        """All of it.

        Raises:
            LeftError: the finalizer could not be taken off everything in time.
            ApiError: a request was refused, and would be again.
        """
        operator = await patiently(self._operator)
        if self._asked.delete:
            await patiently(self._delete_all)
        if ((operator or {}).get("status") or {}).get("readyReplicas"):
            await self._wait_for_deletions()
        else:
            self._say(f"no operator is ready in {self._asked.namespace}: deletions are not waited for")
        if operator is not None:
            await self._stop(operator)
        await self._lift()

    # ---- steps

    async def _operator(self) -> Object | None:
        return await self._kube.get(DEPLOYMENT, self._asked.namespace, self._asked.deployment)

    async def _delete_all(self) -> None:
        objects = [obj for obj in await self._objects() if not waits(obj)]
        self._say(f"deleting {len(objects)} hives and agents, as the definitions go with this release")
        for resource in CUSTOM:  # hives first: they drain their agents
            for obj in objects:
                if obj["kind"] == resource.kind:
                    metadata = obj["metadata"]
                    await self._kube.delete(resource, metadata["namespace"], metadata["name"], uid=metadata["uid"])

    async def _wait_for_deletions(self) -> None:
        deadline = time.monotonic() + self._asked.seconds
        said = -1
        while True:
            left = [obj for obj in await patiently(self._objects) if waits(obj)]
            if not left:
                return
            if len(left) != said:
                said = len(left)
                self._say(f"waiting for the operator to take apart {named(left)}")
            if time.monotonic() > deadline:
                self._say(f"after {self._asked.seconds:.0f} s these are still being deleted: {named(left)}")
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _stop(self, operator: Object) -> None:
        labels = operator["spec"]["selector"]["matchLabels"]
        selector = ",".join(f"{name}={value}" for name, value in labels.items())

        async def scale() -> None:
            await self._kube.merge_patch(operator, {"spec": {"replicas": 0}}, subresource="scale")

        async def pods() -> list[Object]:
            return (await self._kube.list(POD, self._asked.namespace, labels=selector))[0]

        self._say(f"stopping the operator: {label(operator)} is scaled to 0")
        await patiently(scale)
        deadline = time.monotonic() + STOP_SECONDS
        while running := await patiently(pods):
            if time.monotonic() > deadline:
                self._say(f"WARNING: after {STOP_SECONDS:.0f} s these have not ended: {named(running)}")
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _lift(self) -> None:
        deadline = time.monotonic() + LIFT_SECONDS
        lifted = 0
        while True:
            left = [obj for obj in await patiently(self._objects) if holds(obj)]
            if not left:
                self._say(f"no object carries {FINALIZER} any more; it came off {lifted}")
                return
            if time.monotonic() > deadline:
                raise LeftError(f"{FINALIZER} is still on {named(left)}")
            came_off = sum([await self._lift_one(obj) for obj in left])
            lifted += came_off
            if came_off < len(left):
                await asyncio.sleep(LOOK_SECONDS)

    async def _lift_one(self, obj: Object) -> bool:
        try:
            await self._kube.merge_patch(obj, without_finalizer(obj))
        except ApiError as error:
            if error.absent or error.transient:
                return False  # gone, or to be looked at again
            raise
        if waits(obj):
            self._say(
                f"WARNING: {label(obj)} was being deleted and is let go as it is: its agents may have been cut off,"
                " and what it has in external servers stays there"
            )
        return True

    # ---- looking

    async def _objects(self) -> list[Object]:
        return [
            obj for resource in CUSTOM for namespace in self._asked.watched or (None,)
            for obj in await self._list(resource, namespace)
        ]  # fmt: skip

    async def _list(self, resource: Resource, namespace: str | None) -> list[Object]:
        try:
            return (await self._kube.list(resource, namespace))[0]
        except ApiError as error:
            if error.status == 404:
                return []  # the definitions are gone, and all objects with them
            if error.status == 403 and namespace is not None:
                # Its Role went with it, as a rule: the others must not wait for that.
                if namespace not in self._unread:
                    self._unread.add(namespace)
                    self._say(f"WARNING: namespace {namespace} is left out, is it gone? {error.message}")
                return []
            raise


async def _run(asked: Asked) -> None:
    async with await Kube.connect(user_agent=USER_AGENT) as kube:
        await Uninstall(kube, asked, click.echo).run()


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--namespace", required=True, help="Namespace of the operator.")
@click.option("--deployment", required=True, help="Name of its Deployment.")
@click.option("--watched", multiple=True, help="Namespace that it watches; none: all of them.")
@click.option("--delete", is_flag=True, help="Delete every hive and agent there, while the operator runs.")
@click.option(
    "--timeout-seconds", type=click.FloatRange(min=0), default=180.0, help="How long deletions are waited for."
)
def main(namespace: str, deployment: str, watched: tuple[str, ...], delete: bool, timeout_seconds: float) -> None:
    """Stop the operator and take its finalizer off hives and agents, so that none hangs without it."""
    try:
        asyncio.run(_run(Asked(namespace, deployment, watched, delete, timeout_seconds)))
    except (ApiError, LeftError, config.ConfigException) as error:
        raise click.ClickException(
            f"{error}. Uninstall again once that is mended; or go on without this step, `helm uninstall --no-hooks`, "
            f"and take {FINALIZER} off by hand where a hive then does not go (docs/install.md)"
        ) from error


if __name__ == "__main__":
    main()
