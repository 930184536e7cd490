"""Handlers with models for bodies, on the real bus."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import pytest
from pydantic import BaseModel, Field

from agenthive import Agent, Context
from agenthive.bus import RequestFailed
from agenthive.protocol import AgentMessage


class Style(StrEnum):
    SHORT = "short"
    LONG = "long"


class SummarizeRequest(BaseModel):
    text: str = Field(min_length=1)
    style: Style = Style.SHORT
    at: datetime | None = None


class SummaryReply(BaseModel):
    summary: str
    style: Style
    attempt: int
    made_for: str


@pytest.fixture
def summarizer() -> Agent:
    agent = Agent("summarizer")

    @agent.on("summarize")
    async def summarize(body: SummarizeRequest, ctx: Context) -> SummaryReply:
        assert body.at is None or body.at.tzinfo is not None
        return SummaryReply(
            summary=body.text[:3], style=body.style, attempt=ctx.attempt, made_for=ctx.message.message_id
        )

    @agent.on("in-thread")
    def in_thread(body: SummarizeRequest) -> SummarizeRequest:
        return body

    return agent


async def test_a_model_goes_in_and_a_model_comes_out(hive: Any, summarizer: Agent) -> None:
    front = Agent("front")

    @front.on("x")
    async def ask(message: AgentMessage, ctx: Context) -> list[Any]:
        request = SummarizeRequest(text="abcdef", style=Style.LONG, at=datetime(2026, 1, 2, tzinfo=UTC))
        reply = await ctx.ask("summarizer", "summarize", request, into=SummaryReply)
        assert type(reply) is SummaryReply
        assert reply.style is Style.LONG
        echo = await ctx.ask("summarizer", "in-thread", request, into=SummarizeRequest)
        assert echo == request
        both = await ctx.gather("summarizer", "summarize", [request, {"text": "xyz"}], into=SummaryReply)
        with pytest.raises(RequestFailed, match="the reply of summarizer to in-thread is no SummaryReply: summary: F"):
            await ctx.ask("summarizer", "in-thread", request, into=SummaryReply)
        return [reply.summary, *(item.summary for item in both)]

    await hive.start(summarizer, pod="back")
    await hive.start(front, pod="front")
    assert await hive.ask("front") == ["abc", "abc", "xyz"]
    answer = await hive.ask("summarizer", "summarize", {"text": "one two"}, message_id="the-message")
    assert answer == {"summary": "one", "style": "short", "attempt": 1, "made_for": "the-message"}


async def test_a_body_that_does_not_fit_is_a_dead_letter_at_once(hive: Any, summarizer: Agent) -> None:
    await hive.start(summarizer)
    with pytest.raises(RequestFailed, match="text: Field required; style: Input should be 'short' or 'long'"):
        await hive.ask("summarizer", "summarize", {"style": "odd"})
    for kind in ("summarize", "in-thread"):
        sent = await hive.send("summarizer", kind, {"text": ""})
        status = await hive.final("summarizer", sent)
        assert (status.status, status.attempts) == ("failed", 1)
    letters = await hive.bus.dead_letters("summarizer")
    assert {(letter.reason, letter.error, letter.attempts) for letter in letters[1:]} == {
        ("rejected", "the body is no SummarizeRequest: text: String should have at least 1 character", 1)
    }
    assert [letter.message.body for letter in letters] == [{"style": "odd"}, {"text": ""}, {"text": ""}]


async def test_gather_keeps_to_its_limit_and_leaves_nothing_when_cancelled(hive: Any) -> None:
    front, back = Agent("front"), Agent("back")
    running, most, release = 0, 0, asyncio.Event()

    @back.on("work")
    async def work(body: dict[str, Any]) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if body.get("hang"):
            await release.wait()
        await asyncio.sleep(0.01)
        running -= 1
        return int(body["n"])

    @front.on("limited")
    async def limited(message: AgentMessage, ctx: Context) -> list[int]:
        with pytest.raises(ValueError, match="limit=0"):
            await ctx.gather("back", "work", [], limit=0)
        assert await ctx.gather("back", "work", []) == []
        return await ctx.gather("back", "work", ({"n": n} for n in range(12)), limit=3)

    @front.on("cancelled", timeout=0.5)
    async def cancelled(message: AgentMessage, ctx: Context) -> None:
        await ctx.gather("back", "work", [{"n": n, "hang": True} for n in range(5)])

    await hive.start(back, pod="back", concurrency=20)
    runner = await hive.start(front, pod="front")
    assert await hive.ask("front", "limited") == list(range(12))
    assert most == 3
    with pytest.raises(RequestFailed, match="time limit"):
        await hive.ask("front", "cancelled", delivery_options={"max_retries": 0})
    assert runner._worker._resources.bus._replies._waiting == {}
    release.set()
    assert await hive.ask("front", "limited") == list(range(12))
