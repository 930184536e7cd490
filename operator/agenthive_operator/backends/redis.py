"""Redis as the operator sees it: is it there, may we in, what do the queues of a hive hold."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from redis import asyncio as aioredis
from redis.exceptions import AuthenticationError, BusyLoadingError, NoPermissionError, RedisError

from agenthive.bus import Bus
from agenthive.settings import HiveScope, RedisPool
from agenthive_operator.backends.reports import Figures, StoreReport, endpoint_of, without_secret

CLIENT_NAME: Final = "agenthive:operator"
PROBE_SECONDS: Final = 5.0
OLDEST: Final = (7, 0)
DEFAULT_PORT: Final = 6379
CLEANUP_BATCH: Final = 500


async def probe(url: str, *, shown: str | None = None, timeout: float = PROBE_SECONDS) -> StoreReport:
    """Connect, log in and ask for the version; never raises, and leaves nothing behind.

    ``url`` is dialled; ``shown`` is the URL as the user knows it, where Service names were resolved first.
    """
    try:
        endpoint = endpoint_of(shown or url, DEFAULT_PORT)
        client = aioredis.Redis.from_url(
            url, socket_connect_timeout=timeout, socket_timeout=timeout, client_name=CLIENT_NAME, retry=None
        )
    except ValueError as error:
        text = without_secret(str(error), url)
        return StoreReport(False, "InvalidURL", f"{text}; write redis://:password@host:6379/0")
    try:
        async with asyncio.timeout(timeout):
            info = await client.info("server")
    except AuthenticationError as error:
        return StoreReport(False, "AuthenticationFailed", f"Redis at {endpoint} refuses the login: {error}", endpoint)
    except NoPermissionError as error:
        text = f"Redis at {endpoint} forbids this user the INFO command: {error}"
        return StoreReport(False, "AuthenticationFailed", text, endpoint)
    except BusyLoadingError:
        return StoreReport(False, "Loading", f"Redis at {endpoint} is loading its data", endpoint)
    except (RedisError, OSError, TimeoutError) as error:
        text = without_secret(str(error), url) or f"no answer within {timeout:g} s"
        return StoreReport(False, "Unreachable", f"Redis at {endpoint}: {text}", endpoint)
    finally:
        await client.aclose()
    return judge(info, endpoint)


def judge(info: dict[str, object], endpoint: str) -> StoreReport:
    """Whether the server that answered INFO with this is recent enough. Pure."""
    spoken = str(info.get("redis_version", ""))
    own = str(info.get("valkey_version", "")) or spoken
    name = "Valkey" if "valkey_version" in info else "Redis"
    numbers = tuple(int(part) for part in spoken.split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        text = f"{name} at {endpoint} is {own or 'of unknown version'}: Redis ≥ 7 or Valkey ≥ 7.2 is needed"
        return StoreReport(False, "VersionTooOld", text, endpoint, own)
    return StoreReport(True, "Reachable", f"{name} {own} at {endpoint}", endpoint, own)


class HiveQueues:
    """The queues of one hive, over a connection that is kept while it works."""

    def __init__(self) -> None:
        self._bus: Bus | None = None
        self._target: tuple[str, HiveScope] | None = None

    async def figures(self, url: str, scope: HiveScope, agents: Sequence[str]) -> dict[str, Figures]:
        """Backlog and the rest of each agent, by its name.

        Raises ``agenthive.bus.BusUnavailable`` or a ``redis.exceptions.RedisError`` when Redis cannot be asked; the
        next call connects anew.
        """
        if self._target != (url, scope):
            await self.aclose()
        if self._bus is None:
            # Two connections at most: one round trip every few seconds needs no more.
            self._bus = await Bus.connect(url, scope, pool=RedisPool(max_connections=2), client_name=CLIENT_NAME)
            self._target = (url, scope)
        try:
            stats = await self._bus.queues(agents)
        except BaseException:
            await self.aclose()
            raise
        return {
            agent: Figures(entry.backlog, entry.in_flight, entry.dead_letters, entry.oldest)
            for agent, entry in stats.items()
        }

    async def aclose(self) -> None:
        """Close the connection."""
        bus, self._bus, self._target = self._bus, None, None
        if bus is not None:
            await bus.aclose()


async def remove_hive(url: str, scope: HiveScope, *, timeout: float) -> int:
    """Delete every key of a hive; returns how many there were.

    Raises ``TimeoutError`` or a ``redis.exceptions.RedisError``; what was deleted by then stays deleted, and another
    call goes on with the rest.
    """
    removed = 0
    client = aioredis.Redis.from_url(url, client_name=CLIENT_NAME, socket_connect_timeout=PROBE_SECONDS)
    try:
        async with asyncio.timeout(timeout):
            for pattern in hive_patterns(scope):
                batch: list[bytes] = []
                async for key in client.scan_iter(match=pattern, count=CLEANUP_BATCH):
                    batch.append(key)
                    if len(batch) >= CLEANUP_BATCH:
                        removed += await client.unlink(*batch)
                        batch.clear()
                if batch:
                    removed += await client.unlink(*batch)
    finally:
        await client.aclose()
    return removed


def hive_patterns(scope: HiveScope) -> tuple[str, str]:
    """Patterns of exactly the keys of a hive: its own and those of its agents."""
    own = scope.hive_prefix
    agents = scope.key_prefix("*")
    return f"{own}*", f"{agents}*"
