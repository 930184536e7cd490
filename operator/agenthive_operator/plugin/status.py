"""``kubectl hive status`` and ``top``: a hive on one screen, once or live."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import click
import orjson

from agenthive.cli.options import run_async
from agenthive.cli.output import ago, print_json, print_table, size
from agenthive.cli.queues import RATE_COLUMNS, rate_cells, rates_of
from agenthive_operator.backends.kube import ApiError, Object
from agenthive_operator.plan.names import AGENT_LABEL
from agenthive_operator.plugin.session import (
    Asked,
    Session,
    failure,
    is_ready,
    options,
    session_of,
    stdout_is_terminal,
)

Queues = Mapping[str, Mapping[str, Any]]
NO_AGENTS: Final = "it has no agents: an Agent names it in spec.hiveRef"
#: Pods that are asked at the same time.
AT_ONCE: Final = 16


@click.command(short_help="Show a hive on one screen.")
@click.argument("hive", required=False)
@click.option("--rates/--no-rates", default=True, help="Look into the queues, twice within a second.  [default: rates]")
@options
def status(asked: Asked, hive: str | None, rates: bool) -> None:
    """Show HIVE on one screen: its conditions, stores and agents.

    What waits is up to 30 s old, as the resources say it; top asks the queues. Rates are of now: messages per second
    that came in, were finished (out), and were given up. Of an agent without a ready pod there are none.
    """
    run_async(_status(asked, hive, rates=rates))


@click.command(short_help="Show the queues as they are now, live.")
@click.argument("hive", required=False)
@click.option("--once", is_flag=True, help="Print the figures and end.")
@click.option("--interval", type=click.FloatRange(min=0.5), default=2.0, show_default=True, help="Seconds.")
@options
def top(asked: Asked, hive: str | None, once: bool, interval: float) -> None:
    """Show the queues of HIVE's agents as they are now, again and again; Ctrl-C ends it."""
    run_async(_top(asked, hive, once=once, interval=interval))


def hive_document(hive: Object, agents: Sequence[Object]) -> dict[str, Any]:
    """A hive and its agents as their status says. Pure."""
    seen = hive.get("status") or {}
    return {
        "hive": hive["metadata"]["name"],
        "namespace": hive["metadata"]["namespace"],
        "conditions": [
            {key: condition.get(key) for key in ("type", "status", "reason", "message")}
            for condition in seen.get("conditions") or ()
        ],
        "stores": {store: seen.get(store) or {} for store in ("redis", "postgres")},
        "backlog": seen.get("backlog"),
        "agents": [agent_document(agent) for agent in agents],
    }


def agent_document(agent: Object) -> dict[str, Any]:
    """An agent as its status says. Pure."""
    seen = agent.get("status") or {}
    ready: Mapping[str, Any] = next((c for c in seen.get("conditions") or () if c["type"] == "Ready"), {})
    return {
        "agent": agent["metadata"]["name"],
        "ready": ready.get("status"),
        "reason": ready.get("reason"),
        "wanted": agent["spec"].get("replicas", 1),
        "replicas": seen.get("replicas"),
        "ready_replicas": seen.get("readyReplicas"),
        "backlog": seen.get("backlog"),
        "in_flight": seen.get("inFlight"),
        "dead_letters": seen.get("deadLetters"),
        "oldest": seen.get("oldestMessageTime"),
    }


async def _status(asked: Asked, name: str | None, *, rates: bool) -> None:
    async with session_of(asked) as session:
        hive = await session.hive(name)
        agents = await session.agents_of(hive["metadata"]["name"])
        document = hive_document(hive, agents)
        if rates and agents:
            queues = await _looked(session, hive["metadata"]["name"], agents)
            for agent in document["agents"]:
                agent["rates"] = queues.get(agent["agent"], {}).get("rates")
    if asked.json:
        print_json(document)
        return
    click.echo(f"Hive {document['hive']} in namespace {document['namespace']}\n")
    print_table(
        ("CONDITION", "STATUS", "REASON", "MESSAGE"),
        [(c["type"], c["status"], c["reason"], c["message"]) for c in document["conditions"]],
        empty="no operator has looked at it yet: is one running?",
    )
    click.echo("")
    print_table(
        ("STORE", "ENDPOINT", "VERSION"),
        [(store, seen.get("endpoint"), seen.get("version")) for store, seen in document["stores"].items()],
        empty="",
    )
    click.echo("")
    print_table(
        ("AGENT", "READY", "PODS", "BACKLOG#", *RATE_COLUMNS, "IN FLIGHT#", "DEAD LETTERS#", "OLDEST#", "REASON"),
        [
            (
                agent["agent"],
                agent["ready"],
                f"{agent['ready_replicas'] or 0}/{agent['wanted']}",
                agent["backlog"],
                *_rates(agent),
                agent["in_flight"],
                agent["dead_letters"],
                ago(datetime.fromisoformat(agent["oldest"])) if agent["oldest"] else None,
                agent["reason"],
            )
            for agent in document["agents"]
        ],
        empty=NO_AGENTS,
    )


