"""Greets by name and remembers how often."""

from agenthive import Agent

agent = Agent("hello")


@agent.on("greet")
async def greet(message, ctx):
    name = message.body["name"]
    times = await ctx.state.get(name, default=0) + 1
    await ctx.state.set(name, times)
    return {"greeting": f"Hello {name}, this is time number {times}."}
