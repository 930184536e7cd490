"""Messages per second: of two looks at counters, and the rows of top."""

from __future__ import annotations

from typing import Any

import pytest

from agenthive.cli.queues import rate_cells, rates_of
from agenthive_operator.plugin.status import rows

BEFORE = {"arrived": 100, "finished": 90, "given_up": 5}


@pytest.mark.parametrize(
    ("after", "seconds", "expected"),
    [
        ({"arrived": 120, "finished": 115, "given_up": 5}, 2.0, [10.0, 12.5, 0.0]),
        ({"arrived": 101, "finished": 90, "given_up": 6}, 3.0, [0.3, 0.0, 0.3]),
        # Another server, an older runtime in the pod, rules that do not let it know, no time between.
        ({"arrived": 1, "finished": 1, "given_up": 5}, 1.0, [None, None, 0.0]),
        ({}, 1.0, [None, None, None]),
        ({"arrived": None, "finished": None, "given_up": 7}, 1.0, [None, None, 2.0]),
        (BEFORE, 0.0, [None, None, None]),
    ],
)
def test_rates_are_of_what_both_looks_know(after: dict[str, Any], seconds: float, expected: list[Any]) -> None:
    rates = rates_of(BEFORE, after, seconds)
    assert list(rates.values()) == expected
    assert rate_cells(rates) == tuple(None if rate is None else f"{rate:g}" for rate in expected)


def test_top_takes_the_look_before_or_what_the_pod_says_itself() -> None:
    agent = {"metadata": {"name": "echo"}, "spec": {"replicas": 1}}
    now = {"agent": "echo", "backlog": 3, "arrived": 110, "finished": 100, "given_up": 5}
    (row,) = rows([agent], {"echo": now}, {"echo": {"agent": "echo", **BEFORE}}, 2.0)
    assert (row["backlog"], row["rates"]) == (3, {"in": 5.0, "out": 5.0, "given_up": 0.0})
    own = {"in": 1.0, "out": 2.0, "given_up": 3.0}
    (row,) = rows([agent], {"echo": {**now, "rates": own}}, {}, 0.0)
    assert row["rates"] == own
    (row,) = rows([agent], {}, {}, 2.0)
    assert row["rates"] is None
