"""Names in Redis: what agents and topics may be called, and the keys the Python side touches (the rest: lua/)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agenthive.protocol import MAX_NAME_LENGTH
from agenthive.settings import HiveScope

_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
REPLY_MARK = "@"
"""First character of a ``reply_to`` that names a waiting process; no agent's name can start with it."""
TOPIC_MARK = "#"
"""First character of the ``to_agent`` of what was published; no agent's name can start with it."""


def check_agent(name: str) -> str:
    """``name`` if an agent may be called so, else ValueError: it becomes part of keys and must not break them."""
    if name.startswith(TOPIC_MARK):
        raise ValueError(f"{name!r} is no name of an agent but a topic: publish to it (ctx.publish, agenthive publish)")
    return _check(name, "an agent")


def check_topic(name: str) -> str:
    """``name`` if a topic may be called so, else ValueError: the rules are those of an agent's name."""
    return _check(name, "a topic")


def _check(name: str, what: str) -> str:
    if len(name) > MAX_NAME_LENGTH or not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no name of {what}; use letters, digits, '-', '_' and '.', "
            f"a letter or digit at both ends, at most {MAX_NAME_LENGTH} characters"
        )
    return name


@dataclass(frozen=True, slots=True)
class AgentKeys:
    """Keys of one agent; they share a Cluster slot."""

    gate: str
    """The one declared key of every function call; never holds anything."""
    wake: str
    dead: str
    cursors: str
    """Where the agent stands in each of its topics."""

    @classmethod
    def of(cls, scope: HiveScope, agent: str) -> AgentKeys:
        """Keys of ``agent`` in ``scope``. Raises ValueError for a name that cannot be an agent's."""
        prefix = scope.key_prefix(check_agent(agent))
        return cls(gate=f"{prefix}gate", wake=f"{prefix}wake", dead=f"{prefix}dead", cursors=f"{prefix}topics")


@dataclass(frozen=True, slots=True)
class TopicKeys:
    """Keys of one topic; they share a Cluster slot."""

    gate: str
    """The one declared key of every function call; never holds anything."""
    log: str
    last: str
    """Holds the id of the newest entry of the log."""

    @classmethod
    def of(cls, scope: HiveScope, topic: str) -> TopicKeys:
        """Keys of ``topic`` in ``scope``. Raises ValueError for a name that cannot be a topic's."""
        prefix = scope.key_prefix(TOPIC_MARK + check_topic(topic))
        return cls(gate=f"{prefix}gate", log=f"{prefix}log", last=f"{prefix}last")


def closed_key(prefix: str) -> str:
    """Whether an agent or a topic (by its ``HiveScope.key_prefix``) takes nothing new, see lua/prelude.lua."""
    return f"{prefix}closed"


def identity_key(scope: HiveScope) -> str:
    """Holds what tells one server of a hive from another: a UUID that is set once and never changed."""
    return f"{scope.hive_prefix}identity"


def agents_key(scope: HiveScope) -> str:
    """Set of the agents that ever registered in a hive."""
    return f"{scope.hive_prefix}agents"


def topics_key(scope: HiveScope) -> str:
    """Sorted set of the topics that were published to, by the time (ms) when nothing of that is left."""
    return f"{scope.hive_prefix}topics"


def reply_channel(scope: HiveScope, process: str) -> str:
    """Channel on which a process learns which of its requests have a reply."""
    return f"{scope.hive_prefix}reply:{process}"
