"""The agents under measurement: they note what happens and do nothing else."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from agenthive import Agent, AgentMessage, Context

#: The result of one run, for the process that started this one.
RESULT = Path(os.environ["BENCH_RESULT"])
EXPECTED = int(os.environ["BENCH_MESSAGES"])

noop = Agent("bench")
transaction = Agent("bench")
latency = Agent("bench")

handled = 0
first = 0.0
delays: list[int] = []


def finish(document: object) -> None:
    """Leave the result in one step, so that no half of it is read."""
    partial = RESULT.with_suffix(".partial")
    partial.write_text(json.dumps(document))
    partial.rename(RESULT)


@noop.on("noop")
async def count(message: AgentMessage, ctx: Context) -> None:
    """Handlings per second, from the first to the last one."""
    global handled, first  # noqa: PLW0603 - the cheapest counter there is
    handled += 1
    if handled == 1:
        first = time.monotonic()
    if handled == EXPECTED:
        last = time.monotonic()
        finish({"first": first, "last": last})


@transaction.on("noop")
async def transact(message: AgentMessage, ctx: Context) -> None:
    """One transaction: a document, the mark, and as many messages as it is told to send."""
    async with ctx.transaction() as tx:
        await tx.state.set(message.message_id, message.body)
        for number in range(message.body["sends"]):
            tx.send("sink", "noop", {"number": number})
    await count(message, ctx)


@latency.on("noop")
async def measure(message: AgentMessage, ctx: Context) -> None:
    """Time from before ``send`` to here; both ends read the same monotonic clock."""
    delays.append(time.monotonic_ns() - message.body["sent"])
    if len(delays) == EXPECTED:
        finish({"delays": delays})
