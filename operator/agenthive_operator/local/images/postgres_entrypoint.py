"""What the PostgreSQL image's entrypoint does: make the data folder on the first start, then become the server.

A data folder is made beside its place and renamed into it when complete, so that a first start that was killed leaves
nothing half made. Reads POSTGRES_USER, POSTGRES_DB, POSTGRES_PASSWORD, POSTGRES_INITDB_ARGS (each also as …_FILE),
POSTGRES_HOST_AUTH_METHOD and PGDATA.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from agenthive_operator.local import servers
from agenthive_operator.local.kubelet.process import launch_arguments


class EntrypointError(Exception):
    """The server cannot be started; the text says what to change."""


@dataclass(frozen=True, slots=True)
class Config:
    """The entrypoint's settings."""

    data: Path
    user: str
    database: str
    password: str
    initdb_args: tuple[str, ...]
    auth_method: str

    @classmethod
    def of(cls, env: Mapping[str, str]) -> Config:
        """From the environment.

        Raises:
            EntrypointError: a variable is missing, given twice, or names a file that cannot be read.
        """
        user = _setting(env, "POSTGRES_USER") or "postgres"
        password = _setting(env, "POSTGRES_PASSWORD")
        method = env.get("POSTGRES_HOST_AUTH_METHOD", "")
        if not password and method != "trust":
            raise EntrypointError(
                "the superuser password is not set: give POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE a value"
            )
        return cls(
            data=Path(env.get("PGDATA") or "/var/lib/postgresql/data"),
            user=user,
            database=_setting(env, "POSTGRES_DB") or user,
            password=password,
            initdb_args=tuple(shlex.split(_setting(env, "POSTGRES_INITDB_ARGS"))),
            auth_method=method or "scram-sha-256",
        )


def _setting(env: Mapping[str, str], name: str) -> str:
    file = env.get(f"{name}_FILE")
    if file and env.get(name):
        raise EntrypointError(f"both {name} and {name}_FILE are set: keep one")
    if not file:
        return env.get(name, "")
    try:
        # As the shell's $(< file): the line end is not part of the value.
        return Path(file).read_text().rstrip("\n")
    except OSError as error:
        raise EntrypointError(f"{name}_FILE: {error}") from error


def initialise(config: Config, account: pwd.struct_passwd | None) -> None:
    """Make the data folder.

    Raises:
        EntrypointError: initdb or the creation of the database failed.
    """
    fresh = config.data.with_name(f"{config.data.name}.initdb")
    if fresh.exists():
        shutil.rmtree(fresh)
    fresh.mkdir(mode=0o700)
    password_file = config.data.with_name(f"{config.data.name}.password")
    password_file.unlink(missing_ok=True)
    password_file.touch(mode=0o600)
    try:
        password_file.write_text(config.password + "\n")
        _give([fresh, password_file], account)
        arguments = [
            f"--pgdata={fresh}",
            f"--username={config.user}",
            "--encoding=UTF8",
            "--locale=C",
            "--no-instructions",
        ]
        if config.password:
            arguments.append(f"--pwfile={password_file}")
        _run("initdb", [*arguments, *config.initdb_args], fresh, account)
    finally:
        password_file.unlink(missing_ok=True)
    with (fresh / "pg_hba.conf").open("a") as rules:
        rules.write(f"\nhost all all all {config.auth_method}\n")
    if config.database != "postgres":
        # Single-user mode: no socket, no port, nobody else.
        name = config.database.replace('"', '""')
        single = ["--single", "-D", str(fresh), "postgres"]
        output = _run("postgres", single, fresh, account, text=f'CREATE DATABASE "{name}"\n')
        if "ERROR" in output:
            raise EntrypointError(f"the database {config.database!r} cannot be created: {output}")
    if config.data.exists():
        config.data.rmdir()  # empty, or it would not be a first start
    fresh.rename(config.data)


def _run(program: str, arguments: list[str], cwd: Path, account: pwd.struct_passwd | None, *, text: str = "") -> str:
    result = subprocess.run(
        [str(servers.postgres_program(program)), *arguments],
        cwd=cwd, input=text, capture_output=True, text=True, check=False, **servers.run_as(account),
    )  # fmt: skip
    output: str = (result.stdout + result.stderr).strip()
    if result.returncode != 0:
        raise EntrypointError(f"{program} failed: {output}")
    return output


def remove_stale_pid_file(data: Path) -> None:
    """Remove what a killed server left. The number in the file may long be another process's.

    Raises:
        EntrypointError: a server does run on this folder.
    """
    pid_file = data / "postmaster.pid"
    if not pid_file.exists():
        return
    first = (pid_file.read_text().splitlines() or [""])[0]
    try:
        process = psutil.Process(int(first))
        if process.name() == "postgres" and Path(process.cwd()) == data.resolve():
            raise EntrypointError(f"a server with pid {first} runs on {data} already")
    except (ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
        pass  # nobody by that number, or nobody of ours
    pid_file.unlink(missing_ok=True)


def prepare(config: Config, account: pwd.struct_passwd | None) -> None:
    """Make the data folder ready for the server.

    Raises:
        EntrypointError: it cannot be.
    """
    if account is not None and not servers.searchable(config.data.parent, account):
        raise EntrypointError(
            f"{config.data} is out of reach for the account {account.pw_name}, which PostgreSQL runs as for root: "
            "use a folder whose parents everyone may search (chmod o+x), or run as a plain user"
        )
    config.data.parent.mkdir(parents=True, exist_ok=True)
    if not (config.data / "PG_VERSION").exists():
        if config.data.exists() and any(config.data.iterdir()):
            raise EntrypointError(f"{config.data} is not empty, yet no PostgreSQL data: point PGDATA to a subfolder")
        initialise(config, account)
    remove_stale_pid_file(config.data)


def _give(paths: list[Path], account: pwd.struct_passwd | None) -> None:
    if account is not None:
        for path in paths:
            os.chown(path, account.pw_uid, account.pw_gid)


def main(arguments: list[str]) -> None:
    """Prepare, then become ``postgres``; returns only by SystemExit."""
    account = servers.unprivileged_account()
    try:
        config = Config.of(os.environ)
        prepare(config, account)
        program = str(servers.postgres_program("postgres"))
    except (EntrypointError, servers.EmbeddedServerError, OSError) as error:
        sys.exit(f"postgres: {error}")
    os.environ["PGDATA"] = str(config.data)
    # No unix socket: its path may be too long here, and everybody on the machine could knock.
    argv = [program, "-c", "unix_socket_directories=", *arguments]
    command = launch_arguments(program, argv, account, os.getppid())
    os.chdir(config.data)
    os.execv(command[0], command)  # noqa: S606 - becomes the server, under the same pid


if __name__ == "__main__":
    main(sys.argv[1:])
