"""Kubernetes Events about hives and agents, each told once and counted afterwards."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from agenthive_operator.backends.kube import EVENT, ApiError, Kube, Object
from agenthive_operator.plan.names import FIELD_MANAGER

logger = logging.getLogger(__name__)

REPEAT_SECONDS: Final = 300.0
"""The same event about the same object is written again (its count raised) at most this often."""
REMEMBERED: Final = 5_000
MESSAGE_LIMIT: Final = 1_000


@dataclass(slots=True)
class _Told:
    written: float
    count: int
    unwritten: int = 0


class EventRecorder:
    """Writes Events; a failure to write one is logged and never stops a reconcile."""

    def __init__(
        self,
        kube: Kube,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube = kube
        self._clock = clock
        self._monotonic = monotonic
        self._told: OrderedDict[str, _Told] = OrderedDict()

    async def emit(self, about: Object, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Tell ``message`` about an object. Repetitions within five minutes only raise the next count."""
        message = message[:MESSAGE_LIMIT]
        name, now, since = event_name(about, reason, message), self._clock(), self._monotonic()
        told = self._told.get(name)
        if told is not None and since - told.written < REPEAT_SECONDS:
            told.unwritten += 1
            return
        try:
            count = await self._write(about, kind, reason, message, name, now, 1 + (told.unwritten if told else 0))
        except ApiError as error:
            # An object in a terminating namespace can not have new events: the log is what remains.
            logger.warning("%s of %s not written (%s): %s", reason, _where(about), error, message)
            count = told.count if told else 0
        self._remember(name, _Told(since, count))

    async def _write(
        self, about: Object, kind: str, reason: str, message: str, name: str, now: datetime, times: int
    ) -> int:
        body = event_body(about, kind, reason, message, name, now, times)
        try:
            await self._kube.create(body)
        except ApiError as error:
            if error.status != 409:
                raise
        else:
            return times
        known = await self._kube.get(EVENT, body["metadata"]["namespace"], name)
        if known is None:
            return times  # expired between the two requests
        count = int(known.get("count") or 1) + times
        await self._kube.merge_patch(known, {"count": count, "lastTimestamp": body["lastTimestamp"]})
        return count

    def _remember(self, name: str, told: _Told) -> None:
        self._told[name] = told
        self._told.move_to_end(name)
        while len(self._told) > REMEMBERED:
            self._told.popitem(last=False)


def event_name(about: Object, reason: str, message: str) -> str:
    """The same for the same news about the same object, so that a restarted operator counts on. Pure."""
    news = "\0".join((about["metadata"]["uid"], reason, message))
    return f"{about['metadata']['name']}.{hashlib.sha256(news.encode()).hexdigest()[:16]}"


def event_body(about: Object, kind: str, reason: str, message: str, name: str, now: datetime, count: int) -> Object:
    """A core/v1 Event. Pure."""
    metadata, moment = about["metadata"], now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata.get("resourceVersion", ""),
        },
        "type": kind,
        "reason": reason,
        "message": message,
        "count": count,
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "source": {"component": FIELD_MANAGER},
        "reportingComponent": FIELD_MANAGER,
        "reportingInstance": FIELD_MANAGER,
    }


def _where(about: Object) -> str:
    return f"{about['kind']} {about['metadata'].get('namespace')}/{about['metadata']['name']}"
