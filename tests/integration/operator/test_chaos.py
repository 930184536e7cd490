"""Chaos on the API: whatever the operator meets on its way to the API server, it comes to rest in the right state."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agenthive_operator import main
from agenthive_operator.backends import kube as kube_module
from agenthive_operator.reconcile.context import Options

from .chaos import Answer, Asked, Broken, Chaos, Cut, Fault, Late, Rule, Silent, Swallowed, Tampered
from .conftest import Cluster, running_operator
from .fleet import Fleet
from .replicas import free_port, write_kubeconfig
from .test_process import healthz


@pytest.fixture
async def chaos(cluster: Cluster, api_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Chaos]:
    """The proxy, which the operators of the test go through; the test itself does not."""
    async with Chaos(api_server).serve() as proxy:
        monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "config", proxy.url, "t")))
        yield proxy


@pytest.fixture
def fleet(cluster: Cluster, chaos: Chaos) -> Fleet:
    return Fleet(cluster, chaos)


def of_writes(fault: Fault, every: int = 1) -> Rule:
    """Each ``every``-th write meets this fault."""
    seen = [0]

    def rule(asked: Asked) -> Fault | None:
        if not asked.writes:
            return None
        seen[0] += 1
        return fault if seen[0] % every == 0 else None

    return rule


def of_everything(fault: Fault) -> Rule:
    return lambda asked: fault


def of_watches(fault: Fault) -> Rule:
    return lambda asked: fault if asked.watches else None


def of_lists(fault: Fault, *kinds: str) -> Rule:
    return lambda asked: fault if asked.lists and (not kinds or asked.kind in kinds) else None


REQUESTS: dict[str, Rule] = {
    "500": of_everything(Answer(500, "InternalError")),
    "503 of a load balancer": of_everything(Answer(503, html=True)),
    "404 of a load balancer": of_everything(Answer(404, html=True)),
    "404 of a server that does not serve the kinds yet": of_everything(Answer(404, "NotFound")),
    "its page with 200": of_everything(Answer(200, html=True)),
    "conflicts": of_writes(Answer(409, "Conflict")),
    "resets before": of_everything(Cut("before")),
    "resets in the middle": of_everything(Cut("middle")),
    "answers lost": of_everything(Cut("after")),
    "slowness": of_everything(Late(0.5)),
}


async def test_requests_that_fail(
    cluster: Cluster, chaos: Chaos, fleet: Fleet, options: Options, redis_url: str, postgres_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    async with running_operator(options):
        await fleet.start(redis_url, postgres_url)
        await fleet.converged("the start")
        for what, rule in REQUESTS.items():
            with chaos.faulty(rule):
                await fleet.churn()
                await asyncio.sleep(0.7)
            await fleet.converged(what)
    ours = [record for record in caplog.records if record.name.startswith("agenthive")]
    assert not [record.getMessage() for record in ours if record.exc_info], "no traceback"
