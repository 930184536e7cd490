"""``@cached``: what a function returned, for all processes of an agent."""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import redis.asyncio

from agenthive import cache as cache_module
from agenthive import cached
from agenthive.cache import Cache
from agenthive.context import surroundings
from agenthive.settings import HiveScope

from .conftest import until

Open = Callable[[], Cache]


@pytest.fixture
async def open_cache(redis_url: str, scope: HiveScope) -> AsyncIterator[Open]:
    """Caches of one hive; closed afterwards."""
    opened: list[Cache] = []

    def one() -> Cache:
        opened.append(Cache(redis_url, scope, max_bytes=1_000_000))
        return opened[-1]

    yield one
    for cache in opened:
        await cache.aclose()


@contextmanager
def inside(cache: Cache | None, agent: str = "poet") -> Iterator[None]:
    """As in the process of ``agent``."""
    token = surroundings.set(SimpleNamespace(agent=agent, cache=cache, log=logging.getLogger()))  # type: ignore[arg-type]
    try:
        yield
    finally:
        surroundings.reset(token)


class Source:
    """Something that is asked, and counts."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.answer: Any = None
        self.pause: Callable[[], Awaitable[Any]] | None = None

    async def ask(self, *arguments: Any) -> Any:
        self.asked.append(arguments)
        if self.pause is not None:
            await self.pause()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def source() -> Source:
    return Source()


async def test_a_call_runs_once_for_equal_arguments(open_cache: Open, source: Source) -> None:
    @cached(ttl=60)
    async def price(article: str, *, currency: str = "EUR") -> Any:
        """What it costs."""
        return await source.ask(article, currency)

    source.answer = (1, {"a": datetime.date(2026, 1, 2)})
    one, other = open_cache(), open_cache()
    for cache in (one, other):
        with inside(cache):
            for _ in range(2):
                assert await price("b") == [1, {"a": "2026-01-02"}], "JSON, whether it was kept or not"
                assert await price(article="b", currency="EUR") == [1, {"a": "2026-01-02"}]
    assert source.asked == [("b", "EUR")]
    with inside(other):
        await price("b", currency="USD")
        await price("c")
    assert len(source.asked) == 3
    assert (price.__name__, price.__doc__) == ("price", "What it costs.")
    assert one.figures.requests == {("call", "miss"): 1, ("call", "hit"): 3}


async def test_none_is_a_result_and_an_error_is_none(open_cache: Open, source: Source) -> None:
    look = cached(source_function(source))
    cache = open_cache()
    with inside(cache):
        source.answer = ValueError("no")
        for _ in range(2):
            with pytest.raises(ValueError, match="no"):
                await look(1)
        source.answer = None
        assert [await look(1), await look(1)] == [None, None]
    assert len(source.asked) == 3
    assert cache.figures.requests["call", "negative_hit"] == 1


def source_function(source: Source) -> Callable[..., Awaitable[Any]]:
    async def look(*arguments: Any) -> Any:
        return await source.ask(*arguments)

    return look


async def test_after_an_invalidation_it_runs_anew_everywhere(open_cache: Open, source: Source) -> None:
    look = cached(source_function(source))
    one, other = open_cache(), open_cache()
    for n in range(5):
        source.answer = n
        with inside(one):
            await look.invalidate("k")
        with inside(other):
            assert await look("k") == n
        with inside(one):
            assert await look("k") == n
    assert len(source.asked) == 5


async def test_what_ran_before_an_invalidation_is_not_kept(open_cache: Open, source: Source) -> None:
    look = cached(source_function(source))
    one, other = open_cache(), open_cache()
    go_on = asyncio.Event()
    source.answer, source.pause = "old", go_on.wait
    with inside(one):
        first = asyncio.create_task(look("k"))
    await until(lambda: source.asked, "the first call")
    with inside(other):
        await look.invalidate("k")
        go_on.set()
        assert await first == "old", "it began before"
        source.answer = "new"
        assert await look("k") == "new"
    with inside(one):
        assert await look("k") == "new"


async def test_many_calls_in_several_processes_run_it_once(open_cache: Open, source: Source) -> None:
    look = cached(source_function(source))
    caches = [open_cache() for _ in range(4)]
    go_on = asyncio.Event()
    source.answer, source.pause = 7, go_on.wait

    async def call(cache: Cache) -> Any:
        with inside(cache):
            return await look("k")

    calls = [asyncio.create_task(call(cache)) for cache in caches for _ in range(50)]
    await until(lambda: all(cache._flights for cache in caches), "each process waits")
    go_on.set()
    assert await asyncio.gather(*calls) == [7] * 200
    assert len(source.asked) == 1


async def test_a_slow_call_keeps_its_lease(
    open_cache: Open, source: Source, raw: redis.asyncio.Redis, scope: HiveScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "RENEW_SECONDS", 0.02)
    look = cached(ttl=1000)(source_function(source))
    go_on = asyncio.Event()
    source.answer, source.pause = 7, go_on.wait
    cache = open_cache()
    with inside(cache):
        call = asyncio.create_task(look("k"))
        await until(lambda: source.asked, "the call")
        (key,) = await raw.keys(f"{scope.hive_prefix}c:*")
        for _ in range(3):
            await raw.pexpire(key, 2000)

            async def renewed() -> bool:
                return await raw.pttl(key) > 3000

            await until(renewed, "the lease is prolonged")
        go_on.set()
        assert await call == 7
        await until(lambda: not cache._tasks, "it is kept")
        assert await raw.pttl(key) > 790_000
        assert await look("k") == 7
    assert len(source.asked) == 1


async def test_a_call_that_is_cancelled_from_within(open_cache: Open) -> None:
    @cached
    async def cancelled() -> None:
        raise asyncio.CancelledError

    cache = open_cache()
    with inside(cache):
        with pytest.raises(asyncio.CancelledError):
            await cancelled()
        await until(lambda: not cache._tasks, "the lease is given back")
        assert not cache._flights


async def test_agents_share_only_what_is_shared(open_cache: Open, source: Source) -> None:
    own, shared = cached(source_function(source)), cached(shared=True)(source_function(source))
    for agent in ("poet", "critic"):
        with inside(open_cache(), agent):
            await own(1)
            await shared(2)
    assert source.asked == [(1,), (2,), (1,)]


async def test_what_identifies_a_call(open_cache: Open, source: Source) -> None:
    @cached(key=lambda ctx, city: city)
    async def weather(ctx: object, city: str) -> Any:
        return await source.ask(city)

    @cached(key=lambda ctx: ctx)
    async def nonsense(ctx: object) -> None: ...

    @cached
    async def plain(ctx: object, city: str) -> None: ...

    with inside(open_cache()):
        await weather(object(), "Rome")
        await weather(object(), "Rome")
        assert source.asked == [("Rome",)]
        with pytest.raises(TypeError, match=r"nonsense: its key returned no JSON"):
            await nonsense(object())
        with pytest.raises(TypeError, match=r"plain: argument 'ctx' is a object.*@cached\(key=lambda ctx, city: …\)"):
            await plain(object(), "Rome")
        with pytest.raises(TypeError, match="missing a required argument"):
            await plain("x")  # type: ignore[call-arg]


async def test_outside_of_an_agent_and_without_a_cache_it_just_runs(source: Source) -> None:
    look = cached(source_function(source))
    source.answer = (1,)
    assert [await look("k"), await look("k")] == [[1], [1]]
    await look.invalidate("k")
    with inside(None):
        assert await look("k") == [1]
        await look.invalidate("k")
    assert len(source.asked) == 3


async def test_a_result_that_is_not_json_is_refused(open_cache: Open, source: Source) -> None:
    look = cached(source_function(source))
    source.answer = object()
    with pytest.raises(TypeError, match="look: its result cannot be written as JSON"):
        await look("k")
    with inside(open_cache()), pytest.raises(TypeError, match=r"Type is not JSON serializable: object; return JSON"):
        await look("k")


@pytest.mark.parametrize("ttl", [0, -1, 3601, float("nan")])
def test_a_time_to_live_that_cannot_be(ttl: float) -> None:
    with pytest.raises(ValueError, match="at most 3600 seconds"):
        cached(ttl=ttl)


def test_what_cannot_be_decorated() -> None:
    def plain() -> None: ...

    with pytest.raises(TypeError, match="plain: write `async def`"):
        cached(plain)  # type: ignore[call-overload]

    class Thing:
        @cached
        async def method(self) -> None: ...

    with pytest.raises(TypeError, match="method is a method"):
        _ = Thing().method
