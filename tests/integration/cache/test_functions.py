"""The cache's functions against a model: hypothesis tries sequences of leases, fills and changes."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from agenthive.bus.library import library
from agenthive.settings import HiveScope

ENTRY_BYTES = 128
LONG = 3_000_000
NAMES = st.sampled_from(["a", "b", "c"])
BOUND = 1500


class Server:
    """The functions on one hive's keys."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.prefix = HiveScope(hive=f"t{secrets.token_hex(5)}").hive_prefix

    def call(self, function: str, *arguments: Any) -> Any:
        return self.client.execute_command(*library().call(f"cache_{function}", f"{self.prefix}gate", *arguments))

    def key(self, name: str) -> str:
        return f"{self.prefix}c:{name}"

    def fill(self, name: str, token: str, document: str, *, life: int = LONG, form: str = "V1", bound: int = 0) -> str:
        return self.call("fill", bound, name, token, life, form, document).decode()

    def entry(self, name: str) -> bytes | None:
        return self.client.get(self.key(name))

    def account(self) -> dict[str, int]:
        return {field.decode(): int(value) for field, value in self.client.hgetall(f"{self.prefix}cb").items()}

    def is_exact(self) -> bool:
        """Whether the account says what there is."""
        account = self.account()
        total = account.pop("t", 0)
        account.pop("n", 0)
        keys = self.client.keys(f"{self.prefix}c:*")
        values = [(len(key), self.client.get(key)) for key in keys]
        sizes = sum(length + len(value) + ENTRY_BYTES for length, value in values if value and value[:1] != b"L")
        return total == sizes == sum(account.values()) and 0 not in account.values()


@pytest.fixture
def server(redis_url: str) -> Any:
    with redis.Redis.from_url(redis_url, protocol=2) as client:
        client.execute_command("FUNCTION", "LOAD", "REPLACE", library().code)
        yield Server(client)


class Entries(RuleBasedStateMachine):
    """A cache of three entries and a bound; a machine per example."""

    client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.server = Server(self.client)
        self.model: dict[str, tuple[str, int, str]] = {}
        """By name: kind, version, document; of a marker: L, 0, token."""
        self.tokens = ["never"]

    def size(self, name: str) -> int:
        value = self.server.entry(name) or b""
        return 0 if value[:1] in (b"", b"L") else len(self.server.key(name)) + len(value) + ENTRY_BYTES

    def room(self) -> int:
        return BOUND - sum(self.size(name) for name in self.model)

    @rule(names=st.lists(NAMES, min_size=1, max_size=3, unique=True))
    def lease(self, names: list[str]) -> None:
        token = secrets.token_hex(4)
        self.tokens.append(token)
        answers = self.server.call("lease", token, *names)
        for name, answer in zip(names, answers, strict=True):
            if name in self.model:
                kind, _, text = self.model[name]
                assert answer[:1].decode() == kind
                assert answer.decode().endswith(text)
            else:
                assert answer is None
                self.model[name] = ("L", 0, token)

    @rule(
        name=NAMES, age=st.integers(1, 3), kind=st.sampled_from("VVVNB"), version=st.integers(1, 5),
        size=st.integers(0, 500), give_back=st.booleans(),
    )  # fmt: skip
    def fill(self, name: str, age: int, kind: str, version: int, size: int, give_back: bool) -> None:
        token = self.tokens[-min(age, len(self.tokens))]
        document, version = ("x" * size, version) if kind == "V" else ("", 0)
        held = self.model.get(name) == ("L", 0, token)
        room = self.room()
        answer = self.server.fill(
            name, token, document, life=0 if give_back else LONG, form=f"{kind}{version}", bound=BOUND
        )
        if not held:
            assert answer == "0"
        elif give_back:
            assert answer == "0"
            del self.model[name]
        elif answer == "1":
            self.model[name] = (kind, version, document)
            assert self.size(name) <= room
        else:
            assert answer == "2"
            del self.model[name]
            assert size + 100 + ENTRY_BYTES > room, "there was room"

    @rule(names=st.lists(NAMES, min_size=1, max_size=3, unique=True), data=st.data())
    def change(self, names: list[str], data: st.DataObject) -> None:
        rows: list[Any] = []
        expected: dict[str, set[Any]] = {}
        for name in names:
            before, size = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 500))
            document = "y" * size
            deletes = data.draw(st.booleans())
            rows += ("", "", "") if deletes else (before, before + 1, document)
            kind, version, _ = self.model.get(name, ("", 0, ""))
            if kind == "" or deletes or kind != "V" or version not in {before, before + 1}:
                expected[name] = {None}
            elif version == before + 1:
                expected[name] = {self.model[name]}
            else:
                expected[name] = {("V", before + 1, document), None}  # None where the bound forbids it
        self.server.call("change", BOUND, len(names), *names, *rows)
        for name, outcomes in expected.items():
            found = self.server.entry(name)
            outcome = None
            if found is not None:
                head, _, document = found.decode().split(" ", 2)
                outcome = (head[0], int(head[1:]), document)
            assert outcome in outcomes
            if outcome is None:
                self.model.pop(name, None)
            else:
                self.model[name] = outcome

    @rule(name=NAMES)
    def renew(self, name: str) -> None:
        kind, _, token = self.model.get(name, ("", 0, ""))
        lives = self.server.client.pttl(self.server.key(name))
        self.server.call("renew", name, token if kind == "L" else self.tokens[-1])
        assert kind == "L" or self.server.client.pttl(self.server.key(name)) <= lives

    @invariant()
    def what_is_there_is_what_should_be(self) -> None:
        for name in ("a", "b", "c"):
            value = self.server.entry(name)
            assert (value is None) == (name not in self.model)
            if value is not None:
                kind, version, text = self.model[name]
                assert value == f"L{text}".encode() if kind == "L" else value.startswith(f"{kind}{version} ".encode())
                assert 0 < self.server.client.pttl(self.server.key(name)) <= LONG, "everything ends"
        assert self.server.is_exact()
        assert self.server.account().get("t", 0) <= BOUND


