"""The Redis users of a hive's agents: made where the operator has administrative access, dropped with their agent.

What an agent's pods connect with is the hive's URL with a user that may do what ``agenthive.bus.access`` lists. Users
are neither replicated nor, without a file of them, kept over a restart: each server has them from here, a managed one
also from a file (``plan.users``). So do its functions, which these users may not load.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agenthive.bus import BusUnavailable
from agenthive.bus.access import CONNECTION, user_name, user_prefix
from agenthive.bus.connections import Connections, info_fields
from agenthive.bus.endpoint import Endpoint, Node, shown
from agenthive.bus.wire import Command, Connection, ConnectionLost, ReplyError, open_connection
from agenthive.settings import HiveScope, RedisPool
from agenthive_operator.backends import redis_checks
from agenthive_operator.backends.logins import Login, with_login
from agenthive_operator.backends.postgres import Access
from agenthive_operator.backends.redis import CLIENT_NAME, FIELDS
from agenthive_operator.backends.reports import without_secret
from agenthive_operator.plan.users import user_setting

logger = logging.getLogger(__name__)

ANSWER_SECONDS: Final = 5.0
SYNC_SECONDS: Final = 45.0
BATCH: Final = 100
"""Users that one exchange makes or drops."""


class UsersError(Exception):
    """Users cannot be made, or do not let agents in; the text says why, and holds no credential.

    Attributes:
        reason: As in a ``StoreReport``.
    """

    def __init__(self, text: str, *, reason: str = "UsersFailed") -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(slots=True)
class _Server:
    """One server as it was left: its incarnation, the passwords its users have, by agent, and who has a user at all."""

    run: str = ""
    made: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    there: set[str] | None = None


class HiveUsers:
    """The users of one hive in one Redis: on its master and replicas, or on all nodes of its Cluster."""

    def __init__(self) -> None:
        self._target: tuple[Access, HiveScope] | None = None
        self._wishes: dict[str, tuple[str, ...]] = {}
        self._servers: dict[Node, _Server] = {}
        self._ready: dict[str, tuple[str, ...]] = {}
        self._proven = False

    def wish(self, agent: str, password: str, *, keep: Sequence[str] = ()) -> bool:
        """``agent`` is to have a user with this password; those of ``keep`` are valid, too. Whether that is news."""
        passwords = tuple(dict.fromkeys((password, *keep)))
        known, self._wishes[agent] = self._wishes.get(agent), passwords
        return known != passwords

    def wished(self, agent: str) -> str | None:
        """The password that ``agent`` is to have, if it is to have one."""
        passwords = self._wishes.get(agent)
        return passwords[0] if passwords else None

    def forget(self, agent: str) -> None:
        """``agent`` is gone; its user goes with the next ``sync``."""
        self._wishes.pop(agent, None)

    def is_ready(self, agent: str, password: str) -> bool:
        """Whether every server in reach lets ``agent`` in with this password."""
        return self._proven and password in self._ready.get(agent, ())

    def standing(self) -> dict[str, tuple[str, ...] | None] | None:
        """Who has a user on a Redis of one server, with its passwords (None: others made it); None while unknown."""
        if len(self._servers) != 1:
            return None
        (server,) = self._servers.values()
        return None if server.there is None else {agent: server.made.get(agent) for agent in server.there}

    async def sync(
        self,
        access: Access,
        scope: HiveScope,
        *,
        is_gone: Callable[[str], Awaitable[bool]],
        on_ready: Callable[[str], None],
    ) -> list[Node]:
        """Bring functions and users about.

        Args:
            access: The Redis, with ``admin``; dialled.
            scope: The hive's.
            is_gone: Asked before an agent's user is dropped: whether nobody needs it any more.
            on_ready: Told each agent whose user became ready.

        Returns:
            The servers, those out of reach among them.

        Raises:
            UsersError: something went wrong; what could be done all the same is done.
        """
        assert access.admin is not None, "users are made with administrative access"
        if self._target != (access, scope):
            self._target, self._servers, self._ready, self._proven = (access, scope), {}, {}, False
        try:
            async with asyncio.timeout(SYNC_SECONDS):
                endpoint = _endpoint(access.admin)
                masters, others = await _servers_of(endpoint, load=True)
                wishes = dict(self._wishes)
                failure = await self._sync_all(endpoint, scope, masters, others, wishes, is_gone)
                await self._conclude(access, scope, wishes, on_ready)
        except TimeoutError:
            text = f"users could not be made within {SYNC_SECONDS:g} s; it is tried again"
            raise UsersError(text, reason="Unreachable") from None
        except (BusUnavailable, ConnectionLost, ReplyError) as error:
            raise _blamed(error, access.admin) from error
        if failure:
            raise _blamed(failure, access.admin)
        return [*masters, *others]

    async def _sync_all(
        self,
        endpoint: Endpoint,
        scope: HiveScope,
        masters: Sequence[Node],
        others: Sequence[Node],
        wishes: dict[str, tuple[str, ...]],
        is_gone: Callable[[str], Awaitable[bool]],
    ) -> Exception | None:
        """Every server; a replica that is away gets its users when it comes back, and holds nobody up."""
        gone: dict[str, bool] = {}
        failure: Exception | None = None
        self._servers = {node: self._servers.get(node) or _Server() for node in (*masters, *others)}
        for node in self._servers:
            try:
                connection = await open_connection(endpoint.at(node))
                try:
                    failure = await self._sync_one(connection, node, scope, wishes, is_gone, gone) or failure
                finally:
                    await connection.aclose()
            except (ConnectionLost, BusUnavailable) as error:
                if node in masters:
                    raise
                logger.info("the replica %s has no users yet: %s", shown(node), error)
                self._servers[node] = _Server()
        return failure

    async def _sync_one(
        self,
        connection: Connection,
        node: Node,
        scope: HiveScope,
        wishes: dict[str, tuple[str, ...]],
        is_gone: Callable[[str], Awaitable[bool]],
        gone: dict[str, bool],
    ) -> ReplyError | None:
        """Users that lack, and that nobody needs; one that cannot be made does not keep the others from being made."""
        server = self._servers[node]
        info, names = await connection.execute([("INFO", "server"), ("ACL", "USERS")], ANSWER_SECONDS)
        if isinstance(names, ReplyError):
            raise names
        run = "" if isinstance(info, ReplyError) else info_fields(info).get("run_id", "")
        if run != server.run:
            server.run, server.made = run, {}
        there = _agents_in(names, scope)
        lacking = [
            agent for agent, passwords in sorted(wishes.items())
            if agent not in there or server.made.get(agent) != passwords
        ]  # fmt: skip
        commands: list[Command] = [
            ("ACL", "SETUSER", user_name(scope, agent), *setting(scope, agent, wishes[agent])) for agent in lacking
        ]
        failure: ReplyError | None = None
        for agent, answer in zip(lacking, await _execute(connection, commands), strict=True):
            if isinstance(answer, ReplyError):
                server.made.pop(agent, None)
                failure = failure or answer
            else:
                server.made[agent] = wishes[agent]
                there.add(agent)
        if lacking and failure is None:
            logger.info("made %d users of agents at %s", len(lacking), shown(node))
        for agent in sorted(there - wishes.keys()):
            if agent not in gone:
                gone[agent] = await is_gone(agent)
        dropped = [agent for agent in sorted(there) if gone.get(agent) and agent not in self._wishes]
        if dropped:
            await _execute(connection, [("ACL", "DELUSER", user_name(scope, agent)) for agent in dropped])
            logger.info("dropped the users of %s at %s, whose agents are gone", ", ".join(dropped), shown(node))
        for agent in dropped:
            server.made.pop(agent, None)
            self._ready.pop(agent, None)
        server.there = there.difference(dropped)
        return failure

    async def _conclude(
        self,
        access: Access,
        scope: HiveScope,
        wishes: dict[str, tuple[str, ...]],
        on_ready: Callable[[str], None],
    ) -> None:
        """Tell whose users are everywhere, once one of them was let in the way its pods will be."""
        servers = [server for server in self._servers.values() if server.run or server.made]
        made = {
            agent: passwords
            for agent, passwords in wishes.items()
            if servers and all(server.made.get(agent) == passwords for server in servers)
        }
        if made and not self._proven:
            agent = min(made)
            await _prove(access, Login(user_name(scope, agent), made[agent][0]))
            self._proven = True
        for agent, passwords in made.items():
            if self._ready.get(agent) != passwords:
                self._ready[agent] = passwords
                on_ready(agent)


async def remove_users(url: str, scope: HiveScope) -> None:
    """Drop every user of a hive, on every server in reach. Raises ``UsersError``."""
    try:
        async with asyncio.timeout(SYNC_SECONDS):
            endpoint = _endpoint(url)
            masters, others = await _servers_of(endpoint, load=False)
            for node in (*masters, *others):
                try:
                    connection = await open_connection(endpoint.at(node))
                except ConnectionLost:
                    if node in masters:
                        raise
                    continue  # a replica that comes back has none
                try:
                    (names,) = await connection.execute([("ACL", "USERS")], ANSWER_SECONDS)
                    if isinstance(names, ReplyError):
                        raise names
                    gone = [("ACL", "DELUSER", user_name(scope, agent)) for agent in _agents_in(names, scope)]
                    await _execute(connection, gone)
                finally:
                    await connection.aclose()
    except TimeoutError:
        raise UsersError(f"users could not be dropped within {SYNC_SECONDS:g} s") from None
    except (BusUnavailable, ConnectionLost, ReplyError) as error:
        raise _blamed(error, url) from error


def setting(scope: HiveScope, agent: str, passwords: Sequence[str]) -> list[str]:
    """What ACL SETUSER is told of an agent's user behind its name. Pure."""
    return ["reset", *user_setting(scope, agent, passwords)]


