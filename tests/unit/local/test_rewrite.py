"""Mount paths and Service names become what this machine has."""

from __future__ import annotations

import pytest

from agenthive_operator.local.kubelet.rewrite import Rewrite, ServiceName, Target, service_names

PATHS = Rewrite(
    {"/data": "/host/v1", "/data/deep": "/host/v2", "/etc/x/": "/host/v3", "/dev/termination-log": "/host/t"}
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data", "/host/v1"),
        ("/data/", "/host/v1/"),
        ("/data/a/b", "/host/v1/a/b"),
        ("/data/deep/a", "/host/v2/a"),
        ("/data/deeper", "/host/v1/deeper"),
        ("/database", "/database"),
        ("/data-old", "/data-old"),
        ("/data.bak", "/data.bak"),
        ("/srv/data", "/srv/data"),
        ("data/x", "data/x"),
        ("--dir=/data", "--dir=/host/v1"),
        ("/data:/etc/x", "/host/v1:/host/v3"),
        ("file:///data/x?y", "file:///host/v1/x?y"),
        ("include /etc/x/auth.conf\ndir /data\n", "include /host/v3/auth.conf\ndir /host/v1\n"),
        ('{"path": "/data"}', '{"path": "/host/v1"}'),
        ("-c 'cat /data/a,/data/b'", "-c 'cat /host/v1/a,/host/v1/b'"),
        ("/dev/termination-log", "/host/t"),
        ("/dev/null", "/dev/null"),
    ],
)
def test_paths(text, expected) -> None:
    assert PATHS.text(text) == expected


def test_a_path_alone() -> None:
    assert PATHS.path("/data/x") == "/host/v1/x"
    assert PATHS.path("/elsewhere") is None
    assert Rewrite().text("/data") == "/data"


REDIS = ServiceName("ns", "demo-redis")
NAMES = Rewrite(
    targets={
        REDIS: Target("127.9.0.1"),
        ServiceName("ns", "web"): Target("127.9.0.2", {80: 8080}),
        ServiceName("ns", "db", "db-0"): Target("127.9.0.3"),
    }
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://:p%40w@demo-redis.ns.svc:6379/0", "redis://:p%40w@127.9.0.1:6379/0"),
        ("demo-redis.ns.svc.cluster.local", "127.9.0.1"),
        ("http://web.ns.svc/x", "http://127.9.0.2/x"),
        ("http://web.ns.svc:80/x", "http://127.9.0.2:8080/x"),
        ("http://web.ns.svc:443/x", "http://127.9.0.2:443/x"),
        ("db-0.db.ns.svc:5432,db-1.db.ns.svc:5432", "127.9.0.3:5432,db-1.db.ns.svc:5432"),
        ("other.ns.svc", "other.ns.svc"),
        ("demo-redis.ns.svcx", "demo-redis.ns.svcx"),
        ("demo-redis.ns.svc.example.org", "demo-redis.ns.svc.example.org"),
        ("demo-redis.ns", "demo-redis.ns"),
    ],
)
def test_services(text, expected) -> None:
    assert NAMES.text(text) == expected


def test_names_in_texts() -> None:
    found = service_names(["redis://:x@demo-redis.ns.svc:6379/0", "a db-0.db.ns.svc b", "nothing"])
    assert found == {REDIS, ServiceName("ns", "db", "db-0")}
