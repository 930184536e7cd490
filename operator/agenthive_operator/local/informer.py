"""Local copies of collections, kept current by list and watch.

``Store`` is the copy with its rules (older versions never replace newer ones), testable without a server;
``Informer`` feeds it. A writer hands what the server answered to ``observe``/``forget``, so that its next decision
sees its own writes.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Iterator

import aiohttp

from agenthive_operator.local.client import ApiClient, ApiError, status_error
from agenthive_operator.local.objects import Key, controller_of, key_of, uid_of, version_of
from agenthive_operator.local.resources import Obj, Resource

logger = logging.getLogger(__name__)

#: Called with (old, new): None for what was not there before, or is no more.
Handler = Callable[[Obj | None, Obj | None], None]
RESYNC_SECONDS = 600.0
RETRY_SECONDS = (0.2, 5.0)


class Store:
    """Objects by (namespace, name), indexed by their controller's uid."""

    def __init__(self) -> None:
        self._objects: dict[Key, Obj] = {}
        self._owned: dict[str, dict[Key, Obj]] = {}
        self._orphans: dict[Key, Obj] = {}
        self._handlers: list[Handler] = []

    def on_change(self, handler: Handler) -> None:
        """Call ``handler`` for every change from now on."""
        self._handlers.append(handler)

    def __iter__(self) -> Iterator[Obj]:
        return iter(list(self._objects.values()))

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, namespace: str, name: str) -> Obj | None:
        """The object of that name."""
        return self._objects.get((namespace, name))

    def owned_by(self, owner: Obj) -> list[Obj]:
        """Objects whose controller is ``owner``, by uid."""
        return list(self._owned.get(uid_of(owner), {}).values())

    def orphans(self, namespace: str) -> list[Obj]:
        """Objects of a namespace that have no controller."""
        return [obj for key, obj in self._orphans.items() if key[0] == namespace]

    def observe(self, obj: Obj) -> None:
        """``obj`` exists like this; ignored when a newer version of the same incarnation is known."""
        old = self._objects.get(key_of(obj))
        if old is not None and version_of(obj) <= version_of(old):
            return
        self._put(old, obj)

    def forget(self, obj: Obj) -> None:
        """``obj`` is gone; ignored when its name already belongs to a later incarnation."""
        old = self._objects.get(key_of(obj))
        if old is None or uid_of(old) != uid_of(obj):
            return
        self._put(old, None)

    def replace(self, items: Iterable[Obj], version: int) -> None:
        """The collection as it was at ``version``: what is not in it is gone, unless it is newer than the list."""
        seen = set()
        for obj in items:
            seen.add(key_of(obj))
            self.observe(obj)
        for key, old in list(self._objects.items()):
            if key not in seen and version_of(old) <= version:
                self._put(old, None)

    def _put(self, old: Obj | None, new: Obj | None) -> None:
        if old is not None:
            key = key_of(old)
            del self._objects[key]
            self._orphans.pop(key, None)
            if (owner := controller_of(old)) is not None:
                group = self._owned[owner["uid"]]
                group.pop(key, None)
                if not group:
                    del self._owned[owner["uid"]]
        if new is not None:
            key = key_of(new)
            self._objects[key] = new
            if (owner := controller_of(new)) is not None:
                self._owned.setdefault(owner["uid"], {})[key] = new
            else:
                self._orphans[key] = new
        if old is not None and new is not None and uid_of(old) != uid_of(new):
            # Deleted and created again between two looks: two changes for those who listen.
            self._tell(old, None)
            self._tell(None, new)
        else:
            self._tell(old, new)

    def _tell(self, old: Obj | None, new: Obj | None) -> None:
        for handler in self._handlers:
            handler(old, new)


class Informer(Store):
    """A ``Store`` fed by list and watch: relists on 410 and on every ``resync`` seconds, retries what fails."""

    def __init__(
        self, client: ApiClient, resource: Resource, *, fields: str = "", resync: float = RESYNC_SECONDS
    ) -> None:
        super().__init__()
        self.resource = resource
        self._client = client
        self._fields = fields
        self._resync = resync
        self._synced = asyncio.Event()
        self._failures = 0

    async def synced(self) -> None:
        """Wait for the first complete list."""
        await self._synced.wait()

    async def run(self) -> None:
        """List and watch until cancelled."""
        while True:
            try:
                await self._list_and_watch()
            except ApiError as error:
                # 410: the version to go on from is too old; a fresh list is the cure, at once.
                if error.status != 410:
                    await self._pause(error)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                await self._pause(error)

    async def _list_and_watch(self) -> None:
        items, version = await self._client.list(self.resource, fields=self._fields)
        self.replace(items, int(version))
        self._synced.set()
        self._failures = 0
        loop = asyncio.get_running_loop()
        relist_at = loop.time() + self._resync * random.uniform(0.9, 1.1)  # noqa: S311 - jitter
        while (left := relist_at - loop.time()) > 1:
            seconds = int(min(left, 300))
            async for kind, obj in self._client.watch(self.resource, version, fields=self._fields, seconds=seconds):
                if kind == "ERROR":
                    raise status_error(obj)
                version = obj["metadata"]["resourceVersion"]
                if kind == "DELETED":
                    self.forget(obj)
                elif kind != "BOOKMARK":
                    self.observe(obj)
            if loop.time() < relist_at - left + 0.1:
                # A server that ends watches at once must not be asked in a busy loop.
                await asyncio.sleep(0.1)

    async def _pause(self, error: Exception) -> None:
        self._failures += 1
        low, high = RETRY_SECONDS
        delay = min(high, low * 2 ** min(self._failures - 1, 10)) * random.uniform(0.5, 1)  # noqa: S311 - jitter
        level = logging.WARNING if self._failures > 3 else logging.INFO
        logger.log(level, "%s: %s; again in %.1f s", self.resource.plural, error or type(error).__name__, delay)
        await asyncio.sleep(delay)


class Informers:
    """One informer per resource, shared by all who need it."""

    def __init__(self, client: ApiClient) -> None:
        self.client = client
        self._all: dict[Resource, Informer] = {}
        self._tasks: dict[Resource, asyncio.Task[None]] = {}

    def of(self, resource: Resource) -> Informer:
        """The informer of ``resource``; started by the next ``start``."""
        return self._all.setdefault(resource, Informer(self.client, resource))

    def started(self) -> list[Resource]:
        """Resources that are followed."""
        return list(self._tasks)

    async def start(self) -> None:
        """Start what does not run yet and wait until all have synced."""
        for resource, informer in self._all.items():
            if resource not in self._tasks:
                self._tasks[resource] = asyncio.create_task(informer.run(), name=f"informer-{resource.plural}")
        await asyncio.gather(*(informer.synced() for informer in list(self._all.values())))

    async def drop(self, resource: Resource) -> None:
        """Stop following ``resource``: its kind is gone. What was known of it is forgotten."""
        informer = self._all.pop(resource, None)
        if (task := self._tasks.pop(resource, None)) is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if informer is not None:
            informer.replace([], 2**63)

    async def stop(self) -> None:
        """Stop all."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()