def _rates(row: Mapping[str, Any]) -> tuple[str | None, ...]:
    return rate_cells(row["rates"]) if row.get("rates") else (None,) * len(RATE_COLUMNS)


async def _looked(session: Session, hive: str, agents: Sequence[Object]) -> Queues:
    """The queues with their rates; none where that cannot be asked, which is said: the rest is there all the same."""
    try:
        return await _figures(session, hive, agents, rates=True)
    except click.ClickException as error:
        why = error.format_message()
    except ApiError as error:
        why = failure(error)
    click.echo(f"no rates: {why} (--no-rates asks for none)", err=True)
    return {}


async def _figures(session: Session, hive: str, agents: Sequence[Object], *, rates: bool) -> Queues:
    """The queues of all agents: each as a ready pod of its own finds it, for others may not read it.

    Of an agent without a ready pod there is what its status says. With ``rates`` each pod looks twice.
    Raises ``click.ClickException``: a pod could not say.
    """
    pods = [pod for pod in await session.pods_of(hive) if is_ready(pod)]
    ready = {pod["metadata"]["labels"][AGENT_LABEL]: str(pod["metadata"]["name"]) for pod in pods}
    slots = asyncio.Semaphore(AT_ONCE)

    async def queue(agent: Object) -> Mapping[str, Any]:
        name = str(agent["metadata"]["name"])
        if name not in ready:
            return {"delayed": None, "bytes": None, **agent_document(agent)}
        async with slots:
            return await _queue(session, name, ready[name], rates=rates)

    found = await asyncio.gather(*map(queue, agents))
    return {queue["agent"]: queue for queue in found}


async def _queue(session: Session, name: str, pod: str, *, rates: bool) -> Mapping[str, Any]:
    words = ["agenthive", "status", name, "--output=json", *(["--rates"] if rates else [])]
    ran = await session.run(pod, words, quiet=True)
    if ran.code:
        raise click.ClickException(f"pod {pod} cannot read its queue: {ran.err.decode(errors='replace').strip()}")
    (queue,) = orjson.loads(ran.out)
    return dict(queue)


def rows(agents: Sequence[Object], queues: Queues, before: Queues, seconds: float) -> list[dict[str, Any]]:
    """A row for each agent; ``rates`` are its pod's own, or against the figures before, where there are such. Pure."""
    found = []
    for agent in agents:
        seen = agent_document(agent)
        queue, former = queues.get(seen["agent"], {}), before.get(seen["agent"])
        row = {key: seen[key] for key in ("agent", "wanted", "ready_replicas")}
        row |= {key: queue.get(key) for key in ("backlog", "in_flight", "delayed", "dead_letters", "oldest", "bytes")}
        rates = queue.get("rates") or (rates_of(former, queue, seconds) if former else None)
        found.append({**row, "rates": rates})
    return found


_COLUMNS = (
    "AGENT", "PODS", "BACKLOG#", *RATE_COLUMNS, "IN FLIGHT#", "DELAYED#", "DEAD LETTERS#", "OLDEST#", "SIZE#",
)  # fmt: skip


def _cells(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (
        row["agent"],
        f"{row['ready_replicas'] or 0}/{row['wanted']}",
        row["backlog"],
        *_rates(row),
        row["in_flight"],
        row["delayed"],
        row["dead_letters"],
        ago(datetime.fromisoformat(row["oldest"])) if row["oldest"] else None,
        None if row["bytes"] is None else size(row["bytes"]),
    )


async def _top(asked: Asked, name: str | None, *, once: bool, interval: float) -> None:
    async with session_of(asked) as session:
        hive = str((await session.hive(name))["metadata"]["name"])
        before: Queues = {}
        clock = asyncio.get_running_loop().time
        then = clock()
        live = None
        if stdout_is_terminal() and not once and not asked.json:
            from rich.live import Live  # noqa: PLC0415 - only where a person watches

            live = Live(auto_refresh=False, screen=False)
            live.start()
        try:
            while True:
                agents = await session.agents_of(hive)
                queues = await _figures(session, hive, agents, rates=once)
                now = clock()
                found = rows(agents, queues, before, now - then)
                if asked.json:
                    print_json(found, indent=once)
                elif live is not None:
                    live.update(_table(hive, found), refresh=True)
                else:
                    print_table(_COLUMNS, [_cells(row) for row in found], empty=NO_AGENTS)
                if once:
                    return
                before, then = queues, now
                await asyncio.sleep(interval)
        finally:
            if live is not None:
                live.stop()


def _table(hive: str, found: Sequence[Mapping[str, Any]]) -> Any:
    from rich.table import Table  # noqa: PLC0415 - as above

    table = Table(box=None, pad_edge=False, header_style="bold", title=f"hive {hive}", title_justify="left")
    for column in _COLUMNS:
        table.add_column(column.removesuffix("#"), justify="right" if column.endswith("#") else "left")
    for row in found:
        table.add_row(*("-" if cell is None else str(cell) for cell in _cells(row)))
    return table
