"""What every controller here is made of: shared informers, one keyed queue, and writes that are seen at once."""

from __future__ import annotations

import logging
import secrets
from abc import ABC, abstractmethod

from agenthive_operator.local.client import ApiClient, ApiError
from agenthive_operator.local.informer import Handler, Informers
from agenthive_operator.local.objects import SAFE_LETTERS, Key, controller_of, key_of
from agenthive_operator.local.resources import Obj, Resource
from agenthive_operator.reconcile.queue import Backoff, KeyedQueue

logger = logging.getLogger(__name__)

RETRY = Backoff(base=0.1, cap=10.0)


class Controller(ABC):
    """Brings one kind of object to its desired state, key by key."""

    #: The kind whose keys are reconciled.
    resource: Resource

    def __init__(self, informers: Informers, *, workers: int = 4) -> None:
        self.informers = informers
        self.objects = informers.of(self.resource)
        self.queue: KeyedQueue[Key] = KeyedQueue(
            self.reconcile, name=self.resource.plural, workers=workers, backoff=RETRY
        )
        self.objects.on_change(self._changed)

    @property
    def client(self) -> ApiClient:
        """The API client, shared."""
        return self.informers.client

    @abstractmethod
    async def reconcile(self, key: Key) -> float | None:
        """Look at one object; return the seconds after which to look again, None to wait for an event."""

    def _changed(self, old: Obj | None, new: Obj | None) -> None:
        self.queue.add(key_of(new or old or {}))

    def follow_children(self, resource: Resource) -> Handler:
        """Queue the controlling object of every ``resource`` that changes."""

        def changed(old: Obj | None, new: Obj | None) -> None:
            for obj in (old, new):
                owner = controller_of(obj) if obj is not None else None
                if obj is not None and owner is not None and owner["kind"] == self.resource.kind:
                    self.queue.add((obj["metadata"].get("namespace", ""), owner["name"]))

        self.informers.of(resource).on_change(changed)
        return changed

    async def create(self, resource: Resource, obj: Obj) -> Obj:
        """Create an object and know of it before the watch says so."""
        created = await self.client.create(resource, obj)
        self.informers.of(resource).observe(created)
        return created

    async def patch(self, resource: Resource, obj: Obj, change: Obj, *, sub: str | None = None) -> Obj:
        """Merge-patch an object and know of it before the watch says so."""
        patched = await self.client.patch(resource, obj, change, sub=sub)
        self.informers.of(resource).observe(patched)
        return patched

    async def delete(self, resource: Resource, obj: Obj, *, propagation: str | None = None) -> None:
        """Delete exactly this object and know of it before the watch says so."""
        answer = await self.client.delete(resource, obj, propagation=propagation)
        store = self.informers.of(resource)
        if answer is not None and (answer.get("metadata") or {}).get("deletionTimestamp"):
            store.observe(answer)
        else:
            store.forget(obj)

    async def write_status(self, obj: Obj, status: Obj) -> None:
        """Write ``status`` when it differs from what the object holds: an idle object costs no write."""
        old = obj.get("status") or {}
        if old == status:
            return
        # A merge patch keeps what it does not name: what is no longer said is taken back.
        gone = dict.fromkeys(old.keys() - status.keys())
        try:
            await self.patch(self.resource, obj, {"status": {**status, **gone}}, sub="status")
        except ApiError as error:
            if error.status != 404:
                raise


def random_suffix() -> str:
    """Five letters that make a name unique among its siblings."""
    return "".join(secrets.choice(SAFE_LETTERS) for _ in range(5))
