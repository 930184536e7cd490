"""What an Agent's plan has to pass before it is applied: its turn, and the API server's word on its pod template.

While a new template waits or is refused the pods stay as they are, and only what is no template follows: the number of
pods (a suspended hive drains whatever its templates say), the disruption budget, and the end of a rotation: what is
revoked leaves the Secret, or it would keep other agents' rotations from their turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from agenthive_operator.api.agent import Agent
from agenthive_operator.api.hive import AgentHive
from agenthive_operator.backends.kube import ApiError, Object, secret_data
from agenthive_operator.plan.agent import POSTGRES_URL, REDIS_URL
from agenthive_operator.plan.cutover import leads_to
from agenthive_operator.plan.names import CHANGE_ANNOTATION, TEMPLATE_ANNOTATION
from agenthive_operator.plan.rolling import Answer, needs_slot
from agenthive_operator.plan.rotation import PREVIOUS
from agenthive_operator.plan.template import user_templates
from agenthive_operator.reconcile.cache import Key, controller_of
from agenthive_operator.reconcile.children import covers, is_ours, prepare
from agenthive_operator.reconcile.conditions import BLOCKED_SECONDS, Problem
from agenthive_operator.reconcile.context import Context
from agenthive_operator.reconcile.refusals import is_refusal, template_refusal

MOST_SECONDS: Final = 300.0
"""A refused template is shown to the server again at least this often: a policy may have changed."""


@dataclass(slots=True)
class _Refused:
    """A template that the server refused: what it said, and from when on (monotonic) it is asked again."""

    template: str
    problem: Problem
    since: float
    delay: float


class Release:
    """Brings the planned children of Agents about, when their time has come."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._refused: dict[Key, _Refused] = {}

    def forget(self, key: Key) -> None:
        """The Agent is gone."""
        self._refused.pop(key, None)
        self._context.rolls.forget(key)

    async def bring(self, key: Key, agent: Agent, hive: AgentHive, planned: Sequence[Object]) -> Problem | None:
        """Apply ``planned``; returns what keeps it from being applied, if something does.

        Raises ``ApiError`` for what trying again may cure.
        """
        body = next(prepare(plan) for plan in planned if plan["kind"] == "Deployment")
        of = Key("AgentHive", key.namespace, hive.metadata.name)
        live = await self._context.children.live("Deployment", key.namespace, key.name)
        if live is not None and not is_ours(live, body):
            live = None  # apply says what is wrong with it
        if live is not None and not changes_template(live, body):
            self._refused.pop(key, None)
            self._context.rolls.settle(key, of)
            return await self._apply(agent, planned)
        asked = live is not None and needs_slot(live)
        if asked:
            answer = self._context.rolls.ask(key, of, body["metadata"]["annotations"][CHANGE_ANNOTATION])
            if answer != "roll":
                return await self._hold(agent, live, planned, waiting(answer, hive.metadata.name))
        else:
            self._context.rolls.settle(key, of)
        try:
            problem = await self._validate(key, agent, hive, body)
            if problem is not None:
                return await self._hold(agent, live, planned, problem)
            return await self._apply(agent, planned)
        finally:
            if asked:
                self._context.rolls.applied(key, of)

    async def stop(self, agent: Agent) -> None:
        """Scale an Agent to zero of which nothing else can be brought about. Raises ``ApiError``."""
        live = await self._context.children.live("Deployment", agent.metadata.namespace, agent.metadata.name)
        owner = controller_of(live) if live is not None else None
        if live is None or owner is None or owner["uid"] != agent.metadata.uid or not live["spec"].get("replicas", 1):
            return
        # rbac: apps/deployments patch
        self._context.cache.put(await self._context.kube.merge_patch(live, {"spec": {"replicas": 0}}))

    async def _apply(self, agent: Agent, planned: Sequence[Object]) -> Problem | None:
        problem = await self._context.children.apply(planned)
        if problem is None:
            await self._context.children.prune(agent.metadata.uid, planned)
        return problem

    async def _hold(self, agent: Agent, live: Object | None, planned: Sequence[Object], why: Problem) -> Problem:
        """Leave the pods' template, Secret included, as it is; returns ``why``, or what went wrong meanwhile."""
        if live is None:
            return why
        secret = next(plan for plan in planned if plan["kind"] == "Secret")
        await self._drop_revoked(secret)
        wanted = next(plan for plan in planned if plan["kind"] == "Deployment")["spec"]["replicas"]
        present = live["spec"].get("replicas")
        if present == 0 and wanted and not await self._leads_alike(secret):
            return why  # the Secret that stays leads to a server which the hive has left
        if present != wanted:
            # rbac: apps/deployments patch
            self._context.cache.put(await self._context.kube.merge_patch(live, {"spec": {"replicas": wanted}}))
        problem = await self._context.children.apply([p for p in planned if p["kind"] == "PodDisruptionBudget"])
        if problem is None:
            await self._context.children.prune(agent.metadata.uid, planned)
        return problem or why

    async def _leads_alike(self, planned: Object) -> bool:
        """Whether the Agent's Secret leads where ``planned`` would."""
        metadata = planned["metadata"]
        live = await self._context.children.live("Secret", metadata["namespace"], metadata["name"])
        known, wanted = secret_data(live) if live is not None else {}, secret_data(planned)
        return all(leads_to(known.get(name), wanted.get(name)) for name in (REDIS_URL, POSTGRES_URL))

    async def _drop_revoked(self, planned: Object) -> None:
        metadata = planned["metadata"]
        secret = await self._context.children.live("Secret", metadata["namespace"], metadata["name"])
        if secret is not None and is_ours(secret, planned) and (names := revoked(secret, planned)):
            # rbac: core/secrets patch
            patch = {"data": dict.fromkeys(names)}
            self._context.cache.put(await self._context.kube.merge_patch(secret, patch))

    async def _validate(self, key: Key, agent: Agent, hive: AgentHive, body: Object) -> Problem | None:
        """Ask the server about a template that users had a hand in, without writing anything."""
        fields = template_fields(agent, hive)
        if not fields:
            self._refused.pop(key, None)
            return None
        now, template = self._context.monotonic(), body["metadata"]["annotations"][TEMPLATE_ANNOTATION]
        known = self._refused.get(key)
        if known is not None and known.template == template and now < known.since + known.delay:
            return replace(known.problem, again=known.since + known.delay - now)
        try:
            # rbac: apps/deployments patch
            await self._context.kube.apply(body, dry_run=True)
        except ApiError as error:
            if not is_refusal(error):
                raise
            problem = template_refusal(error, key.name, fields)
            if problem is None:
                return None  # a webhook that knows no dry run: the apply itself will tell
            same = known is not None and known.template == template
            delay = min(MOST_SECONDS, 2 * known.delay) if known is not None and same else BLOCKED_SECONDS
            self._refused[key] = _Refused(template, problem, now, delay)
            return replace(problem, again=delay)
        self._refused.pop(key, None)
        return None


