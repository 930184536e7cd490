"""A full disk: writes fail and say so, nothing that was acknowledged is lost, and it goes on when there is room."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.conftest import server_folder
from tests.integration.store.load import impatient, until

from agenthive.settings import HiveScope
from agenthive.store import Store, StoreUnavailable, schema_name, upgrade
from agenthive_operator.local import servers

MIB = 1024 * 1024
#: Random, so that PostgreSQL cannot compress it.
DOCUMENT = random.Random(4).randbytes(20_000).hex()


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], Path]]:
    """Mounts file systems of so many MiB, which belong to PostgreSQL's account."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    with server_folder("disk") as folder:
        mounted: list[Path] = []

        def mount(size: int) -> Path:
            target = folder / str(len(mounted))
            target.mkdir()
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}m,mode=0700", "none", str(target)],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode != 0:
                pytest.skip(f"this machine lets nobody mount a small file system: {done.stderr.strip()}")
            mounted.append(target)
            give_to_postgres(target)
            return target

        yield mount
        for target in mounted:
            subprocess.run(["umount", "--lazy", str(target)], check=True)


def give_to_postgres(path: Path) -> None:
    account = servers.unprivileged_account()
    if account is not None:
        os.chown(path, account.pw_uid, account.pw_gid)


class Filler:
    """Writers of large documents."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.written: dict[str, int] = {}
        self.raised: dict[str, StoreUnavailable] = {}

    async def write(self, who: int) -> None:
        """Until one of us is refused."""
        number = 0
        while not self.raised:
            key = f"{who}/{number}"
            try:
                self.written[key] = await self.store.state.set(key, DOCUMENT)
            except StoreUnavailable as error:
                self.raised[key] = error
            number += 1

    async def until_refused(self) -> None:
        await asyncio.gather(*(self.write(who) for who in range(10)))

    async def verify(self) -> None:
        """Everything that returned is there as it was written, and nothing else but what raised."""
        found: dict[str, int] = {}
        after = None
        while page := await self.store.state.list(limit=100, after=after):
            after = page[-1].key
            assert all(entry.value == DOCUMENT for entry in page)
            found |= {entry.key: entry.version for entry in page}
        assert self.written.items() <= found.items()
        assert found.keys() <= self.written.keys() | self.raised.keys()


@pytest.mark.timeout(120)
async def test_no_room_for_tables(own_postgres: Any, scope: HiveScope, small_disk: Callable[[int], Path]) -> None:
    disk, schema = small_disk(24), schema_name(scope)
    await upgrade(own_postgres.url(), schema)
    admin = await asyncpg.connect(own_postgres.url())
    await admin.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
    await admin.execute(f'ALTER TABLE "{schema}".agent_state SET TABLESPACE small')
    ballast = disk / "ballast"
    ballast.write_bytes(b"\0" * (12 * MIB))
    async with await Store.connect(own_postgres.url(), scope, agent="librarian") as store:
        filler = Filler(store)
        await filler.until_refused()
        assert len(filler.written) > 20
        for error in filler.raised.values():
            assert "no room on its disk: could not extend file" in str(error)
            assert "spec.postgres.managed.storage.size" in str(error)
        await filler.verify()
        await store.metrics.record("librarian", "m", 1)  # which has room where it is
        ballast.unlink()
        for key in list(filler.raised)[:5]:
            filler.written[key] = await store.state.set(key, DOCUMENT)
        await filler.verify()
    await admin.close()


@pytest.mark.timeout(120)
async def test_no_room_for_the_log(
    own_postgres: Any, scope: HiveScope, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL goes down when it cannot write its log, and comes up again only when it can."""
    await upgrade(own_postgres.url(), schema_name(scope))
    own_postgres.stop()
    disk = small_disk(100)
    log = own_postgres.data / "pg_wal"
    shutil.copytree(log, disk / "wal", copy_function=copy_as_postgres)
    for path in (disk / "wal", *(disk / "wal").rglob("*")):
        give_to_postgres(path)
    (disk / "wal").chmod(0o700)
    shutil.rmtree(log)
    log.symlink_to(disk / "wal")
    ballast = disk / "ballast"
    used = sum(path.stat().st_size for path in (disk / "wal").rglob("*") if path.is_file())
    ballast.write_bytes(b"\0" * (100 * MIB - used - 20 * MIB))  # room for one more segment of 16 MiB, not for two
    await asyncio.to_thread(own_postgres.start)
    async with await Store.connect(own_postgres.url(), scope, agent="librarian") as store:
        impatient(store, monkeypatch, 1.0)
        filler = Filler(store)
        await filler.until_refused()
        assert len(filler.written) > 20
        await until(lambda: own_postgres.process.poll() is not None, "PostgreSQL gives up")
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            await store.ping()
        ballast.unlink()
        await asyncio.to_thread(own_postgres.start)
        impatient(store, monkeypatch, 30.0)
        await filler.verify()
        for key in list(filler.raised)[:5]:
            filler.written[key] = await store.state.set(key, DOCUMENT)
        await filler.verify()


def copy_as_postgres(source: str, target: str) -> None:
    shutil.copy2(source, target)
    give_to_postgres(Path(target))
