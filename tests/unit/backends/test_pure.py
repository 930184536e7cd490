"""What the backends decide without asking anybody."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from agenthive.settings import HiveScope
from agenthive.store.errors import InvalidValue, StoreAuthError, StoreError, StorePermissionError, StoreUnavailable
from agenthive_operator.api.hive import AgentHive
from agenthive_operator.backends import configuration, connections, kube, logins, postgres, redis, redis_checks
from agenthive_operator.backends.events import event_body, event_name
from agenthive_operator.backends.reports import endpoint_of, without_secret
from agenthive_operator.backends.resolve import ready_address, ready_endpoint, service_of, with_address
from agenthive_operator.plan.book import Book


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("redis://:pw@h/0", "h:6379"),
        ("redis://user:p%40w@10.0.0.1:7000/0", "10.0.0.1:7000"),
        ("redis://:pw@[::1]:7000/0", "[::1]:7000"),
    ],
)
def test_endpoint_of(url: str, endpoint: str) -> None:
    assert endpoint_of(url, 6379) == endpoint


@pytest.mark.parametrize("url", ["", "redis://", "redis://:pw@/0", "redis://h:port/0"])
def test_endpoint_of_what_names_none(url: str) -> None:
    with pytest.raises(ValueError):
        endpoint_of(url, 6379)


def test_passwords_are_blotted_out() -> None:
    url = "redis://:hunter2@h/0"
    assert without_secret(f"cannot use {url}, pw hunter2", url) == "cannot use <url>, pw ***"
    assert without_secret("fine", "redis://h/0") == "fine"
    assert without_secret("fine", "redis://[h") == "fine"
    several = "redis+sentinel://:hunt%40er@a,b/bus?sentinel_password=quiet"
    assert without_secret("hunt@er hunt%40er quiet", several) == "*** *** ***"


@pytest.mark.parametrize(
    ("info", "ok", "version"),
    [
        ({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, True, "9.1.2"),
        ({"redis_version": "8.0.1"}, True, "8.0.1"),
        ({"redis_version": "7.0.0"}, True, "7.0.0"),
        ({"redis_version": "6.2.14"}, False, "6.2.14"),
        ({}, False, ""),
    ],
)
def test_judge_redis(info: dict[str, object], ok: bool, version: str) -> None:
    _, report = redis_checks.version_of(info, "h:1")
    assert (report.ok, report.version) == (ok, version)
    assert report.reason == ("Reachable" if ok else "VersionTooOld")


def test_hive_patterns_match_own_keys_only() -> None:
    own, agents = redis.hive_patterns(HiveScope(instance="i", namespace="n", hive="h"))
    assert own == "ah:{i/n/h}:*"
    assert agents == "ah:{i/n/h/*}:*"


def raised(state: str) -> StoreUnavailable:
    error = StoreUnavailable("text")
    error.__cause__ = asyncpg.PostgresError.new({"C": state, "M": "m", "S": "ERROR"})
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StoreAuthError("x"), "AuthenticationFailed"),
        (StorePermissionError("x"), "AuthenticationFailed"),
        (InvalidValue("x"), "InvalidURL"),
        (StoreUnavailable("x"), "Unreachable"),
        (TimeoutError(), "Unreachable"),
        (raised("3D000"), "DatabaseMissing"),
        (raised("57P03"), "Starting"),
    ],
)
def test_reason_of(error: Exception, reason: str) -> None:
    assert postgres.reason_of(error) == reason


@pytest.mark.parametrize(
    ("url", "service"),
    [
        ("redis://:pw@demo-redis.default.svc:6379/0", ("demo-redis", "default")),
        ("redis://demo-redis.default.svc.cluster.local.:6379/0", ("demo-redis", "default")),
        ("redis://redis.example.com:6379/0", None),
        ("redis://a.b.c.svc:6379/0", None),
        ("redis://svc:6379", None),
        ("redis://10.0.0.1", None),
    ],
)
def test_service_of(url: str, service: tuple[str, str] | None) -> None:
    assert service_of(url) == service


def slices(*endpoints: dict[str, Any], ports: tuple[int, ...] = (6379,)) -> list[dict[str, Any]]:
    return [{"ports": [{"port": port} for port in ports], "endpoints": list(endpoints)}]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], None),
        (slices(), None),
        (slices({"addresses": ["1.2.3.4"], "conditions": {"ready": False}}), None),
        (slices({"addresses": ["1.2.3.4"], "conditions": {"ready": True}}), ("1.2.3.4", 6379)),
        (slices({"addresses": ["1.2.3.4"]}), ("1.2.3.4", 6379)),
        (slices({"addresses": ["1.2.3.4"]}, ports=(1, 2)), ("1.2.3.4", None)),
        ([{"ports": None, "endpoints": None}], None),
    ],
)
def test_ready_endpoint(found: list[dict[str, Any]], expected: tuple[str, int | None] | None) -> None:
    assert ready_endpoint(found) == expected


def pod(ready: str = "True", address: str = "127.0.0.9", **metadata: str) -> dict[str, Any]:
    return {"metadata": metadata, "status": {"podIP": address, "conditions": [{"type": "Ready", "status": ready}]}}


@pytest.mark.parametrize(
    ("pods", "expected"),
    [
        ([], None),
        ([{"metadata": {}}], None),
        ([pod("False")], None),
        ([pod(address="")], None),
        ([pod(deletionTimestamp="x")], None),
        ([pod("False"), pod()], "127.0.0.9"),
    ],
)
def test_ready_address(pods: list[dict[str, Any]], expected: str | None) -> None:
    assert ready_address(pods) == expected


@pytest.mark.parametrize(
    ("address", "port", "expected"),
    [
        ("1.2.3.4", None, "redis://u:p%40w@1.2.3.4:6379/0?x=1"),
        ("1.2.3.4", 7000, "redis://u:p%40w@1.2.3.4:7000/0?x=1"),
        ("fd00::1", 7000, "redis://u:p%40w@[fd00::1]:7000/0?x=1"),
    ],
)
def test_with_address(address: str, port: int | None, expected: str) -> None:
    assert with_address("redis://u:p%40w@h.ns.svc:6379/0?x=1", address, port) == expected


def test_with_address_without_any_port() -> None:
    assert with_address("redis://h.ns.svc/0", "1.2.3.4", None) == "redis://1.2.3.4/0"


ABOUT = {"apiVersion": "v1", "kind": "Agent", "metadata": {"name": "a", "namespace": "n", "uid": "u"}}


def test_the_same_news_has_the_same_name_and_other_news_another() -> None:
    assert event_name(ABOUT, "R", "m") == event_name(ABOUT, "R", "m")
    assert len({event_name(ABOUT, "R", "m"), event_name(ABOUT, "S", "m"), event_name(ABOUT, "R", "o")}) == 3


def test_event_body_speaks_of_its_object() -> None:
    body = event_body(ABOUT, "Warning", "R", "m", "a.1", datetime(2026, 1, 1, tzinfo=UTC), 2)
    assert body["involvedObject"]["uid"] == "u"
    assert (body["type"], body["count"], body["firstTimestamp"]) == ("Warning", 2, "2026-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("resource", "arguments", "path"),
    [
        (kube.AGENT, (None,), "/apis/agenthive.dev/v1alpha1/agents"),
        (kube.AGENT, ("ns", "a", "status"), "/apis/agenthive.dev/v1alpha1/namespaces/ns/agents/a/status"),
        (kube.SECRET, ("ns", "a/b"), "/api/v1/namespaces/ns/secrets/a%2Fb"),
    ],
)
def test_paths(resource: kube.Resource, arguments: tuple[str | None, ...], path: str) -> None:
    assert resource.path(*arguments) == path


@pytest.mark.parametrize(
    ("status", "transient"),
    [(0, True), (409, True), (429, True), (500, True), (404, False), (422, False), (403, False)],
)
def test_what_may_be_tried_again(status: int, transient: bool) -> None:
    assert kube.ApiError(status, "R", "m").transient is transient


def test_secret_data_is_decoded() -> None:
    assert kube.secret_data({"data": {"a": "eA==", "b": "", "c": "/w=="}}) == {"a": "x", "b": "", "c": "\ufffd"}
    assert kube.secret_data({}) == {}


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("https://api.example:6443", "http://proxy:3128"),
        ("http://api.example:8080", None),
        ("https://127.0.0.1:6443", None),
        ("https://kube.internal:6443", None),
    ],
)
def test_the_proxy_is_that_of_the_environment(url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,.internal")
    assert configuration.proxy_of(url) == proxy


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p@h:5432/d", "postgresql://r%40:s%2F@h:5432/d"),
        ("postgresql://h/d?sslmode=require", "postgresql://r%40:s%2F@h/d?sslmode=require"),
        ("postgres://u@h1:1,h2:2/d", "postgres://r%40:s%2F@h1:1,h2:2/d"),
        ("postgresql://[::1]/d?user=u&password=p&passfile=f", "postgresql://r%40:s%2F@[::1]/d"),
        ("postgresql:///d?host=/run/x&options=", "postgresql://r%40:s%2F@/d?host=%2Frun%2Fx&options="),
    ],
)
def test_another_login_in_a_url(url: str, expected: str) -> None:
    changed = logins.with_login(url, logins.Login("r@", "s/"))
    assert changed == expected
    assert logins.login_in(changed) == logins.Login("r@", "s/")


@pytest.mark.parametrize(
    ("url", "user", "login"),
    [
        ("postgresql://u%40:p@h/d", "u@", logins.Login("u@", "p")),
        ("postgresql://u@h/d", "u", None),
        ("postgresql://h/d?user=u&password=p", "u", None),
        ("postgresql://h/d", None, None),
    ],
)
def test_who_logs_in(url: str, user: str | None, login: logins.Login | None) -> None:
    assert logins.user_of(url) == user
    assert logins.login_in(url) == login


def test_what_is_no_url_holds_no_login() -> None:
    assert logins.login_in("postgresql://u:p@h:port/d") is None
    assert "s3cret" not in repr(logins.Login("r", "s3cret"))


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [
        (StoreUnavailable("gone"), "WaitingForPostgres", "gone"),
        (StorePermissionError("denied"), "RolesFailed", "adminUrlSecretRef"),
        (StoreError("odd"), "RolesFailed", "odd"),
    ],
)
def test_why_there_are_no_logins(error: StoreError, reason: str, words: str) -> None:
    report = logins.report_of(error)
    assert (report.ok, report.reason) == (False, reason)
    assert words in report.message


@pytest.mark.parametrize(
    ("access", "upkeep", "field"),
    [
        (postgres.Access("u"), "u", "spec.postgres.external.urlSecretRef"),
        (postgres.Access("u", direct="d"), "d", "spec.postgres.external.directUrlSecretRef"),
        (postgres.Access("u", direct="d", admin="a"), "a", "spec.postgres.external.adminUrlSecretRef"),
    ],
)
def test_the_way_in_for_migrations(access: postgres.Access, upkeep: str, field: str) -> None:
    assert (access.upkeep, access.upkeep_field) == (upkeep, field)
    assert "'u'" not in repr(access)


def test_a_command_line_is_told_the_direct_way() -> None:
    external = {"urlSecretRef": {"name": "bouncer", "key": "uri"}}
    live = {"apiVersion": "agenthive.dev/v1alpha1", "kind": "AgentHive", "metadata": {"name": "demo", "namespace": "a"}}

    def pointers(**changes: Any) -> dict[str, str]:
        spec = {"postgres": {"external": {**external, **changes}}}
        hive = AgentHive.parse({**live, "spec": spec})
        secrets = {
            name: {"uri": f"postgresql://{name}", "url": f"any://{name}"} for name in connections._secret_names(hive)
        }
        return connections._urls(hive, Book(), secrets)

    assert pointers() == {"redis": "any://demo-redis", "postgres": "postgresql://bouncer"}
    direct = pointers(directUrlSecretRef={"name": "straight", "key": "uri"})
    assert (direct["postgres"], direct["postgres_direct"]) == ("postgresql://bouncer", "postgresql://straight")
