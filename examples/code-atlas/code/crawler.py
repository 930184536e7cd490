"""Finds every module of this interpreter's standard library and hands each to the analysts."""

import asyncio
import sysconfig
from pathlib import Path

from agenthive import Agent

agent = Agent("crawler")

STDLIB = Path(sysconfig.get_paths()["stdlib"])
NOT_THE_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}


def find_modules() -> list[str]:
    """Paths of all modules, relative to the standard library's folder, in order."""
    found = (path.relative_to(STDLIB) for path in STDLIB.rglob("*.py"))
    return sorted(str(path) for path in found if NOT_THE_LIBRARY.isdisjoint(path.parts))


@agent.on("crawl")
async def crawl(message, ctx):
    # Delivered at least once: a crawl that is repeated sends modules again, and the librarian keeps one card of each.
    modules = await asyncio.to_thread(find_modules)
    await ctx.state.set("crawl", {"modules": len(modules), "folder": str(STDLIB)})
    await asyncio.gather(*(ctx.send("analyst", "analyse", {"path": path}) for path in modules))
    ctx.log.info("sent %d modules", len(modules))
    return {"modules": len(modules)}
