"""When a file of users changes: not before Redis has told, and once for all that changes together."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from kubernetes.aio import client

from agenthive.settings import HiveScope
from agenthive_operator.backends.kube import Kube
from agenthive_operator.backends.users import HiveUsers
from agenthive_operator.plan.users import lines_in, user_file
from agenthive_operator.reconcile.cache import Key, ObjectCache
from agenthive_operator.reconcile.users import SETTLE_SECONDS, Users

DEMO = Key("AgentHive", "ns", "demo")
SCOPE = HiveScope(instance="i1", namespace="ns", hive="demo")


class Server(HiveUsers):
    """Users of which only the outcome matters here."""

    def __init__(self) -> None:
        super().__init__()
        self.has: dict[str, tuple[str, ...] | None] | None = None

    def standing(self) -> dict[str, tuple[str, ...] | None] | None:
        return self.has


class Files(Users):
    """With a clock and a server of the test's."""

    def __init__(self, kube: Kube) -> None:
        self.now = 100.0
        self.later: list[float] = []
        super().__init__(
            kube,
            ObjectCache(),
            look_at=lambda key: None,
            look_later=lambda key, seconds: self.later.append(seconds),
            poke=lambda key: None,
            clock=lambda: self.now,
        )
        self.server = self._hives[DEMO] = Server()

    def told(self, **has: tuple[str, ...] | None) -> None:
        """Redis was looked at."""
        self.server.has = has
        self._note_standing(DEMO, self.server)


@pytest.fixture
async def files() -> Files:
    async with Kube(client.Configuration()) as kube:
        return Files(kube)


def written(**has: Sequence[str]) -> str:
    return user_file(SCOPE, "", has).text


async def test_many_changes_are_one(files: Files) -> None:
    assert files.file(DEMO, SCOPE) == ("", None)
    files.told(anna=("a",))
    assert files.file(DEMO, SCOPE) == ("", SETTLE_SECONDS)
    files.now += SETTLE_SECONDS - 1
    files.told(anna=("a",), bert=("b",))
    assert files.later == [SETTLE_SECONDS], "one look for all"
    assert files.file(DEMO, SCOPE) == ("", 1.0)
    files.now += 1
    assert files.file(DEMO, SCOPE) == (written(anna=["a"], bert=["b"]), None)
    files.told(anna=("a",), bert=("b",))
    assert files.later == [SETTLE_SECONDS], "nothing is new"
    files.told(anna=("a",), bert=("b", "c"))
    assert files.file(DEMO, SCOPE)[1] == SETTLE_SECONDS, "the next change waits, too"
    files.told(anna=("a",), bert=("b",))
    assert files.file(DEMO, SCOPE) == (written(anna=["a"], bert=["b"]), None), "it was taken back"


async def test_a_restarted_operator_keeps_what_it_finds_until_it_knows_better(files: Files) -> None:
    held = written(anna=["a"], bert=["b"], carl=["c"])
    assert not files.has_file(DEMO, SCOPE)
    assert files.file(DEMO, SCOPE, held) == (held, None)
    assert files.has_file(DEMO, SCOPE)
    files.told(anna=None, bert=None, carl=None)
    files.told(anna=("a",), bert=None, carl=None)
    files.now += SETTLE_SECONDS
    assert files.file(DEMO, SCOPE) == (held, None)
    files.told(anna=("a",), bert=("other",))
    assert files.file(DEMO, SCOPE) == (held, SETTLE_SECONDS)
    files.now += SETTLE_SECONDS
    assert files.file(DEMO, SCOPE) == (written(anna=["a"], bert=["other"]), None)


async def test_what_is_not_known_of_a_server_changes_nothing(files: Files) -> None:
    held = written(anna=["a"])
    files.file(DEMO, SCOPE, held)
    files.server.has = None
    files._note_standing(DEMO, files.server)
    assert files.later == []
    files.now += SETTLE_SECONDS
    assert files.file(DEMO, SCOPE) == (held, None)


async def test_a_hive_of_the_same_name_begins_anew(files: Files) -> None:
    files.file(DEMO, SCOPE, written(anna=["a"]))
    other = SCOPE.model_copy(update={"instance": "i2"})
    assert not files.has_file(DEMO, other)
    assert files.file(DEMO, other) == ("", None)
    files.forget_file(DEMO)
    assert not files.has_file(DEMO, other)
    files.told(anna=("a",))
    assert files.later == [], "no file, no look"


async def test_a_full_file_is_told(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    names = {f"agent-{number:04}": ("word",) for number in range(600)}
    files.file(DEMO, SCOPE)
    files.told(**names)
    files.file(DEMO, SCOPE)
    files.now += SETTLE_SECONDS
    text, _ = files.file(DEMO, SCOPE)
    assert f"no room for {600 - len(lines_in(SCOPE, text))}" in caplog.text
