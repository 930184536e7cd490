"""The passwords of agents' Redis users while they are replaced: a user may have two, so one user is enough.

As with the logins of PostgreSQL nothing waits: what is wanted is told to ``Users``, whose look at Redis brings it about
and has the Agent looked at again. The next password is in memory until the Agent's Secret holds it; an operator that
is restarted before that mints another.
"""

from __future__ import annotations

import secrets

from agenthive_operator.api.hive import AgentHive
from agenthive_operator.backends.logins import Login, login_in, with_login
from agenthive_operator.reconcile.cache import Key
from agenthive_operator.reconcile.context import Context, HiveState
from agenthive_operator.reconcile.logins import PASSWORD_BYTES
from agenthive_operator.reconcile.stores import scope_of


class Passwords:
    """The Redis passwords of all Agents. ``former``: the URL in the Agent's Secret that pods used before."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._next: dict[Key, str] = {}
        self._revoked: set[Key] = set()

    def present(self, key: Key, hive: AgentHive, state: HiveState, known: str | None, former: str | None) -> str | None:
        """The hive's URL with the Agent's own user; None while Redis is not known to let it in."""
        keep = [self._next[key]] if key in self._next else []
        if former is not None and key not in self._revoked and (login := login_in(former)) is not None:
            keep.append(login.password)
        of = Key("AgentHive", key.namespace, hive.metadata.name)
        login, is_news = self._context.users.want(key, of, scope_of(hive), known, server=state.redis_url, keep=keep)
        if is_news:
            self._context.redis.poke(of)
        return with_login(state.redis_url, login) if state.redis_url and login else None

    def begin(self, key: Key) -> None:
        """Mint the next password, unless that is done; the next look at the Agent has it made valid."""
        self._revoked.discard(key)
        if key not in self._next:
            self._next[key] = secrets.token_urlsafe(PASSWORD_BYTES)
            self._context.queue.add(key)

    def following(self, key: Key, present: str | None) -> str | None:
        """``present`` with the next password; None unless that was begun and is let in."""
        login, password = login_in(present) if present else None, self._next.get(key)
        if present is None or login is None or password is None or not self._context.users.lets_in(key, password):
            return None
        return with_login(present, Login(login.role, password))

    def revoke(self, key: Key, former: str | None) -> bool:
        """The former password is valid no longer from the next look on; whether that is so already."""
        self._next.pop(key, None)
        login = login_in(former) if former else None
        if login is None:
            return True
        if key not in self._revoked:
            self._revoked.add(key)
            self._context.queue.add(key)
        return not self._context.users.lets_in(key, login.password)

    def hold(self, key: Key) -> None:
        """Pods may still use the former password."""
        self._revoked.discard(key)

    def end(self, key: Key) -> None:
        """No password of the Agent is being replaced; one that nobody wants any more goes with the next look.

        What was revoked stays so although the Agent's Secret still names it: writing that may fail, or be old news.
        """
        if self._next.pop(key, None) is not None:
            self._context.queue.add(key)
