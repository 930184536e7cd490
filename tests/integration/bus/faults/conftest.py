"""Fleets of real worker processes for the fault matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.bus.faults.ledger import Fleet

from agenthive.settings import HiveScope, Messaging


@pytest.fixture
def messaging() -> Messaging:
    """The shortest lease there is, retries at once, and crashes without end: the faults come thick."""
    return Messaging(lease_seconds=2, retry_delay_seconds=0.05, max_retries=100)


@pytest.fixture
def fleet(tmp_path: Path, scope: HiveScope, messaging: Messaging) -> Iterator[Callable[..., Fleet]]:
    """Makes fleets; their processes are killed after the test."""
    made: list[Fleet] = []

    def make(url: str, **options: int) -> Fleet:
        made.append(Fleet(tmp_path, url, scope, messaging, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