def _endpoint(url: str) -> Endpoint:
    return Endpoint.parse(
        url, client_name=CLIENT_NAME, connect_timeout=ANSWER_SECONDS, socket_timeout=ANSWER_SECONDS
    )  # fmt: skip


async def _servers_of(endpoint: Endpoint, *, load: bool) -> tuple[list[Node], list[Node]]:
    """Masters and replicas; ``load``: with the functions on each master. Raises BusUnavailable and ConnectionLost."""
    connections = Connections(endpoint, RedisPool(max_connections=2))
    try:
        if load:
            await connections.prepare()
        if endpoint.kind == "single":
            return [(endpoint.host, endpoint.port)], []
        if endpoint.kind == "sentinel":
            return await _told_by_sentinels(endpoint)
        masters = [node for node in await connections.masters() if node is not None]
        # Not SLOTS: that leaves out a replica that is away, and for a while after it has come back.
        (shards,) = await connections.execute([("CLUSTER", "SHARDS")], at=masters[0])
        every = [_node(entry, masters[0], tls=endpoint.tls is not None) for shard in shards for entry in shard[3]]
        return masters, [node for node in dict.fromkeys(every) if node not in masters]
    finally:
        await connections.aclose()


def _node(entry: Sequence[Any], told_by: Node, *, tls: bool) -> Node:
    """A node as CLUSTER SHARDS tells it; without an endpoint it is on the host of the node that ``told`` it. Pure."""
    fields = dict(zip(entry[::2], entry[1::2], strict=True))
    host = (fields.get(b"endpoint") or b"").decode()
    port = fields.get(b"tls-port" if tls else b"port") or fields.get(b"port") or fields[b"tls-port"]
    return (told_by[0] if host in {"", "?"} else host, int(port))


