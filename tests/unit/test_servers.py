"""Where the embedded servers' programs and data go when their account cannot reach the project."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from agenthive_operator.local import servers

STRANGER = pwd.struct_passwd(("stranger", "x", 64_999, 64_999, "", "/", "/bin/false"))


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o001 == 0:
            folder.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(("mode", "expected"), [(0o755, True), (0o711, True), (0o700, False), (0o754, False)])
def test_a_folder_is_searchable_by_its_mode(open_folder: Path, mode: int, expected: bool) -> None:
    closed = open_folder / "closed"
    closed.mkdir()
    closed.chmod(mode)
    assert servers.searchable(closed / "not" / "there", STRANGER) is expected


def test_data_stays_in_the_folder_where_the_account_can_reach_it(open_folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(servers, "unprivileged_account", lambda: STRANGER)
    assert servers.data_root(open_folder / "hive") == open_folder / "hive" / "volumes"


def test_data_of_an_unreachable_folder_is_linked(open_folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(servers, "unprivileged_account", lambda: STRANGER)
    monkeypatch.setattr(servers, "SYSTEM_FOLDER", open_folder / "system")
    home = open_folder / "home"
    home.mkdir(mode=0o700)
    data = servers.data_root(home / "hive")
    assert data.is_relative_to(open_folder / "system")
    assert (home / "hive" / "volumes").resolve() == data
    assert servers.data_root(home / "hive") == data


def test_programs_are_mirrored_once_for_the_account(open_folder: Path, monkeypatch) -> None:
    package = open_folder / "package"
    package.mkdir(mode=0o700)
    (package / "pginstall" / "bin").mkdir(parents=True)
    (package / "pginstall" / "bin" / "postgres").write_text("a program")
    monkeypatch.setattr(servers, "unprivileged_account", lambda: STRANGER)
    monkeypatch.setattr(servers, "SYSTEM_FOLDER", open_folder / "system")
    monkeypatch.setattr(servers, "_package", lambda name: package)
    program = servers.postgres_program("postgres")
    assert program.is_relative_to(open_folder / "system")
    assert program.read_text() == "a program"
    assert servers.postgres_program("postgres") == program


def test_a_program_the_wheel_lacks_is_named() -> None:
    with pytest.raises(servers.EmbeddedServerError, match="no program 'pg_nonsense'"):
        servers.postgres_program("pg_nonsense")