def test_the_functions_and_the_model_agree(server: Server) -> None:
    Entries.client = server.client
    run_state_machine_as_test(
        Entries,
        settings=settings(
            max_examples=60, stateful_step_count=40, phases=[Phase.generate], derandomize=True, deadline=None,
            database=None, suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip


def test_the_life_of_an_entry_counts_from_its_lease(server: Server) -> None:
    server.call("lease", "t", "a", "b")
    server.client.pexpire(server.key("a"), 1000)  # as if leased 4 s ago
    assert server.fill("a", "t", "x", life=28_000) == "1"
    assert server.client.pttl(server.key("a")) <= 24_000
    server.call("change", 0, 1, "a", 1, 2, "yy")
    assert server.entry("a") == b"V2 0 yy"
    assert server.client.pttl(server.key("a")) <= 24_000, "a change keeps it"
    server.client.pexpire(server.key("b"), 1000)
    assert server.fill("b", "t", "x", life=3999) == "0", "it is over by now"
    assert server.entry("b") is None


def test_a_lease_ends(server: Server) -> None:
    server.call("lease", "t", "a")
    assert 4000 < server.client.pttl(server.key("a")) <= 5000
    server.client.delete(server.key("a"))  # as its end does
    assert server.call("lease", "u", "a") == [None]
    assert server.fill("a", "t", "x") == "0"
    assert server.entry("a") == b"Lu"
    server.client.pexpire(server.key("a"), 1000)
    server.call("renew", "a", "t")
    assert server.client.pttl(server.key("a")) <= 1000
    server.call("renew", "a", "u")
    assert server.client.pttl(server.key("a")) > 4000


def age(server: Server, buckets: int) -> None:
    """Let the account be older by so many buckets of 5 s, and what is in those that are over by now end."""
    account, key = server.account(), f"{server.prefix}cb"
    server.client.delete(key)
    fields = {field if field == "t" else str(int(field) - buckets): n for field, n in account.items() if field != "n"}
    server.client.hset(key, mapping={**fields, "n": account["n"] - buckets})
    for name in server.client.keys(f"{server.prefix}c:*"):
        value = server.client.get(name)
        head, bucket, document = value.split(b" ", 2)
        older = b" ".join((head, str(int(bucket) - buckets).encode(), document))
        if int(bucket) - buckets <= account["n"]:
            server.client.delete(name)
        else:
            server.client.set(name, older, keepttl=True)


def test_the_account_is_empty_when_all_has_ended(server: Server) -> None:
    server.call("lease", "t", "short", "long")
    assert server.fill("short", "t", "x" * 100, life=12_000, bound=10_000) == "1"
    assert server.fill("long", "t", "x" * 100, life=900_000, bound=10_000) == "1"
    assert server.is_exact()
    age(server, 4)
    server.call("lease", "u", "next")
    assert server.fill("next", "u", "x", life=12_000, bound=10_000) == "1"
    assert server.is_exact()
    assert server.entry("short") is None
    assert server.entry("long") is not None
    age(server, 400)
    server.call("lease", "w", "last")
    assert server.fill("last", "w", "x", life=12_000, bound=10_000) == "1"
    assert server.is_exact()
    server.call("change", 10_000, 1, "last", "", "", "")
    assert server.account()["t"] == 0
    assert 0 < server.client.pttl(f"{server.prefix}cb") <= 7_200_000


def test_an_account_that_was_lost_does_no_harm(server: Server) -> None:
    server.call("lease", "t", "a", "b")
    server.fill("a", "t", "x" * 100, bound=10_000)
    server.client.delete(f"{server.prefix}cb")
    server.call("change", 10_000, 1, "a", "", "", "")
    assert server.account() == {}
    assert server.fill("b", "t", "x" * 100, bound=10_000) == "1"
    assert server.is_exact()


def test_the_account_covers_what_the_server_needs(server: Server) -> None:
    names = [f"s:agent:key-{n}" for n in range(300)]
    server.call("lease", "t", *names)
    for n, name in enumerate(names):
        server.fill(name, "t", "x" * (n * 7), bound=10_000_000)
    needed = sum(server.client.memory_usage(server.key(name)) for name in names)
    assert needed <= server.account()["t"] <= needed + 100 * len(names)


def test_a_full_server_takes_no_entry_and_still_forgets(server: Server, own_valkey: Any) -> None:
    with redis.Redis.from_url(own_valkey.url, protocol=2) as client:
        client.execute_command("FUNCTION", "LOAD", library().code)
        full = Server(client)
        full.call("lease", "t", "a", "b", "c")
        full.fill("a", "t", "x")
        full.fill("b", "t", "x")
        client.config_set("maxmemory", 1)
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            full.fill("c", "t", "x")
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            full.call("lease", "t", "d")
        full.call("change", 0, 3, "a", "b", "c", "", "", "", 1, 2, "y", "", "", "")
        assert [full.entry(name) for name in "abc"] == [None, b"V2 0 y", None]
