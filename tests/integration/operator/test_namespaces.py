"""An operator of some namespaces: it asks for nothing outside of them, and needs no more than a Role in each."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from agenthive_operator import rbac
from agenthive_operator.backends.kube import Object

from .conftest import Cluster
from .replicas import Recorder, Replica, operator_process, write_kubeconfig
from .roles import account, role_and_binding

DISCOVERY = re.compile(r"/version|/api(/v1)?|/apis(/[\w.]+/\w+)?")


@pytest.fixture
def others(cluster: Cluster, api_server: Any, unique: str) -> Iterator[list[Cluster]]:
    """Two more namespaces."""
    made = [Cluster(cluster.kube, f"{unique}-{name}", cluster.kubectl) for name in ("second", "third")]
    for one in made:
        create_namespace(api_server, one.namespace)
    yield made
    for one in made:
        with contextlib.suppress(OSError):  # gone, or deleted by its test
            api_server.call("DELETE", f"/api/v1/namespaces/{one.namespace}")


def create_namespace(api: Any, name: str) -> None:
    api.call("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})


@contextlib.asynccontextmanager
async def operator_of(
    cluster: Cluster, api: Any, folder: Path, *namespaces: str, token: str = "", forbidden: frozenset[str] = frozenset()
) -> AsyncIterator[Replica]:
    async with Recorder(api, forbidden=set(forbidden)).serve() as recorder:
        config = write_kubeconfig(folder / "operator.config", recorder.url, token or api.token)
        arguments = ["--leader-elect", "--lease-namespace", cluster.namespace, "--resync-seconds", "1"]
        for namespace in namespaces:
            arguments += ["--namespace", namespace]
        async with operator_process(cluster, recorder, folder, "operator", config, *arguments) as started:
            yield started


async def broken_hive(cluster: Cluster, name: str) -> Object:
    """A hive whose Secret is missing, which its condition says at once."""
    missing = {"external": {"urlSecretRef": {"name": "none", "key": "url"}}}
    return await cluster.create("AgentHive", name, spec={"redis": missing, "postgres": missing})


async def is_told(cluster: Cluster, name: str) -> None:
    await cluster.condition("AgentHive", name, "RedisReady", "False", "SecretMissing")


async def test_it_asks_for_nothing_outside_of_its_namespaces(
    cluster: Cluster, others: list[Cluster], api_server: Any, tmp_path: Path
) -> None:
    second, foreign = others
    later = Cluster(cluster.kube, f"{cluster.namespace}-later", cluster.kubectl)
    watched = {cluster.namespace, second.namespace, later.namespace}
    async with operator_of(cluster, api_server, tmp_path, *sorted(watched)) as operator:
        for one in (cluster, second, foreign):
            await broken_hive(one, "demo")
        for one in (cluster, second):
            await is_told(one, "demo")

            async def told(one: Cluster = one) -> bool:
                return bool(await one.list("Event"))

            await one.until("an Event says it", told)
        create_namespace(api_server, later.namespace)
        await broken_hive(later, "demo")
        await is_told(later, "demo")
        if not api_server.real:  # which has no controller that ends namespaces
            api_server.call("DELETE", f"/api/v1/namespaces/{second.namespace}")
            await second.gone("AgentHive", "demo")
            await broken_hive(cluster, "another")
            await is_told(cluster, "another")
            create_namespace(api_server, second.namespace)
            await broken_hive(second, "demo")
            await is_told(second, "demo")
        assert operator.process.returncode is None
        assert "status" not in await foreign.need("AgentHive", "demo")
        assert await foreign.list("Event") == []
        for sent in operator.recorder.sent:
            path = sent.path.split("/namespaces/")
            assert (len(path) == 2 and path[1].split("/")[0] in watched) or DISCOVERY.fullmatch(sent.path), sent
    api_server.call("DELETE", f"/api/v1/namespaces/{later.namespace}")


async def test_a_namespace_that_refuses_it_holds_up_no_other(
    cluster: Cluster, others: list[Cluster], api_server: Any, tmp_path: Path
) -> None:
    second, third = others
    watched = (cluster.namespace, second.namespace, third.namespace)
    refused = frozenset({third.namespace})
    async with operator_of(cluster, api_server, tmp_path, *watched, forbidden=refused) as operator:

        async def said(text: str, times: int) -> bool:
            return operator.log.read_text().count(text) == times

        for one in (cluster, second, third):
            await broken_hive(one, "demo")
        for one in (cluster, second):
            await is_told(one, "demo")
        operator.recorder.forbidden.clear()
        await is_told(third, "demo")
        assert await said(f"namespace {third.namespace} is left out", 1)
        assert await said("left out", 1)
        assert await said(f"namespace {third.namespace} can be read now", 1)
        # One that was read goes away, and its cached objects are no reason to stop.
        operator.recorder.forbidden.add(second.namespace)
        left = f"namespace {second.namespace} is left out"
        await cluster.until("it is left out", lambda: said(left, 1))
        await second.patch("AgentHive", "demo", spec={"suspend": True})
        await broken_hive(cluster, "another")
        await is_told(cluster, "another")
        operator.recorder.forbidden.clear()
        await is_told(second, "demo")  # of the generation that it made meanwhile
        assert await said(left, 1)
        assert operator.process.returncode is None
        assert "Traceback" not in operator.log.read_text()


async def test_a_role_in_each_namespace_is_all_it_needs(
    cluster: Cluster, others: list[Cluster], api_server: Any, tmp_path: Path, redis_url: str, postgres_url: str
) -> None:
    if not api_server.real:
        pytest.skip("needs RBAC, which the emulator has not: set KUBEBUILDER_ASSETS")
    second, late = others
    token = account_with_roles(cluster, cluster.namespace, second.namespace)
    watched = (cluster.namespace, second.namespace, late.namespace)
    async with operator_of(cluster, api_server, tmp_path, *watched, token=token) as operator:
        await cluster.external_hive("demo", redis_url, postgres_url)
        await cluster.condition("AgentHive", "demo", "Ready", "True")
        await cluster.agent("greeter", "demo")
        await cluster.pods_ready("greeter")
        await cluster.condition("Agent", "greeter", "Ready", "True")
        await second.create("AgentHive", "managed", spec={})
        await second.exists("StatefulSet", "managed-postgres")
        await broken_hive(late, "demo")
        log = operator.log.read_text()
        assert log.count(f"namespace {late.namespace} is left out until it can be read") == 1
        assert log.count("403 Forbidden") == 1, (
            "each of its own namespaces lets it, and of the one that does not it says so"
        )
        # Its Role comes, and another goes.
        apply(
            cluster,
            role_and_binding(late.namespace, "operator", rbac.rules(rbac.rights(), "watched"), cluster.namespace),
        )
        await is_told(late, "demo")
        cluster.kubectl("delete", "rolebinding", "operator", "-n", second.namespace)
        await broken_hive(cluster, "another")
        await is_told(cluster, "another")
        await cluster.delete("Agent", "greeter")
        await cluster.delete("AgentHive", "demo")
        await cluster.gone("AgentHive", "demo")
        assert operator.process.returncode is None
        assert "Traceback" not in operator.log.read_text()


def apply(cluster: Cluster, bodies: list[Object]) -> None:
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": bodies}))


def account_with_roles(cluster: Cluster, *namespaces: str) -> str:
    """A token of an account with the Role of the operator in these namespaces, and that for the Lease in the first."""
    bodies = [account(cluster.namespace)]
    bodies += role_and_binding(cluster.namespace, "lease", rbac.rules(rbac.rights(), "own"), cluster.namespace)
    for namespace in namespaces:
        bodies += role_and_binding(namespace, "operator", rbac.rules(rbac.rights(), "watched"), cluster.namespace)
    apply(cluster, bodies)
    made = cluster.kubectl("create", "token", "operator", "-n", cluster.namespace, "--duration=1h")
    return str(made.stdout.strip())
