"""``kubectl hive logs``: the logs of all pods of an agent, each line with the pod it is from."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping

import click

from agenthive.cli.options import run_async
from agenthive.cli.output import print_json
from agenthive_operator.api.podtemplate import AGENT_CONTAINER
from agenthive_operator.backends.kube import POD, ApiError
from agenthive_operator.plugin.session import Asked, Session, failure, options, session_of

COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")
#: How often new pods are looked for while following, seconds.
LOOK_SECONDS = 2.0
_AGE = re.compile(r"(\d+)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Age(click.ParamType[int]):
    """How long ago: ``90s``, ``10m``, ``2h``, ``3d``."""

    name = "age"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds; a usage error says how to write one."""
        if (found := _AGE.fullmatch(str(value))) is None:
            self.fail(f"{value!r} is no age: write 90s, 10m, 2h or 3d", param, ctx)
        return max(1, int(found[1]) * _SECONDS[found[2]])


@click.command(short_help="Print the logs of all pods of an agent.")
@click.argument("agent")
@click.option("-f", "--follow", is_flag=True, help="Go on, with pods that come later as well.")
@click.option("--since", type=Age(), metavar="AGE", help="Only what is newer: 90s, 10m, 2h.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Of each pod only the last N lines.")
@click.option("--previous", is_flag=True, help="Of the containers before the last restart.")
@options
def logs(asked: Asked, agent: str, follow: bool, since: int | None, tail: int | None, previous: bool) -> None:
    """Print the logs of all pods of AGENT, each line behind the name of its pod."""
    if follow and previous:
        raise click.UsageError("--previous has ended: it cannot be followed")
    query = {"container": AGENT_CONTAINER}
    query |= {"follow": "true"} if follow else {}
    query |= {"previous": "true"} if previous else {}
    query |= {} if since is None else {"sinceSeconds": str(since)}
    query |= {} if tail is None else {"tailLines": str(tail)}
    run_async(_logs(asked, agent, query, follow=follow))


async def _logs(asked: Asked, agent: str, query: Mapping[str, str], *, follow: bool) -> None:
    async with session_of(asked) as session:
        hive = str((await session.agent(agent))["spec"]["hiveRef"]["name"])
        seen: dict[str, int] = {}
        readers: set[asyncio.Task[bool]] = set()
        failed = False
        try:
            while True:
                for pod in await session.pods_of(hive, agent):
                    name = str(pod["metadata"]["name"])
                    started = (pod.get("status") or {}).get("phase") != "Pending"
                    if name not in seen and (started or not follow):
                        seen[name] = len(seen)
                        colour = COLOURS[seen[name] % len(COLOURS)]
                        readers.add(asyncio.create_task(_read(session, name, query, colour, json=asked.json)))
                if not follow:
                    break
                await asyncio.sleep(LOOK_SECONDS)
            if not readers:
                raise click.ClickException(f"no pod, no log: {session.podless(agent)}")
            failed = not all(await asyncio.gather(*readers))
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
    if failed:
        raise click.exceptions.Exit(1)


async def _read(session: Session, pod: str, query: Mapping[str, str], colour: str, *, json: bool) -> bool:
    """Print one pod's log; whether it could be read."""
    prefix = click.style(f"[{pod}]", fg=colour)
    try:
        async for line in session.kube.lines(POD.path(session.namespace, pod, "log"), query):
            text = line.decode(errors="replace")
            if json:
                print_json({"pod": pod, "line": text}, indent=False)
            else:
                click.echo(f"{prefix} {text}")
    except ApiError as error:
        click.echo(f"{prefix} {failure(error)}", err=True)
        return False
    return True
