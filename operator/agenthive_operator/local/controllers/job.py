"""The Job controller: one pod that is to end well, tried again up to the limit.

What helm's hooks and a person's one-off need, and no more: Jobs of several pods, indexed or suspended ones, and those
with policies are refused by a Failed condition that says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from agenthive_operator.local.controllers.base import Controller, random_suffix
from agenthive_operator.local.controllers.replicaset import pod_from
from agenthive_operator.local.informer import Informers
from agenthive_operator.local.kubelet.backoff import base_seconds
from agenthive_operator.local.objects import (
    Key,
    condition,
    format_time,
    is_deleting,
    is_finished,
    is_ready,
    owner_reference,
    parse_time,
    set_condition,
    utc_now,
)
from agenthive_operator.local.resources import JOBS, PODS, Obj

LONGEST_PAUSE_SECONDS: Final = 360.0
#: Fields of a Job's spec and the only value with which they are offered.
OFFERED: Final = {"completions": 1, "parallelism": 1, "completionMode": "NonIndexed", "suspend": False}
NOT_OFFERED: Final = ("podFailurePolicy", "successPolicy", "backoffLimitPerIndex", "ttlSecondsAfterFinished")


@dataclass(frozen=True, slots=True)
class Step:
    """What to do for one Job: its status, a pod to create, pods to delete, and when to look again."""

    status: Obj
    create: bool = False
    delete: list[Obj] = field(default_factory=list)
    again: float | None = None


def is_over(job: Obj) -> bool:
    """Whether the Job has ended, well or not."""
    return any((condition(job, kind) or {}).get("status") == "True" for kind in ("Complete", "Failed"))


def unsupported(spec: Obj) -> str | None:
    """What a Job asks for that is not done here; None when it can run. Pure."""
    for name, value in OFFERED.items():
        if spec.get(name, value) != value:
            return f"{name}: {spec[name]!r} is not offered in local mode, only {value!r}"
    for name in NOT_OFFERED:
        if name in spec:
            return f"{name} is not offered in local mode"
    if spec["template"]["spec"].get("restartPolicy") != "Never":
        return "restartPolicy of a Job's pods has to be Never in local mode"
    return None


def decide(job: Obj, pods: list[Obj], now: datetime, base: float) -> Step:
    """The next step of a Job that is not over. Pure; ``base``: seconds before the second try, doubled for each."""
    spec, old, stamp = job["spec"], job.get("status") or {}, format_time(now)
    failed = [pod for pod in pods if (pod.get("status") or {}).get("phase") == "Failed"]
    succeeded = sum((pod.get("status") or {}).get("phase") == "Succeeded" for pod in pods)
    active = [pod for pod in pods if not is_finished(pod) and not is_deleting(pod)]
    status: Obj = {"startTime": old.get("startTime") or stamp}
    figures = (("succeeded", succeeded), ("failed", len(failed)))
    status |= {name: number for name, number in figures if number}

    def over(kinds: tuple[str, str], reason: str, message: str) -> Step:
        conditions = old.get("conditions") or []
        for kind in kinds:
            new = {"type": kind, "status": "True", "reason": reason, "message": message}
            conditions = set_condition(conditions, new, stamp)
        ended = {"completionTime": stamp} if kinds[1] == "Complete" else {}
        return Step({**status, **ended, "conditions": conditions}, delete=active)

    if (reason := unsupported(spec)) is not None:
        return over(("FailureTarget", "Failed"), "NotOffered", reason)
    if succeeded:
        return over(
            ("SuccessCriteriaMet", "Complete"), "CompletionsReached", "Reached expected number of succeeded pods"
        )
    if len(failed) > spec["backoffLimit"]:
        text = "Job has reached the specified backoff limit"
        return over(("FailureTarget", "Failed"), "BackoffLimitExceeded", text)
    began = parse_time(status["startTime"]) or now
    left = float("inf")
    if "activeDeadlineSeconds" in spec:
        left = spec["activeDeadlineSeconds"] - (now - began).total_seconds()
        if left <= 0:
            text = "Job was active longer than specified deadline"
            return over(("FailureTarget", "Failed"), "DeadlineExceeded", text)
    pause = _pause(failed, now, base)
    create = not active and pause <= 0
    status |= {"active": len(active) + create, "ready": sum(map(is_ready, active))}
    again = min(left, pause if pause > 0 else left)
    return Step(status, create=create, again=None if again == float("inf") else again)


def _pause(failed: list[Obj], now: datetime, base: float) -> float:
    """Seconds until another pod may be made after those that failed."""
    ends = [
        ended
        for pod in failed
        for each in (pod.get("status") or {}).get("containerStatuses") or []
        if (ended := parse_time(((each.get("state") or {}).get("terminated") or {}).get("finishedAt"))) is not None
    ]
    if not ends:
        return 0.0
    pause: float = min(LONGEST_PAUSE_SECONDS, base * 2.0 ** (len(failed) - 1))
    return pause - (now - max(ends)).total_seconds()


class JobController(Controller):
    """Jobs → a pod each."""

    resource = JOBS

    def __init__(self, informers: Informers, *, workers: int = 2) -> None:
        super().__init__(informers, workers=workers)
        self.pods = informers.of(PODS)
        self.follow_children(PODS)
        self._base = base_seconds()

    async def reconcile(self, key: Key) -> float | None:
        """Make a pod, or end the Job."""
        job = self.objects.get(*key)
        if job is None or is_deleting(job) or is_over(job):
            return None
        step = decide(job, self.pods.owned_by(job), utc_now(), self._base)
        if step.create:
            namespace, name = key
            owner = owner_reference(job, JOBS)
            await self.create(PODS, pod_from(job["spec"]["template"], namespace, f"{name}-{random_suffix()}", owner))
        for pod in step.delete:
            await self.delete(PODS, pod)
        await self.write_status(job, step.status)
        return step.again
