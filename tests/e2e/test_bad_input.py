"""What only the operator or the pod can see ends in a condition that says so; it never takes down what works."""

from __future__ import annotations

import asyncio
import json

import pytest
import redis.asyncio as redis
from tests.e2e.plane import ECHO, Plane, agent, hive

from agenthive_operator.backends.connections import hive_settings


def test_an_agent_waits_for_its_hive_and_starts_by_itself(plane: Plane) -> None:
    plane.apply(*agent("early", code=ECHO))
    waiting = plane.until(lambda: plane.condition("agent/early", "HiveReady"), "the condition HiveReady")
    assert waiting["status"] == "False"
    assert "hive" in waiting["message"]
    assert plane.condition("agent/early")["status"] == "False"
    plane.apply(hive())
    plane.wait("condition=Ready", "agent/early")


def test_an_agent_waits_for_its_code(plane: Plane) -> None:
    plane.apply(hive(), agent("coded", code=ECHO)[1])
    message = plane.until(
        lambda: "coded-code" in plane.condition("agent/coded").get("message", "") and plane.condition("agent/coded"),
        "a condition that names the missing ConfigMap",
    )
    assert message["status"] == "False"
    plane.apply(agent("coded", code=ECHO)[0])
    plane.wait("condition=Ready", "agent/coded")


def test_an_import_error_is_in_the_condition_and_disturbs_nobody(plane: Plane) -> None:
    plane.apply(hive(), *agent("good", code=ECHO), *agent("broken", code="import no_such_module\n"))
    plane.wait("condition=Ready", "agent/good")
    broken = plane.until(
        lambda: (
            "no_such_module" in plane.condition("agent/broken").get("message", "") and plane.condition("agent/broken")
        ),
        "the import error in the condition",
    )
    assert broken["status"] == "False"
    pod = plane.until(
        lambda: next(
            (
                p
                for p in plane.get("pods", "-l", "agenthive.dev/agent=broken")["items"]
                if p["status"].get("containerStatuses", [{}])[0].get("restartCount", 0) >= 2
            ),
            None,
        ),
        "the kubelet restarts it with back-off",
    )
    assert pod["status"]["phase"] == "Running"
    assert plane.condition("agent/good")["status"] == "True"
    # Mended, it starts.
    plane.apply(*agent("broken", code=ECHO))
    plane.wait("condition=Ready", "agent/broken")


@pytest.mark.needs("processes")
def test_a_malformed_entry_goes_to_the_dead_letters_and_the_worker_goes_on(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane.apply(hive(), *agent("echo", code=ECHO))
    plane.wait("condition=Ready", "hive/hive", "agent/echo")
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
    settings = asyncio.run(hive_settings("hive", plane.namespace))

    async def spoil() -> None:
        async with redis.from_url(settings.redis_url.get_secret_value()) as client:
            prefix = settings.scope.key_prefix("echo")
            streams = [key async for key in client.scan_iter(match=f"{prefix}*", _type="stream")]
            assert streams, f"no stream below {prefix}"
            for stream in streams:
                await client.xadd(stream, {"m": "{not json", "nonsense": "1"})

    asyncio.run(spoil())
    ask = ("ask", "echo", "echo", '{"still": "here"}', "--hive", "hive", "--output", "json")
    assert json.loads(plane.agenthive(*ask)) == {"still": "here"}

    def dead() -> list[dict[str, object]]:
        return json.loads(plane.agenthive("dlq", "list", "echo", "--hive", "hive", "--output", "json"))

    letters = plane.until(dead, "the malformed entries in the dead letters")
    assert all(letter["reason"] for letter in letters)
