"""What a list lacks may be there all the same: of each such object the API server is asked before it is given up.

A broken cache or proxy, or a filter of an authoriser, answers a list with 200 and no items. Believed, that would read
as the deletion of everything: logins dropped, finalizers lifted, stores cleaned. One GET for each object that is
lacking costs nothing while watches work, as they tell what is deleted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agenthive_operator.backends.kube import CUSTOM, ApiError, Kube, Object, Resource
from agenthive_operator.reconcile.cache import ref_of
from agenthive_operator.reconcile.children import is_labelled

logger = logging.getLogger(__name__)

AT_A_TIME: Final = 8


@dataclass(slots=True)
class Confirmed:
    """Of the objects that a list lacks: how many are gone, are there all the same, could not be asked for."""

    gone: int = 0
    there: int = 0
    unknown: int = 0


async def confirm_gone(
    kube: Kube, resource: Resource, lacking: list[Object], went: Callable[[Object], None]
) -> Confirmed:
    """Ask for each object that a list lacks; ``went`` is told each that is gone. Never raises ``ApiError``."""
    confirmed = Confirmed()
    waiting = iter(lacking)

    async def ask() -> None:
        for obj in waiting:
            try:
                gone = await _is_gone(kube, resource, obj)
            except ApiError as error:
                logger.debug("whether %s %s/%s is gone: %s", *ref_of(obj), error)
                # What is refused today is refused tomorrow: it stays known, and nobody asks again until the next list.
                confirmed.unknown += error.status != 403
                continue
            if gone:
                confirmed.gone += 1
                went(obj)
            else:
                confirmed.there += 1

    await asyncio.gather(*(ask() for _ in range(min(AT_A_TIME, len(lacking)))))
    return confirmed


async def _is_gone(kube: Kube, resource: Resource, obj: Object) -> bool:
    """Whether this very object does not exist any more, or is none that we watch. Raises ``ApiError``."""
    _, namespace, name = ref_of(obj)
    # rbac: agenthive.dev/agenthives get
    # rbac: agenthive.dev/agents get
    # rbac: apps/deployments get
    # rbac: apps/statefulsets get
    # rbac: core/services get
    # rbac: core/secrets get
    # rbac: core/configmaps get
    # rbac: core/pods get
    found = await kube.get(resource, namespace, name)
    if found is None or found["metadata"]["uid"] != obj["metadata"]["uid"]:
        return True
    return resource not in CUSTOM and not is_labelled(found)
