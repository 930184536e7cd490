"""A plan for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from agenthive.cli.output import print_table

Document = Mapping[str, Any]
_PREDICTED = {
    "new": "starts",
    "removed": "is removed",
    "restarts": "restarts",
    "grows": "grows while it runs",
}


def print_plan(document: Document) -> None:
    """Print it: what changes, what becomes of agents and stores, and how long that takes."""
    changes = document["changes"]
    if all(change["change"] == "unchanged" for change in changes):
        click.echo(f"Nothing would change: the cluster has {'this' if len(changes) == 1 else 'all of this'} already.")
        return
    several = len({change["namespace"] for change in changes if change["namespace"]}) > 1
    _print_filled(
        ("KIND", "NAME", "CHANGE", "FIELDS"),
        [
            (change["kind"], _name(change, "name", several), change["change"], "; ".join(change["fields"]) or None)
            for change in changes
        ],
    )
    if document["agents"]:
        click.echo("")
        _print_filled(
            ("AGENT", "ROLLS", "PODS", "STARTS IN#", "DRAINS IN#", "TAKES#", "BACKLOG#", "IN FLIGHT#", "WHY"),
            [_agent(agent, several) for agent in document["agents"]],
        )
    for text in sentences(document, several):
        click.echo(f"\n{text}")


def _print_filled(columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    """A table without the columns in which nothing stands."""
    kept = [i for i in range(len(columns)) if any(row[i] is not None for row in rows)]
    print_table([columns[i] for i in kept], [[row[i] for i in kept] for row in rows], empty="")


def _name(document: Document, key: str, several: bool) -> str:
    namespace = f"{document['namespace']}/" if several and document["namespace"] else ""
    return f"{namespace}{document[key]}"


def _agent(agent: Document, several: bool) -> tuple[Any, ...]:
    before, after = agent["pods"]["before"], agent["pods"]["after"]
    return (
        _name(agent, "agent", several),
        agent["rolls"],
        str(after) if before == after else f"{before} → {after}",
        duration(agent["startup"]["seconds"]) if agent["startup"] else None,
        None if agent["drain_seconds"] is None else f"≤ {duration(agent['drain_seconds'])}",
        span(agent["seconds"]) if agent["seconds"] else None,
        agent["backlog"],
        agent["in_flight"],
        "; ".join(agent["why"]) or None,
    )


def sentences(document: Document, several: bool) -> list[str]:
    """What the tables do not say. Pure."""
    found = ["\n".join(_store(store, several) for store in document["stores"])] if document["stores"] else []
    for hive in document["hives"]:
        found += _hive(hive, several)
    notes = "\n".join(f"Note: {note}." for note in document["notes"])
    return [*found, notes] if notes else found


def _store(store: Document, several: bool) -> str:
    name = {"redis": "Redis", "postgres": "PostgreSQL"}[store["store"]]
    text = f"{name} of hive {_name(store, 'hive', several)} {_PREDICTED[store['effect']]}"
    text += f": {'; '.join(store['why'])}." if store["why"] else "."
    if store["effect"] == "restarts":
        took = f"; it took {duration(store['seconds'])} to start the last time" if store["seconds"] else ""
        text += f" It has one pod, so agents wait for it meanwhile{took}."
    return text


def _hive(hive: Document, several: bool) -> list[str]:
    name = _name(hive, "hive", several)
    found = []
    if hive["connections"]:
        found.append(f"Hive {name}: its connections change ({'; '.join(_bare(hive['connections']))}).")
    if not hive["rolling_agents"]:
        return found
    text = (
        f"Hive {name}: {_counted(hive['rolling_pods'], 'pod')} of {_counted(hive['rolling_agents'], 'agent')} "
        f"{'rolls' if hive['rolling_pods'] == 1 else 'roll'}, "
        f"at most {_counted(hive['agents_at_once'], 'agent')} at a time, each with up to {hive['surge_percent']} % "
        "more pods meanwhile and none fewer."
    )
    if hive["seconds"] is None:
        text += " How long it takes cannot be told: no pod of it is ready, by which the start could be measured."
    else:
        text += (
            f" That takes about {span(hive['seconds'])}: the least while no handler runs, the most if one uses all of "
            "the time it has to finish. A start is reckoned as long as it took the pods that run now."
        )
    return [*found, text]


def _bare(connections: Sequence[str]) -> list[str]:
    return [text.removeprefix("connections: ") for text in connections]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def span(seconds: Mapping[str, float]) -> str:
    """From the least to the most: ``4s to 49s``; one of them where they are the same."""
    least, most = duration(seconds["least"]), duration(seconds["most"])
    return least if least == most else f"{least} to {most}"


def duration(seconds: float) -> str:
    """A length of time for people: ``45s``, ``3m``, ``2h``; what is not whole is rounded up."""
    whole = -int(-seconds // 1)
    if whole < 120:
        return f"{whole}s"
    minutes = -(-whole // 60)
    return f"{minutes}m" if minutes < 120 else f"{-(-minutes // 60)}h"