# ---- pure


def changes_template(live: Object, body: Object) -> bool:
    """Whether applying ``body`` would replace the pods of ``live``, by all that is known before it is done."""
    metadata, spec = live["metadata"], live["spec"]
    if not isinstance(metadata, Mapping) or not isinstance(spec, Mapping):
        return True
    known = (metadata.get("annotations") or {}).get(TEMPLATE_ANNOTATION)
    same = known in {None, body["metadata"]["annotations"][TEMPLATE_ANNOTATION]}
    return not same or not covers(spec["template"], body["spec"]["template"])


def template_fields(agent: Agent, hive: AgentHive) -> list[str]:
    """The fields in which users wrote parts of the pod template."""
    of_hive, own = user_templates(agent, hive)
    fields = {
        "spec.podTemplate of this Agent": own,
        f"spec.agentDefaults.podTemplate of AgentHive {hive.metadata.name!r}": of_hive,
    }
    return [name for name, template in fields.items() if template.spec or any(template.metadata.dump().values())]


def revoked(secret: Object, planned: Object) -> list[str]:
    """The former credentials in an Agent's Secret that its plan has no more."""
    held = {name for name in secret.get("data") or () if name.startswith(PREVIOUS)}
    return sorted(held - planned["data"].keys())


def waiting(answer: Answer, hive: str) -> Problem:
    """What a person reads of an Agent whose new pods have to wait."""
    if answer == "halted":
        text = f"a change of AgentHive {hive!r} failed on other agents; the pods stay as they are until it is corrected"
        return Problem("RollHalted", text)
    return Problem("RollQueued", f"pods of a newer spec wait for their turn: other agents of {hive!r} are being rolled")
