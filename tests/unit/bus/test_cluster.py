"""Slots, keys of commands, and how commands follow their keys; the cluster's answers are scripted."""

from __future__ import annotations

from typing import Any

import pytest

from agenthive.bus.cluster import SLOTS, Cluster, SlotMap, key_of, redirection, routed, slot_of
from agenthive.bus.endpoint import Endpoint, Node
from agenthive.bus.wire import Command, ConnectionLost, ReplyError

ONE, TWO = ("10.0.0.1", 6379), ("10.0.0.2", 6379)
HALVES = [[0, 8191, [b"10.0.0.1", 6379, b"id"]], [8192, 16383, [b"10.0.0.2", 6379, b"id"], [b"replica", 1, b"id"]]]


@pytest.mark.parametrize(
    ("key", "slot"),
    # As `CLUSTER KEYSLOT` answers.
    [("foo", 12182), ("{foo}bar", 12182), ("a{foo}{bar}", 12182), ("{}foo", 9500), ("a{foo", 113), ("", 0)],
)
def test_slots(key: str, slot: int) -> None:
    assert slot_of(key) == slot_of(key.encode()) == slot


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("FCALL", "f", 1, "gate", "x"), "gate"),
        (("FCALL", "f", 0, "x"), None),
        (("SADD", "k", "v"), "k"),
        (("xinfo", "GROUPS", "k"), "k"),
        (("XREAD", "COUNT", 5, "STREAMS", "k", "0"), "k"),
        (("BLPOP", b"k", "1"), b"k"),
        (("PING",), None),
        (("WAIT", 1, 100), None),
    ],
)
def test_the_key_of_a_command(command: Command, key: Any) -> None:
    assert key_of(command) == key


def test_owners_of_slots() -> None:
    slots = SlotMap.of(HALVES, ONE)
    assert [slots.owner(slot) for slot in (0, 8191, 8192, SLOTS - 1)] == [ONE, ONE, TWO, TWO]
    assert slots.masters == (ONE, TWO)
    gap = SlotMap.of([[10, 20, [b"", 7000, b"id"]]], ONE)
    assert [gap.owner(slot) for slot in (9, 10, 20, 21)] == [None, ("10.0.0.1", 7000), ("10.0.0.1", 7000), None]
    assert SlotMap().owner(3) is None


def test_redirections() -> None:
    assert redirection(ReplyError("MOVED 3999 10.0.0.9:6381"), ONE) == ("10.0.0.9", 6381)
    assert redirection(ReplyError("ASK 3999 ::1:6381"), ONE) == ("::1", 6381)
    assert redirection(ReplyError("MOVED 3999 :6381"), ONE) == ("10.0.0.1", 6381), "the host that was asked"


class Known(Cluster):
    """A cluster whose map is told by the test, one after the other."""

    def __init__(self, *maps: Any) -> None:
        super().__init__(Endpoint("x", 1, kind="cluster"))
        self.maps = list(maps)
        self.fetched = 0

    async def _fetch(self) -> None:
        self.fetched += 1
        self._map = SlotMap.of(self.maps[0] if len(self.maps) == 1 else self.maps.pop(0), ONE)
        self._stale = False


LOW, HIGH = "ah:{i/ns/h/a1}:gate", "ah:{i/ns/h/a2}:gate"  # of the first and of the second half


def test_the_agents_of_these_tests_are_where_they_should_be() -> None:
    assert slot_of(LOW) < 8192 <= slot_of(HIGH)


async def test_commands_go_to_the_masters_of_their_keys() -> None:
    calls: list[tuple[Node, list[Command], bool]] = []

    async def exchange(node: Node, commands: list[Command], asking: bool) -> list[Any]:
        calls.append((node, commands, asking))
        return [f"{node[0]} {command[1]}" for command in commands]

    commands: list[Command] = [("GET", LOW), ("GET", HIGH), ("TTL", LOW)]
    answers = await routed(Known(HALVES), commands, exchange)
    assert answers == [f"10.0.0.1 {LOW}", f"10.0.0.2 {HIGH}", f"10.0.0.1 {LOW}"]
    assert calls == [(ONE, [commands[0], commands[2]], False), (TWO, [commands[1]], False)]


async def test_only_what_has_moved_is_asked_again() -> None:
    calls = []

    async def exchange(node: Node, commands: list[Command], asking: bool) -> list[Any]:
        calls.append((node, [command[0] for command in commands]))
        moved = node == ONE and len(calls) == 1
        return [ReplyError(f"MOVED 1 {TWO[0]}:{TWO[1]}") if moved and c[0] == "GET" else b"ok" for c in commands]

    cluster = Known(HALVES, [[0, 16383, [b"10.0.0.2", 6379, b"id"]]])
    assert await routed(cluster, [("SET", LOW, 1), ("GET", LOW)], exchange) == [b"ok", b"ok"]
    assert calls == [(ONE, ["SET", "GET"]), (TWO, ["GET"])]
    assert cluster.fetched == 2


async def test_a_function_waits_for_the_end_of_a_migration_and_a_plain_command_does_not() -> None:
    async def exchange(node: Node, commands: list[Command], asking: bool) -> list[Any]:
        return [b"there" if asking else ReplyError(f"ASK 1 {TWO[0]}:{TWO[1]}")] * len(commands)

    answers = await routed(Known(HALVES), [("FCALL", "f", 1, LOW), ("SMEMBERS", LOW)], exchange)
    assert isinstance(answers[0], ReplyError)
    assert answers[0].code == "ASK"
    assert answers[1] == b"there"


async def test_masters_that_disagree_are_not_asked_for_ever() -> None:
    calls = 0

    async def exchange(node: Node, commands: list[Command], asking: bool) -> list[Any]:
        nonlocal calls
        calls += 1
        return [ReplyError("MOVED 1 10.0.0.2:6379")]

    (answer,) = await routed(Known(HALVES), [("GET", LOW)], exchange)
    assert answer.code == "MOVED"
    assert calls == 5


async def test_one_lost_master_does_not_take_the_answers_of_the_others() -> None:
    async def exchange(node: Node, commands: list[Command], asking: bool) -> list[Any]:
        if node == ONE:
            raise ConnectionLost("gone")
        return [b"ok"] * len(commands)

    cluster = Known(HALVES)
    lost, kept = await routed(cluster, [("GET", LOW), ("GET", HIGH)], exchange)
    assert (lost.code, kept) == ("UNREACHABLE", b"ok")
    with pytest.raises(ConnectionLost, match="gone"):
        await routed(cluster, [("GET", LOW)], exchange)
    assert cluster.fetched == 2, "whoever owns it now is looked up anew"


async def test_a_slot_without_a_master() -> None:
    async def exchange(node: Node, commands: list[Command], asking: bool) -> list[Any]:
        return []

    with pytest.raises(ConnectionLost, match="no master of the cluster serves slot"):
        await routed(Known([[0, 1, [b"10.0.0.1", 6379, b"id"]]]), [("GET", LOW)], exchange)
