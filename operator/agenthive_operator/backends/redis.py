"""Redis as the operator sees it: is it there, may we in, what do the queues of a hive hold."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from agenthive.bus import Bus, BusUnavailable
from agenthive.bus.connections import Connections, info_fields, wrong_kind
from agenthive.bus.endpoint import DEFAULT_PORT, Endpoint
from agenthive.bus.errors import AccessDenied
from agenthive.bus.wire import Command, ReplyError
from agenthive.settings import HiveScope, RedisPool
from agenthive_operator.backends import redis_checks
from agenthive_operator.backends.reports import Figures, StoreReport, endpoint_of, without_secret
from agenthive_operator.backends.tls_advice import tls_advice, tls_error

__all__ = ["DEFAULT_PORT", "HiveQueues", "Needs", "hive_patterns", "probe", "remove_hive"]

#: The field that names the Secret with each URL of an external server.
FIELDS: Final = {
    "url": "spec.redis.external.urlSecretRef",
    "admin": "spec.redis.external.adminUrlSecretRef",
}
CLIENT_NAME: Final = "agenthive:operator"
PROBE_SECONDS: Final = 5.0
CLEANUP_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Needs:
    """What the bus of one hive needs of its Redis.

    Attributes:
        prefix: Of the hive's keys.
        loads: Whether who logs in by this URL also loads the functions.
        replicated: Whether messages are to be on a replica before they count as accepted.
    """

    prefix: str
    loads: bool = True
    replicated: bool = False


async def probe(
    url: str, *, shown: str | None = None, needs: Needs | None = None, timeout: float = PROBE_SECONDS
) -> StoreReport:
    """Connect, log in, ask each master once what it is and lets us do; never raises, and leaves nothing behind.

    ``url`` is dialled; ``shown`` is the URL as the user knows it, where Service names were resolved first. Without
    ``needs`` (a cache) it is enough that the server answers, is no replica and recent enough.
    """
    try:
        endpoint = endpoint_of(shown or url, DEFAULT_PORT)
        connections = open_connections(url, timeout)
    except ValueError as error:
        text = without_secret(str(error), url)
        return StoreReport(False, "InvalidURL", f"{text}; write redis://:password@host:6379/0")
    asked = redis_checks.questions(needs.prefix, loads=needs.loads) if needs else {}
    try:
        async with asyncio.timeout(timeout):
            answers = await asyncio.gather(
                *(connections.ask(redis_checks.commands(asked), at=at) for at in await connections.masters())
            )
    except AccessDenied as error:
        text = f"Redis at {endpoint} refuses the login: {without_secret(str(error), url)}"
        return StoreReport(False, "AuthenticationFailed", text, endpoint)
    except TimeoutError:
        return StoreReport(False, "Unreachable", f"Redis at {endpoint}: no answer within {timeout:g} s", endpoint)
    except BusUnavailable as error:
        if (failed := tls_error(error)) is not None:
            return StoreReport(False, "TLSFailed", f"Redis at {endpoint}: {tls_advice(failed, 'redis')}", endpoint)
        text = without_secret(str(error.__cause__ or error), url)
        if "LOADING" in text:
            return StoreReport(False, "Loading", f"Redis at {endpoint} is loading its data", endpoint)
        return StoreReport(
            False, "TLSFailed" if "TLS failed" in text else "Unreachable", f"Redis at {endpoint}: {text}", endpoint
        )
    finally:
        await connections.aclose()
    replicated = needs is not None and needs.replicated
    return together([_judge(each, asked, endpoint, connections.endpoint, replicated) for each in answers])


def _judge(
    answers: Sequence[Any], asked: Mapping[str, Command], endpoint: str, form: Endpoint, replicated: bool
) -> StoreReport:
    report = redis_checks.judge(answers, asked, endpoint, replicated=replicated)
    about = {} if isinstance(answers[0], ReplyError) else info_fields(answers[0])
    if (problem := wrong_kind(about, form)) is not None:
        return StoreReport(False, "InvalidURL", f"Redis at {endpoint} {problem}", endpoint)
    return report


def together(reports: Sequence[StoreReport]) -> StoreReport:
    """One report on all masters: the first that is not good, else every warning once. Pure."""
    worst = next((report for report in reports if not report.ok), reports[0])
    warnings = dict.fromkeys(warning for report in reports for warning in report.warnings)
    return replace(worst, warnings=tuple(warnings)) if worst.ok else worst


def open_connections(url: str, timeout: float) -> Connections:
    """Connections of the operator's to a Redis, to be closed by the caller. Raises ``ValueError``."""
    options = {"client_name": CLIENT_NAME, "connect_timeout": timeout, "socket_timeout": timeout}
    return Connections(Endpoint.parse(url, **options), RedisPool(max_connections=2))


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
    connections = open_connections(url, PROBE_SECONDS)
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