async def _told_by_sentinels(endpoint: Endpoint) -> tuple[list[Node], list[Node]]:
    problem: Exception = ConnectionLost("no sentinel answers")
    for sentinel in endpoint.nodes:
        try:
            connection = await open_connection(endpoint.sentinel_at(sentinel))
        except ConnectionLost as error:
            problem = error
            continue
        try:
            master, replicas = await connection.execute(
                [("SENTINEL", word, endpoint.service) for word in ("GET-MASTER-ADDR-BY-NAME", "REPLICAS")],
                ANSWER_SECONDS,
            )
        except ConnectionLost as error:
            problem = error
            continue
        finally:
            await connection.aclose()
        if isinstance(master, list) and isinstance(replicas, list):
            told = [dict(zip(replica[::2], replica[1::2], strict=True)) for replica in replicas]
            return [(master[0].decode(), int(master[1]))], [(one[b"ip"].decode(), int(one[b"port"])) for one in told]
        problem = ConnectionLost(f"the sentinel at {shown(sentinel)} does not tell the servers of {endpoint.service}")
    raise problem


async def check_admin(access: Access, scope: HiveScope) -> None:
    """Whether users could be made by the administrative URL, and would let agents in by the other. Leaves nothing.

    Raises:
        UsersError: they could not, or one of the URLs leads elsewhere.
        BusUnavailable: there is no telling now.
    """
    assert access.admin is not None, "users are made with administrative access"
    try:
        endpoint = _endpoint(access.admin)
    except ValueError as error:
        raise UsersError(f"the administrative URL: {error}", reason="InvalidURL") from error
    # Of agents none has a name that begins so.
    login = Login(f"ah-probe:{user_prefix(scope)}", secrets.token_urlsafe(24))
    digest = hashlib.sha256(login.password.encode()).hexdigest()
    made = ("ACL", "SETUSER", login.role, "reset", "on", f"#{digest}", *(f"+{word}" for word in CONNECTION.split()))
    load = redis_checks.questions("", loads=True)["+function|load"]
    try:
        async with asyncio.timeout(SYNC_SECONDS):
            masters, _ = await _servers_of(endpoint, load=False)
            try:
                for node in masters:
                    answers = await _at(endpoint, node, [made, load])
                    for answer in answers:
                        if isinstance(answer, ReplyError) and (answer is answers[0] or redis_checks.forbidden(answer)):
                            raise answer
                await _prove(access, login, prepared=False)
            finally:
                for node in masters:
                    await _at(endpoint, node, [("ACL", "DELUSER", login.role)])
    except TimeoutError:
        raise UsersError(f"no answer within {SYNC_SECONDS:g} s", reason="Unreachable") from None
    except (BusUnavailable, ConnectionLost, ReplyError) as error:
        raise _blamed(error, access.admin) from error


