"""The credentials of an Agent's pods: which they are now, and one step of their replacement at a time.

``plan/rotation.py`` decides; here is what it is told and what is done. Nothing waits: what a server has to be asked is
done by the look at it, which has the Agent looked at again. What both servers have is replaced together.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from agenthive.store import schema_name
from agenthive_operator.api.agent import Agent
from agenthive_operator.api.hive import AgentHive
from agenthive_operator.backends.kube import POD, Object, secret_data
from agenthive_operator.backends.logins import with_login
from agenthive_operator.plan.agent import POSTGRES_URL, REDIS_URL
from agenthive_operator.plan.names import agent_secret_name, agent_selector, selector_string
from agenthive_operator.plan.rotation import (
    PREVIOUS,
    Record,
    Seen,
    Step,
    Wish,
    answered,
    decide,
    finished,
    has_outdated,
    limited,
    record_of,
    switched,
    token,
)
from agenthive_operator.reconcile.cache import Key
from agenthive_operator.reconcile.conditions import Rollout, rollout_of
from agenthive_operator.reconcile.context import Context, HiveState
from agenthive_operator.reconcile.passwords import Passwords
from agenthive_operator.reconcile.stores import scope_of

logger = logging.getLogger(__name__)

ROTATED: Final = "CredentialsRotated"
WAITS: Final = "RotationWaits"
IMPOSSIBLE: Final = "RotationImpossible"
TURN_SECONDS: Final = 1.0
"""By then the Secret says that a rotation has ended, so that the next in turn finds room."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What an Agent's Secret is to hold: connections with credentials, and the record beside them.

    A URL is None while the server is not known to let the Agent in. ``waits`` says what a rotation that
    cannot go on waits for; ``stuck`` if somebody has to do something about it. ``again``: once the Secret is written
    the Agent is to be looked at again, as where no pod runs no event tells that the rotation may go on.
    """

    redis_url: str | None = field(repr=False)
    postgres_url: str | None = field(repr=False)
    record: Record
    waits: str = ""
    stuck: bool = False
    again: bool = False


class Rotations:
    """Replaces the credentials of Agents."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._passwords = Passwords(context)
        self._records: dict[Key, Record] = {}
        self._begun: set[Key] = set()
        self._queued: dict[Key, dict[Key, None]] = {}
        self._told: dict[Key, str] = {}

    async def step(
        self, key: Key, live: Object, agent: Agent, hive: AgentHive, state: HiveState, secret: Object | None
    ) -> Credentials:
        """Take the next step for an Agent whose Secret is ``secret`` (None: it has none).

        Raises ``ApiError`` for what trying again may cure.
        """
        known = secret_data(secret) if secret is not None else {}
        wish = Wish(token(agent.metadata.annotations), state.rotate, hive.spec.credentials.rotate_days)
        record, made = self._read(key, secret, known, wish)
        minting = minted(state)
        record = limited(record, minting)  # others cannot be revoked without administrative access
        urls = self._urls(key, hive, state, known, record)
        pods = self._context.cache.pods_of(key.namespace, hive=hive.metadata.name, agent=key.name)
        deployment = self._context.cache.get("Deployment", key.namespace, key.name)
        seen = Seen(
            record,
            wish,
            made or self._context.clock(),
            f"{key.namespace}/{hive.metadata.name}/{key.name}",
            self._context.clock(),
            mints=bool(minting),
            # Where a server's address changes, too, that comes first.
            usable=state.ready
            and not state.moving
            and all(url is not None and self._as_mounted(url) == known.get(name) for name, url in urls.items()),
            rolling=deployment is not None and is_rolling(rollout_of(deployment)),
            outdated=has_outdated(deployment, pods, record.since),
            stray=state.postgres_mints and self._context.logins.has_other(key),
        )
        if seen.usable and seen.is_due and not record.previous:
            following = self._following(key, hive, state, urls)
            seen = replace(seen, prepared=None not in following.values(), others=self._others(key, hive))
        decision = decide(seen)
        if decision.queues:
            self._queued.setdefault(hive_key(hive), {})[key] = None
        waits, trouble = decision.waits, ""
        match decision.step:
            case Step.BEGIN:
                trouble = self._begin(key, hive, state, urls)
            case Step.SWITCH:
                urls, record = self._switch(key, hive, state, known, seen, urls)
            case Step.FINISH:
                record, trouble = await self._finish(key, live, hive, state, record)
            case Step.DECLINE:
                record = answered(record, wish)
                text = "the operator makes no credentials for agents of this hive: see docs/rotation.md"
                await self._context.events.emit(live, "Warning", IMPOSSIBLE, text)
            case Step.KEEP:
                self._hold(key, hive, seen)
        self._records[key] = record
        return Credentials(
            urls[REDIS_URL],
            urls[POSTGRES_URL],
            record,
            waits or trouble,
            stuck=bool(trouble),
            again=decision.step is Step.SWITCH,
        )

    async def tell(self, key: Key, live: Object, credentials: Credentials | None, *, stuck: bool) -> None:
        """An Event, once, where a rotation waits for what does not come about by itself; ``stuck``: the pods do not."""
        waits = credentials.waits if credentials else ""
        if not waits:
            self._told.pop(key, None)
        elif credentials and (stuck or credentials.stuck) and self._told.get(key) != waits:
            self._told[key] = waits
            await self._context.events.emit(live, "Warning", WAITS, waits)

    def forget(self, key: Key, hive: Key) -> None:
        """The Agent is gone from its hive."""
        self._records.pop(key, None)
        self._told.pop(key, None)
        self._end(key, hive)

    # ---- what is known

    def _read(
        self, key: Key, secret: Object | None, known: Mapping[str, str], wish: Wish
    ) -> tuple[Record, datetime | None]:
        """What the Secret says and since when it is there; what it said, if somebody deleted it."""
        if secret is None:
            return self._records.get(key) or answered(Record(), wish), None
        moment = secret["metadata"].get("creationTimestamp")
        annotations = secret["metadata"].get("annotations") or {}
        return record_of(annotations, known), datetime.fromisoformat(moment) if moment else None

    def _present(self, key: Key, hive: AgentHive, state: HiveState, known: str | None) -> str | None:
        """The hive's URL with the Agent's own login; None while the server is not known to let it in."""
        of = hive_key(hive)
        login, is_news = self._context.logins.want(
            key, of, schema_name(scope_of(hive)), known, server=state.postgres_url
        )
        if is_news:
            self._context.postgres.poke(of)
        return with_login(state.postgres_url, login) if state.postgres_url and login else None

    def _urls(
        self, key: Key, hive: AgentHive, state: HiveState, known: Mapping[str, str], record: Record
    ) -> dict[str, str | None]:
        """The URLs by name, with credentials of the Agent's own where the operator makes such."""
        redis, postgres = state.redis_url or state.redis_held, state.postgres_url or state.postgres_held
        if state.redis_mints:
            former = record.previous.get(PREVIOUS + REDIS_URL)
            redis = self._passwords.present(key, hive, state, known.get(REDIS_URL), former)
        if state.postgres_mints:
            postgres = self._present(key, hive, state, known.get(POSTGRES_URL))
        return {REDIS_URL: redis, POSTGRES_URL: postgres}

    def _as_mounted(self, url: str) -> str | None:
        """A URL as pods see it: certificates lie elsewhere there."""
        found = self._context.certificates.mounted(url)
        return found[0] if found else None

    def _following(
        self, key: Key, hive: AgentHive, state: HiveState, urls: Mapping[str, str | None]
    ) -> dict[str, str | None]:
        """The URLs with the credentials that come next, of servers that have such; None unless begun and let in."""
        following: dict[str, str | None] = {}
        if state.redis_mints:
            following[REDIS_URL] = self._passwords.following(key, urls[REDIS_URL])
        if state.postgres_mints:
            login = None
            if key in self._begun and state.postgres_url is not None:
                login, _ = self._context.logins.follow(key, schema_name(scope_of(hive)), server=state.postgres_url)
            following[POSTGRES_URL] = with_login(state.postgres_url, login) if state.postgres_url and login else None
        return following

    def _others(self, key: Key, hive: AgentHive) -> int:
        """Other Agents of the hive whose credentials are being replaced."""
        return sum(
            other != key and (other in self._begun or self._rolls(other))
            for other in (
                Key("Agent", key.namespace, agent["metadata"]["name"])
                for agent in self._context.cache.agents_of(key.namespace, hive.metadata.name)
            )
        )

    def _rolls(self, agent: Key) -> bool:
        secret = self._context.cache.get("Secret", agent.namespace, agent_secret_name(agent.name))
        return any(name.startswith(PREVIOUS) for name in (secret or {}).get("data") or ())

    # ---- what is done

    def _begin(self, key: Key, hive: AgentHive, state: HiveState, urls: Mapping[str, str | None]) -> str:
        """Have the next credentials made; returns what keeps them from being let in."""
        self._begun.add(key)
        of = hive_key(hive)
        if state.redis_mints:
            self._passwords.begin(key)
        if not state.postgres_mints:
            return ""
        _, is_news = self._context.logins.follow(key, schema_name(scope_of(hive)), server=state.postgres_url)
        if is_news:
            logger.info("%s: its credentials are to be replaced", key)
            self._context.postgres.poke(of)
        if None not in self._following(key, hive, state, urls).values():
            self._context.queue.add(key)  # they were made for a rotation that was given up: nobody is going to tell
        trouble = self._context.logins.trouble(key)
        return f"the rotation of its credentials waits: {trouble}" if trouble else ""

    def _switch(
        self,
        key: Key,
        hive: AgentHive,
        state: HiveState,
        known: Mapping[str, str],
        seen: Seen,
        urls: Mapping[str, str | None],
    ) -> tuple[dict[str, str | None], Record]:
        """The next credentials for the Secret, the present ones beside them as the former."""
        following = self._following(key, hive, state, urls)
        logger.info("%s: its pods are to use new credentials", key)
        former = {name: known[name] for name in following}
        return {**urls, **following}, switched(seen.record, seen.wish, former, seen.now)

    async def _finish(
        self, key: Key, live: Object, hive: AgentHive, state: HiveState, record: Record
    ) -> tuple[Record, str]:
        """Revoke the former credentials, if the API server says, too, that no pod may use them."""
        selector = selector_string(agent_selector(hive.metadata.name, key.name))
        # rbac: core/pods list
        pods, _ = await self._context.kube.list(POD, key.namespace, labels=selector)
        if has_outdated(None, pods, record.since):
            return record, ""  # the watch is about to tell the rest
        is_done = True
        if state.redis_mints:
            is_done = self._passwords.revoke(key, record.previous.get(PREVIOUS + REDIS_URL))
        if state.postgres_mints:
            dropped, is_news = self._context.logins.revoke(key)
            is_done = is_done and dropped
            if is_news:
                self._context.postgres.poke(hive_key(hive))
        if not is_done:
            trouble = self._context.logins.trouble(key) if state.postgres_mints else ""
            return record, f"its former credentials are not revoked yet: {trouble}" if trouble else ""
        if record.previous:
            text = f"its pods use new credentials since {record.since}; the former ones are revoked"
            await self._context.events.emit(live, "Normal", ROTATED, text)
            logger.info("%s: %s", key, text)
        self._end(key, hive_key(hive))
        return finished(record), ""

    def _hold(self, key: Key, hive: AgentHive, seen: Seen) -> None:
        """While pods use the former credentials, a server that lost them is to have them again."""
        self._passwords.hold(key)
        former = seen.record.previous.get(PREVIOUS + POSTGRES_URL)
        if former is not None and self._context.logins.keep(key, schema_name(scope_of(hive)), former):
            self._context.postgres.poke(hive_key(hive))
        if seen.record.previous:
            self._begun.discard(key)  # the Secret says it now
        elif not seen.is_due and key in self._begun:
            self._end(key, hive_key(hive))

    def _end(self, key: Key, hive: Key) -> None:
        """The rotation of ``key`` has ended, or nobody wants it any more: who waits longest is called."""
        self._begun.discard(key)
        self._passwords.end(key)
        queued = self._queued.pop(hive, {})
        queued.pop(key, None)
        if queued:
            following = next(iter(queued))
            del queued[following]
            self._queued[hive] = queued
            self._context.queue.add_after(following, TURN_SECONDS)


def hive_key(hive: AgentHive) -> Key:
    """The key of a hive."""
    return Key("AgentHive", hive.metadata.namespace, hive.metadata.name)


def minted(state: HiveState) -> list[str]:
    """The connections for which the operator makes credentials of each Agent's own. Pure."""
    mints = {REDIS_URL: state.redis_mints, POSTGRES_URL: state.postgres_mints}
    return [name for name, is_minted in mints.items() if is_minted]


def is_rolling(rollout: Rollout) -> bool:
    """Whether a Deployment is on its way, or its controller has not seen its newest spec. Pure."""
    return not rollout.current or rollout.updated < rollout.desired or rollout.replicas != rollout.desired
