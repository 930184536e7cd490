"""What an Agent is told of its login before any server was asked."""

from __future__ import annotations

import pytest
from kubernetes.aio import client

from agenthive.store.roles import agent_role
from agenthive_operator.backends.kube import Kube
from agenthive_operator.reconcile.cache import Key, ObjectCache
from agenthive_operator.reconcile.logins import Logins, names_hive
from agenthive_operator.reconcile.queue import KeyedQueue

ANNA, DEMO, OTHER = Key("Agent", "ns", "anna"), Key("AgentHive", "ns", "demo"), Key("AgentHive", "ns", "other")
URL = f"postgresql://{agent_role('ah_x', 'anna')}:kept@h/d"
SERVER = "postgresql://hive:word@h/d"


async def _nothing(key: Key) -> None:
    del key


@pytest.mark.parametrize("url", [None, URL, "postgresql://hive:word@h/d", "nonsense"])
async def test_a_wish_is_news_once_and_ready_only_when_a_server_said_so(url: str | None) -> None:
    async with Kube(client.Configuration()) as kube:
        logins = Logins(kube, ObjectCache(), KeyedQueue(_nothing))
        assert logins.want(ANNA, DEMO, "ah_x", url, server=SERVER) == (None, True)
        assert logins.want(ANNA, DEMO, "ah_x", url, server=SERVER) == (None, False), (
            "the same password: nothing is minted again"
        )
        assert logins.forget(ANNA) == DEMO
        assert logins.forget(ANNA) is None
        assert logins.want(ANNA, DEMO, "ah_x", url, server=SERVER) == (None, True)


async def test_another_password_in_the_secret_is_news() -> None:
    async with Kube(client.Configuration()) as kube:
        logins = Logins(kube, ObjectCache(), KeyedQueue(_nothing))
        logins.want(ANNA, DEMO, "ah_x", URL, server=SERVER)
        assert logins.want(ANNA, DEMO, "ah_x", URL.replace("kept", "changed"), server=SERVER) == (None, True)


async def test_an_agent_that_comes_again_in_another_hive_is_no_longer_wanted_in_the_first() -> None:
    async with Kube(client.Configuration()) as kube:
        logins = Logins(kube, ObjectCache(), KeyedQueue(_nothing))
        logins.want(ANNA, DEMO, "ah_x", URL, server=SERVER)
        assert logins.want(ANNA, OTHER, "ah_y", URL, server=SERVER) == (None, True)
        assert logins.want(ANNA, DEMO, "ah_x", URL, server=SERVER) == (None, True)
        assert logins.forget(ANNA) == DEMO
        logins.forget_hive(DEMO)
        assert logins.want(ANNA, DEMO, "ah_x", URL, server=SERVER) == (None, True)


def test_whose_an_agent_is() -> None:
    assert names_hive({"spec": {"hiveRef": {"name": "demo"}}}, "demo")
    assert not names_hive({"spec": {"hiveRef": {"name": "other"}}}, "demo")
    assert not names_hive({}, "demo")
    assert not names_hive(None, "demo")
