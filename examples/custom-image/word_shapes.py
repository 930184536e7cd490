"""Plurals and numbers in words: what the `inflect` package knows about English."""

import inflect

from agenthive import Agent

agent = Agent("word-shapes")
english = inflect.engine()


@agent.on("count")
async def count(message, ctx):
    number, noun = message.body["number"], message.body["noun"]
    return {"text": f"{english.number_to_words(number)} {english.plural(noun, number)}"}
