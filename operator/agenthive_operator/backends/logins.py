"""The database logins of a hive's agents: made where the operator has administrative access, dropped with their agent.

What an agent's pods connect with is the hive's URL with a login that row-level security restricts to the agent's rows.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlunsplit

from agenthive.store.database import Address, close_once, connect_once
from agenthive.store.errors import StoreError, StorePermissionError, StoreUnavailable
from agenthive.store.roles import (
    agent_role,
    drop_agent,
    ensure_agent,
    ensure_agents,
    ensure_roles,
    known_agents,
    role_names,
)
from agenthive.urls import split_url
from agenthive_operator.backends.postgres import CLIENT_NAME, FIELDS, Access
from agenthive_operator.backends.reports import SchemaReport
from agenthive_operator.plan.cutover import leads_to

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Login:
    """User and password of one agent."""

    role: str
    password: str = field(repr=False)


TOGETHER: Final = 20
"""So many logins are made in one transaction: each hashes its password, which the event loop waits for."""
GENERATIONS: Final = (0, 1)
"""An agent's logins take turns: a role has one password, and two are to be valid while the one replaces the other."""

Slot = tuple[str, int]
"""An agent and a generation of its login."""


@dataclass(frozen=True, slots=True)
class _Wish:
    password: str = field(repr=False)
    #: The server has never been told this password; one from a Secret that stands is believed to be the server's.
    fresh: bool
    #: No pod uses it yet: it is tried by itself, and what keeps it out is no trouble of the hive's.
    following: bool = False


