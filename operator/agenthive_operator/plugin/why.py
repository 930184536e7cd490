"""``kubectl hive why``: from hive to agent to pods to the last errors: what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from agenthive.cli.options import run_async
from agenthive.cli.output import print_json
from agenthive_operator.backends.kube import AGENT, AGENT_HIVE, EVENT, ApiError, Object
from agenthive_operator.plugin.session import Asked, Session, is_ready, options, session_of
from agenthive_operator.reconcile.conditions import pod_failure
from agenthive_operator.reconcile.reasons import REASONS, Reason

HIVE_ORDER = ("RedisReady", "PostgresReady", "SchemaReady", "AgentsReady", "Ready")
"""Where a hive's trouble begins, causes before consequences."""
# Of these the cause stands elsewhere: in the hive, or in the agents.
_POINTERS = frozenset({"AgentsNotReady", "RedisNotReady", "PostgresNotReady", "SchemaNotReady"})
_HIVES_FAULT = frozenset({"CuttingOver", "HiveNotReady", "HiveMissing", "HiveDeleting"})


@dataclass(frozen=True, slots=True)
class Facts:
    """What was gathered about one hive or one agent.

    ``subject``: the object asked about. ``hive``: its hive, itself for a hive; None where there is none. ``agents``:
    for a hive, the facts of its agents. ``events``: warnings about the subject and its pods, the newest last; None
    where they may not be read.
    """

    subject: Object
    hive: Object | None = None
    pods: Sequence[Object] = ()
    events: Sequence[Object] | None = ()
    agents: Sequence[Facts] = field(default=())


