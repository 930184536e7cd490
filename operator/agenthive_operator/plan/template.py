"""The pod template of an agent: the operator's, merged with its hive's podTemplate and then with its own.

Nothing here may depend on the number of replicas: scaling must never roll pods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from agenthive_operator.api.agent import Agent
from agenthive_operator.api.hive import AgentHive
from agenthive_operator.api.podtemplate import AGENT_CONTAINER, PodTemplate
from agenthive_operator.plan import names
from agenthive_operator.plan.podtemplate import merge_pod_template
from agenthive_operator.plan.references import objects

RESERVED_ENV: Final = "AGENTHIVE_"
SPREAD_OVER: Final = ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
_PROGRAM: Final = ("command", "args")


def user_templates(agent: Agent, hive: AgentHive) -> tuple[PodTemplate, PodTemplate]:
    """The partial templates to merge, in this order: the hive's, then the Agent's own, which wins."""
    return hive.spec.agent_defaults.pod_template, agent.spec.pod_template


def merged_template(base: Mapping[str, Any], patches: Sequence[PodTemplate]) -> dict[str, Any]:
    """``base`` with ``patches`` merged in; what is the operator's in it holds whatever they say.

    The rules of the CRDs refuse the program, the selecting labels and AGENTHIVE_* already. An object that was stored
    under older rules gets here all the same.
    """
    result = dict(base)
    for patch in patches:
        result = merge_pod_template(result, {"metadata": patch.metadata.dump(), "spec": patch.spec})
    for field, own in base["metadata"].items():
        result["metadata"][field] |= own
    _restore(result["spec"], base["spec"]["containers"][0])
    return result


def _restore(spec: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Undo, in place, what a template did to the agent's program and to the operator's variables."""
    for kind in ("containers", "initContainers"):
        for container in objects(spec.get(kind)):
            is_agent = kind == "containers" and container.get("name") == AGENT_CONTAINER
            if is_agent:
                for field in set(_PROGRAM) & container.keys() - own.keys():
                    del container[field]
                container |= {field: own[field] for field in _PROGRAM if field in own}
            if isinstance(env := container.get("env"), list):
                ours = {variable["name"]: variable for variable in own["env"]} if is_agent else {}
                container["env"] = list(_restored(env, ours))


def _restored(env: Sequence[Any], ours: Mapping[str, Any]) -> Iterator[Any]:
    for variable in env:
        name = variable.get("name") if isinstance(variable, dict) else None
        if not isinstance(name, str) or not name.startswith(RESERVED_ENV):
            yield variable
        elif name in ours:
            yield ours[name]


def spread_by_default(hive: str, agent: str, patches: Sequence[PodTemplate]) -> list[dict[str, Any]]:
    """Constraints that ask, without insisting, for pods on different nodes and zones; none where a template has some.

    They are there for a single pod too, for which they mean nothing: a template that depended on the number of pods
    would roll them when it passes from one to two. Pods of one revision are counted, so that a roll spreads as well.
    """
    if any("topologySpreadConstraints" in patch.spec for patch in patches):
        return []
    selector = {"matchLabels": names.agent_selector(hive, agent)}
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": selector,
            "matchLabelKeys": ["pod-template-hash"],
        }
        for key in SPREAD_OVER
    ]
