"""The file of users of a managed Redis: which lines, in which order, and how many."""

from __future__ import annotations

import hashlib

import pytest
from tests.unit.plan.build import OBSERVED_HIVE, hive, named

from agenthive.settings import HiveScope
from agenthive_operator.plan.hive import plan_hive
from agenthive_operator.plan.inputs import ObservedHive, ObservedServer
from agenthive_operator.plan.users import LIMIT_BYTES, UserFile, lines_in, user_file, user_setting

SCOPE = HiveScope(instance="i1", namespace="team", hive="demo")
LONGEST = HiveScope(instance="i1234567", namespace="n" * 63, hive="h" * 46)


def test_a_line_says_what_the_server_was_told() -> None:
    text = user_file(SCOPE, "", {"anna": ["word"]}).text
    assert text == f"user ah:i1/team/demo/anna {' '.join(user_setting(SCOPE, 'anna', ['word']))}\n"
    assert f" on #{hashlib.sha256(b'word').hexdigest()} ~ah:{{i1/team/demo/anna}}:* " in text
    assert "word " not in text
    assert not set(text) & set("\"'\\\t\r"), "nothing that a configuration file would take for a quote"


def test_the_order_of_neither_users_nor_passwords_matters() -> None:
    one = user_file(SCOPE, "", {"bert": ["b"], "anna": ["new", "old"]})
    other = user_file(SCOPE, "", {"anna": ["old", "new"], "bert": ["b"]})
    assert one == other
    assert list(lines_in(SCOPE, one.text)) == ["anna", "bert"]
    assert one.text.splitlines()[0].count(" #") == 2


def test_what_is_not_known_stays_and_who_has_no_user_goes() -> None:
    held = user_file(SCOPE, "", {"anna": ["a"], "bert": ["b"], "carl": ["c"]}).text
    lines = lines_in(SCOPE, held)
    found = user_file(SCOPE, held, {"anna": None, "bert": ["other"], "dora": None})
    assert found.text == lines["anna"] + user_file(SCOPE, "", {"bert": ["other"]}).text
    assert found.left_out == 0
    assert user_file(SCOPE, held, {}) == UserFile()


@pytest.mark.parametrize(
    "line",
    [
        "user default on nopass ~* &* +@all",
        "user ah:i1/team/demo/eve on nopass ~* +@all",
        f"user ah:i2/team/demo/eve on #{'0' * 64} +get",
        f"user ah:i1/team/demo/eve on #{'0' * 64} ~'x +get",
        f"user ah:i1/team/demo/eve on #{'0' * 60} +get",
        "requirepass x",
        "",
    ],
)
def test_what_is_no_line_of_an_agent_of_the_hive_is_left_out(line: str) -> None:
    held = user_file(SCOPE, "", {"anna": ["a"]}).text
    assert user_file(SCOPE, f"{line}\n{held}", {"anna": None, "eve": None}).text == held


@pytest.mark.parametrize(("scope", "agent", "at_least"), [(SCOPE, "agent", 430), (LONGEST, "a" * 42, 160)])
def test_a_file_that_is_full_leaves_out_the_last(scope: HiveScope, agent: str, at_least: int) -> None:
    names = [f"{agent}-{number:04}" for number in range(600)]
    found = user_file(scope, "", dict.fromkeys(names, ("word",)))
    kept = list(lines_in(scope, found.text))
    assert len(found.text) <= LIMIT_BYTES
    assert at_least <= len(kept) == len(names) - found.left_out
    assert kept == names[: len(kept)]


def test_the_secret_comes_with_the_first_user_and_restarts_nothing() -> None:
    text = user_file(SCOPE, "", {"anna": ["a"]}).text
    before = plan_hive(hive(), OBSERVED_HIVE)
    after = plan_hive(hive(), ObservedHive(ObservedServer("redis-password", users=text), OBSERVED_HIVE.postgres))
    secret = named(after, "Secret", "demo-redis-users")
    assert [entry for entry in after if entry is not secret] == before
    assert secret["metadata"]["ownerReferences"], "it ends with the hive, whatever else is kept"
    (volume,) = [
        entry
        for entry in named(after, "StatefulSet", "demo-redis")["spec"]["template"]["spec"]["volumes"]
        if entry["name"] == "secret"
    ]
    assert [source["secret"] for source in volume["projected"]["sources"]] == [
        {"name": "demo-redis"},
        {"name": "demo-redis-users", "optional": True},
    ]
