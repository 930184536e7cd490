"""Gates: while a hive moves to another Redis nothing new gets in, and what was accepted comes to its end."""

from __future__ import annotations

import pytest

from agenthive.bus import Bus, BusUnavailable, HiveMoving
from agenthive.bus.keys import TOPIC_MARK
from agenthive.protocol import AgentMessage
from agenthive.settings import HiveScope
from agenthive_operator.backends.remains import look_at_remains


def message(**fields: object) -> AgentMessage:
    return AgentMessage.model_validate({"from_agent": "t", "to_agent": "a", "message_type": "m", "body": {}, **fields})


async def test_closed_gates_refuse_what_comes_from_outside(redis_url: str, postgres_url: str, unique: str) -> None:
    scope = HiveScope(instance="i", namespace=unique, hive="h")
    outside = await Bus.connect(redis_url, scope)
    inside = await Bus.connect(redis_url, scope, inside=True)
    agents = {"a": ("news",)}
    try:
        await outside.send(message())
        closed = await look_at_remains(redis_url, postgres_url, scope, agents, "draining", 60.0)
        assert closed.problem, "a database without the hive's tables: what is left in the outbox is not known"
        with pytest.raises(HiveMoving, match="moves to another Redis"):
            await outside.send(message())
        with pytest.raises(HiveMoving):
            await outside.publish("news", message())
        with pytest.raises(BusUnavailable, match="moves to another Redis"):
            await inside.fire("daily", 1000, message())
        await inside.send(message())
        await inside.publish("news", message())
        assert (await outside.queue("a")).backlog == 2
        opened = await look_at_remains(redis_url, postgres_url, scope, agents, "open", 0.0)
        assert not opened.problem
        await outside.send(message())
        await outside.publish("news", message())
        await look_at_remains(redis_url, postgres_url, scope, agents, "stopped", 0.0, closes=False)
        await outside.send(message())
        assert TOPIC_MARK + "news" not in await outside.agents()
    finally:
        await outside.aclose()
        await inside.aclose()
