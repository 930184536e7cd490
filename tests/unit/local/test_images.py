"""Which image means what, and how it starts."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from agenthive_operator.local import servers
from agenthive_operator.local.images import ImageContext, image_for, repository
from agenthive_operator.local.images.base import PlainImage
from agenthive_operator.local.images.postgres import PostgresImage
from agenthive_operator.local.images.postgres_entrypoint import Config, EntrypointError
from agenthive_operator.local.images.valkey import ValkeyImage
from agenthive_operator.local.kubelet.environment import ConfigError
from agenthive_operator.local.kubelet.rewrite import Rewrite


@pytest.mark.parametrize(
    ("image", "name", "kind"),
    [
        ("valkey/valkey:8.1", "valkey", ValkeyImage),
        ("docker.io/valkey/valkey", "valkey", ValkeyImage),
        ("redis:7-alpine", "redis", ValkeyImage),
        ("postgres:18@sha256:abc", "postgres", PostgresImage),
        ("registry.example:5000/mirror/library/postgres:16", "postgres", PostgresImage),
        ("agenthive/runtime:dev", "runtime", PlainImage),
        ("bitnami/redis-exporter", "redis-exporter", PlainImage),
    ],
)
def test_known_images(image, name, kind) -> None:
    assert repository(image) == name
    assert type(image_for(image)) is kind


def context(tmp_path: Path, **paths: str) -> ImageContext:
    return ImageContext({}, Rewrite(paths), tmp_path)


def test_a_plain_image_needs_a_command(tmp_path) -> None:
    image = PlainImage()
    assert image.invocation(["run"], ["x"], context(tmp_path)).argv == ["run", "x"]
    with pytest.raises(ConfigError, match="name the container's command"):
        image.invocation([], ["x"], context(tmp_path))


def test_the_environment_holds_little_of_ours(monkeypatch) -> None:
    monkeypatch.setenv("AGENTHIVE_SECRET_OF_OURS", "x")
    env = PlainImage().base_env()
    assert set(env) <= {"PATH", "HOME", "LANG", "LC_ALL", "TZ"}
    assert env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert ValkeyImage().base_env()["PATH"].split(os.pathsep)[0] == str(servers.valkey_server().parent)


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        ([], [], ["valkey-server"]),
        ([], ["--port", "1"], ["valkey-server", "--port", "1"]),
        (["docker-entrypoint.sh"], ["redis-server"], ["redis-server"]),
        (["valkey-server"], ["--save", ""], ["valkey-server", "--save", ""]),
        (["sh", "-c"], ["true"], ["sh", "-c", "true"]),
    ],
)
def test_valkey_arguments(command, args, expected, tmp_path) -> None:
    assert ValkeyImage().invocation(command, args, context(tmp_path)).argv == expected


def test_valkey_reads_its_configuration_with_our_paths(tmp_path) -> None:
    config = tmp_path / "redis.conf"
    config.write_text("dir /data\ninclude /etc/secret/auth.conf\n")
    private = tmp_path / "private"
    private.mkdir()
    image = ValkeyImage()
    argv = image.invocation(
        [], [str(config), "--bind", "1"], context(private, **{"/data": "/h/d", "/etc/secret": "/h/s"})
    ).argv
    assert argv[1:] == [str(private / "redis.conf"), "--bind", "1"]
    assert Path(argv[1]).read_text() == "dir /h/d\ninclude /h/s/auth.conf\n"
    assert image.locate("redis-server") == image.locate("valkey-server") == str(servers.valkey_server())
    missing = image.invocation([], ["/no/such.conf"], context(private)).argv
    assert missing == ["valkey-server", "/no/such.conf"]


def test_servers_listen_on_the_pods_address(tmp_path) -> None:
    here = ImageContext({"AGENTHIVE_BIND": "127.9.9.9"}, Rewrite({}), tmp_path)
    argv = ValkeyImage().invocation(["valkey-server"], ["--bind", "*"], here).argv
    assert argv == ["valkey-server", "--bind", "*", "--bind", "127.9.9.9"], "the last one counts"
    assert ValkeyImage().invocation(["sh", "-c"], ["true"], here).argv == ["sh", "-c", "true"]
    argv = PostgresImage().invocation([], ["-c", "listen_addresses=*"], here).argv
    assert argv[-4:] == ["-c", "listen_addresses=*", "-c", "listen_addresses=127.9.9.9"]


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ({}, "127.9.9.9"),
        ({"PGHOST": "localhost"}, "127.9.9.9"),
        ({"PGHOST": "db"}, "db"),
        ({"PGHOST": ""}, "127.9.9.9"),
    ],
)
def test_postgres_tools_find_the_server(given, host) -> None:
    bound = {"AGENTHIVE_BIND": "127.9.9.9", **given}
    assert PostgresImage().environment(bound) == {**bound, "PGHOST": host}
    assert ValkeyImage().environment(bound) == bound


def test_postgres_arguments(tmp_path) -> None:
    image = PostgresImage()
    made = image.invocation([], ["-c", "a=b"], context(tmp_path))
    assert made.argv[-2:] == ["-c", "a=b"]
    assert made.argv[0] == sys.executable
    assert made.account is None, "the entrypoint itself changes the account"
    assert image.invocation([], ["postgres", "-c", "a=b"], context(tmp_path)).argv == made.argv
    other = image.invocation([], ["pg_dump", "x"], context(tmp_path))
    assert (other.argv, other.account) == (["pg_dump", "x"], servers.unprivileged_account())
    assert image.invocation(["psql"], [], context(tmp_path)).argv == ["psql"]
    assert image.stop_signal == signal.SIGINT
    with pytest.raises(ConfigError, match="not offered"):
        image.invocation([], [], context(tmp_path, **{"/docker-entrypoint-initdb.d": "/h"}))


def test_postgres_settings(tmp_path) -> None:
    secret = tmp_path / "password"
    secret.write_text("pw\n")
    config = Config.of(
        {
            "POSTGRES_USER": "u",
            "POSTGRES_PASSWORD_FILE": str(secret),
            "POSTGRES_INITDB_ARGS": "--auth-host=md5 '--x=a b'",
            "PGDATA": "/p",
        }
    )
    assert config == Config(Path("/p"), "u", "u", "pw", ("--auth-host=md5", "--x=a b"), "scram-sha-256")
    assert Config.of({"POSTGRES_HOST_AUTH_METHOD": "trust"}).password == ""


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({}, "superuser password is not set"),
        ({"POSTGRES_PASSWORD": "a", "POSTGRES_PASSWORD_FILE": "/b"}, "keep one"),
        ({"POSTGRES_PASSWORD_FILE": "/no/such/file"}, "POSTGRES_PASSWORD_FILE"),
    ],
)
def test_postgres_settings_that_do_not_work(env, message) -> None:
    with pytest.raises(EntrypointError, match=message):
        Config.of(env)
