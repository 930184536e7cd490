"""``@cached``: what a function returned, kept in the hive's cache."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, ParamSpec, TypeVar, overload

from agenthive.agent import describe
from agenthive.context import surroundings

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_SECONDS: Final = 25.0
MAX_SECONDS: Final = 3600.0
#: How long a caller waits for another process that runs the function for the same arguments, seconds.
FOLLOW_SECONDS: Final = 60.0


class CachedFunction(Generic[P, T]):
    """A function whose results are kept; made by ``cached``."""

    def __init__(
        self, function: Callable[P, Awaitable[T]], ttl: float, key: Callable[..., Any] | None, shared: bool
    ) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._ttl = ttl
        self._key = key
        self._shared = shared
        self._signature = inspect.signature(function)
        self._where = f"{function.__module__}.{function.__qualname__}"

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """What the function returned for these arguments, now or at most ``ttl`` seconds ago."""
        from agenthive.cache_entries import Loaded  # noqa: PLC0415 - at the first call, not at import
        from agenthive.store import InvalidValue, codec  # noqa: PLC0415 - as above

        async def run() -> Loaded:
            result = await self._function(*args, **kwargs)
            try:
                return Loaded(codec.encode(result, what="its result"))
            except InvalidValue as error:
                raise TypeError(f"@cached {self._where}: {error}; return JSON") from error

        resources = surroundings.get()
        if resources is None or resources.cache is None:
            text: str | bytes | None = (await run()).data
        else:
            name = self._name(resources.agent, args, kwargs)
            text = await resources.cache.read("call", name, run, seconds=self._ttl, patience=FOLLOW_SECONDS)
        result: T = codec.decode(text or b"null")
        return result

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget what the function returned for these arguments: calls that begin afterwards run it anew."""
        resources = surroundings.get()
        if resources is not None and resources.cache is not None:
            await resources.cache.forget([self._name(resources.agent, args, kwargs)])

    def _name(self, agent: str, args: Any, kwargs: Any) -> str:
        from agenthive.cache_entries import entry_name  # noqa: PLC0415 - as above
        from agenthive.store import InvalidValue, codec  # noqa: PLC0415 - as above

        if self._key is not None:
            identity = self._key(*args, **kwargs)
        else:
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            identity = bound.arguments
        try:
            text = codec.encode(identity, what="what identifies the call")
        except InvalidValue as error:
            raise TypeError(f"@cached {self._where}: {self._unfit(identity, error)}") from error
        return entry_name("f", "" if self._shared else agent, f"{self._where} {text}")

    def _unfit(self, identity: Any, error: Exception) -> str:
        from agenthive.store import InvalidValue, codec  # noqa: PLC0415 - as above

        if self._key is not None:
            return f"its key returned no JSON: {error}"
        for name, value in identity.items():
            try:
                codec.encode(value)
            except InvalidValue:
                return (
                    f"argument {name!r} is a {type(value).__name__}, which is not JSON; say what identifies a call by "
                    f"@cached(key=lambda {', '.join(identity)}: …)"
                )
        return str(error)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        raise TypeError(
            f"@cached {self._where} is a method, whose object says nothing to other processes: decorate a function"
        )


@overload
def cached(function: Callable[P, Awaitable[T]], /) -> CachedFunction[P, T]: ...
@overload
def cached(
    *, ttl: float = DEFAULT_SECONDS, key: Callable[..., Any] | None = None, shared: bool = False
) -> Callable[[Callable[P, Awaitable[T]]], CachedFunction[P, T]]: ...
def cached(
    function: Any = None,
    /,
    *,
    ttl: float = DEFAULT_SECONDS,
    key: Callable[..., Any] | None = None,
    shared: bool = False,
) -> Any:
    """Keep what an ``async def`` returns in the hive's cache, for all replicas of the agent::

        @cached(ttl=60)
        async def price(article: str) -> float: ...

        await price("b-17")             # runs at most once in 60 s, whoever asks
        await price.invalidate("b-17")  # calls that begin afterwards run it anew

    The result is JSON and comes back as JSON, whether it was kept or not (a tuple as a list); None is a result like
    any other. What the function raises is raised, and not kept. Outside of an agent, without a cache (settings) and
    while Redis is away the function just runs.

    Args:
        ttl: seconds from a call's start for which its result may be returned, less a jitter of up to a fifth; at most
            an hour. Up to then the result is also what callers get who do not know that it should be invalidated,
            because whoever invalidated it did not reach Redis.
        key: takes the function's arguments and returns what identifies the call, as JSON; None: all arguments do, which
            must be JSON then.
        shared: whether all agents of the hive that have this function (by module and name) share its results.

    Raises:
        TypeError: not an ``async def``, or a method; at a call: arguments or a result that are not JSON.
        ValueError: the ttl cannot be.
    """
    if not 0 < ttl <= MAX_SECONDS:
        raise ValueError(f"@cached(ttl={ttl!r}): write more than 0 and at most {MAX_SECONDS:g} seconds")

    def decorate(function: Callable[P, Awaitable[T]]) -> CachedFunction[P, T]:
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"@cached {describe(function)}: write `async def`; a plain function cannot wait for Redis")
        return CachedFunction(function, ttl, key, shared)

    return decorate if function is None else decorate(function)
