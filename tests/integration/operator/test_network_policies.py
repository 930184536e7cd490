"""NetworkPolicies of a hive as its operator makes them, mends them and takes them away."""

from __future__ import annotations

from typing import Any

import pytest
from tests.integration.operator.conftest import Cluster, Object, running_operator

from agenthive_operator.reconcile.context import Options

NOWHERE = ("redis://127.0.0.1:1/0", "postgresql://a@127.0.0.1:1/b")
PEER = {"podSelector": {"matchLabels": {"app": "prometheus"}}}


@pytest.fixture
async def policy(cluster: Cluster, operator: None) -> Any:
    """Fetches the policy of the agents of a hive on servers that are not there."""
    await cluster.external_hive("demo", *NOWHERE, networkPolicy={"metricsFrom": [PEER]})
    await cluster.exists("NetworkPolicy", "demo-agent")
    return lambda: cluster.need("NetworkPolicy", "demo-agent")


async def change(cluster: Cluster, **fields: Any) -> None:
    await cluster.patch("AgentHive", "demo", spec={"networkPolicy": fields})


async def test_what_somebody_opens_by_hand_is_closed_again(cluster: Cluster, policy: Any) -> None:
    wanted = (await policy())["spec"]["ingress"]
    await cluster.patch("NetworkPolicy", "demo-agent", spec={"ingress": [{}]})

    async def closed() -> bool:
        return bool((await policy())["spec"]["ingress"] == wanted)

    await cluster.until("the policy is as it was", closed)
    await cluster.delete("NetworkPolicy", "demo-agent")
    await cluster.exists("NetworkPolicy", "demo-agent")


async def test_a_malformed_rule_is_told_and_the_good_policy_stays(cluster: Cluster, policy: Any) -> None:
    wanted = (await policy())["spec"]
    bad = {"to": [{"ipBlock": {"cidr": "10.9.0.0"}}]}
    await change(cluster, egress="deny", allowEgress=[{"ports": [{"port": 443}]}, bad])
    told = await cluster.condition("AgentHive", "demo", "Ready", "False", "ApplyRejected")
    assert 'spec.networkPolicy.allowEgress[1].to[0].ipBlock.cidr: Invalid value: "10.9.0.0"' in told["message"]
    assert (await policy())["spec"] == wanted
    await change(cluster, egress="deny", allowEgress=[{"to": [{"ipBlock": {"cidr": "10.9.0.0/16"}}]}])
    await cluster.condition("AgentHive", "demo", "Ready", "False", "RedisNotReady")
    assert (await policy())["spec"]["egress"][0] == {"to": [{"ipBlock": {"cidr": "10.9.0.0/16"}}]}


async def test_disabled_takes_them_away_and_leaves_those_of_others(cluster: Cluster, policy: Any) -> None:
    await cluster.create("NetworkPolicy", "mine", spec={"podSelector": {}})
    await change(cluster, enabled=False)
    await cluster.gone("NetworkPolicy", "demo-agent")
    assert await cluster.need("NetworkPolicy", "mine")


async def test_a_name_that_is_taken_is_told(cluster: Cluster, operator: None) -> None:
    await cluster.create("NetworkPolicy", "demo-agent", spec={"podSelector": {}})
    await cluster.external_hive("demo", *NOWHERE)
    told = await cluster.condition("AgentHive", "demo", "Ready", "False", "NameConflict")
    assert "NetworkPolicy demo-agent exists" in told["message"]
    assert (await cluster.need("NetworkPolicy", "demo-agent"))["spec"]["podSelector"] == {}


async def test_managed_servers_have_theirs_and_a_restart_writes_nothing(cluster: Cluster, options: Options) -> None:
    await cluster.create("AgentHive", "demo")

    def names(found: list[Object]) -> set[str]:
        return {policy["metadata"]["name"] for policy in found}

    async def all_three() -> bool:
        return names(await cluster.list("NetworkPolicy")) == {"demo-agent", "demo-redis", "demo-postgres"}

    async with running_operator(options):
        await cluster.until("three policies", all_three)
        await cluster.condition("AgentHive", "demo", "RedisReady", "False", "Starting")
        await cluster.condition("AgentHive", "demo", "PostgresReady", "False", "Starting")
    before = {p["metadata"]["name"]: p["metadata"]["resourceVersion"] for p in await cluster.list("NetworkPolicy")}
    async with running_operator(options):
        await cluster.patch("AgentHive", "demo", spec={"retention": {"messagesDays": 3}})
        await cluster.condition("AgentHive", "demo", "RedisReady", "False", "Starting")
    after = {p["metadata"]["name"]: p["metadata"]["resourceVersion"] for p in await cluster.list("NetworkPolicy")}
    assert before == after
