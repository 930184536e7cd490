"""A message that kills every process that handles it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

CODE = """
import asyncio, os, signal
from agenthive import Agent

agent = Agent("worker")

@agent.on("poison")
async def poison(message):
    os.kill(os.getpid(), signal.SIGKILL)

@agent.on("x")
async def x(message):
    await asyncio.sleep(0.02)
"""


async def test_a_poison_message_is_given_up_and_blocks_nobody(
    hive: Any, process: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "poison_code.py").write_text(CODE)
    poison = await hive.send("worker", "poison")
    others = [await hive.send("worker", body={"n": n}) for n in range(20)]
    pod = process(AGENTHIVE_CONCURRENCY="5")
    deaths = []

    def keep_running() -> None:
        """As the kubelet does, until the process does not end by itself."""
        while (code := pod.popen.wait()) != 0:
            deaths.append(code)
            pod.start("poison_code:agent")

    pod.start("poison_code:agent")
    kubelet = asyncio.create_task(asyncio.to_thread(keep_running))
    final = await hive.final("worker", poison)
    assert (final.status, final.attempts) == ("failed", 4)
    assert final.error == "crashed: the process that handled it died or lost its lease, attempt 4 of 4"
    for message_id in others:
        assert (await hive.final("worker", message_id)).status == "delivered"
    letters = await hive.bus.dead_letters("worker")
    assert [(letter.message_id, letter.reason, letter.attempts) for letter in letters] == [(poison, "crashed", 4)]
    pod.popen.terminate()
    await asyncio.wait_for(kubelet, 20)
    assert deaths == [-signal.SIGKILL] * 4
