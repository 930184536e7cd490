"""The Valkey and the PostgreSQL everything is measured on: from the wheels, on loopback, writing to disk."""

from __future__ import annotations

import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from agenthive_operator.local.servers import (
    init_postgres,
    postgres_program,
    run_as,
    unprivileged_account,
    valkey_server,
)

STARTUP_SECONDS = 20.0


@contextmanager
def valkey() -> Iterator[str]:
    """Start a server, as a hive's managed one is configured; its URL."""
    with tempfile.TemporaryDirectory(prefix="agenthive-bench-") as folder:
        port = _free_port()
        url = f"redis://127.0.0.1:{port}/0"
        process = subprocess.Popen(
            [
                str(valkey_server()), "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "",
                "--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction",
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            _wait(url, process)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=20)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    with redis.Redis.from_url(url) as client:
        while True:
            try:
                client.ping()
            except redis.RedisError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def postgres() -> Iterator[str]:
    """Start a server with nothing but its defaults, fsync and synchronous_commit among them; its URL."""
    with tempfile.TemporaryDirectory(prefix="agenthive-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the server runs as another account where we are root
        port = _free_port()
        init_postgres(folder / "data", superuser="postgres", password="bench")
        process = subprocess.Popen(
            [
                str(postgres_program("postgres")), "-D", str(folder / "data"), "-p", str(port),
                "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "max_connections=300",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder / "data", **run_as(unprivileged_account()),
        )  # fmt: skip
        try:
            ready = [str(postgres_program("pg_isready")), "-q", "-h", "127.0.0.1", "-p", str(port)]
            deadline = time.monotonic() + STARTUP_SECONDS
            while subprocess.run(ready, check=False).returncode != 0:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("PostgreSQL did not start")
                time.sleep(0.05)
            yield f"postgresql://postgres:bench@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)  # a fast shutdown
            process.wait(timeout=30)


def clear(url: str) -> None:
    """Forget everything of the cell before, functions too: each one starts from nothing."""
    with redis.Redis.from_url(url) as client:
        client.flushall()
        client.function_flush()