def conditions(obj: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The conditions of an object by type."""
    return {condition["type"]: condition for condition in (obj.get("status") or {}).get("conditions") or ()}


def explain(facts: Facts) -> tuple[bool, str]:
    """Whether all is well, and a paragraph about it. Pure."""
    kind, name = facts.subject["kind"], facts.subject["metadata"]["name"]
    found = conditions(facts.subject)
    if not found:
        return False, (
            f"{kind} {name} has no conditions yet: no operator has looked at it. Check that one runs and watches "
            f"namespace {facts.subject['metadata']['namespace']}."
        )
    generation = facts.subject["metadata"].get("generation")
    seen = (facts.subject.get("status") or {}).get("observedGeneration")
    stale = ""
    if generation is not None and seen is not None and seen < generation:
        stale = (
            f" The operator has not looked at the newest spec yet (generation {generation}, it knows {seen}): if that "
            "lasts for more than a minute, check that it runs."
        )
    good, text = _hive(facts, found) if kind == "AgentHive" else _agent(facts, found)
    return good and not stale, (_ended(text) + stale if stale else text)


def _hive(facts: Facts, found: Mapping[str, Mapping[str, Any]]) -> tuple[bool, str]:
    name = facts.subject["metadata"]["name"]
    ready = found.get("Ready", {})
    if ready.get("status") != "True" and ready.get("reason") not in _POINTERS:
        return False, f"Hive {name} is not ready: {_sentence('AgentHive', ready)}{_events(facts)}"
    for kind in HIVE_ORDER:
        condition = found.get(kind)
        if condition is None or condition["status"] == "True" or condition["reason"] in _POINTERS:
            continue
        return False, f"Hive {name} is not ready because of {kind}: {_sentence('AgentHive', condition)}{_events(facts)}"
    bad = [(agent, text) for agent in facts.agents for good, text in [explain(agent)] if not good]
    if bad:
        bad.sort(key=lambda found: _is_ready(found[0]))  # those that do not work first
        others = ""
        if len(bad) > 1:
            names = ", ".join(agent.subject["metadata"]["name"] for agent, _ in bad[1:])
            others = f" Something is wrong with {names}, too; ask kubectl hive why about each."
        agents = "its agents work" if _is_ready(bad[0][0]) else "an agent is not"
        return False, f"The stores of hive {name} are ready, and {agents}. {_ended(bad[0][1])}{others}"
    if ready.get("status") != "True":
        return False, f"Hive {name} is not ready: {_sentence('AgentHive', ready)}{_events(facts)}"
    advice = [
        f" But {kind}: {_sentence('AgentHive', condition)}"
        for kind, condition in found.items()
        if kind != "Ready" and _todo("AgentHive", kind, condition["reason"])
    ]
    return not advice, f"Hive {name} is fine: {_all_ready(len(facts.agents))}.{''.join(advice)}"


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!", "?", ")")) else f"{sentence}."


def _is_ready(agent: Facts) -> bool:
    return conditions(agent.subject).get("Ready", {}).get("status") == "True"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _all_ready(agents: int) -> str:
    if not agents:
        return "its stores are ready, and no Agent names it yet in spec.hiveRef"
    return "its stores and its agent are ready" if agents == 1 else f"its stores and its {agents} agents are ready"


def _agent(facts: Facts, found: Mapping[str, Mapping[str, Any]]) -> tuple[bool, str]:
    name = facts.subject["metadata"]["name"]
    ready = found.get("Ready", {"type": "Ready", "status": "Unknown", "reason": "Unknown", "message": ""})
    if ready["reason"] in _HIVES_FAULT and facts.hive is not None:
        good, text = explain(Facts(facts.hive, facts.hive, events=()))
        if not good:
            return False, f"Agent {name} waits for its hive. {text}"
    if ready["status"] == "True":
        letters = (facts.subject.get("status") or {}).get("deadLetters") or 0
        text = f"Agent {name} is fine: {_sentence('Agent', ready)}"
        if letters:
            return False, (
                f"Agent {name} is ready, but {letters} of its messages {_were(letters)} given up. kubectl hive dlq "
                f"list {name} shows why; once that is mended, kubectl hive dlq redrive {name} --all sends them again."
            )
        return True, text
    text = f"Agent {name} is not ready: {_sentence('Agent', ready)}"
    failure = pod_failure(facts.pods)
    if failure is not None and failure.message not in text:
        text += (
            f" In its pods: {failure.message.strip().rstrip('.')}. {_todo('Agent', 'Ready', failure.reason)}".rstrip()
        )
    if facts.pods:
        text += f" {sum(map(is_ready, facts.pods))} of its {len(facts.pods)} pods are ready."
    return False, text + _events(facts)


def _reason(kind: str, condition: Mapping[str, Any]) -> Reason | None:
    return REASONS[kind].get(str(condition.get("type")), {}).get(str(condition.get("reason")))


def _todo(kind: str, condition: str, reason: str) -> str:
    known = REASONS[kind].get(condition, {}).get(reason)
    return known.todo if known is not None else ""


def _sentence(kind: str, condition: Mapping[str, Any]) -> str:
    """What a condition means, what was found, and what to do."""
    known = _reason(kind, condition)
    message = str(condition.get("message") or "").strip()
    parts = [known.meaning if known is not None else f"{condition.get('reason')}."]
    if message:
        parts.append(_ended(message))
    if known is not None and known.todo:
        parts.append(f"What to do: {known.todo}")
    return " ".join(parts)


def _events(facts: Facts) -> str:
    if facts.events is None:
        return " (Events may not be read with your rights.)"
    if not facts.events:
        return ""
    last = facts.events[-1]
    about = last.get("involvedObject") or {}
    message = " ".join(str(last.get("message", "")).split())
    return f" The last warning was about {about.get('kind')} {about.get('name')}: {message}"


def chosen(name: str) -> tuple[str | None, str]:
    """``[KIND/]NAME`` taken apart.

    Raises:
        click.UsageError: no such kind.
    """
    kind, slash, rest = name.partition("/")
    if not slash:
        return None, name
    if kind.lower() in {"hive", "hives", "agenthive", "agenthives"}:
        return "AgentHive", rest
    if kind.lower() in {"agent", "agents", "agt"}:
        return "Agent", rest
    raise click.UsageError(f"{kind} is no kind of AgentHive's: write hive/NAME or agent/NAME")


@click.command(short_help="Say what is wrong, and what to do.")
@click.argument("name", metavar="[KIND/]NAME")
@options
def why(asked: Asked, name: str) -> None:
    """Say in one paragraph what is wrong with a hive or an agent, and what to do; exit code 1 if something is."""
    kind, rest = chosen(name)
    run_async(_why(asked, kind, rest))


async def _why(asked: Asked, kind: str | None, name: str) -> None:
    async with session_of(asked) as session:
        good, text = explain(await gather(session, kind, name))
    if asked.json:
        print_json({"name": name, "well": good, "text": text})
    else:
        click.echo(text)
    if not good:
        raise click.exceptions.Exit(1)


async def gather(session: Session, kind: str | None, name: str) -> Facts:
    """What there is to know; of a name without kind the Agent counts, else the hive.

    Raises:
        click.ClickException: there is neither.
    """
    agent = await session.kube.get(AGENT, session.namespace, name) if kind != "AgentHive" else None
    if agent is not None:
        return await _of_agent(session, agent)
    hive = await session.kube.get(AGENT_HIVE, session.namespace, name) if kind != "Agent" else None
    if hive is None:
        what = {"Agent": "Agent", "AgentHive": "AgentHive", None: "Agent or AgentHive"}[kind]
        raise click.ClickException(
            f"there is no {what} {name!r} in namespace {session.namespace!r}; see kubectl get hives,agents -A"
        )
    agents = [await _of_agent(session, found) for found in await session.agents_of(name)]
    return Facts(hive, hive, events=await _warnings(session, {("AgentHive", name)}), agents=agents)


async def _of_agent(session: Session, agent: Object) -> Facts:
    name, hive = str(agent["metadata"]["name"]), str(agent["spec"]["hiveRef"]["name"])
    pods = await session.pods_of(hive, name)
    about = {("Agent", name), ("Deployment", name), *(("Pod", str(pod["metadata"]["name"])) for pod in pods)}
    agent.setdefault("kind", "Agent")
    return Facts(
        agent, await session.kube.get(AGENT_HIVE, session.namespace, hive), pods, await _warnings(session, about)
    )


async def _warnings(session: Session, about: set[tuple[str, str]]) -> list[Object] | None:
    """The warnings about some objects, the newest last; None where events may not be read."""
    try:
        events, _ = await session.kube.list(EVENT, session.namespace)
    except ApiError as error:
        if error.status == 403:
            return None
        raise
    found = [
        event
        for event in events
        if event.get("type") == "Warning"
        and ((event.get("involvedObject") or {}).get("kind"), (event.get("involvedObject") or {}).get("name")) in about
    ]
    return sorted(found, key=lambda event: str(event.get("lastTimestamp") or event["metadata"]["creationTimestamp"]))
