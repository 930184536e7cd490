"""The one Valkey everything is measured on: from the wheel, AOF on, loopback."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from agenthive_operator.local.servers import valkey_server

STARTUP_SECONDS = 20.0


@contextmanager
def valkey() -> Iterator[str]:
    """Start a server, as a hive's managed one is configured; its URL."""
    with tempfile.TemporaryDirectory(prefix="agenthive-bench-") as folder:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
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


def clear(url: str) -> None:
    """Forget everything of the cell before, functions too: each one starts from nothing."""
    with redis.Redis.from_url(url) as client:
        client.flushall()
        client.function_flush()
