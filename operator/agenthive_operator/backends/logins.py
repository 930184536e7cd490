"""The database logins of a hive's agents: made where the operator has administrative access, dropped with their agent.

What an agent's pods connect with is the hive's URL with a login that row-level security restricts to the agent's rows.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlunsplit

from agenthive.store.database import Address, close_once, connect_once
from agenthive.store.errors import StoreError, StorePermissionError, StoreUnavailable
from agenthive.store.roles import agent_role, drop_agent, ensure_agent, ensure_roles, known_agents, role_names
from agenthive.urls import split_url
from agenthive_operator.backends.postgres import CLIENT_NAME, FIELDS, Access
from agenthive_operator.backends.reports import SchemaReport

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Login:
    """User and password of one agent."""

    role: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Wish:
    password: str = field(repr=False)
    #: The server has never been told this password; one from a Secret that stands is believed to be the server's.
    fresh: bool


class HiveLogins:
    """The logins of one hive in one database.

    What was made here is not made again; what somebody dropped by hand is. A restarted operator believes that a login
    which the server knows has the password in its agent's Secret.
    """

    def __init__(self) -> None:
        self._target: tuple[Access, str] | None = None
        self._wishes: dict[str, _Wish] = {}
        self._made: dict[str, str] = {}
        self._proven = False

    def wish(self, agent: str, password: str, *, fresh: bool) -> bool:
        """``agent`` is to have a login with this password. Returns whether that is news."""
        known = self._wishes.get(agent)
        if known is not None and known.password == password:
            return False
        self._wishes[agent] = _Wish(password, fresh or known is not None)
        return True

    def wished(self, agent: str) -> str | None:
        """The password that ``agent`` is to have, if it is to have one."""
        wish = self._wishes.get(agent)
        return wish.password if wish else None

    def forget(self, agent: str) -> None:
        """``agent`` is gone; its login goes with the next ``sync``."""
        self._wishes.pop(agent, None)

    def is_ready(self, agent: str, password: str) -> bool:
        """Whether the server was found to let ``agent`` in with this password."""
        return self._proven and self._made.get(agent) == password

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
            is_gone: Asked before an agent's login is dropped: whether nobody needs it any more.
            on_ready: Told each agent whose login became ready, as soon as it is: a thousand take a while.

        Returns:
            What went wrong, if something did.
        """
        assert access.admin is not None, "logins are made with administrative access"
        if self._target != (access, schema):
            self._target, self._made, self._proven = (access, schema), {}, False
        try:
            connection = await connect_once(Address.parse(access.admin), CLIENT_NAME)
            try:
                # The hive's own login, which command lines use, acts as the owner: it may not be who migrates.
                user = user_of(access.url)
                await ensure_roles(connection, schema, also=[user] if user else [])
                there = set((await known_agents(connection, schema)).values())
                for agent in sorted(there - self._wishes.keys()):
                    if await is_gone(agent):
                        await self._drop(connection, schema, agent)
                        there.discard(agent)
                return await self._make(connection, access, schema, there, on_ready)
            finally:
                await close_once(connection)
        except StoreError as error:
            return report_of(error)

    async def _make(
        self, connection: Any, access: Access, schema: str, there: set[str], on_ready: Callable[[str], None]
    ) -> SchemaReport | None:
        """Logins that lack; one that cannot be made does not keep the others from being made."""
        failure: SchemaReport | None = None
        for agent, wish in sorted(self._wishes.items()):
            made = self._made.get(agent)
            if agent in there and made == wish.password and self._proven:
                continue
            try:
                if agent not in there or made not in {None, wish.password} or (made is None and wish.fresh):
                    self._made.pop(agent, None)
                    await ensure_agent(connection, schema, agent, wish.password)
                    logger.info("made the login of agent %s in schema %s", agent, schema)
                    self._believe(agent, wish, fresh=False)
                if not self._proven and (refusal := await self._prove(access, schema, agent, wish)):
                    return refusal
            except StoreUnavailable:
                raise
            except StoreError as error:
                failure = failure or report_of(error)
            else:
                self._made[agent] = wish.password
                on_ready(agent)
        return failure

    def _believe(self, agent: str, wish: _Wish, *, fresh: bool) -> None:
        """Note whether the server knows the password of ``wish``, unless another was wished for meanwhile."""
        if self._wishes.get(agent) is wish:
            self._wishes[agent] = _Wish(wish.password, fresh)

    async def _drop(self, connection: Any, schema: str, agent: str) -> None:
        """A login that cannot be dropped, as it owns something elsewhere, lets nobody in: no reason to stop."""
        try:
            dropped = await drop_agent(connection, schema, agent)
        except StoreUnavailable:
            raise
        except StoreError as error:
            logger.warning("the login of agent %s, which is gone, stays: %s", agent, error)
        else:
            self._made.pop(agent, None)
            logger.info("dropped %s of agent %s, which is gone", ", ".join(dropped) or "no login", agent)

    async def _prove(self, access: Access, schema: str, agent: str, wish: _Wish) -> SchemaReport | None:
        """Log in as an agent once, the way its pods do: a PgBouncer or a pg_hba.conf may not know the new logins."""
        url = with_login(access.url, Login(agent_role(schema, agent), wish.password))
        try:
            connection = await connect_once(Address.parse(url), CLIENT_NAME)
        except StoreUnavailable:
            raise
        except StoreError as error:
            # Perhaps somebody changed this one's password, which was believed: it is set with the next look.
            self._believe(agent, wish, fresh=True)
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
