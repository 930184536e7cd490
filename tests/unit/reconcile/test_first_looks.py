"""What a new object is spared: a second question about what is absent, a status while its hive is looked at."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from agenthive_operator.api.agent import Agent
from agenthive_operator.backends.kube import Kube, Object, Resource
from agenthive_operator.reconcile.agent import SILENT_SECONDS, patience
from agenthive_operator.reconcile.cache import ObjectCache
from agenthive_operator.reconcile.children import ABSENT_SECONDS, Children

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def agent(**metadata: Any) -> Agent:
    metadata = {"name": "a", "namespace": "n", "uid": "u", **metadata}
    spec = {"hiveRef": {"name": "h"}, "entrypoint": "m:a"}
    return Agent.parse({"apiVersion": "agenthive.dev/v1alpha1", "kind": "Agent", "metadata": metadata, "spec": spec})


@pytest.mark.parametrize(
    ("age", "left"), [(0.0, SILENT_SECONDS), (4.0, SILENT_SECONDS - 4), (60.0, SILENT_SECONDS - 60)]
)
def test_a_new_agent_says_nothing_for_a_while(age: float, left: float) -> None:
    made = (NOW - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert patience(agent(creationTimestamp=made), NOW) == left


def test_one_of_unknown_age_speaks_at_once() -> None:
    assert patience(agent(), NOW) == 0


class Server:
    """Answers from ``objects``; ``asked`` counts."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.asked = 0

    async def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        self.asked += 1
        return self.objects.get(name)


async def test_the_word_that_an_object_is_absent_counts_once_more_and_not_for_long() -> None:
    now, server = [0.0], Server()
    children = Children(cast(Kube, server), ObjectCache(), clock=lambda: now[0])
    for asked in (1, 1, 2, 2):
        assert await children.live("Secret", "n", "gone") is None
        assert server.asked == asked
    await children.live("Secret", "n", "other")
    await children.live("Secret", "n", "gone")
    now[0] += ABSENT_SECONDS
    server.objects["gone"] = {"kind": "Secret", "metadata": {"name": "gone", "namespace": "n"}}
    assert await children.live("Secret", "n", "gone") == server.objects["gone"]
    await children.live("Secret", "n", "third")
    assert len(children._absent) == 1, "what is too old to count is forgotten"
