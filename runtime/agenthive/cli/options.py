"""Which hive a command talks to, and how it answers: options every command takes, before or after its name."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from agenthive.bus import Bus
    from agenthive.settings import Settings

#: Who knows how to reach a hive that the environment does not describe: ``(hive, namespace) -> Settings``.
ENTRY_POINTS = "agenthive.connections"

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the connection options said; None where they said nothing."""

    hive: str | None = None
    namespace: str | None = None
    output: str | None = None

    @property
    def json(self) -> bool:
        """Whether a machine reads the answer."""
        return self.output == "json"

    def over(self, outer: Chosen | None) -> Chosen:
        """These options, with those given before the command's name where these say nothing."""
        if outer is None:
            return self
        return Chosen(self.hive or outer.hive, self.namespace or outer.namespace, self.output or outer.output)


def connection_options(function: F) -> F:
    """Add --hive, --namespace and --output; the command gets them as ``chosen``."""

    @click.option("--hive", metavar="NAME", help="The hive to talk to. Default: AGENTHIVE_HIVE.")
    @click.option(
        "-n", "--namespace", metavar="NAME", help="Its namespace. Default: that of the context in KUBECONFIG."
    )
    @click.option("-o", "--output", type=click.Choice(["table", "json"]), help="For people (default) or for programs.")
    @functools.wraps(function)
    def command(*args: Any, hive: str | None, namespace: str | None, output: str | None, **rest: Any) -> Any:
        outer = click.get_current_context().obj
        chosen = Chosen(hive, namespace, output).over(outer if isinstance(outer, Chosen) else None)
        return function(*args, chosen=chosen, **rest)

    return command  # type: ignore[return-value]


def run_async(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a command's coroutine to its end."""
    return asyncio.run(work)


async def settings_of(chosen: Chosen) -> Settings:
    """How to reach the chosen hive: from the environment if AGENTHIVE_REDIS_URL is there, else from the cluster.

    Raises:
        click.UsageError: neither says which hive.
        click.ClickException: nothing installed can ask a cluster.
    """
    from agenthive.settings import Settings  # noqa: PLC0415 - pydantic costs 200 ms that `--help` does not have

    if os.environ.get("AGENTHIVE_REDIS_URL"):
        changes = {"hive": chosen.hive, "namespace": chosen.namespace}
        return Settings().replace(**{name: value for name, value in changes.items() if value})
    hive = chosen.hive or os.environ.get("AGENTHIVE_HIVE")
    if not hive:
        raise click.UsageError("which hive? Give --hive NAME (looked up through KUBECONFIG) or set AGENTHIVE_REDIS_URL")
    from importlib.metadata import entry_points  # noqa: PLC0415

    for entry_point in entry_points(group=ENTRY_POINTS):
        try:
            find = entry_point.load()
        except ImportError as error:
            raise click.ClickException(
                f"looking up hive {hive} in a cluster needs more than is installed ({error}): "
                "pip install 'agenthive-k8s[operator]', or set AGENTHIVE_REDIS_URL"
            ) from error
        found = find(hive, chosen.namespace)
        settings = await found if inspect.isawaitable(found) else found
        assert isinstance(settings, Settings)
        return settings
    raise click.ClickException(f"nothing installed can look up hive {hive}: set AGENTHIVE_REDIS_URL")


@asynccontextmanager
async def bus_of(settings: Settings) -> AsyncIterator[Bus]:
    """The chosen hive's bus, closed afterwards."""
    from agenthive.bus import Bus  # noqa: PLC0415 - as above

    bus = await Bus.connect(
        settings.redis_url.get_secret_value(),
        settings.scope,
        messaging=settings.messaging,
        pool=settings.redis_pool,
        client_name="agenthive:cli",
    )
    try:
        yield bus
    finally:
        await bus.aclose()
