"""Which agents are to have a Redis user of their own, and whether they have it: as ``reconcile.logins`` for PostgreSQL.

An Agent's reconciler says what it wants and goes on; the look at Redis makes the users and has the Agents looked at
again. A vigil has Redis looked at as soon as one of its servers was restarted and so lost its users.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace

from agenthive.bus.access import user_name
from agenthive.bus.endpoint import Endpoint
from agenthive.settings import HiveScope
from agenthive_operator.backends.kube import Kube
from agenthive_operator.backends.logins import Login, login_in
from agenthive_operator.backends.postgres import Access
from agenthive_operator.backends.reports import StoreReport
from agenthive_operator.backends.users import HiveUsers, UsersError, remove_users
from agenthive_operator.backends.vigil import Vigil
from agenthive_operator.reconcile.cache import Key, ObjectCache
from agenthive_operator.reconcile.logins import PASSWORD_BYTES, is_gone


class Users:
    """The users of the agents of all hives that have such."""

    def __init__(
        self, kube: Kube, cache: ObjectCache, *, look_at: Callable[[Key], None], poke: Callable[[Key], None]
    ) -> None:
        """``look_at`` has an Agent reconciled, ``poke`` has the Redis of a hive looked at."""
        self._kube = kube
        self._cache = cache
        self._look_at = look_at
        self._poke = poke
        self._hives: dict[Key, HiveUsers] = {}
        self._hive_of: dict[Key, Key] = {}
        self._servers: dict[Key, str] = {}
        self._vigils: dict[Key, Vigil] = {}
        self._locks: dict[Key, asyncio.Lock] = {}
        self._ending: set[Key] = set()

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
            if self._vigils.get(hive) is vigil:
                vigil.keep(endpoint, nodes)
        return report

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
