"""The server's functions against a model: hypothesis tries sequences of claims, endings, robberies and sends."""

from __future__ import annotations

import secrets
from collections import Counter
from dataclasses import dataclass
from typing import Any

import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from agenthive.bus import Delivery
from agenthive.bus.completions import Batch
from agenthive.bus.keys import AgentKeys
from agenthive.bus.library import library
from agenthive.protocol import AgentMessage
from agenthive.settings import HiveScope

LEASE = 3_600_000
NEVER = 3_600_000
LANES = (4, 3, 2, 1)
A_MESSAGE = AgentMessage(from_agent="a", to_agent="worker", message_type="t")


@dataclass
class Known:
    """What the model knows of one message."""

    lane: int
    state: str = "waiting"
    """waiting, held, due (a retry for the next turn), delayed, delivered or dead"""
    owner: str = ""
    attempts: int = 0
    """That ended, by failure or with their consumer."""
    entry: bytes = b""
    suspect: bool = False
    """Its consumer was robbed or left while it held it."""


class Queue(RuleBasedStateMachine):
    """One agent's queue; a machine per example, in a hive of its own."""

    client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.keys = AgentKeys.of(HiveScope(hive=f"t{secrets.token_hex(5)}"), "worker")
        self.messages: dict[bytes, Known] = {}
        self.alive: list[str] = []
        self.gone: list[str] = []

    def call(self, function: str, *arguments: Any) -> Any:
        return self.client.execute_command(*library().call(function, self.keys.gate, *arguments))

    def turn(self, consumer: str, quotas: tuple[int, ...] = (0, 0, 0, 0), *ending: Any, ack: Any = None) -> Any:
        acknowledgements: list[Any] = []
        if ack is not None:
            id_, known = ack
            done = Delivery(A_MESSAGE, known.attempts + 1, consumer, known.lane, known.entry, id_, 1, b"")
            acknowledgements.append((done, None))
        acknowledged = Batch(acknowledgements, []).arguments(1)
        return self.call("turn", consumer, LEASE, 60_000, 1000, *quotas, "00", "0", 0, *acknowledged, *ending)

    def of(self, state: str, owner: str | None = None) -> list[bytes]:
        return [i for i, m in self.messages.items() if m.state == state and owner in {None, m.owner}]

    # --- what may happen

    @precondition(lambda self: len(self.alive) < 3)
    @rule()
    def join(self) -> None:
        name = f"pod{len(self.alive) + len(self.gone)}/{secrets.token_hex(3)}"
        self.call("register", name, LEASE)
        self.alive.append(name)

    @rule(lanes=st.lists(st.sampled_from(LANES), min_size=1, max_size=6))
    def send(self, lanes: list[int]) -> None:
        arguments: list[Any] = []
        for lane in lanes:
            id_ = b"m%d" % len(self.messages)
            self.messages[id_] = Known(lane)
            arguments += [lane, id_, b"{}", 60_000_000, ""]
        assert self.call("send", "0", 1000, *arguments) == b"1" * len(lanes)

    @rule()
    def send_again(self) -> None:
        """What was accepted is known as long as it is not finished."""
        for id_, known in list(self.messages.items())[-3:]:
            if known.state not in {"delivered", "dead"}:
                assert self.call("send", "0", 1000, known.lane, id_, b"{}", 60_000, "") == b"2"

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), quotas=st.tuples(*[st.integers(0, 3)] * 4))
    def claim(self, data: st.DataObject, quotas: tuple[int, ...]) -> None:
        if not sum(quotas):
            return
        consumer = data.draw(st.sampled_from(self.alive))
        for id_ in self.of("due"):
            self.messages[id_].state = "waiting"
        waiting = Counter(self.messages[id_].lane for id_ in self.of("waiting"))
        expected = Counter({lane: min(quota, waiting[lane]) for lane, quota in zip(LANES, quotas, strict=True)})
        for lane in LANES:  # what the shares leave over goes to the highest lane first
            expected[lane] += min(sum(quotas) - expected.total(), waiting[lane] - expected[lane])
        got: Counter[int] = Counter()
        answer = self.turn(consumer, quotas)
        assert answer[4] == 0
        for lane, kind, flat, *numbers in answer[2]:
            for place in range(0, len(flat), 2):
                id_ = flat[place + 1].split(b"\n")[1]
                known = self.messages[id_]
                assert (known.lane, known.state) == (lane, "waiting"), "two consumers hold it, or it was over"
                attempt = numbers[0][place // 2] if kind == 1 else 1
                assert attempt == known.attempts + 1
                known.state, known.owner, known.entry = "held", consumer, flat[place]
                got[lane] += 1
        if any(self.messages[id_].suspect for id_ in self.messages):
            # What was held by one that died is handed out apart from the rest, and not by shares.
            assert 0 <= got.total() <= sum(quotas)
        else:
            assert +got == +expected

    @precondition(lambda self: self.of("held"))
    @rule(data=st.data(), how=st.sampled_from(["ack", "retry", "later", "reject", "release"]))
    def end(self, data: st.DataObject, how: str) -> None:
        """The owner says how it ended; after it was robbed, nothing it says counts."""
        id_ = data.draw(st.sampled_from(self.of("held")))
        known = self.messages[id_]
        place = (known.lane, known.entry, id_, known.attempts + 1, 1)
        if how == "ack":
            answer = self.turn(known.owner, ack=(id_, known))
        elif how == "release":
            answer = self.turn(known.owner, (0, 0, 0, 0), "r", known.lane, known.entry)
        elif how == "reject":
            answer = self.turn(known.owner, (0, 0, 0, 0), "d", *place, "rejected", "no")
        else:
            answer = self.turn(known.owner, (0, 0, 0, 0), "f", *place, 0 if how == "retry" else NEVER, "no")
        assert answer[:2] == [b"", b""]
        known.attempts += how in {"retry", "later"}
        known.state = {
            "ack": "delivered", "retry": "due", "later": "delayed", "reject": "dead", "release": "waiting",
        }[how]  # fmt: skip

    @precondition(lambda self: len(self.alive) > 1)
    @rule(data=st.data())
    def rob(self, data: st.DataObject) -> None:
        """A lease runs out and another consumer notices. What the robbed one says then is refused."""
        victim = data.draw(st.sampled_from(self.alive))
        self.alive.remove(victim)
        self.gone.append(victim)
        held = self.of("held", victim)
        self.client.zadd(self.keys.gate.removesuffix("gate") + "consumers", {victim: 1})
        assert self.call("reclaim", self.alive[0], "") == [len(held), b"0"]
        for id_ in held:
            known = self.messages[id_]
            assert self.turn(victim, ack=(id_, known))[0] == b"0", "a late acknowledgement counted"
            place = (known.lane, known.entry, id_, known.attempts + 1, 1)
            assert self.turn(victim, (0, 0, 0, 0), "f", *place, 0, "late")[1] == b"0", "a late failure counted"
            known.state, known.owner, known.suspect = "waiting", "", True
            known.attempts += 1
        assert self.turn(victim, (1, 1, 1, 1))[2:5:2] == [[], 1], "a robbed consumer got messages"

    @precondition(lambda self: len(self.alive) > 1)
    @rule()
    def leave(self) -> None:
        consumer = self.alive.pop()
        self.gone.append(consumer)
        assert self.call("leave", consumer) == b"0"
        for id_ in self.of("held", consumer):
            known = self.messages[id_]
            known.state, known.owner, known.suspect = "waiting", "", True
            known.attempts += 1

    # --- what always holds

    @invariant()
    def nothing_is_lost(self) -> None:
        states = Counter(known.state for known in self.messages.values())
        waiting = Counter(self.messages[id_].lane for id_ in self.of("waiting"))
        figures = self.call("stats")
        assert figures[:4] == [waiting[lane] for lane in (1, 2, 3, 4)]
        assert figures[4:7] == [states["held"], states["due"] + states["delayed"], states["dead"]]


def test_the_functions_and_the_model_agree(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url, protocol=2) as client:
        client.execute_command("FUNCTION", "LOAD", "REPLACE", library().code)
        Queue.client = client
        run_state_machine_as_test(
            Queue,
            settings=settings(
                max_examples=60, stateful_step_count=40, phases=[Phase.generate], derandomize=True, deadline=None,
                database=None, suppress_health_check=list(HealthCheck),
            ),
        )  # fmt: skip
