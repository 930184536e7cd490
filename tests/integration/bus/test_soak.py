"""A short soak: what ``make soak`` does for longer."""

from __future__ import annotations

from benchmarks.soak import Soak


async def test_nothing_is_left_or_grows_under_mixed_load_and_churn(redis_url: str) -> None:
    soak = Soak(redis_url, print)
    cycles = await soak.run(seconds=0, cycle_seconds=1.5)  # asserts that every key is empty again, twice
    assert len(cycles) == 2
    assert any(cycle.killed for cycle in cycles)
    assert any(cycle.stopped for cycle in cycles)
    assert all(cycle.letters and cycle.asked > cycle.unanswered for cycle in cycles)
    # It says something about a key only if there was one.
    assert soak.met >= {"q", "ids", "tries", "delayed", "held", "consumers", "st", "sg", "dd", "dg", "dead", "r"}
