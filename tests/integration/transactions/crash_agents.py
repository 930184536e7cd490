"""The agents of the crash tests, and the lines at which a process of ``worker`` kills itself.

CRASH names the line, CRASH_FOLDER is where a file notes each message at which it was done, so that it is done once for
each: what comes after a restart goes on. Production code knows nothing of it: what is wrapped here are its methods.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import agenthive.worker
from agenthive import Agent, Context
from agenthive.bus import Consumer
from agenthive.protocol import AgentMessage
from agenthive.store.transaction import Transaction

EVERY = 90
worker = Agent("worker")
downstream = Agent("downstream")


@worker.on("work")
async def work(message: AgentMessage, ctx: Context) -> None:
    """Everything at once: an effect, a count, a message to another agent, and the reply."""
    n = message.body["n"]
    async with ctx.transaction() as tx:
        await tx.execute("INSERT INTO public.effects VALUES ($1)", n)
        key = f"count {n % 7}"
        await tx.state.set(key, await tx.state.get(key, default=0) + 1)
        tx.send("downstream", "record", {"n": n})
        tx.reply({"n": n, "attempt": ctx.attempt})


@worker.on("slow")
async def slow(message: AgentMessage, ctx: Context) -> None:
    """Waits before, inside or after its transaction, so that it can be frozen there."""
    n, phase = message.body["n"], message.body["phase"]

    async def wait(here: str) -> None:
        if here == phase:
            note(f"{phase} {n} {os.getpid()}")
            await asyncio.sleep(message.body["seconds"])

    await wait("before")
    async with ctx.transaction() as tx:
        await tx.execute("INSERT INTO public.effects VALUES ($1)", n)
        tx.send("downstream", "record", {"n": n})
        await wait("inside")
    await wait("after")


@downstream.on("record")
async def record(message: AgentMessage, ctx: Context) -> None:
    """Exactly once, too, by an inbox of its own."""
    async with ctx.transaction() as tx:
        await tx.execute("INSERT INTO public.records VALUES ($1)", message.body["n"])


def note(name: str) -> bool:
    """Leave a file of this name; False if it is there."""
    try:
        Path(os.environ["CRASH_FOLDER"], name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def crash(message: AgentMessage | None) -> None:
    """The end, if this message is one of those, and it was not done before."""
    if message is not None and message.body.get("n", 1) % EVERY == 0 and note(f"crashed at {message.body['n']}"):
        os.kill(os.getpid(), signal.SIGKILL)


def wrap(owner: Any, name: str, around: Callable[[Any], Any]) -> None:
    setattr(owner, name, around(getattr(owner, name)))


def before_commit(say_commit: Any) -> Any:
    async def wrapped(self: Transaction) -> Any:
        crash(self._message)
        return await say_commit(self)

    return wrapped


def after_commit(say_commit: Any) -> Any:
    async def wrapped(self: Transaction) -> Any:
        outcome = await say_commit(self)
        crash(self._message)
        return outcome

    return wrapped


def before_acknowledge(acknowledge: Any) -> Any:
    def wrapped(self: Consumer, delivery: Any, *details: Any) -> Any:
        crash(delivery.message)
        return acknowledge(self, delivery, *details)

    return wrapped


def after_acknowledge(settled: Any) -> Any:
    def wrapped(self: Any, run: Any, verdict: Any, reply: Any, delay: Any, error: Any) -> Any:
        if error is None:
            crash(run.delivery.message)
        return settled(self, run, verdict, reply, delay, error)

    return wrapped


match os.environ.get("CRASH"):
    case "before the commit":
        wrap(Transaction, "_say_commit", before_commit)
    case "after the commit":
        wrap(Transaction, "_say_commit", after_commit)
    case "before the acknowledgement":
        wrap(Consumer, "ack", before_acknowledge)
        wrap(Consumer, "acknowledge", before_acknowledge)
    case "after the acknowledgement":
        wrap(agenthive.worker.Worker, "_settled", after_acknowledge)
