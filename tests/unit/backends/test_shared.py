"""What hives on one server share: looks that are under way, and what they found a moment ago."""

from __future__ import annotations

import asyncio

import pytest

from agenthive_operator.backends.shared import FRESH_SECONDS, SharedLooks


class Server:
    """Answers when it is let; ``asked`` counts."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked = 0
        self.answers = asyncio.Event()
        self.health = "good"
        self.looks = SharedLooks[str](lambda found: found == "good", clock=lambda: self.now)

    async def check(self) -> str:
        self.asked += 1
        await self.answers.wait()
        return self.health

    async def look(self, at: str = "here") -> str:
        return await self.looks.look(at, self.check)


async def test_who_asks_meanwhile_waits_for_the_look_that_is_under_way() -> None:
    server = Server()
    waiting = [asyncio.create_task(server.look()) for _ in range(5)]
    elsewhere = asyncio.create_task(server.look("there"))
    await asyncio.sleep(0)
    server.answers.set()
    assert await asyncio.gather(*waiting, elsewhere) == ["good"] * 6
    assert server.asked == 2


async def test_what_is_good_is_told_again_for_a_moment_and_what_is_not_is_looked_at_anew() -> None:
    server = Server()
    server.answers.set()
    for now, health, expected, asked in (
        (0.0, "good", "good", 1),
        (FRESH_SECONDS / 2, "bad", "good", 1),
        (FRESH_SECONDS, "bad", "bad", 2),
        (FRESH_SECONDS, "good", "good", 3),
    ):
        server.now, server.health = now, health
        assert (await server.look(), server.asked) == (expected, asked)


async def test_one_who_gives_up_does_not_end_the_look_of_the_others() -> None:
    server = Server()
    first, second = (asyncio.create_task(server.look()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    server.answers.set()
    assert (await second, server.asked) == ("good", 1)


async def test_a_look_that_raises_is_forgotten() -> None:
    looks = SharedLooks[str](lambda found: True)

    async def fail() -> str:
        raise OSError("gone")

    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            await looks.look("here", fail)
