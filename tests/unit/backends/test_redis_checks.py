"""What the answers of a Redis and of a PostgreSQL say of it, by tables."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from agenthive.bus.wire import ReplyError
from agenthive_operator.backends import postgres, redis
from agenthive_operator.backends.redis_checks import commands, judge, questions
from agenthive_operator.backends.reports import StoreReport, Warned
from agenthive_operator.backends.tls_advice import tls_advice, tls_error

ASKED = questions("ah:{i/n/h}:")
GOOD = {
    "redis_version": "7.2.4", "valkey_version": "9.1.0", "role": "master", "connected_slaves": "1",
    "maxmemory_policy": "noeviction", "aof_enabled": "1",
}  # fmt: skip
FORBIDDEN = ReplyError("NOPERM this user has no permissions to run the 'x' command")


def look(
    *, save: Any = (b"save", b"3600 1"), rights: Any = None, asked: Any = ASKED, replicated: bool = True, **about: str
) -> StoreReport:
    info = "".join(f"{key}:{value}\r\n" for key, value in (GOOD | about).items()).encode()
    answers = [info, save, *(rights or [None] * len(asked))]
    assert len(answers) == len(commands(asked))
    return judge(answers, asked, "h:1", replicated=replicated)


def test_a_good_server() -> None:
    assert look() == StoreReport(True, "Reachable", "Valkey 9.1.0 at h:1", "h:1", "9.1.0")


@pytest.mark.parametrize(
    ("about", "reason", "words"),
    [
        ({"redis_version": "6.2.1"}, "VersionTooOld", "is needed"),
        ({"role": "slave", "master_host": "m", "master_port": "7"}, "ReadOnly", "replica of m:7: name its master"),
    ],
)
def test_servers_the_bus_cannot_use(about: dict[str, str], reason: str, words: str) -> None:
    for asked in (ASKED, {}):
        report = look(asked=asked, **about)
        assert (report.ok, report.reason) == (False, reason)
        assert words in report.message


def test_missing_rights_are_named_and_other_refusals_are_none() -> None:
    odd = [ReplyError("ERR Function not found"), ReplyError("MOVED 1 h:2"), ReplyError("OOM command not allowed")]
    rights = [*odd, *[None] * (len(ASKED) - len(odd))]
    assert look(rights=rights).ok
    rights[0], rights[-1] = FORBIDDEN, ReplyError("ERR unknown command 'FUNCTION', with args beginning with: 'LOAD'")
    report = look(rights=rights)
    assert (report.ok, report.reason) == (False, "PrivilegesMissing")
    assert "grant +fcall +function|load on keys" in report.message
    assert "+function|load" not in questions("p:", loads=False)
    unseen = judge([FORBIDDEN, FORBIDDEN], {}, "h:1", replicated=False)
    assert (unseen.ok, unseen.reason) == (False, "PrivilegesMissing")


@pytest.mark.parametrize(
    ("look_at", "reasons", "words"),
    [
        ({"maxmemory_policy": "allkeys-lru"}, ["MayEvict"], "allkeys-lru"),
        ({"aof_enabled": "0"}, ["MayLoseMessages"], "since the last snapshot"),
        ({"aof_enabled": "0", "save": (b"save", b"")}, ["MayLoseMessages"], "loses every message"),
        ({"aof_enabled": "0", "save": FORBIDDEN}, ["MayLoseMessages"], "may lose messages"),
        ({"save": FORBIDDEN}, [], ""),
        ({"connected_slaves": "0"}, ["NoReplicas"], "add one"),
        ({"connected_slaves": "0", "replicated": False}, [], ""),
        ({"maxmemory_policy": "x", "aof_enabled": "0", "connected_slaves": "0"},
         ["MayEvict", "MayLoseMessages", "NoReplicas"], "set noeviction"),
        ({"maxmemory_policy": "x", "aof_enabled": "0", "asked": {}}, [], ""),
    ],
)  # fmt: skip
def test_warnings(look_at: dict[str, Any], reasons: list[str], words: str) -> None:
    report = look(**look_at)
    assert report.ok
    assert [warning.reason for warning in report.warnings] == reasons
    assert words in " ".join(warning.message for warning in report.warnings)


def test_one_report_on_all_masters() -> None:
    good, evicts = look(), look(maxmemory_policy="allkeys-lru")
    assert redis.together([good, evicts, evicts]).warnings == evicts.warnings
    replica = look(role="slave")
    assert redis.together([evicts, replica]) == replica


FOUND: dict[str, Any] = {
    "number": 160_004, "version": "16.4 (Debian)", "room": 97, "standby": False, "read_only": False, "login": "app",
    "database": "d", "creates": True, "owns": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({}, "Reachable", "PostgreSQL 16.4 at h:1"),
        ({"number": 130_004}, "VersionTooOld", "14 or newer"),
        ({"standby": True, "read_only": True}, "ReadOnly", "<cluster>-rw"),
        ({"read_only": True}, "ReadOnly", "default_transaction_read_only"),
        ({"creates": False}, "PrivilegesMissing", 'GRANT CREATE ON DATABASE "d" TO "app"'),
        ({"creates": False, "owns": True}, "Reachable", ""),
        ({"owns": False}, "PrivilegesMissing", 'ALTER SCHEMA "s" OWNER TO "app"'),
    ],
)
def test_postgres(changes: dict[str, Any], reason: str, words: str) -> None:
    report = postgres.judge(FOUND | changes, "h:1", "s")
    assert (report.reason, report.ok) == (reason, reason == "Reachable")
    assert words in report.message
    if reason == "PrivilegesMissing":  # agents' own way in needs none of that where another makes the schema
        assert postgres.judge(FOUND | changes, "h:1", None).ok


def verification(message: str) -> ssl.SSLError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = message
    return error


def alert(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, "alert")
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (verification("Hostname mismatch, certificate is not valid for 'x'."), "write a host in the URL that"),
        (verification("certificate has expired"), "renew it on the server"),
        (verification("unable to get local issuer certificate"), "spec.redis.external.tls.caSecretRef"),
        (alert("TLSV13_ALERT_CERTIFICATE_REQUIRED"), "spec.redis.external.tls.clientCertSecretRef"),
        (alert("SSLV3_ALERT_CERTIFICATE_EXPIRED"), "the client certificate has expired"),
        (alert("TLSV1_ALERT_UNKNOWN_CA"), "does not trust the client certificate"),
        (alert("WRONG_VERSION_NUMBER"), "write redis://"),
        (alert("SOMETHING"), "check the scheme"),
    ],
)
def test_what_tls_errors_mean(error: ssl.SSLError, words: str) -> None:
    assert words in tls_advice(error, "redis")


def test_a_tls_error_is_found_behind_others() -> None:
    inner, outer = alert("X"), OSError("gone")
    outer.__cause__ = inner
    assert tls_error(outer) is inner
    assert tls_error(OSError("gone")) is None
    assert Warned("a", "b").reason == "a"
