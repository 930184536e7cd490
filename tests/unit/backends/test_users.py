"""What servers are told of users, and what they tell of themselves."""

from __future__ import annotations

import hashlib

from agenthive.bus.access import user_rules
from agenthive.bus.endpoint import Endpoint
from agenthive.bus.wire import ConnectionLost, ReplyError
from agenthive.settings import HiveScope
from agenthive_operator.backends.users import _agents_in, _blamed, _node, setting
from agenthive_operator.backends.vigil import same_login

SCOPE = HiveScope(instance="i1", namespace="team", hive="demo")


def test_a_server_gets_digests_and_nothing_of_before_stays() -> None:
    first, *rest = setting(SCOPE, "anna", ["new", "old"])
    assert first == "reset"
    digests = [f"#{hashlib.sha256(word).hexdigest()}" for word in (b"new", b"old")]
    assert rest == ["on", *digests, *user_rules(SCOPE, "anna")]


def test_only_users_of_the_hive_are_its_own() -> None:
    names = [b"default", b"ah:i1/team/demo/anna", b"ah:i1/team/demo-2/bert", b"ah:i2/team/demo/carl"]
    assert _agents_in(names, SCOPE) == {"anna"}


def test_a_node_of_a_cluster() -> None:
    told_by = ("10.0.0.1", 7000)
    entry = [b"id", b"x", b"port", 7001, b"tls-port", 7002, b"endpoint", b"node-2", b"health", b"failed"]
    assert _node(entry, told_by, tls=False) == ("node-2", 7001)
    assert _node(entry, told_by, tls=True) == ("node-2", 7002)
    for endpoint in (b"", b"?", None):
        assert _node([b"port", 7001, b"endpoint", endpoint], told_by, tls=False) == ("10.0.0.1", 7001)
    assert _node([b"tls-port", 7002, b"endpoint", b"h"], told_by, tls=False) == ("h", 7002)


def test_a_server_that_is_away_is_no_matter_of_rights() -> None:
    url = "redis://boss:secret-word@host:6379"
    assert _blamed(ConnectionLost("refused"), url).reason == "Unreachable"
    error = _blamed(ReplyError("NOPERM secret-word"), url)
    assert error.reason == "UsersFailed"
    assert "spec.redis.external.adminUrlSecretRef" in str(error)
    assert "secret-word" not in str(error)


def test_same_login() -> None:
    one = Endpoint.parse("redis://a:b@h:1")
    assert same_login(one, Endpoint.parse("redis://a:b@other:2"))
    assert not same_login(one, Endpoint.parse("redis://a:c@h:1"))
    assert not same_login(one, Endpoint.parse("rediss://a:b@h:1"))
    assert not same_login(one, None)
