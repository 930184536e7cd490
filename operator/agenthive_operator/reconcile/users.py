"""Which agents are to have a Redis user of their own, and whether they have it: as ``reconcile.logins`` for PostgreSQL.

An Agent's reconciler says what it wants and goes on; the look at Redis makes the users and has the Agents looked at
again. A vigil has Redis looked at as soon as one of its servers was restarted and so lost its users. A managed server
finds them again in a file, which follows what it has; many changes at once are one change of the file.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from agenthive.bus.access import user_name
from agenthive.bus.endpoint import Endpoint
from agenthive.settings import HiveScope
from agenthive_operator.backends.kube import Kube
from agenthive_operator.backends.logins import Login, login_in
from agenthive_operator.backends.postgres import Access
from agenthive_operator.backends.reports import StoreReport
from agenthive_operator.backends.users import HiveUsers, UsersError, remove_users
from agenthive_operator.backends.vigil import Vigil
from agenthive_operator.plan.users import user_file
from agenthive_operator.reconcile.cache import Key, ObjectCache
from agenthive_operator.reconcile.logins import PASSWORD_BYTES, is_gone

logger = logging.getLogger(__name__)

SETTLE_SECONDS: Final = 5.0
"""A file of users is written so long after the first change that it lacks: what else changes until then goes with it.
A pod that runs sees a change of a Secret after a minute anyway."""


@dataclass(slots=True)
class _File:
    """A file of users: what it is to hold, whose users it has, and since when there are others."""

    scope: HiveScope
    text: str = field(repr=False)
    standing: Mapping[str, Sequence[str] | None] | None = field(default=None, repr=False)
    since: float | None = None


class Users:
    """The users of the agents of all hives that have such."""

    def __init__(
        self,
        kube: Kube,
        cache: ObjectCache,
        *,
        look_at: Callable[[Key], None],
        look_later: Callable[[Key, float], None],
        poke: Callable[[Key], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """What to call: ``look_at`` has an Agent reconciled, ``poke`` has the Redis of a hive looked at, ``look_later``
        has a hive reconciled in so many seconds.
        """
        self._kube = kube
        self._cache = cache
        self._look_at = look_at
        self._look_later = look_later
        self._poke = poke
        self._clock = clock
        self._hives: dict[Key, HiveUsers] = {}
        self._hive_of: dict[Key, Key] = {}
        self._servers: dict[Key, str] = {}
        self._vigils: dict[Key, Vigil] = {}
        self._locks: dict[Key, asyncio.Lock] = {}
        self._ending: set[Key] = set()
        self._files: dict[Key, _File] = {}

    def want(
        self,
        agent: Key,
        hive: Key,
        scope: HiveScope,
        url: str | None,
        *,
        server: str | None,
        keep: Sequence[str] = (),
    ) -> tuple[Login | None, bool]:
        """The login that an Agent's pods may use; None while the servers are not known to let it in.

        Args:
            agent: The Agent.
            hive: Its hive.
            scope: The hive's.
            url: What the Agent's Secret holds, if it is there: its password is kept if its user is the right one.
            server: The hive's URL that the login is to go with: what was found at another one does not count.
            keep: Passwords that are to be valid, too.

        Returns:
            The login, and whether the servers are to be looked at: this wish is news.
        """
        if self._hive_of.get(agent, hive) != hive:
            self.forget(agent)
        self._hive_of[agent] = hive
        users = self._hives.setdefault(hive, HiveUsers())
        held, name = login_in(url) if url else None, user_name(scope, agent.name)
        if held is not None and held.role == name:
            login = held
        else:
            login = Login(name, users.wished(agent.name) or secrets.token_urlsafe(PASSWORD_BYTES))
        news = users.wish(agent.name, login.password, keep=keep)
        proven = server is not None and self._servers.get(hive) == server
        return (login if proven and users.is_ready(agent.name, login.password) else None), news

    async def sync(
        self, hive: Key, access: Access, scope: HiveScope, report: StoreReport, *, shown: str
    ) -> StoreReport:
        """Make what is wanted, drop what nobody needs any more; the report on Redis in the light of that.

        ``access`` is dialled; ``shown`` is its ``url`` as the hive's Secret has it.
        """
        assert access.admin is not None, "users are made with administrative access"
        vigil = self._vigils.setdefault(hive, Vigil(lambda: self._poke(hive)))
        try:
            endpoint = Endpoint.parse(access.admin)
        except ValueError as error:
            return replace(report, ok=False, reason="UsersFailed", message=f"the administrative URL: {error}")
        if not report.ok:
            if hive not in self._ending and vigil.idle and endpoint.kind != "sentinel":
                vigil.keep(endpoint, endpoint.nodes)
            return report

        async def nobody_needs(agent: str) -> bool:
            return await is_gone(self._kube, self._cache, agent, hive)

        def on_ready(agent: str) -> None:
            self._look_at(Key("Agent", hive.namespace, agent))

        users = self._hives.setdefault(hive, HiveUsers())
        async with self._lock(hive):
            if hive in self._ending:  # a look that began before
                return report
            self._servers[hive] = shown  # nothing is awaited until ``users`` forgets what it knew of another
            try:
                nodes = await users.sync(access, scope, is_gone=nobody_needs, on_ready=on_ready)
            except UsersError as error:
                return replace(report, ok=False, reason=error.reason, message=str(error))
            finally:
                self._note_standing(hive, users)
            if self._vigils.get(hive) is vigil:
                vigil.keep(endpoint, nodes)
        return report

    def has_file(self, hive: Key, scope: HiveScope) -> bool:
        """Whether it is known what the file of a managed server's users is to hold."""
        return hive in self._files and self._files[hive].scope == scope

    def file(self, hive: Key, scope: HiveScope, held: str = "") -> tuple[str, float | None]:
        """What the file of a managed server's users is to hold, and the seconds after which to ask again, if any.

        ``held``: what it holds, where ``has_file`` says no.
        """
        if not self.has_file(hive, scope):
            self._files[hive] = _File(scope, held)
        file, users = self._files[hive], self._hives.get(hive)
        standing = users.standing() if users is not None else None
        if standing is None or standing == file.standing:
            file.since = None
            return file.text, None
        now = self._clock()
        file.since = now if file.since is None else file.since
        if (left := file.since + SETTLE_SECONDS - now) > 0:
            return file.text, left
        found = user_file(scope, file.text, standing)
        if found.left_out:
            logger.warning("the file of the users of %s has no room for %d: see docs/security.md", hive, found.left_out)
        file.text, file.standing, file.since = found.text, standing, None
        return file.text, None

    def forget_file(self, hive: Key) -> None:
        """The hive has no managed server, or none any more."""
        self._files.pop(hive, None)

    def _note_standing(self, hive: Key, users: HiveUsers) -> None:
        """Have the file looked at when its time has come."""
        file, standing = self._files.get(hive), users.standing()
        if file is not None and file.since is None and standing not in (None, file.standing):
            file.since = self._clock()
            self._look_later(hive, SETTLE_SECONDS)

    async def remove(self, hive: Key, url: str, scope: HiveScope) -> None:
        """The hive ends: drop all its users, once the look that may be under way has ended. Raises ``UsersError``."""
        self._ending.add(hive)
        async with self._lock(hive):
            await self._end_vigil(hive)
            await remove_users(url, scope)

    def lets_in(self, agent: Key, password: str) -> bool:
        """Whether the servers are known to let an Agent in with this password."""
        hive = self._hive_of.get(agent)
        return hive in self._hives and self._hives[hive].is_ready(agent.name, password)

    def forget(self, agent: Key) -> Key | None:
        """The Agent is gone; returns the hive whose servers are to be looked at, if it had a user."""
        hive = self._hive_of.pop(agent, None)
        if hive is not None and hive in self._hives:
            self._hives[hive].forget(agent.name)
        return hive

    async def forget_hive(self, hive: Key) -> None:
        """The hive is gone, or its agents have no users any more."""
        self._hives.pop(hive, None)
        self._servers.pop(hive, None)
        self._locks.pop(hive, None)
        self._ending.discard(hive)
        self.forget_file(hive)
        await self._end_vigil(hive)

    async def aclose(self) -> None:
        """Close what is open."""
        for hive in list(self._vigils):
            await self._end_vigil(hive)

    async def _end_vigil(self, hive: Key) -> None:
        if (vigil := self._vigils.pop(hive, None)) is not None:
            await vigil.aclose()

    def _lock(self, hive: Key) -> asyncio.Lock:
        return self._locks.setdefault(hive, asyncio.Lock())
