"""What a user of an agent may do, against what the code runs."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from agenthive.bus.access import CACHE_ACCOUNT, CACHED, CONNECTION, OTHERS, OWN, TOPICS, user_name, user_rules
from agenthive.bus.library import FILES
from agenthive.settings import HiveScope

SCOPE = HiveScope(instance="i1", namespace="team", hive="demo")
CALLS = re.compile(r"redis\.p?call\('(\w+)'(?:, '([A-Z]+)')?")
CONTAINERS = {"XGROUP", "XINFO", "CLUSTER"}
NEVER = {
    "acl", "config", "debug", "eval", "evalsha", "flushall", "flushdb", "function", "keys", "migrate", "monitor",
    "psubscribe", "randomkey", "replicaof", "restore", "scan", "script", "shutdown", "client|kill", "client|list",
}  # fmt: skip


def run_by(name: str) -> set[str]:
    """The commands in one file of lua/, as rules name them."""
    text = resources.files("agenthive.bus").joinpath("lua").joinpath(name).read_text(encoding="utf-8")
    return {(f"{name}|{sub}" if name in CONTAINERS else name).lower() for name, sub in CALLS.findall(text)}


def test_every_command_of_the_functions_is_given_and_none_that_nothing_runs() -> None:
    bus = set.union(*(run_by(name) for name in FILES if name != "cache.lua"))
    given = set(f"{CONNECTION} {OWN}".split())
    assert bus <= given | {"xread"}
    assert set(OWN.split()) - bus == {"blpop", "fcall", "xrevrange"}, "what Python runs, and letters.lua by a variable"
    assert run_by("cache.lua") <= set(f"{CACHED} {CACHE_ACCOUNT}".split())


def test_nobody_gets_administration() -> None:
    everything = [CONNECTION, OWN, CACHED, CACHE_ACCOUNT, *OTHERS.values(), *TOPICS.values()]
    assert not set(" ".join(everything).split()) & NEVER
    text = " ".join(user_rules(SCOPE, "anna"))
    assert "@" not in text
    assert "~*" not in text
    assert "allkeys" not in text


def test_other_agents_queues_are_written_to_and_not_read() -> None:
    queue = set(OTHERS["q:[1-4]"].split())
    assert not queue & {"xread", "xreadgroup", "xrange", "xrevrange", "xack", "xdel", "xtrim", "xclaim", "del"}
    deleting = {keys for keys, commands in OTHERS.items() if {"del", "unlink"} & set(commands.split())}
    assert deleting == {"dd:*", "u:*"}


def test_rules_stay_in_the_hive() -> None:
    for rule in user_rules(SCOPE, "anna"):
        for pattern in re.findall(r"[~&](\S+?)\)?(?:\s|$)", rule):
            assert pattern.startswith(("ah:{i1/team/demo/", "ah:{i1/team/demo}:"))


def test_names() -> None:
    assert user_name(SCOPE, "anna") == "ah:i1/team/demo/anna"
    for build in (user_name, user_rules):
        with pytest.raises(ValueError, match="no name of an agent"):
            build(SCOPE, "*")
