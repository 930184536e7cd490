"""One look at an Agent: gather, plan, apply, prune, tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypedDict

from agenthive_operator.api.agent import Agent
from agenthive_operator.api.hive import AgentHive
from agenthive_operator.api.meta import InvalidObjectError
from agenthive_operator.backends.kube import AGENT, AGENT_HIVE, Object, secret_data
from agenthive_operator.backends.references import Reference
from agenthive_operator.plan.agent import CACHE_URL, POSTGRES_URL, REDIS_URL, plan_agent
from agenthive_operator.plan.checksum import digest
from agenthive_operator.plan.cutover import leads_to
from agenthive_operator.plan.external import mounted_files
from agenthive_operator.plan.inputs import ObservedAgent
from agenthive_operator.plan.names import agent_secret_name, agent_selector, selector_string
from agenthive_operator.plan.references import Reference as Pointer
from agenthive_operator.plan.references import agent_references, code_reference
from agenthive_operator.plan.rotation import Record
from agenthive_operator.reconcile.cache import Key
from agenthive_operator.reconcile.children import is_labelled
from agenthive_operator.reconcile.conditions import (
    AgentInput,
    HiveFacts,
    Problem,
    Verdict,
    agent_conditions,
    pod_failure,
    rollout_of,
    sooner,
)
from agenthive_operator.reconcile.context import Context, HiveState
from agenthive_operator.reconcile.refusals import pods_refused
from agenthive_operator.reconcile.release import Release
from agenthive_operator.reconcile.rotation import Credentials, Rotations
from agenthive_operator.reconcile.status import (
    FigureGate,
    agent_status,
    figure_fields,
    figures_in,
    is_true,
    merge_conditions,
    only_ready,
)

SILENT_SECONDS: Final = 10.0
"""How long after it was made an Agent may be without a status, because its hive is being looked at."""


@dataclass(frozen=True, slots=True)
class HiveView:
    """An Agent's hive: the object, and what its reconciler let us know. Both None when there is no such hive."""

    hive: AgentHive | None
    state: HiveState | None
    facts: HiveFacts


class Urls(TypedDict):
    """The connections of an Agent's pods."""

    redis_url: str
    postgres_url: str
    cache_url: str | None
    tls_files: Mapping[str, str]
    credentials: Record


@dataclass(frozen=True, slots=True)
class Outcome:
    """What kept an Agent's children from being applied, and how the rotation of its credentials stands."""

    problem: Problem | None = None
    credentials: Credentials | None = None

    @property
    def waits(self) -> str:
        """What the rotation waits for; empty if it goes on, or there is none."""
        return self.credentials.waits if self.credentials else ""


