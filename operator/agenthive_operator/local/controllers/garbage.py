"""Owner garbage collection: dependents go when their last owner is gone.

``Graph`` holds who owns whom, and decides; ``GarbageCollector`` follows every kind the server has and carries it out:
background (dependents after the owner), foreground (the owner waits for them) and orphan (they lose their reference).
A reference is to an object's uid: a namesake that came later is another object.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from enum import StrEnum

import aiohttp

from agenthive_operator.local.client import ApiClient, ApiError
from agenthive_operator.local.controllers.base import RETRY
from agenthive_operator.local.informer import Handler, Informers
from agenthive_operator.local.objects import is_deleting, key_of, uid_of
from agenthive_operator.local.resources import CRDS, Obj, Resource
from agenthive_operator.reconcile.queue import KeyedQueue

logger = logging.getLogger(__name__)

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
#: Kinds that own nothing and are never owned, or that come too often to be worth following.
IGNORED = {("", "events"), ("events.k8s.io", "events"), ("", "nodes"), ("coordination.k8s.io", "leases")}
DISCOVERY_SECONDS = 60.0


class Verdict(StrEnum):
    """What is to be done with one object."""

    KEEP = "keep"
    DELETE = "delete"
    #: Deleted in the foreground: delete the dependents first.
    DELETE_DEPENDENTS = "delete dependents"
    #: Its dependents are gone, or orphaned: take the finalizer off.
    RELEASE_FOREGROUND = "release foreground"
    ORPHAN_DEPENDENTS = "orphan dependents"


@dataclass(slots=True)
class Node:
    """One object of the graph."""

    resource: Resource
    obj: Obj


@dataclass(slots=True)
class Graph:
    """All objects by uid, and who depends on whom."""

    nodes: dict[str, Node] = field(default_factory=dict)
    _dependents: dict[str, set[str]] = field(default_factory=dict)

    def put(self, resource: Resource, obj: Obj) -> None:
        """``obj`` exists like this."""
        uid = uid_of(obj)
        old = self.nodes.get(uid)
        if old is not None:
            self._unlink(uid, old.obj)
        self.nodes[uid] = Node(resource, obj)
        for owner in _owners(obj):
            self._dependents.setdefault(owner["uid"], set()).add(uid)

    def remove(self, uid: str) -> None:
        """The object is gone."""
        node = self.nodes.pop(uid, None)
        if node is not None:
            self._unlink(uid, node.obj)

    def _unlink(self, uid: str, obj: Obj) -> None:
        for owner in _owners(obj):
            group = self._dependents.get(owner["uid"])
            if group is not None:
                group.discard(uid)
                if not group:
                    del self._dependents[owner["uid"]]

    def dependents(self, uid: str) -> list[Node]:
        """Objects with an owner reference to ``uid``."""
        return [self.nodes[each] for each in self._dependents.get(uid, ()) if each in self.nodes]

    def missing_owners(self, uid: str) -> list[Obj]:
        """References of ``uid`` whose owner is not in the graph: the server has to be asked about them."""
        return [owner for owner in _owners(self.nodes[uid].obj) if owner["uid"] not in self.nodes]

    def judge(self, uid: str, absent: set[str]) -> Verdict:
        """What to do with an object; ``absent``: uids of owners that the server says do not exist."""
        obj = self.nodes[uid].obj
        finalizers = obj["metadata"].get("finalizers") or []
        if is_deleting(obj):
            if ORPHAN in finalizers:
                return Verdict.ORPHAN_DEPENDENTS
            if FOREGROUND in finalizers:
                return Verdict.DELETE_DEPENDENTS if self._blocking(uid) else Verdict.RELEASE_FOREGROUND
            return Verdict.KEEP  # on its way; whoever holds another finalizer decides
        owners = _owners(obj)
        if not owners:
            return Verdict.KEEP
        solid = [owner for owner in owners if owner["uid"] not in absent and not self._waits(owner["uid"])]
        return Verdict.KEEP if solid else Verdict.DELETE

    def _waits(self, uid: str) -> bool:
        """Whether an owner is being deleted in the foreground, and waits for its dependents to go."""
        node = self.nodes.get(uid)
        return (
            node is not None and is_deleting(node.obj) and FOREGROUND in (node.obj["metadata"].get("finalizers") or [])
        )

    def _blocking(self, uid: str) -> list[Node]:
        return [
            node
            for node in self.dependents(uid)
            if any(owner["uid"] == uid and owner.get("blockOwnerDeletion") for owner in _owners(node.obj))
        ]

    def deletes_in_foreground(self, uid: str) -> bool:
        """Whether a dependent must itself be deleted in the foreground: an owner waits for it and it has dependents."""
        waiting = any(
            owner.get("blockOwnerDeletion") and self._waits(owner["uid"]) for owner in _owners(self.nodes[uid].obj)
        )
        return waiting and bool(self.dependents(uid))


def _owners(obj: Obj) -> list[Obj]:
    return obj["metadata"].get("ownerReferences") or []


def resources_of(api_version: str, discovered: list[Obj]) -> list[Resource]:
    """What can be followed and deleted among the resources a server discovers for one group and version."""
    group, _, version = api_version.rpartition("/")
    return [
        Resource(group, version, each["name"], each["kind"], bool(each["namespaced"]))
        for each in discovered
        if "/" not in each["name"]
        and {"list", "watch", "delete"} <= set(each.get("verbs") or [])
        and (group, each["name"]) not in IGNORED
    ]


async def discover(client: ApiClient) -> list[Resource]:
    """Every resource of the server that can be followed, each in its preferred version."""
    found = resources_of("v1", (await client.request("GET", "/api/v1"))["resources"])
    for group in (await client.request("GET", "/apis"))["groups"]:
        version = group["preferredVersion"]["groupVersion"]
        found += resources_of(version, (await client.request("GET", f"/apis/{version}"))["resources"])
    return found


class GarbageCollector:
    """Follows all kinds and collects what has lost its owners."""

    def __init__(self, informers: Informers, *, workers: int = 4) -> None:
        self.informers = informers
        self.client = informers.client
        self.graph = Graph()
        self.queue: KeyedQueue[str] = KeyedQueue(self._collect, name="garbage", workers=workers, backoff=RETRY)
        self._followed: set[Resource] = set()
        self._rediscover = asyncio.Event()
        informers.of(CRDS).on_change(lambda old, new: self._rediscover.set())

    async def start(self) -> None:
        """Follow every kind there is now, complete."""
        await self._follow()

    async def run(self) -> None:
        """Collect until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.queue.run(), name="garbage-queue")
            group.create_task(self._discover(), name="garbage-discovery")

    async def _discover(self) -> None:
        while True:
            try:
                async with asyncio.timeout(DISCOVERY_SECONDS):
                    await self._rediscover.wait()
            except TimeoutError:
                pass  # kinds also come without a CRD: aggregated APIs
            self._rediscover.clear()
            try:
                await self._follow()
            except (ApiError, aiohttp.ClientError, OSError, TimeoutError) as error:
                logger.warning("discovery failed: %s; again soon", error)
                await asyncio.sleep(1)
                self._rediscover.set()

    async def _follow(self) -> None:
        found = set(await discover(self.client))
        for resource in found - self._followed:
            self._followed.add(resource)
            informer = self.informers.of(resource)
            informer.on_change(self._handler(resource))
            for obj in informer:  # an informer that others started has told its story already
                self._changed(resource, None, obj)
        for resource in self._followed - found:
            self._followed.discard(resource)
            await self.informers.drop(resource)
        await self.informers.start()

    def _handler(self, resource: Resource) -> Handler:
        return lambda old, new: self._changed(resource, old, new)

    def _changed(self, resource: Resource, old: Obj | None, new: Obj | None) -> None:
        if new is not None:
            self.graph.put(resource, new)
            if _owners(new) or is_deleting(new):
                self.queue.add(uid_of(new))
            if is_deleting(new) and FOREGROUND in (new["metadata"].get("finalizers") or []):
                self._queue_dependents(uid_of(new))
        if old is not None:
            if new is None:
                self._queue_dependents(uid_of(old))
                self.graph.remove(uid_of(old))
            for owner in _owners(old):
                self.queue.add(owner["uid"])  # it may wait for this one

    def _queue_dependents(self, uid: str) -> None:
        for node in self.graph.dependents(uid):
            self.queue.add(uid_of(node.obj))

    async def _collect(self, uid: str) -> float | None:
        node = self.graph.nodes.get(uid)
        if node is None:
            return None
        absent = await self._absent(uid)
        if uid not in self.graph.nodes:
            return None  # gone while the server was asked
        node = self.graph.nodes[uid]
        verdict = self.graph.judge(uid, absent)
        if verdict is Verdict.DELETE:
            propagation = "Foreground" if self.graph.deletes_in_foreground(uid) else "Background"
            logger.debug("deleting %s %s: its owners are gone", node.resource.plural, key_of(node.obj))
            version = node.obj["metadata"].get("resourceVersion")
            # With the version: an owner added meanwhile must be seen first.
            await self.client.delete(node.resource, node.obj, propagation=propagation, resource_version=version)
        elif verdict is Verdict.DELETE_DEPENDENTS:
            self._queue_dependents(uid)
        elif verdict is Verdict.RELEASE_FOREGROUND:
            await self._remove_finalizer(node, FOREGROUND)
        elif verdict is Verdict.ORPHAN_DEPENDENTS:
            for dependent in self.graph.dependents(uid):
                kept = [owner for owner in _owners(dependent.obj) if owner["uid"] != uid]
                change = {"metadata": {"ownerReferences": kept or None}}
                await self._patch(dependent, change)
            await self._remove_finalizer(node, ORPHAN)
        return None

    async def _absent(self, uid: str) -> set[str]:
        """Which of the owners that are not in the graph really do not exist: only the server knows."""
        absent = set()
        for owner in self.graph.missing_owners(uid):
            resource = self._resource_of(owner)
            if resource is None:
                continue  # a kind the server does not serve: its absence cannot be told from our ignorance
            namespace = self.graph.nodes[uid].obj["metadata"].get("namespace") if resource.namespaced else None
            found = await self.client.find(resource, namespace, owner["name"])
            if found is None or uid_of(found) != owner["uid"]:
                absent.add(owner["uid"])
        return absent

    def _resource_of(self, owner: Obj) -> Resource | None:
        group = owner["apiVersion"].rpartition("/")[0]
        return next((r for r in self._followed if r.kind == owner["kind"] and r.group == group), None)

    async def _remove_finalizer(self, node: Node, finalizer: str) -> None:
        kept = [each for each in node.obj["metadata"].get("finalizers") or [] if each != finalizer]
        await self._patch(node, {"metadata": {"finalizers": kept or None}})

    async def _patch(self, node: Node, change: Obj) -> None:
        change["metadata"]["resourceVersion"] = node.obj["metadata"]["resourceVersion"]
        try:
            await self.client.patch(node.resource, node.obj, change)
        except ApiError as error:
            if error.status != 404:
                raise
