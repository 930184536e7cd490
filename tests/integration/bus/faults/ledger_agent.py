"""The agent of the fault matrix: each handling writes a line into the ledger when it begins and when it ends."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from agenthive import Agent, Context
from agenthive.protocol import AgentMessage

agent = Agent("worker")
_ledger = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def _write(event: str, message: AgentMessage, ctx: Context) -> None:
    # One write of one line to a file opened for appending: lines of several processes never mix.
    line = f"{event} {message.body['n']} {ctx.attempt} {os.getpid()} {time.monotonic_ns()}\n"
    os.write(_ledger, line.encode())


@agent.on_start
def beat() -> None:
    """Note, if that is wanted, when the machine gave this process no turn."""
    if "LEDGER_STALLS" in os.environ:
        _beating.append(asyncio.create_task(_beat(os.environ["LEDGER_STALLS"])))


_beating: list[asyncio.Task[None]] = []


async def _beat(path: str) -> None:
    stalls = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    while True:
        began = time.time()
        await asyncio.sleep(0.002)
        ended = time.time()
        if ended - began > 0.005:
            os.write(stalls, f"{began} {ended}\n".encode())


@agent.on("count")
async def count(message: AgentMessage, ctx: Context) -> dict[str, Any]:
    """Waits ``seconds`` as one that asks a server would; fails as often as ``failures`` says."""
    _write("begin", message, ctx)
    await asyncio.sleep(message.body.get("seconds", 0))
    if ctx.attempt <= message.body.get("failures", 0):
        raise RuntimeError("as it was told")
    _write("end", message, ctx)
    return {"n": message.body["n"], "process": os.getpid()}


@agent.on("spin")
async def spin(message: AgentMessage, ctx: Context) -> None:
    """Computes for ``seconds`` and gives the event loop no turn meanwhile."""
    _write("begin", message, ctx)
    until = time.monotonic() + message.body["seconds"]
    while time.monotonic() < until:
        sum(range(1000))
    _write("end", message, ctx)


@agent.on("thread")
def thread(message: AgentMessage, ctx: Context) -> None:
    """Blocks a thread of its own for ``seconds``."""
    _write("begin", message, ctx)
    time.sleep(message.body["seconds"])
    _write("end", message, ctx)
