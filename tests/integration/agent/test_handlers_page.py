"""The code of docs/handlers.md, run."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from tests.integration.agent.conftest import eventually

import agenthive.testing
from agenthive.bus import RequestFailed
from agenthive.protocol import AgentMessage

PAGE = Path(__file__).parents[3] / "docs" / "handlers.md"


def release() -> AgentMessage:
    return AgentMessage(from_agent="test", to_agent="#releases", message_type="release", body={"version": "2"})


async def test_the_code_of_the_page_works(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "handlers_page.py"
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    file.write_text("from __future__ import annotations\n" + "\n".join(code))
    spec = importlib.util.spec_from_file_location("handlers_page", file)
    assert spec is not None
    assert spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "handlers_page", page)
    spec.loader.exec_module(page)

    settings = {"messaging": {"max_retries": 1}, "topics": ("releases",)}
    async with agenthive.testing.run(page.agent, redis_url=redis_url, **settings) as running:
        reply = await running.ask("summarize", {"text": "one two"}, into=page.SummaryReply)
        assert reply == page.SummaryReply(summary="one two", words=2)
        assert await running.ask("digest", {"texts": ["three", "four five"]}) == {"words": 5}
        for status, error in ((404, "rejected: there is no such page"), (429, "failed: too fast"), (500, "doubled")):
            with pytest.raises(RequestFailed, match=error):
                await running.ask("fetch", {"status": status})
        assert [item.message.body["status"] for item in running.errors] == [404, 429, 429, 500, 500]
        published = await running.bus.publish("releases", release())
        await eventually(lambda: running.bus.find("summarizer", published), bool, "copy")
        await running.idle()
        assert (await running.status(published)).status == "delivered"
        assert [topic.topic for topic in await running.bus.topics()] == ["announcements", "releases"]
        fired = [await running.fire(name) for name in ("sweep", "poll", "warm-up")]
        await running.idle()
        assert [(await running.status(message_id)).status for message_id in fired] == ["delivered"] * 3
