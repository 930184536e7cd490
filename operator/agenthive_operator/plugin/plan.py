"""``kubectl hive plan``: what applying files would change, which pods would roll, and how long that takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from agenthive.cli.options import run_async
from agenthive.cli.output import print_json
from agenthive_operator.api.agent import Agent
from agenthive_operator.api.meta import InvalidObjectError
from agenthive_operator.backends.kube import (
    AGENT,
    AGENT_HIVE,
    CONFIG_MAP,
    DEPLOYMENT,
    POD,
    STATEFUL_SET,
    ApiError,
    Object,
    Resource,
)
from agenthive_operator.plan.names import HIVE_LABEL, server_name
from agenthive_operator.plan.references import code_reference
from agenthive_operator.plan.servers import claim_size
from agenthive_operator.plugin.foresight import Foreseen, Seen, foresee
from agenthive_operator.plugin.manifests import Change, Files, changes_of
from agenthive_operator.plugin.planned import print_plan
from agenthive_operator.plugin.session import Asked, Session, options, session_of

EXIT_CHANGES = 2
_LOOKED_AT = frozenset({"AgentHive", "Agent", "ConfigMap", "Secret"})


class NotUnderstoodError(click.UsageError):
    """A usage error that exits with 1."""

    exit_code = 1


class PlanCommand(click.Command):
    """A command of which exit code 2 says that there are changes: what was not understood is 1, as other failures."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """As any command's, but for the exit code."""
        with _understood():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """As any command's, but for the exit code."""
        with _understood():
            return super().invoke(ctx)


@contextmanager
def _understood() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        raise NotUnderstoodError(error.format_message(), error.ctx) from error


@click.command(cls=PlanCommand, short_help="Say what applying a file would change, and which pods roll.")
@click.option("-f", "--filename", multiple=True, metavar="FILE", help="A file, a folder of files, or - ; repeatable.")
@click.option("-k", "--kustomize", metavar="FOLDER", help="A folder with a kustomization.yaml, instead of -f.")
@click.option("-R", "--recursive", is_flag=True, help="Folders below those of -f as well.")
@click.option("--server-side", is_flag=True, help="As kubectl apply --server-side will be used.")
@click.option("--force-conflicts", is_flag=True, help="With --server-side: as will be used.")
@options
def plan(
    asked: Asked, filename: Sequence[str], kustomize: str | None, recursive: bool, server_side: bool,
    force_conflicts: bool,
) -> None:  # fmt: skip
    """Say what `kubectl apply` of these files would change, which pods would roll, and how long the drain takes.

    Nothing is written, and no Secret is read but those in the files. Exit code 0: nothing would change; 2: something
    would; 1: it cannot be applied, or not be asked.
    """
    if not filename and not kustomize:
        raise click.UsageError("what would be applied? Give -f FILE, -f FOLDER, -f - or -k FOLDER")
    if filename and kustomize:
        raise click.UsageError("give -f or -k, not both")
    if force_conflicts and not server_side:
        raise click.UsageError("--force-conflicts goes with --server-side")
    run_async(_reach(asked))
    changes = changes_of(asked, Files(filename, kustomize, recursive, server_side, force_conflicts))
    try:
        found = run_async(_foresee(asked, changes))
    except InvalidObjectError as error:
        raise click.ClickException(f"this version of the plugin cannot read what the cluster has: {error}") from error
    document = {
        "changes": [change_document(change) for change in changes],
        "agents": found.agents,
        "hives": found.hives,
        "stores": found.stores,
        "notes": found.notes,
    }
    if asked.json:
        print_json(document)
    else:
        print_plan(document)
    if any(change.what != "unchanged" for change in changes):
        raise click.exceptions.Exit(EXIT_CHANGES)


def change_document(change: Change) -> dict[str, Any]:
    """One object of the files: ``new``, ``changed`` or ``unchanged``, and the fields that differ in words. Pure."""
    return {
        "kind": change.kind,
        "namespace": change.namespace,
        "name": change.name,
        "change": change.what,
        "fields": change.text,
    }


async def _reach(asked: Asked) -> None:
    """Ask the cluster something, for kubectl says of one that cannot be reached that files are invalid.

    Raises ``click.ClickException``.
    """
    async with session_of(asked) as session:
        try:
            await session.kube.list(AGENT_HIVE, session.namespace)
        except ApiError as error:
            if error.status not in {403, 404}:
                raise


async def _foresee(asked: Asked, changes: Sequence[Change]) -> Foreseen:
    """What will happen in all namespaces of the changes."""
    result = Foreseen()
    namespaces = {change.namespace for change in changes if change.kind in _LOOKED_AT and change.what != "unchanged"}
    if not namespaces:
        return result
    async with session_of(asked) as session:
        for namespace in sorted(name for name in namespaces if name is not None):
            there = [change for change in changes if change.namespace == namespace]
            unread: list[str] = []
            found = foresee(await _look(Session(session.kube, namespace), there, unread), there)
            result.agents.extend(found.agents)
            result.hives.extend(found.hives)
            result.stores.extend(found.stores)
            result.notes.extend([*found.notes, *unread])
    return result


async def _look(session: Session, changes: Sequence[Change], unread: list[str]) -> Seen:
    """The namespace as it is; ``unread`` gets what may not be read."""
    hives, agents = await _named(session, AGENT_HIVE), await _named(session, AGENT)
    deployments = await _named(session, DEPLOYMENT, unread)
    sets = await _named(session, STATEFUL_SET, unread)
    pods = await _named(session, POD, unread)
    stores = {
        hive: {store: claim_size(sets.get(server_name(hive, store))) for store in ("redis", "postgres")}
        for hive in hives
    }
    absent = await _absent(session, changes)
    return Seen(session.namespace, hives, agents, deployments, list(pods.values()), stores, absent)


async def _named(session: Session, resource: Resource, unread: list[str] | None = None) -> dict[str, Object]:
    """The objects of a kind by name, of the operator's kinds those of hives; none where they may not be read."""
    labels = "" if resource in {AGENT, AGENT_HIVE} else HIVE_LABEL
    try:
        found, _ = await session.kube.list(resource, session.namespace, labels=labels)
    except ApiError as error:
        if error.status != 403 or unread is None:
            raise
        unread.append(f"you may not list {resource.plural} in {session.namespace}: without them this is an estimate")
        return {}
    return {str(obj["metadata"]["name"]): obj for obj in found}


async def _absent(session: Session, changes: Sequence[Change]) -> frozenset[str]:
    """The ConfigMaps with code of changed Agents that are not there; where they may not be read, none are missed."""
    absent = set()
    for change in changes:
        code = code_reference(Agent.parse(change.after)) if change.is_ours and change.kind == "Agent" else None
        if code is None:
            continue
        try:
            if await session.kube.get(CONFIG_MAP, session.namespace, code.name) is None:
                absent.add(code.name)
        except ApiError as error:
            if error.status != 403:
                raise
    return frozenset(absent)
