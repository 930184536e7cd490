"""What an agent's own Redis user may do: the commands that the bus and the cache run, by the keys they run them on.

Functions give nobody rights: each command in lua/ is checked against the user that called the function, on the keys
it names. So whoever has the bus run a command on a key adds it here: to ``OWN`` where only the agent itself does so on
keys of its own, to ``OTHERS`` where it does so on those of whoever it sends to or asks. Commands that only the tools of
people need (dead letters, cancelling, figures) are not given for others' keys: those have the hive's own user.

Pure; the operator turns it into users (Redis ≥ 7, Valkey ≥ 7.2: it takes selectors).
"""

from __future__ import annotations

from typing import Final

from agenthive.bus.keys import TOPIC_MARK, agents_key, check_agent, reply_channel, topics_key
from agenthive.settings import HiveScope

CONNECTION: Final = (
    "ping select client|setname role wait asking cluster|slots cluster|myid time subscribe unsubscribe publish"
)
"""Commands without keys. Of channels only those are let through on which a hive's replies are told."""

OWN: Final = (
    "blpop decrby del exists fcall get hdel hexists hget hgetall hincrby hlen hmget hscan hset hsetnx incrby lindex"
    " llen lpop lrem pexpire rpush sadd set smembers srem unlink xack xadd xclaim xdel xgroup|create xgroup|delconsumer"
    " xinfo|groups xinfo|stream xlen xpending xrange xreadgroup xrevrange xtrim zadd zcard zpopmin zrange zrangebyscore"
    " zrem zscore"
)
"""On every key of the agent itself."""

OTHERS: Final = {
    # Sending. Of those on the way first what every message needs.
    "gate": "fcall",
    "q:[1-4]": "xadd xpending",
    "ids": "hlen hmget hset",
    "bytes": "get set",
    "wake": "llen rpush",
    "alarm": "get",
    "e:*": "get set",
    "held": "hset",
    "delayed": "zadd zscore",
    "busy": "hexists hset",
    "closed": "exists",  # of who does not say that it is an agent of the hive
    "o:*": "zadd zrange",
    "w:[1-4]": "zadd",
    "dg": "get set",
    "dd:*": "hlen hmget hset pexpire unlink",  # the oldest generation of deduplication keys goes whole
    "touch": "get set",
    # Where a message stands; with what is above.
    "sg": "get",
    "st:*": "hmget",
    "tries": "hget",
    "past": "hget",
    # Fetching a reply, which lies with whoever gave it.
    "r:*": "get pexpire",
    "u:*": "del",
    "counts": "hincrby",
}
"""On keys of any agent of the hive, by what follows their prefix."""

TOPICS: Final = {"log": "pexpire xadd xread xtrim", "last": "get set", "closed": "exists"}
"""On keys of any topic of the hive, by what follows their prefix."""

CACHED: Final = "del get getrange mget pexpire pttl set"
"""On entries of the cache that are the agent's own or the hive's as a whole."""

CACHE_ACCOUNT: Final = "del hdel hgetall hincrby hmget hset pexpire"


def user_prefix(scope: HiveScope) -> str:
    """What the names of all users of a hive's agents begin with, and of nobody else."""
    return f"ah:{scope.instance}/{scope.namespace}/{scope.hive}/"


def user_name(scope: HiveScope, agent: str) -> str:
    """Name of the user of ``agent``. Raises ValueError for a name that cannot be an agent's."""
    return user_prefix(scope) + check_agent(agent)


def user_rules(scope: HiveScope, agent: str) -> list[str]:
    """What the user of ``agent`` may do, as arguments of ACL SETUSER that follow ``reset``, ``on`` and its passwords.

    Raises ValueError for a name that cannot be an agent's.
    """
    own, hive = scope.key_prefix(check_agent(agent)), scope.hive_prefix
    rules = [f"~{own}*", f"&{reply_channel(scope, '*')}", *_allowed(f"{CONNECTION} {OWN}")]
    others: dict[str, list[str]] = {}
    for keys, commands in OTHERS.items():
        others.setdefault(commands, []).append(scope.key_prefix("*") + keys)
    others["fcall"].append(f"{hive}gate")  # the cache's
    rules += [_selector(keys, commands) for commands, keys in others.items()]
    rules += [_selector([scope.key_prefix(f"{TOPIC_MARK}*") + keys], commands) for keys, commands in TOPICS.items()]
    rules += [
        _selector([agents_key(scope)], "fcall sadd"),
        _selector([topics_key(scope)], "zadd zremrangebyscore"),
        # As agenthive.cache_entries names them, with the owner second; no owner means the hive.
        _selector([f"{hive}c:?:{owner}{end}*" for owner in (agent, "") for end in (":", "#")], CACHED),
        _selector([f"{hive}cb"], CACHE_ACCOUNT),
    ]
    return rules


def _selector(keys: list[str], commands: str) -> str:
    return f"({' '.join([f'~{key}' for key in keys] + _allowed(commands))})"


def _allowed(commands: str) -> list[str]:
    return [f"+{command}" for command in commands.split()]
