"""Redis as the operator sees it: is it there, may we in, what do the queues of a hive hold."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from agenthive.bus import Bus, BusUnavailable
from agenthive.bus.connections import Connections, wrong_kind
from agenthive.bus.endpoint import DEFAULT_PORT, Endpoint
from agenthive.bus.errors import AccessDenied
from agenthive.settings import HiveScope, RedisPool
from agenthive_operator.backends.reports import Figures, StoreReport, endpoint_of, without_secret

__all__ = ["DEFAULT_PORT", "HiveQueues", "hive_patterns", "judge", "probe", "remove_hive"]

#: The field that names the Secret with each URL of an external server.
FIELDS: Final = {
    "url": "spec.redis.external.urlSecretRef",
    "admin": "spec.redis.external.adminUrlSecretRef",
}
CLIENT_NAME: Final = "agenthive:operator"
PROBE_SECONDS: Final = 5.0
OLDEST: Final = (7, 0)
CLEANUP_BATCH: Final = 500


async def probe(url: str, *, shown: str | None = None, timeout: float = PROBE_SECONDS) -> StoreReport:
    """Connect, log in and ask for the version; never raises, and leaves nothing behind.

    ``url`` is dialled; ``shown`` is the URL as the user knows it, where Service names were resolved first.
    """
    try:
        endpoint = endpoint_of(shown or url, DEFAULT_PORT)
        connections = _connections(url, timeout)
    except ValueError as error:
        text = without_secret(str(error), url)
        return StoreReport(False, "InvalidURL", f"{text}; write redis://:password@host:6379/0")
    try:
        async with asyncio.timeout(timeout):
            info = await connections.look()
    except AccessDenied as error:
        text = f"Redis at {endpoint} refuses the login: {without_secret(str(error), url)}"
        return StoreReport(False, "AuthenticationFailed", text, endpoint)
    except TimeoutError:
        return StoreReport(False, "Unreachable", f"Redis at {endpoint}: no answer within {timeout:g} s", endpoint)
    except BusUnavailable as error:
        text = without_secret(str(error.__cause__ or error), url)
        if "LOADING" in text:
            return StoreReport(False, "Loading", f"Redis at {endpoint} is loading its data", endpoint)
        return StoreReport(False, "Unreachable", f"Redis at {endpoint}: {text}", endpoint)
    finally:
        await connections.aclose()
    if (problem := wrong_kind(info, connections.endpoint)) is not None:
        return StoreReport(False, "InvalidURL", f"Redis at {endpoint} {problem}", endpoint)
    return judge(info, endpoint)


def _connections(url: str, timeout: float) -> Connections:
    """Raises ``ValueError``."""
    options = {"client_name": CLIENT_NAME, "connect_timeout": timeout, "socket_timeout": timeout}
    return Connections(Endpoint.parse(url, **options), RedisPool(max_connections=2))


def judge(info: Mapping[str, object], endpoint: str) -> StoreReport:
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

        Raises ``agenthive.bus.BusUnavailable`` when Redis cannot be asked; the next call connects anew.
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
    """Delete every key of a hive, on every master of a cluster; returns how many there were.

    Raises ``TimeoutError``, ``ValueError`` or ``agenthive.bus.BusUnavailable``; what was deleted by then stays deleted,
    and another call goes on with the rest.
    """
    removed = 0
    connections = _connections(url, PROBE_SECONDS)
    try:
        async with asyncio.timeout(timeout):
            for master in await connections.masters():
                for pattern in hive_patterns(scope):
                    cursor = b"0"
                    while True:
                        scan = ("SCAN", cursor, "MATCH", pattern, "COUNT", CLEANUP_BATCH)
                        ((cursor, keys),) = await connections.execute([scan], at=master)
                        # Keys of a batch differ in their slots: one command each.
                        if keys:
                            removed += sum(await connections.execute([("UNLINK", key) for key in keys], at=master))
                        if cursor == b"0":
                            break
    finally:
        await connections.aclose()
    return removed


def hive_patterns(scope: HiveScope) -> tuple[str, str]:
    """Patterns of exactly the keys of a hive: its own and those of its agents."""
    own = scope.hive_prefix
    agents = scope.key_prefix("*")
    return f"{own}*", f"{agents}*"
