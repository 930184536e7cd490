"""After a start the operator says when it has looked at everything once: that is when a restart is over."""

from __future__ import annotations

import logging

import pytest

from agenthive_operator.reconcile.context import Options

from .conftest import Cluster, running_operator

SETTLED = "looked at everything once"


async def test_everything_was_concluded_when_the_operator_says_so(
    cluster: Cluster, options: Options, redis_url: str, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await cluster.external_hive("demo", redis_url, postgres_url)
    await cluster.agent("greeter", "demo")
    caplog.set_level(logging.INFO)

    async def settled() -> bool:
        return SETTLED in caplog.text

    async with running_operator(options):
        await cluster.until("it says so", settled)
        status = (await cluster.need("AgentHive", "demo"))["status"]
        assert {entry["type"]: entry["status"] for entry in status["conditions"]}["SchemaReady"] == "True"
        conditions = (await cluster.need("Agent", "greeter"))["status"]["conditions"]
        assert {entry["type"]: entry["status"] for entry in conditions}["HiveReady"] == "True"
        assert all(entry["reason"] != "HiveNotReady" for entry in conditions), "nothing was said before that was known"
        await cluster.need("Deployment", "greeter")
