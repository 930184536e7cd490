"""Events about pods: what `kubectl describe` and `kubectl get events` show. The same one again counts up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import aiohttp

from agenthive_operator.local.client import ApiClient, ApiError
from agenthive_operator.local.objects import digest, format_time, uid_of, utc_now
from agenthive_operator.local.resources import EVENTS, Obj

logger = logging.getLogger(__name__)

#: Events waiting to be written; beyond it they are dropped, for they must never hold up a pod.
MAX_WAITING = 1000

#: Called with (pod, type, reason, message).
Recorder = Callable[[Obj, str, str, str], None]


class EventRecorder:
    """Writes Events in the background, in order; the same one again raises its count."""

    def __init__(self, client: ApiClient, component: str = "kubelet") -> None:
        self._client = client
        self._component = component
        self._queue: asyncio.Queue[Obj] = asyncio.Queue(MAX_WAITING)
        self._counts: dict[str, int] = {}

    def record(self, pod: Obj, kind: str, reason: str, message: str) -> None:
        """Note an Event; ``kind`` is Normal or Warning. Never waits, never fails."""
        meta = pod["metadata"]
        stamp = format_time(utc_now())
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{meta['name'][:200]}.{digest([uid_of(pod), kind, reason, message])}",
                "namespace": meta["namespace"],
            },
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": meta["name"],
                "namespace": meta["namespace"],
                "uid": uid_of(pod),
            },
            "type": kind,
            "reason": reason,
            "message": message[:1024],
            "source": {"component": self._component},
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            logger.debug("event dropped: %s %s", reason, message)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            event = await self._queue.get()
            try:
                await self._write(event)
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                logger.debug("event %s not written: %s", event["reason"], error)

    async def _write(self, event: Obj) -> None:
        name = event["metadata"]["name"]
        path = EVENTS.path(event["metadata"]["namespace"], name)
        if name in self._counts:
            self._counts[name] += 1
            change = {"count": self._counts[name], "lastTimestamp": event["lastTimestamp"]}
            try:
                await self._client.request("PATCH", path, body=change, content_type="application/merge-patch+json")
                return
            except ApiError as error:
                if error.status != 404:
                    raise
        try:
            await self._client.create(EVENTS, event)
        except ApiError as error:
            if error.status != 409:  # there from an earlier life of ours: good enough
                raise
        self._counts[name] = 1
        if len(self._counts) > 10 * MAX_WAITING:
            self._counts.clear()
