"""Keeps a card of every module in PostgreSQL and answers questions about them."""

from collections import Counter
from datetime import UTC, datetime

from agenthive import Agent, Reject

agent = Agent("librarian")

MODULE = "module/"


async def cards(ctx) -> list[dict]:
    return [entry.value for entry in await ctx.state.list(prefix=MODULE, limit=10_000)]


@agent.on("store")
async def store(message, ctx):
    # The module's name is the key: a message delivered twice leaves one card.
    card = message.body
    await ctx.state.set(MODULE + card["module"], card)
    delivered_in = (datetime.now(UTC) - message.timestamp).total_seconds() * 1000
    await ctx.metrics.record("analyse_ms", card["milliseconds"], {"module": card["module"]})
    await ctx.metrics.record("store_ms", delivered_in, {"module": card["module"]})


@agent.on("progress")
async def progress(message, ctx):
    return {"stored": len(await cards(ctx))}


@agent.on("most-complex")
async def most_complex(message, ctx):
    """The functions with the highest cyclomatic complexity."""
    top = int(message.body.get("top", 5))
    functions = [{"module": card["module"], **f} for card in await cards(ctx) for f in card["most_complex"]]
    return {"functions": sorted(functions, key=lambda f: f["complexity"], reverse=True)[:top]}


@agent.on("most-imported")
async def most_imported(message, ctx):
    """The modules that most other modules import."""
    top = int(message.body.get("top", 5))
    count = Counter(name for card in await cards(ctx) for name in card["imports"])
    return {"modules": [{"module": name, "imported_by": n} for name, n in count.most_common(top)]}


@agent.on("cost")
async def cost(message, ctx):
    """Percentiles of this agent's metrics, in milliseconds."""
    figures = {}
    for metric in ("analyse_ms", "store_ms"):
        values = sorted(row.value for row in await ctx.metrics.query(metric_type=metric, limit=10_000))
        if not values:
            raise Reject("nothing was stored yet: send the crawler a 'crawl' first")
        figures[metric] = {"p50": values[len(values) // 2], "p99": values[len(values) * 99 // 100]}
    return figures


@agent.on("card")
async def card(message, ctx):
    """All that is known of one module."""
    name = message.body["module"]
    found = await ctx.state.get(MODULE + name)
    if found is None:
        raise Reject(f"no card of {name!r}: no such module, or it was not analysed yet")
    return found