class AgentReconciler:
    """Reconciles Agents."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._gates: dict[Key, FigureGate] = {}
        self._release = Release(context)
        self._rotations = Rotations(context)

    async def reconcile(self, key: Key) -> float | None:
        """Look at one Agent; returns the seconds after which to look again without an event, if any.

        Raises ``ApiError`` for what trying again may cure.
        """
        live = self._context.cache.get(*key)
        if live is None:
            live = await self._context.kube.get(AGENT, key.namespace, key.name)
        if live is None:
            self._forget(key)
            return None
        try:
            agent = Agent.parse(live)
        except InvalidObjectError as error:
            await self._conclude_unreadable(live, str(error))
            return None
        if agent.metadata.deleting:
            return None  # the garbage collector takes the children; nothing outside needs cleaning
        view = await self._view_hive(key, agent)
        if view.facts.exists and view.state is None:
            if is_known(live):
                return None  # the hive has not been looked at since the start, and will call us when it has
            if view.hive is not None and (left := patience(agent, self._context.clock())) > 0:
                return left  # the same: what a status would say until then is no news to anybody
        outcome = await self._bring_about(key, live, agent, view)
        self._context.rolls.look(key, Key("AgentHive", key.namespace, agent.spec.hive_ref.name))
        again = await self._tell(key, live, agent, view.facts, outcome)
        return sooner(again, outcome.problem)

    # ---- steps

    def _forget(self, key: Key) -> None:
        self._context.references.register(key, ())
        self._gates.pop(key, None)
        self._release.forget(key)
        for credentials, monitor in (
            (self._context.logins, self._context.postgres),
            (self._context.users, self._context.redis),
        ):
            if (hive := credentials.forget(key)) is not None:
                self._rotations.forget(key, hive)
                monitor.poke(hive)

    async def _view_hive(self, key: Key, agent: Agent) -> HiveView:
        """The Agent's hive; absence is believed only when the API server says so."""
        name = agent.spec.hive_ref.name
        live = self._context.cache.get("AgentHive", key.namespace, name)
        if live is None:
            live = await self._context.kube.get(AGENT_HIVE, key.namespace, name)
        if live is None:
            return HiveView(None, None, HiveFacts(exists=False))
        try:
            hive = AgentHive.parse(live)
        except InvalidObjectError as error:
            return HiveView(None, None, HiveFacts(exists=True, message=str(error)))
        state = self._context.states.get(Key("AgentHive", key.namespace, name))
        if state is not None and state.uid != hive.metadata.uid:
            state = None  # a namesake's; the new hive's reconciler is about to say something
        facts = HiveFacts(
            exists=True,
            ready=state is not None and state.ready,
            suspended=hive.spec.suspend,
            deleting=hive.metadata.deleting,
            message=state.message if state else "it is being looked at",
            halted=state is not None and state.halted,
        )
        return HiveView(hive, state, facts)

    async def _bring_about(self, key: Key, live: Object, agent: Agent, view: HiveView) -> Outcome:
        """Apply the Agent's children, once its hive has been ready; prune what is no longer planned."""
        hive, state = view.hive, view.state
        pointers = agent_references(agent, hive) if hive is not None else frozenset()
        self._context.references.register(key, [Reference(p.kind, key.namespace, p.name) for p in pointers])
        if hive is None or state is None:
            return Outcome()
        if not state.ready and self._context.cache.get("Deployment", key.namespace, key.name) is None:
            # The first start waits for the hive; a running agent follows its spec. Of one that the watch has not told
            # yet nothing is believed: it is left as it is.
            return Outcome()
        digests = await self._digests(key, pointers)
        code = code_reference(agent)
        if code is not None and code not in digests:
            if state.halted:
                await self._release.stop(agent)
            text = f"ConfigMap {code.name!r} of spec.codeFrom does not exist; create it"
            return Outcome(Problem("CodeMissing", text))
        secret = await self._context.children.live("Secret", key.namespace, agent_secret_name(key.name))
        secret = secret if secret is not None and is_labelled(secret) else None
        credentials = await self._rotations.step(key, live, agent, hive, state, secret)
        urls = self._urls(hive, state, secret, credentials)
        if urls is None:
            if state.halted:
                await self._release.stop(agent)
            return Outcome()
        observed = ObservedAgent(
            instance_id=state.instance_id,
            runtime_image=self._context.options.runtime_image,
            digests=digests,
            halted=state.halted or not self._may_run(key, state, urls),
            **urls,
        )
        planned = plan_agent(agent, hive, observed)
        problem = await self._release.bring(key, agent, hive, planned)
        if problem is None and credentials.again:
            self._context.queue.add(key)
        return Outcome(problem, credentials)

    async def _digests(self, key: Key, pointers: frozenset[Pointer]) -> dict[Pointer, str]:
        """Digests of the data that the pods use; what does not exist is left out."""
        digests = {}
        for pointer in sorted(pointers):
            data = await self._context.references.read(Reference(pointer.kind, key.namespace, pointer.name))
            if data is not None:
                digests[pointer] = digest(data)
        return digests

    def _urls(self, hive: AgentHive, state: HiveState, secret: Object | None, credentials: Credentials) -> Urls | None:
        """The URLs for the Agent's Secret: those found good, else those it has already.

        So a bad new value in a hive's Secret, or a server that is down, changes nothing for running pods.
        """
        known = secret_data(secret) if secret is not None else {}
        # The cache's certificates are those of the bus, and where they differ for a while, those of the bus count.
        own_cache = hive.spec.redis.cache.own_url is not None
        cache, cache_files = self._mounted(state.cache_url, known, CACHE_URL) if own_cache else (None, {})
        redis, redis_files = self._mounted(credentials.redis_url, known, REDIS_URL)
        postgres, postgres_files = self._mounted(credentials.postgres_url, known, POSTGRES_URL)
        if not redis or not postgres:
            return None
        files = {**cache_files, **redis_files, **postgres_files}
        return {
            "redis_url": redis, "postgres_url": postgres, "cache_url": cache, "tls_files": files,
            "credentials": credentials.record,
        }  # fmt: skip

    def _may_run(self, key: Key, state: HiveState, urls: Urls) -> bool:
        """Whether pods may be started: not with a URL that leads to a server which the hive has left, as long as its
        new one does not let the Agent in. Those that run are left running.
        """
        deployment = self._context.cache.get("Deployment", key.namespace, key.name)
        runs = deployment is not None and deployment["spec"].get("replicas", 1) > 0
        held = ((urls["redis_url"], state.redis_held), (urls["postgres_url"], state.postgres_held))
        return runs or all(leads_to(url, at) for url, at in held)

    def _mounted(self, url: str | None, known: Mapping[str, str], name: str) -> tuple[str | None, dict[str, str]]:
        """A URL as pods see it, and the files that it names; what the Agent's Secret has where there is no other."""
        found = self._context.certificates.mounted(url) if url else None
        url, files = found or (known.get(name), {})
        if url is not None:  # what was known stays with the files that it was known with
            files = {file: known[file] for file in mounted_files(url) if file in known} | files
        return url, files

    async def _tell(self, key: Key, live: Object, agent: Agent, facts: HiveFacts, outcome: Outcome) -> float | None:
        """Write the status where it differs, Events for what went wrong, and let the hive count again."""
        hive = agent.spec.hive_ref.name
        deployment = self._context.cache.get("Deployment", key.namespace, key.name)
        owners = (deployment or {}).get("metadata", {}).get("ownerReferences") or ()
        if deployment is not None and not any(owner["uid"] == agent.metadata.uid for owner in owners):
            deployment = None
        rollout = rollout_of(deployment) if deployment else None
        pods = self._context.cache.pods_of(key.namespace, hive=hive, agent=key.name)
        failure = pods_refused(rollout.refused if rollout else "") or pod_failure(pods)
        seen = AgentInput(
            name=key.name,
            hive=hive,
            facts=facts,
            rollout=rollout,
            failure=failure,
            problem=outcome.problem,
            waits=outcome.waits,
        )
        verdicts = agent_conditions(seen)
        before = live.get("status") or {}
        figures, again = self._figures(key, hive, before)
        generation = agent.metadata.generation
        status = agent_status(
            conditions=merge_conditions(before.get("conditions") or [], verdicts, generation, self._context.clock()),
            generation=generation,
            selector=selector_string(agent_selector(hive, key.name)),
            rollout=rollout,
            figures=figures,
        )
        after = await self._context.write_status(live, status)
        await self._context.tell_transitions(live, verdicts, normal=False)
        stuck = failure is not None or bool(rollout and rollout.stalled)
        await self._rotations.tell(key, live, outcome.credentials, stuck=stuck)
        if is_true(live, "Ready") != is_true(after, "Ready"):
            self._context.queue.add(Key("AgentHive", key.namespace, hive))
        return again

    def _figures(self, key: Key, hive: str, before: Object) -> tuple[Object, float | None]:
        known = figures_in(before)
        latest = self._context.figures.latest(Key("AgentHive", key.namespace, hive))
        if latest is None or key.name not in latest:
            return known, None
        gate = self._gates.setdefault(key, FigureGate())
        return gate.choose(known, figure_fields(latest[key.name]), self._context.monotonic())

    async def _conclude_unreadable(self, live: Object, text: str) -> None:
        """A spec this operator cannot read: say so and leave everything as it is."""
        verdict = Verdict("False", "InvalidSpec", text)
        await self._context.write_status(live, only_ready(live, verdict, self._context.clock()))
        await self._context.tell_transitions(live, {"Ready": verdict}, normal=False)


def patience(agent: Agent, now: datetime) -> float:
    """Seconds for which a new Agent says nothing yet while its hive is looked at for the first time. Pure."""
    made = agent.metadata.creation_timestamp
    return 0.0 if made is None else SILENT_SECONDS - (now - made).total_seconds()


def is_known(live: Object) -> bool:
    """Whether an Agent's status was concluded before."""
    return bool((live.get("status") or {}).get("conditions"))
