"""Handles ``first`` by sending ``second`` to itself; each line of RELAY_LOG is what was handled, and on which Redis."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from agenthive import Agent

agent = Agent("relay")


def note(kind: str, number: int) -> None:
    with Path(os.environ["RELAY_LOG"]).open("a") as log:
        log.write(f"{kind} {number} {os.environ['AGENTHIVE_REDIS_URL']}\n")


@agent.on("first")
async def first(message: Any, ctx: Any) -> None:
    await asyncio.sleep(0.05)
    await ctx.send("relay", "second", {"number": message.body["number"]})
    note("first", message.body["number"])


@agent.on("second")
async def second(message: Any, ctx: Any) -> None:
    note("second", message.body["number"])
