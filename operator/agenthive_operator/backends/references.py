"""Secrets and ConfigMaps that hives and agents refer to, whoever owns them.

Their metadata is watched (names and versions only); their data is read when something refers to them, and again when
their version moved. A change is told to everything that refers to the object.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from agenthive_operator.backends.kube import (
    BY_KIND,
    CONFIG_MAP,
    SECRET,
    ApiError,
    Kube,
    Object,
    Resource,
    secret_data,
)

logger = logging.getLogger(__name__)

WATCHED: Final = (SECRET, CONFIG_MAP)
RETRY_SECONDS: Final = 30.0
BRIEF_SECONDS: Final = 5.0
"""A watch that ends sooner is not begun again at once."""


class Reference(NamedTuple):
    """A Secret or ConfigMap by kind, namespace and name."""

    kind: str
    namespace: str
    name: str


class References:
    """Who refers to what, and what it holds. ``on_change`` is given each referrer of an object that changed."""

    def __init__(
        self, kube: Kube, on_change: Callable[[tuple[str, str, str]], None], *, namespaces: Sequence[str] = ()
    ) -> None:
        self._kube = kube
        self._on_change = on_change
        self._namespaces: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._versions: dict[Reference, str] = {}
        self._data: dict[Reference, tuple[str, dict[str, str]]] = {}
        self._referrers: dict[Reference, set[tuple[str, str, str]]] = {}
        self._refers: dict[tuple[str, str, str], frozenset[Reference]] = {}

    def register(self, referrer: tuple[str, str, str], references: Iterable[Reference]) -> None:
        """``referrer`` depends on exactly these objects from now on."""
        wanted = frozenset(references)
        for gone in self._refers.get(referrer, frozenset()) - wanted:
            self._referrers[gone].discard(referrer)
            if not self._referrers[gone]:
                del self._referrers[gone]
                self._data.pop(gone, None)
                self._versions.pop(gone, None)
        for reference in wanted:
            self._referrers.setdefault(reference, set()).add(referrer)
        if wanted:
            self._refers[referrer] = wanted
        else:
            self._refers.pop(referrer, None)

    async def read(self, reference: Reference) -> dict[str, str] | None:
        """The data of an object (Secrets decoded, binary data of ConfigMaps as it is); None when it does not exist.

        Raises ``ApiError`` when the API cannot be asked: that is never absence.
        """
        known = self._data.get(reference)
        if known is not None and self._versions.get(reference) == known[0]:
            return known[1]
        # rbac: core/secrets get
        # rbac: core/configmaps get
        obj = await self._kube.get(BY_KIND[reference.kind], reference.namespace, reference.name)
        if obj is None:
            self._data.pop(reference, None)
            return None
        data = data_of(obj)
        if reference in self._referrers:
            version = obj["metadata"]["resourceVersion"]
            self._data[reference] = (version, data)
            self._versions[reference] = version
        return data

    # ---- the watch

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            for resource in WATCHED:
                for namespace in self._namespaces:
                    group.create_task(self._follow(resource, namespace), name=f"watch {resource.plural}")

    async def _follow(self, resource: Resource, namespace: str | None) -> None:
        delay = 0.5
        version = ""
        while True:
            began, least = time.monotonic(), 0.1
            try:
                if not version:
                    # rbac: core/secrets list
                    # rbac: core/configmaps list
                    items, version = await self._kube.list(resource, namespace, metadata_only=True)
                    self._compare(resource.kind, namespace, items)
                # rbac: core/secrets watch
                # rbac: core/configmaps watch
                async for kind, obj in self._kube.watch(resource, namespace, version, metadata_only=True):
                    version = obj["metadata"].get("resourceVersion") or version
                    delay = 0.5
                    if kind != "BOOKMARK":
                        self._see(obj, gone=kind == "DELETED")
                if time.monotonic() - began > BRIEF_SECONDS:
                    continue  # the server ends each watch now and then
            except ApiError as error:
                if error.status == 410:
                    version = ""  # too old: list again and compare, which also finds missed deletions
                elif not (error.status == 0 and version):
                    # That a namespace refuses us is said where all of it is read.
                    told = logging.DEBUG if error.status == 403 and namespace is not None else logging.WARNING
                    logger.log(told, "watch of %s: %s; again in %.1f s at most", resource.plural, error, delay)
                least = max(least, error.retry_after or 0.0)
            await asyncio.sleep(random.uniform(least, max(least, delay)))  # noqa: S311 - jitter
            delay = min(RETRY_SECONDS, delay * 2)

    def _compare(self, kind: str, namespace: str | None, items: list[Object]) -> None:
        listed: set[Reference] = set()
        for obj in items:
            listed.add(_reference(obj))
            self._see(obj, gone=False)
        for reference in [known for known in self._versions if known.kind == kind and known not in listed]:
            if namespace is None or reference.namespace == namespace:
                self._changed(reference, None)

    def _see(self, obj: Object, *, gone: bool) -> None:
        reference = _reference(obj)
        if reference not in self._referrers:
            return  # a cluster has many; what somebody refers to later is read then
        version = None if gone else str(obj["metadata"].get("resourceVersion", ""))
        if self._versions.get(reference) != version:
            self._changed(reference, version)

    def _changed(self, reference: Reference, version: str | None) -> None:
        if version is None:
            self._versions.pop(reference, None)
        else:
            self._versions[reference] = version
        known = self._data.get(reference)
        if known is not None and known[0] == version:
            return  # we read this very version ourselves before the watch told us
        self._data.pop(reference, None)
        for referrer in self._referrers.get(reference, ()):
            self._on_change(referrer)


def _reference(obj: Object) -> Reference:
    return Reference(obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"])


def data_of(obj: Object) -> dict[str, str]:
    """The data of a Secret or ConfigMap as one mapping. Pure."""
    if obj["kind"] == "Secret":
        return secret_data(obj)
    return {**(obj.get("data") or {}), **(obj.get("binaryData") or {})}