async def _at(endpoint: Endpoint, node: Node, commands: Sequence[Command]) -> list[Any]:
    connection = await open_connection(endpoint.at(node))
    try:
        return list(await connection.execute(commands, ANSWER_SECONDS))
    finally:
        await connection.aclose()


async def _prove(access: Access, login: Login, *, prepared: bool = True) -> None:
    """Come in as an agent, the way its pods do; ``prepared``: everything is there for it. Raises UsersError."""
    connections = Connections(_endpoint(with_login(access.url, login)), RedisPool(max_connections=2))
    try:
        if prepared:
            await connections.prepare()
        else:
            for at in await connections.masters():
                await connections.ask([("PING",)], at=at)
    except BusUnavailable as error:
        if _is_away(error):
            raise
        raise UsersError(
            f"agents get users of their own, and by {FIELDS['url']} they are not let in:"
            f" {without_secret(str(error), access.url)}. Both URLs must lead to the same Redis; or leave"
            " adminUrlSecretRef out, and agents use the hive's own user"
        ) from error
    finally:
        await connections.aclose()


async def _execute(connection: Connection, commands: Sequence[Command]) -> list[Any]:
    answers: list[Any] = []
    for start in range(0, len(commands), BATCH):
        answers += await connection.execute(commands[start : start + BATCH], ANSWER_SECONDS)
    return answers


def _agents_in(names: Sequence[bytes], scope: HiveScope) -> set[str]:
    prefix = user_prefix(scope)
    return {name.removeprefix(prefix) for name in (raw.decode() for raw in names) if name.startswith(prefix)}


def _is_away(error: Exception) -> bool:
    """Whether a server did not answer, in contrast to one that refused."""
    return isinstance(error, ConnectionLost) or isinstance(error.__cause__, ConnectionLost)


def _blamed(error: Exception, url: str) -> UsersError:
    text = without_secret(str(error), url)
    if _is_away(error):
        return UsersError(text, reason="Unreachable")
    return UsersError(
        f"{text}; users are made by the URL of {FIELDS['admin']}, or as the managed server's own user: it needs the"
        " commands ACL, FUNCTION, FCALL, INFO and TIME"
    )
