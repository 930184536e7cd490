"""The control plane's own processes come back, also when their program is away for a while; and its token."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from agenthive_operator.local import children
from agenthive_operator.local.children import Child
from agenthive_operator.local.folder import kept_token
from agenthive_operator.local.kubelet.process import Records


async def until(check, what: str) -> None:
    async with asyncio.timeout(20):
        while not check():  # noqa: ASYNC110 - polls what no event tells, under a deadline
            await asyncio.sleep(0.02)
    assert check(), what


async def test_a_child_comes_back_when_its_program_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(children, "RESTART_SECONDS", (0.05, 0.1))
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho began\nexec sleep 600\n")
    program.chmod(0o755)
    log = tmp_path / "log"
    child = Child("it", [str(program)], env=os.environ, cwd=tmp_path, log=log, records=Records(tmp_path / "records"))
    child.start()
    try:
        await until(log.read_text, "first life")
        program.rename(tmp_path / "away")
        assert child.pid is not None
        os.kill(child.pid, 9)
        await until(lambda: caplog.text.count("it cannot be started") > 1, "tries without a program")
        assert child.exit_code == 137
        (tmp_path / "away").rename(program)
        await until(lambda: log.read_text().count("began") == 2, "second life")
        assert (child.restarts, child.pid is not None) == (1, True)
    finally:
        await child.stop()
    assert child.pid is None


def test_the_token_is_kept_and_never_empty(tmp_path: Path) -> None:
    file = tmp_path / "token"
    token = kept_token(file)
    assert len(token) > 30
    assert kept_token(file) == token
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text("")  # its maker was killed in the middle
    assert kept_token(file) not in {"", token}
    assert [path.name for path in tmp_path.iterdir()] == ["token"]
