"""The operator as a process: signals, the probe, an API server that is not there yet or goes away."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agenthive_operator.metrics import DESCRIPTIONS
from agenthive_operator.reconcile.context import Options

from .conftest import Cluster, running_operator


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def process(*arguments: str, log: Path, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    with log.open("ab") as output:
        started = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "agenthive_operator", *arguments,
            env={**os.environ, **environment}, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
            await started.wait()


async def healthz(port: int) -> dict[str, Any] | None:
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/healthz", timeout=aiohttp.ClientTimeout(total=2)) as answer,
        ):
            return dict(await answer.json()) if answer.status == 200 else None
    except (aiohttp.ClientError, TimeoutError):
        return None


async def check_metrics(port: int) -> None:
    """What a scrape finds beside a hive that is ready."""
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        families = {family.name: family for family in text_string_to_metric_families(await answer.text())}
    documented = {f"agenthive_operator_{name}".removesuffix("_total") for name in DESCRIPTIONS}
    assert documented <= families.keys()

    def values(name: str) -> dict[tuple[tuple[str, str], ...], float]:
        samples = families[f"agenthive_operator_{name}"].samples
        return {tuple(sorted(sample.labels.items())): sample.value for sample in samples}

    ready = [labels for labels in values("hive_condition") if ("type", "Ready") in labels]
    assert any(("status", "True") in labels and ("name", "demo") in labels for labels in ready)
    requests = values("api_requests")
    assert any(
        {("verb", "patch"), ("resource", "agenthives/status"), ("code", "200")} <= set(labels) for labels in requests
    )
    assert any({("verb", "watch"), ("resource", "pods")} <= set(labels) for labels in requests), "kopf's, too"
    assert values("leading")[()] == 1
    assert values("queue_depth")[(("queue", "reconcile"),)] == 0


async def test_its_log_tells_machines_what_was_looked_at(
    cluster: Cluster, tmp_path: Path, redis_url: str, postgres_url: str
) -> None:
    log = tmp_path / "log"
    async with process("--namespace", cluster.namespace, log=log):
        await cluster.external_hive("demo", redis_url, postgres_url)
        await cluster.condition("AgentHive", "demo", "Ready", "True")
        await cluster.create("ConfigMap", "code", data={"greeter.py": ""})
        await cluster.agent("worker", "demo", codeFrom={"configMapRef": {"name": "code"}})
        await cluster.exists("Deployment", "worker")

        async def told() -> list[dict[str, Any]]:
            lines = [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
            return [line for line in lines if line["message"].startswith("applied Deployment")]

        applied = await cluster.until("the log tells it, too", told)
    assert {(line["namespace"], line["agent"]) for line in applied} == {(cluster.namespace, "worker")}
    assert all(len(line["reconcile"]) == 8 for line in applied)
    password = urlsplit(postgres_url).password
    assert not password or password not in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_runs_answers_its_probe_and_ends_when_told(
    cluster: Cluster, tmp_path: Path, redis_url: str, postgres_url: str, number: signal.Signals
) -> None:
    port, log = free_port(), tmp_path / "log"
    arguments = ("--namespace", cluster.namespace, "--probe-address", f"127.0.0.1:{port}")
    async with process(*arguments, log=log) as running:
        await cluster.external_hive("demo", redis_url, postgres_url)
        await cluster.condition("AgentHive", "demo", "Ready", "True")

        async def alive() -> dict[str, Any] | None:
            return await healthz(port)

        figures = await cluster.until("the probe answers", alive)
        assert figures["objects"] >= 1
        await check_metrics(port)
        running.send_signal(number)
        assert await asyncio.wait_for(running.wait(), 15) == 0, log.read_text()
    assert "Traceback" not in log.read_text()


async def test_its_account_needs_no_name(
    cluster: Cluster, options: Options, redis_url: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nameless() -> str:
        raise OSError("No username set in the environment")

    monkeypatch.setattr("getpass.getuser", nameless)
    async with running_operator(options):
        await cluster.external_hive("demo", redis_url, postgres_url)
        await cluster.condition("AgentHive", "demo", "Ready", "True")


async def test_the_environment_says_what_flags_say(
    cluster: Cluster, tmp_path: Path, redis_url: str, postgres_url: str
) -> None:
    environment = {"AGENTHIVE_OPERATOR_NAMESPACES": cluster.namespace, "AGENTHIVE_RUNTIME_IMAGE": "mine:1"}
    async with process(log=tmp_path / "log", **environment):
        await cluster.external_hive("demo", redis_url, postgres_url)
        await cluster.agent("greeter", "demo")
        deployment = await cluster.exists("Deployment", "greeter")
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "mine:1"


async def test_it_waits_for_an_api_server_that_is_not_there(tmp_path: Path) -> None:
    log, config = tmp_path / "log", tmp_path / "kubeconfig"
    server = f"http://127.0.0.1:{free_port()}"
    config.write_text(
        json.dumps(
            {
                "apiVersion": "v1", "kind": "Config", "current-context": "c",
                "clusters": [{"name": "c", "cluster": {"server": server}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
            }
        )
    )  # fmt: skip
    async with process(log=log, KUBECONFIG=str(config)) as running:

        async def tried() -> bool:
            await asyncio.sleep(0)
            return log.read_text().count("list of agenthives") >= 2

        deadline = asyncio.get_running_loop().time() + 20
        while not await tried():
            assert asyncio.get_running_loop().time() < deadline, log.read_text()
            assert running.returncode is None, log.read_text()
            await asyncio.sleep(0.05)
        running.terminate()
        assert await asyncio.wait_for(running.wait(), 15) == 0, log.read_text()


async def test_without_any_cluster_it_says_so_and_ends(tmp_path: Path) -> None:
    async with process(log=tmp_path / "log", KUBECONFIG=str(tmp_path / "none")) as running:
        assert await asyncio.wait_for(running.wait(), 20) != 0
    assert "Invalid kube-config file" in (tmp_path / "log").read_text()


async def test_a_resync_finds_what_watches_missed(
    cluster: Cluster, options: Options, redis_url: str, postgres_url: str
) -> None:
    """The lists are compared often here; a watch that works as well does no harm to that."""
    often = Options(namespaces=options.namespaces, resync_seconds=1.0)
    async with running_operator(often):
        await cluster.external_hive("demo", redis_url, postgres_url)
        await cluster.agent("greeter", "demo")
        await cluster.exists("Deployment", "greeter")
        await asyncio.sleep(2.5)
        await cluster.delete("Deployment", "greeter")
        await cluster.exists("Deployment", "greeter")
