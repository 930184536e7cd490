"""A PgBouncer of the test session that pools transactions, in front of the session's PostgreSQL."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.conftest import free_port, server_folder, wait_until

from agenthive_operator.local import servers

#: Debian puts it where a plain user's PATH does not look.
PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
POOL_SIZE = 3
PREPARES = (1, 21)


def version() -> tuple[int, int]:
    """Of the program that is installed."""
    assert PROGRAM is not None
    printed = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"PgBouncer (\d+)\.(\d+)", printed)
    assert found, printed
    return int(found[1]), int(found[2])


@contextlib.contextmanager
def running_pgbouncer(postgres: Any, **options: str) -> Iterator[str]:
    """URL of the database ``postgres`` through a PgBouncer.

    The pool is small: sessions change servers all the time, and what a statement left in one would be missed at once.
    """
    assert PROGRAM is not None
    with server_folder("pgbouncer") as folder:
        port = free_port()
        parts = urlsplit(postgres.url())
        (folder / "users.txt").write_text(f'"{parts.username}" "{parts.password}"\n')
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(port),
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": str(folder / "users.txt"),
            "auth_user": str(parts.username),
            "auth_query": "SELECT usename, passwd FROM pg_shadow WHERE usename = $1",
            "pool_mode": "transaction",
            "default_pool_size": str(POOL_SIZE),
            "max_client_conn": "200",
            "server_round_robin": "1",
            **options,
        }
        lines = [f"* = host=127.0.0.1 port={parts.port}", "[pgbouncer]", *(f"{k} = {v}" for k, v in settings.items())]
        (folder / "pgbouncer.ini").write_text("[databases]\n" + "\n".join(lines) + "\n")
        with (folder / "pgbouncer.log").open("ab") as log:
            process = subprocess.Popen(
                [PROGRAM, str(folder / "pgbouncer.ini")],
                stdout=log, stderr=log, **servers.run_as(servers.unprivileged_account()),
            )  # fmt: skip
        try:
            wait_until(lambda: _answers(port), process, f"pgbouncer ({Path(PROGRAM)})")
            yield f"postgresql://{parts.username}:{parts.password}@127.0.0.1:{port}/postgres"
        finally:
            process.terminate()
            process.wait(timeout=10)


def _answers(port: int) -> bool:
    probe = [str(servers.postgres_program("pg_isready")), "-q", "-h", "127.0.0.1", "-p", str(port)]
    return subprocess.run(probe, check=False).returncode == 0
