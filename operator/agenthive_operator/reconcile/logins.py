"""Which agents are to have a database login of their own, and whether they have it.

An Agent's reconciler says what it wants and goes on; the look at PostgreSQL, which nobody waits for, makes the logins
and has the Agents looked at again. So a server that hangs holds no worker. A password is minted once and kept in the
Agent's own Secret alone; until that is written it is in memory, and a new one is minted where that was lost.

While credentials rotate an Agent has two logins: the present one, which its Secret names, and the other. When that is
made and revoked is decided in ``rotation.py``.
"""

from __future__ import annotations

import logging
import secrets
from typing import Final

from agenthive.store.roles import agent_role
from agenthive_operator.backends.kube import AGENT, ApiError, Kube, Object
from agenthive_operator.backends.logins import GENERATIONS, HiveLogins, Login, generations_of, login_in
from agenthive_operator.backends.postgres import Access
from agenthive_operator.backends.reports import SchemaReport
from agenthive_operator.reconcile.cache import Key, ObjectCache
from agenthive_operator.reconcile.queue import KeyedQueue

logger = logging.getLogger(__name__)

PASSWORD_BYTES: Final = 24


class Logins:
    """The logins of the agents of all hives that have such."""

    def __init__(self, kube: Kube, cache: ObjectCache, queue: KeyedQueue[Key]) -> None:
        self._kube = kube
        self._cache = cache
        self._queue = queue
        self._hives: dict[Key, HiveLogins] = {}
        self._hive_of: dict[Key, Key] = {}
        self._servers: dict[Key, str] = {}
        self._present: dict[Key, int] = {}

    def want(
        self, agent: Key, hive: Key, schema: str, url: str | None, *, server: str | None
    ) -> tuple[Login | None, bool]:
        """The login that an Agent's pods may use; None while the server is not known to let it in.

        Args:
            agent: The Agent.
            hive: Its hive.
            schema: The hive's schema.
            url: What the Agent's Secret holds, if it is there: its password is kept if its user is the right one.
            server: The hive's URL that the login is to go with: what was found at another one does not count.

        Returns:
            The login, and whether the server is to be looked at: this wish is news.
        """
        if self._hive_of.get(agent, hive) != hive:
            self.forget(agent)
        self._hive_of[agent] = hive
        logins = self._hives.setdefault(hive, HiveLogins())
        held = login_in(url) if url else None
        generation = generations_of(schema, agent.name).get(held.role) if held is not None else None
        if held is not None and generation is not None:
            login, fresh = held, False
        else:
            login, fresh = self._minted(agent, logins, schema, generation := self._present.get(agent, 0)), True
        self._present[agent] = generation
        news = logins.wish(agent.name, login.password, fresh=fresh, generation=generation)
        ready = self._is_proven(hive, server) and logins.is_ready(agent.name, login.password, generation)
        return (login if ready else None), news

    def follow(self, agent: Key, schema: str, *, server: str | None) -> tuple[Login | None, bool]:
        """The login that is to replace the present one of ``want``; minted with the first call.

        Returns:
            As ``want``.
        """
        logins, generation = self._hives[self._hive_of[agent]], self._other(agent)
        login = self._minted(agent, logins, schema, generation)
        news = logins.wish(agent.name, login.password, fresh=True, generation=generation, following=True)
        ready = self._is_proven(self._hive_of[agent], server)
        return (login if ready and logins.is_ready(agent.name, login.password, generation) else None), news

    def keep(self, agent: Key, schema: str, url: str) -> bool:
        """The former login, which ``url`` holds, is to stay beside the present one. Returns whether that is news."""
        held, generation = login_in(url), self._other(agent)
        if held is None or generations_of(schema, agent.name).get(held.role) != generation:
            return False
        return self._hives[self._hive_of[agent]].wish(agent.name, held.password, fresh=False, generation=generation)

    def revoke(self, agent: Key) -> tuple[bool, bool]:
        """The present login is to be the only one. Returns whether it is, and whether that is to be looked after."""
        logins, generation = self._hives[self._hive_of[agent]], self._other(agent)
        news = logins.revoke(agent.name, generation)
        return logins.is_revoked(agent.name, generation), news

    def has_other(self, agent: Key) -> bool:
        """Whether the server was last seen to have another login than the present one."""
        return self._hives[self._hive_of[agent]].is_there(agent.name, self._other(agent))

    def trouble(self, agent: Key) -> str:
        """What keeps the other login from being let in, or from being revoked; empty if nothing does."""
        return self._hives[self._hive_of[agent]].trouble(agent.name, self._other(agent))

    def _minted(self, agent: Key, logins: HiveLogins, schema: str, generation: int) -> Login:
        known = logins.wished(agent.name, generation)
        return Login(agent_role(schema, agent.name, generation), known or secrets.token_urlsafe(PASSWORD_BYTES))

    def _other(self, agent: Key) -> int:
        return next(generation for generation in GENERATIONS if generation != self._present[agent])

    def _is_proven(self, hive: Key, server: str | None) -> bool:
        return server is not None and self._servers.get(hive) == server

    async def sync(self, hive: Key, access: Access, schema: str, *, shown: str) -> SchemaReport | None:
        """Make what is wanted, drop what nobody needs any more; returns what went wrong, if something did.

        ``access`` is dialled; ``shown`` is its ``url`` as the hive's Secret has it.
        """

        async def nobody_needs(agent: str) -> bool:
            return await is_gone(self._kube, self._cache, agent, hive)

        def on_ready(agent: str) -> None:
            self._queue.add(Key("Agent", hive.namespace, agent))

        logins = self._hives.setdefault(hive, HiveLogins())
        self._servers[hive] = shown  # nothing is awaited until ``logins`` forgets what it knew of another
        return await logins.sync(access, schema, is_gone=nobody_needs, on_ready=on_ready)

    def forget(self, agent: Key) -> Key | None:
        """The Agent is gone; returns the hive whose server is to be looked at, if it had a login."""
        hive = self._hive_of.pop(agent, None)
        self._present.pop(agent, None)
        if hive is not None and hive in self._hives:
            self._hives[hive].forget(agent.name)
        return hive

    def forget_hive(self, hive: Key) -> None:
        """The hive is gone."""
        self._hives.pop(hive, None)
        self._servers.pop(hive, None)


async def is_gone(kube: Kube, cache: ObjectCache, agent: str, hive: Key) -> bool:
    """Whether no Agent of this name is in the hive, and no pod of it left. Only the API server's word counts."""
    if names_hive(cache.get("Agent", hive.namespace, agent), hive.name):
        return False
    if cache.pods_of(hive.namespace, hive=hive.name, agent=agent):
        return False  # its pods drain
    try:
        # rbac: agenthive.dev/agents get
        return not names_hive(await kube.get(AGENT, hive.namespace, agent), hive.name)
    except ApiError as error:
        logger.info("the login of agent %s/%s stays for now: %s", hive.namespace, agent, error)
        return False


def names_hive(agent: Object | None, hive: str) -> bool:
    """Whether this is an Agent of the hive. Pure."""
    return agent is not None and ((agent.get("spec") or {}).get("hiveRef") or {}).get("name") == hive
