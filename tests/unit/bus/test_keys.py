"""Names in Redis."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agenthive.bus import library as library_module
from agenthive.bus.keys import AgentKeys, TopicKeys, agents_key, check_agent, check_topic, reply_channel, topics_key
from agenthive.bus.library import FILES, Library, library
from agenthive.settings import HiveScope

SCOPE = HiveScope(instance="i", namespace="ns", hive="h")


def test_keys_of_an_agent_share_a_slot() -> None:
    keys = AgentKeys.of(SCOPE, "worker-1")
    assert keys.gate == "ah:{i/ns/h/worker-1}:gate"
    assert {re.findall(r"\{(.*?)\}", key)[0] for key in (keys.gate, keys.wake, keys.dead)} == {"i/ns/h/worker-1"}


def test_keys_of_a_topic_share_a_slot_that_no_agent_has() -> None:
    keys = TopicKeys.of(SCOPE, "news")
    assert (keys.gate, keys.log, keys.last) == tuple(f"ah:{{i/ns/h/#news}}:{name}" for name in ("gate", "log", "last"))
    with pytest.raises(ValueError, match="publish to it"):
        check_agent("#news")
    with pytest.raises(ValueError, match="no name of a topic"):
        check_topic("#news")


def test_keys_of_a_hive() -> None:
    assert topics_key(SCOPE) == "ah:{i/ns/h}:topics"
    assert agents_key(SCOPE) == "ah:{i/ns/h}:agents"
    assert reply_channel(SCOPE, "p1") == "ah:{i/ns/h}:reply:p1"


@pytest.mark.parametrize("name", ["a", "worker", "code-atlas.v2", "A_b", "x" * 253])
def test_names_an_agent_may_have(name: str) -> None:
    assert check_agent(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "a b", "a}b", "a/b", "@a", "ä", "a\n", "x" * 254])
def test_names_an_agent_cannot_have(name: str) -> None:
    with pytest.raises(ValueError, match="no name of an agent"):
        check_agent(name)


def test_the_library_is_named_by_its_content() -> None:
    one, other = Library("local x = '@VERSION@'"), Library("local y = '@VERSION@'")
    assert one.name != other.name
    assert one.code.startswith(f"#!lua name=agenthive_{one.version}\n")
    assert "@VERSION@" not in one.code
    assert one.call("send", "k", "a", 1) == ("FCALL", f"agenthive_{one.version}_send", 1, "k", "a", 1)


def test_the_library_of_the_package_holds_every_file_and_every_function_that_is_called() -> None:
    folder = Path(library_module.__file__).parent
    assert sorted(FILES) == sorted(file.name for file in (folder / "lua").glob("*.lua"))
    defined = re.findall(r"define\('(\w+)'", library().code)
    assert len(defined) == len(set(defined))
    callers = [*folder.glob("*.py"), folder.parent / "cache.py"]
    called = {name for file in callers for name in re.findall(r"\bcall\(\s*\"(\w+)\"", file.read_text())}
    assert called == set(defined)


def test_what_only_reads_is_known_from_the_library() -> None:
    call = library().call
    reading = [call("stats", "g"), call("status", "g", "id"), ("SMEMBERS", "k")]
    assert library().only_reads(reading)
    assert not library().only_reads([*reading, call("leave", "g")])
    assert not library().only_reads([("SADD", "k", "v")])
