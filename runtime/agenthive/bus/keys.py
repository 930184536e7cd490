"""Names in Redis: what an agent may be called, and the keys the Python side touches (the rest: lua/prelude.lua)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agenthive.protocol import MAX_NAME_LENGTH
from agenthive.settings import HiveScope

_AGENT_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
REPLY_MARK = "@"
"""First character of a ``reply_to`` that names a waiting process; no agent's name can start with it."""


def check_agent(name: str) -> str:
    """``name`` if an agent may be called so, else ValueError: it becomes part of keys and must not break them."""
    if len(name) > MAX_NAME_LENGTH or not _AGENT_NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no name of an agent; use letters, digits, '-', '_' and '.', "
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

    @classmethod
    def of(cls, scope: HiveScope, agent: str) -> AgentKeys:
        """Keys of ``agent`` in ``scope``. Raises ValueError for a name that cannot be an agent's."""
        prefix = scope.key_prefix(check_agent(agent))
        return cls(gate=f"{prefix}gate", wake=f"{prefix}wake", dead=f"{prefix}dead")


def agents_key(scope: HiveScope) -> str:
    """Set of the agents that ever registered in a hive."""
    return f"{scope.hive_prefix}agents"


def reply_channel(scope: HiveScope, process: str) -> str:
    """Channel on which a process learns which of its requests have a reply."""
    return f"{scope.hive_prefix}reply:{process}"