class HiveLogins:
    """The logins of one hive in one database.

    What was made here is not made again; what somebody dropped by hand is. A restarted operator believes that a login
    which the server knows has the password in its agent's Secret.
    """

    def __init__(self) -> None:
        self._target: tuple[Access, str] | None = None
        self._wishes: dict[Slot, _Wish] = {}
        self._made: dict[Slot, str] = {}
        self._there: set[Slot] = set()
        self._revoked: dict[Slot, bool] = {}
        self._troubles: dict[Slot, str] = {}
        self._proven = False

    def wish(self, agent: str, password: str, *, fresh: bool, generation: int = 0, following: bool = False) -> bool:
        """``agent`` is to have a login with this password. Returns whether that is news.

        Another generation is another login, beside this one; ``following``: no pod uses it yet.
        """
        slot = (agent, generation)
        known = self._wishes.get(slot)
        self._revoked.pop(slot, None)
        if known is not None and known.password == password:
            if known.following and not following:
                self._wishes[slot] = _Wish(password, known.fresh)
            return False
        self._wishes[slot] = _Wish(password, fresh or known is not None, following)
        return True

    def revoke(self, agent: str, generation: int) -> bool:
        """``agent`` is to lose this login; it goes with the next ``sync``. Returns whether that is news."""
        slot = (agent, generation)
        self._wishes.pop(slot, None)
        news = slot not in self._revoked
        self._revoked.setdefault(slot, False)
        return news

    def is_revoked(self, agent: str, generation: int) -> bool:
        """Whether the server was found, since ``revoke``, to have no such login."""
        return self._revoked.get((agent, generation), False)

    def is_there(self, agent: str, generation: int) -> bool:
        """Whether the server had such a login at the latest ``sync``."""
        return (agent, generation) in self._there

    def wished(self, agent: str, generation: int = 0) -> str | None:
        """The password that ``agent`` is to have, if it is to have one."""
        wish = self._wishes.get((agent, generation))
        return wish.password if wish else None

    def trouble(self, agent: str, generation: int) -> str:
        """What keeps this login from being let in, of one that no pod uses yet, or from being revoked; else empty."""
        return self._troubles.get((agent, generation), "")

    def forget(self, agent: str) -> None:
        """``agent`` is gone; its logins go with the next ``sync``."""
        for generation in GENERATIONS:
            for known in (self._wishes, self._revoked, self._troubles):
                known.pop((agent, generation), None)

    def is_ready(self, agent: str, password: str, generation: int = 0) -> bool:
        """Whether the server was found to let ``agent`` in with this password."""
        return self._proven and self._made.get((agent, generation)) == password

    async def sync(
        self,
        access: Access,
        schema: str,
        *,
        is_gone: Callable[[str], Awaitable[bool]],
        on_ready: Callable[[str], None],
    ) -> SchemaReport | None:
        """Bring the logins about, in a schema that is up to date.

        Args:
            access: The database, with ``admin``; dialled.
            schema: The hive's.
            is_gone: Asked before an agent's logins are dropped: whether nobody needs them any more.
            on_ready: Told each agent of which a login became ready or was revoked, as soon as it is: a thousand take a
                while.

        Returns:
            What went wrong, if something did.
        """
        assert access.admin is not None, "logins are made with administrative access"
        if self._target != (access, schema):
            if self._target is not None and not leads_to(access.url, self._target[0].url):
                # Another server: who was there before may have passwords that were replaced since.
                self._wishes = {slot: replace(wish, fresh=True) for slot, wish in self._wishes.items()}
            self._target, self._made, self._proven = (access, schema), {}, False
            self._revoked = dict.fromkeys(self._revoked, False)
        try:
            connection = await connect_once(Address.parse(access.admin), CLIENT_NAME)
            try:
                # The hive's own login, which command lines use, acts as the owner: it may not be who migrates.
                user = user_of(access.url)
                await ensure_roles(connection, schema, also=[user] if user else [])
                known = await known_agents(connection, schema)
                slots = {agent: generations_of(schema, agent) for agent in set(known.values())}
                wished = {agent for agent, _ in self._wishes}
                self._there = {(agent, slots[agent][role]) for role, agent in known.items() if role in slots[agent]}
                for agent in sorted(slots.keys() - wished):
                    if await is_gone(agent):
                        await self._drop(connection, schema, agent)
                        self._there -= {(agent, generation) for generation in GENERATIONS}
                await self._revoke(connection, schema, on_ready)
                return await self._make(connection, access, schema, on_ready)
            finally:
                await close_once(connection)
        except StoreError as error:
            return report_of(error)

    async def _make(
        self, connection: Any, access: Access, schema: str, on_ready: Callable[[str], None]
    ) -> SchemaReport | None:
        """Logins that lack; one that cannot be made does not keep the others from being made."""
        failure: SchemaReport | None = None
        together = False
        for slot in sorted(self._wishes):
            if self._proven and not together:  # the first has shown that agents are let in
                together = True
                await self._make_together(connection, schema)
            wish = self._wishes.get(slot)
            if wish is None:
                continue  # the agent went meanwhile
            agent, generation = slot
            if slot in self._there and self._made.get(slot) == wish.password and self._proven:
                continue
            try:
                if self._lacks(slot, wish):
                    self._made.pop(slot, None)
                    await ensure_agent(connection, schema, agent, wish.password, generation=generation)
                    self._there.add(slot)
                    logger.info("made login %d of agent %s in schema %s", generation, agent, schema)
                    self._believe(slot, wish, fresh=False)
                refusal = None
                if wish.following or not self._proven:
                    refusal = await self._prove(access, schema, slot, wish)
                if refusal is not None and not wish.following:
                    return refusal
            except StoreUnavailable:
                raise
            except StoreError as error:
                refusal = report_of(error)
                failure = failure or (None if wish.following else refusal)
            if refusal is None:
                self._troubles.pop(slot, None)
                self._made[slot] = wish.password
                on_ready(agent)
            elif wish.following:
                self._trouble(slot, refusal.message, on_ready)
        return failure

    def _lacks(self, slot: Slot, wish: _Wish) -> bool:
        """Whether the server has to be told of a login, or of its password."""
        made = self._made.get(slot)
        return slot not in self._there or made not in {None, wish.password} or (made is None and wish.fresh)

    async def _make_together(self, connection: Any, schema: str) -> None:
        """Make what lacks, many in a transaction. Those among which one cannot be made are left to ``_make``."""
        lacking = [
            (slot, wish)
            for slot, wish in sorted(self._wishes.items(), key=lambda entry: entry[0])
            if self._lacks(slot, wish)
        ]
        for start in range(0, len(lacking) if len(lacking) > 1 else 0, TOGETHER):
            some = lacking[start : start + TOGETHER]
            for slot, _ in some:
                self._made.pop(slot, None)
            try:
                await ensure_agents(connection, schema, [(*slot, wish.password) for slot, wish in some])
            except StoreUnavailable:
                raise
            except StoreError as error:
                logger.debug("%d logins in schema %s are made one by one: %s", len(some), schema, error)
                continue
            for slot, wish in some:
                self._there.add(slot)
                self._believe(slot, wish, fresh=False)
                logger.info("made login %d of agent %s in schema %s", slot[1], slot[0], schema)

    def _believe(self, slot: Slot, wish: _Wish, *, fresh: bool) -> None:
        """Note whether the server knows the password of ``wish``, unless another was wished for meanwhile."""
        if self._wishes.get(slot) is wish:
            self._wishes[slot] = _Wish(wish.password, fresh, wish.following)

    def _trouble(self, slot: Slot, text: str, on_ready: Callable[[str], None]) -> None:
        if self._troubles.get(slot) != text:
            self._troubles[slot] = text
            logger.warning("login %d of agent %s: %s", slot[1], slot[0], text)
            on_ready(slot[0])

    async def _drop(self, connection: Any, schema: str, agent: str) -> None:
        """A login that cannot be dropped, as it owns something elsewhere, lets nobody in: no reason to stop."""
        try:
            dropped = await drop_agent(connection, schema, agent)
        except StoreUnavailable:
            raise
        except StoreError as error:
            logger.warning("the login of agent %s, which is gone, stays: %s", agent, error)
        else:
            for generation in GENERATIONS:
                self._made.pop((agent, generation), None)
            logger.info("dropped %s of agent %s, which is gone", ", ".join(dropped) or "no login", agent)

    async def _revoke(self, connection: Any, schema: str, on_ready: Callable[[str], None]) -> None:
        """Drop the logins that were replaced; one that cannot be dropped keeps nothing else from being done."""
        for slot in sorted(slot for slot, done in self._revoked.items() if not done):
            (agent, generation), dropped = slot, list[str]()
            if slot in self._there:
                try:
                    dropped = await drop_agent(connection, schema, agent, generation=generation)
                except StoreUnavailable:
                    raise
                except StoreError as error:
                    self._trouble(slot, str(error), on_ready)
                    continue
            self._there.discard(slot)
            self._made.pop(slot, None)
            self._troubles.pop(slot, None)
            if slot in self._revoked:  # nobody wished for it again meanwhile
                self._revoked[slot] = True
            on_ready(agent)
            if dropped:
                logger.info("dropped %s of agent %s, which was replaced", ", ".join(dropped), agent)

    async def _prove(self, access: Access, schema: str, slot: Slot, wish: _Wish) -> SchemaReport | None:
        """Log in as an agent once, the way its pods do: a PgBouncer or a pg_hba.conf may not know the new logins."""
        url = with_login(access.url, Login(agent_role(schema, *slot), wish.password))
        try:
            connection = await connect_once(Address.parse(url), CLIENT_NAME)
        except StoreUnavailable:
            raise
        except StoreError as error:
            # Perhaps somebody changed this one's password, which was believed: it is set with the next look.
            self._believe(slot, wish, fresh=True)
            return SchemaReport(
                False,
                "RolesFailed",
                f"agents get logins of their own, and by {FIELDS['url']} they are not let in: {error}. Both URLs must "
                "lead to the same database; let pg_hba.conf in, and PgBouncer by auth_query, the members of role "
                f"{role_names(schema).agents}; or leave adminUrlSecretRef out, and agents use the hive's own login",
            )
        await close_once(connection)
        self._proven = True
        return None


