"""The Lease by which one of several replicas acts: taken, renewed, watched, let go.

The holder may act until ``RENEW_DEADLINE_SECONDS`` after the beginning of its last good renewal: ``Election.check``,
which every write asks, sees to that. Nobody takes the Lease sooner than ``LEASE_SECONDS`` after it was last seen to
change, and the API server refuses the second of two writes that know the same version. So no two act at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from agenthive_operator.backends.kube import LEASE, ApiError, Kube, NotLeadingError, Object
from agenthive_operator.plan.lease import (
    LEASE_SECONDS,
    PAUSE_SECONDS,
    RENEW_DEADLINE_SECONDS,
    RETRY_SECONDS,
    Action,
    Seen,
    claim_spec,
    decide,
    release_spec,
    see,
)

logger = logging.getLogger(__name__)

NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
ATTEMPT_SECONDS: Final = 3.0
"""A request about the Lease that takes longer is given up, so that a renewal is tried twice."""
RELEASE_SECONDS: Final = 2.0
COMPLAINT_SECONDS: Final = 60.0
"""The same failure is told again after this long."""


class LeaseLostError(RuntimeError):
    """The Lease is another's, or could not be renewed in time: this process may not act any more."""


@dataclass(frozen=True, slots=True)
class LeaseName:
    """Which Lease, and who we are in it."""

    namespace: str
    name: str
    identity: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def steady_clock() -> float:
    """Seconds that pass whatever becomes of the wall clock, and where the system can tell while it sleeps, too."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


def own_namespace() -> str | None:
    """The namespace of the pod this runs in; None outside of one."""
    if named := os.environ.get("POD_NAMESPACE", "").strip():
        return named
    try:
        return NAMESPACE_FILE.read_text().strip() or None
    except OSError:
        return None


def own_identity() -> str:
    """Pod name and a nonce of this start: a process that comes back is not its predecessor."""
    pod = os.environ.get("POD_NAME", "").strip() or socket.gethostname()
    return f"{pod}_{secrets.token_hex(4)}"


class Election:
    """One replica's part. ``run`` it; ``acquired`` is set once it leads; ``check`` is its guard.

    ``kube`` has to be a connection of its own, without the guard: nothing else may delay a renewal.
    """

    def __init__(self, kube: Kube, lease: LeaseName, *, clock: Callable[[], float] = steady_clock) -> None:
        self._kube = kube
        self._lease = lease
        self._clock = clock
        self._seen: Seen | None = None
        self._renewed: float | None = None
        self._tried: float | None = None
        self._over = False
        self._news = asyncio.Event()
        self._complaint = ("", 0.0)
        self.acquired = asyncio.Event()

    def check(self) -> float:
        """The seconds until another may act; raises ``NotLeadingError`` when this replica may not begin anything."""
        now = self._clock()
        if self._renewed is None or self._over:
            raise NotLeadingError(f"the Lease {self._lease} is not held")
        age = now - self._renewed
        if age >= RENEW_DEADLINE_SECONDS:
            raise NotLeadingError(f"the Lease {self._lease} was not renewed for {age:.1f} s")
        return LEASE_SECONDS - age

    async def run(self) -> None:
        """Campaign, then hold the Lease. Raises ``LeaseLostError`` when it is lost; ends in no other way."""
        watching = asyncio.create_task(self._watch(), name="watch of the lease")
        logger.info("%s waits for the Lease %s", self._lease.identity, self._lease)
        try:
            while self._seen is None:
                await self._look()
                if self._seen is None:
                    await asyncio.sleep(PAUSE_SECONDS)
            while True:
                await self._step(self._seen)
        finally:
            self._over = True
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def resign(self) -> None:
        """Let go of the Lease, if it is held, once ``run`` was cancelled and nothing acts any more. Never raises."""
        self._over = True
        if self._renewed is None:
            return
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                while not await self._release():
                    await self._look()
        except (ApiError, TimeoutError) as error:
            text = str(error) or "no answer in time"
            logger.warning("the Lease %s is not released, and free in %d s: %s", self._lease, LEASE_SECONDS, text)

    # ---- steps

    async def _step(self, seen: Seen) -> None:
        now = self._clock()
        decision = decide(self._lease.identity, self._renewed, self._tried, seen, now)
        if decision.action is Action.LOST:
            raise LeaseLostError(f"the Lease {self._lease} is lost: {decision.why}")
        if decision.action is not Action.WAIT:
            await self._write(decision.action, seen, began=now)
            return
        self._news.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(decision.seconds):
                await self._news.wait()
        if self._renewed is None and not self._news.is_set():
            await self._look()

    async def _write(self, action: Action, seen: Seen, *, began: float) -> None:
        """One attempt to take or to renew."""
        seconds = ATTEMPT_SECONDS
        if self._renewed is not None:
            seconds = min(seconds, max(0.0, self._renewed + RENEW_DEADLINE_SECONDS - began))
        spec = claim_spec(self._lease.identity, seen.claim, datetime.now(UTC))
        try:
            async with asyncio.timeout(seconds):
                # rbac own: coordination.k8s.io/leases create,patch
                if action is Action.CREATE:
                    lease = await self._kube.create(self._body({"spec": spec}))
                else:
                    lease = await self._kube.merge_patch(self._body({}, seen), self._change(spec, seen))
        except TimeoutError:
            self._failed(began, "no answer in time")
        except ApiError as error:
            if error.status == 409 or (error.status == 404 and action is not Action.CREATE):
                await self._look()  # somebody was faster, or it is an earlier write of ours that got no answer
            else:
                self._failed(began, str(error))
        else:
            self._tried, self._renewed = None, began
            self._see(lease)
            if action is not Action.RENEW and not self.acquired.is_set():
                former = seen.claim.holder if seen.claim else ""
                logger.info("%s leads: it took the Lease %s%s", self._lease.identity, self._lease,
                            f" after {former}" if former else "")  # fmt: skip
                self.acquired.set()

    async def _release(self) -> bool:
        """True once the Lease is not ours; False if what is known of it is old."""
        seen = self._seen
        if seen is None or seen.claim is None or seen.claim.holder != self._lease.identity:
            return True
        try:
            await self._kube.merge_patch(self._body({}, seen), self._change(release_spec(datetime.now(UTC)), seen))
        except ApiError as error:
            if error.status != 409:
                raise
            return False
        logger.info("released the Lease %s", self._lease)
        return True

    # ---- looking

    async def _look(self) -> None:
        """Read the Lease; a failure leaves what is known."""
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                # rbac own: coordination.k8s.io/leases get
                self._see(await self._kube.get(LEASE, self._lease.namespace, self._lease.name))
        except TimeoutError:
            self._failed(self._clock(), "no answer in time")
        except ApiError as error:
            self._failed(self._clock(), str(error))

    async def _watch(self) -> None:
        """Be told of changes at once. It only saves time: where it fails, ``_look`` and the holder's writes do."""
        while True:
            version = self._seen.version if self._seen is not None else ""
            try:
                if version:
                    only = f"metadata.name={self._lease.name}"
                    # rbac own: coordination.k8s.io/leases watch
                    async for kind, lease in self._kube.watch(LEASE, self._lease.namespace, version, fields=only):
                        if kind != "BOOKMARK":
                            self._told(lease, gone=kind == "DELETED")
            except ApiError as error:
                logger.debug("watch of the Lease %s: %s", self._lease, error)
            await asyncio.sleep(random.uniform(0.5, 1.0) * RETRY_SECONDS if version else 0.1)  # noqa: S311 - jitter

    def _told(self, lease: Object, *, gone: bool) -> None:
        """Take in what the watch says, unless something newer is known."""
        known = self._seen.version if self._seen is not None else ""
        if not known or int(lease["metadata"]["resourceVersion"]) > int(known):
            self._see(None if gone else lease)

    def _see(self, lease: Object | None) -> None:
        self._seen = see(self._seen, lease, self._clock())
        self._news.set()

    def _failed(self, began: float, text: str) -> None:
        self._tried, (last, said) = began, self._complaint
        if text != last or began - said > COMPLAINT_SECONDS:
            self._complaint = text, began
            logger.warning("the Lease %s: %s", self._lease, text)

    # ---- bodies

    def _body(self, fields: Object, seen: Seen | None = None) -> Object:
        metadata = {"name": self._lease.name, "namespace": self._lease.namespace}
        if seen is not None:
            metadata["uid"] = seen.uid
        return {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata, **fields}

    @staticmethod
    def _change(spec: Object, seen: Seen) -> Object:
        # The version makes the server refuse this when anybody else wrote meanwhile.
        return {"metadata": {"resourceVersion": seen.version}, "spec": spec}
