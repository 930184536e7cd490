"""Requests of a program that runs once: an API server that is away for a moment is asked again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from agenthive_operator.backends.kube import ApiError

LOOK_SECONDS: Final = 0.5
"""Between two looks at the same thing."""
PATIENCE_SECONDS: Final = 30.0

T = TypeVar("T")


async def patiently(request: Callable[[], Awaitable[T]], *, seconds: float = PATIENCE_SECONDS) -> T:
    """What ``request`` returns; it is tried again for so long while trying again may help. Raises ``ApiError``."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return await request()
        except ApiError as error:
            if not error.transient or time.monotonic() > deadline:
                raise
        await asyncio.sleep(LOOK_SECONDS)