def generations_of(schema: str, agent: str) -> dict[str, int]:
    """The logins that an agent may have, and which generation each is. Pure."""
    return {agent_role(schema, agent, generation): generation for generation in GENERATIONS}


def report_of(error: StoreError) -> SchemaReport:
    """What SchemaReady says where logins could not be made. Pure."""
    if isinstance(error, StoreUnavailable):
        return SchemaReport(False, "WaitingForPostgres", str(error))
    hint = f"; what makes them is the URL of {FIELDS['admin']}" if isinstance(error, StorePermissionError) else ""
    return SchemaReport(False, "RolesFailed", f"{error}{hint}")


def with_login(url: str, login: Login) -> str:
    """``url`` of a PostgreSQL or Redis with another user and password. Pure."""
    parts = split_url(url, "the URL")
    query = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name not in _LOGIN]
    netloc = f"{quote(login.role, safe='')}:{quote(login.password, safe='')}@{parts.netloc.rpartition('@')[2]}"
    return urlunsplit(parts._replace(netloc=netloc, query=urlencode(query)))


def login_in(url: str) -> Login | None:
    """User and password of a URL; None where it does not hold both. Pure."""
    try:
        user, _, password = split_url(url, "the URL").netloc.rpartition("@")[0].partition(":")
    except ValueError:
        return None
    return Login(unquote(user), unquote(password)) if user and password else None


def user_of(url: str) -> str | None:
    """The user that a PostgreSQL URL names. Pure."""
    parts = split_url(url, "the PostgreSQL URL")
    return dict(parse_qsl(parts.query)).get("user") or unquote(parts.username or "") or None


_LOGIN = frozenset({"user", "password", "passfile"})
