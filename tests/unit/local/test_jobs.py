"""What the Job controller decides, and what the emulator says of a Job."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from agenthive_operator.local.apiserver import jobs
from agenthive_operator.local.controllers.job import decide, is_over, unsupported

NOW = datetime(2026, 1, 1, 1, tzinfo=UTC)
BASE = 10.0


def job(*, status: dict | None = None, **spec) -> dict:
    template = {"metadata": {}, "spec": {"restartPolicy": "Never", "containers": []}}
    return {
        "metadata": {"name": "j", "namespace": "n", "uid": "u-j"},
        "spec": {"backoffLimit": 1, "template": template, **spec},
        "status": status or {},
    }


def pod(name: str, phase: str, ended: str | None = None, *, deleting: bool = False) -> dict:
    state = {"terminated": {"exitCode": 1, "finishedAt": ended}} if ended else {"running": {}}
    metadata = {"name": name, **({"deletionTimestamp": "2026-01-01T00:59:00Z"} if deleting else {})}
    ready = {"type": "Ready", "status": str(phase == "Running")}
    return {
        "metadata": metadata,
        "status": {"phase": phase, "conditions": [ready], "containerStatuses": [{"state": state}]},
    }


def end_of(status: dict) -> dict[str, str]:
    return {entry["type"]: entry["reason"] for entry in status.get("conditions", [])}


def test_a_new_job_gets_its_pod() -> None:
    step = decide(job(), [], NOW, BASE)
    assert (step.create, step.delete, step.again) == (True, [], None)
    assert step.status == {"startTime": "2026-01-01T01:00:00Z", "active": 1, "ready": 0}


def test_one_that_runs_is_left_alone_until_its_deadline() -> None:
    started = {"startTime": "2026-01-01T00:59:50Z"}
    running = pod("a", "Running")
    step = decide(job(status=started, activeDeadlineSeconds=30), [running], NOW, BASE)
    assert (step.create, step.again) == (False, 20)
    assert step.status == {**started, "active": 1, "ready": 1}
    step = decide(job(status=started, activeDeadlineSeconds=10), [running], NOW, BASE)
    assert step.delete == [running]
    assert end_of(step.status) == {"FailureTarget": "DeadlineExceeded", "Failed": "DeadlineExceeded"}
    assert is_over({"status": step.status})


def test_the_end_of_its_pod_is_the_end_of_the_job() -> None:
    step = decide(job(), [pod("a", "Succeeded", "2026-01-01T00:59:59Z")], NOW, BASE)
    assert step.status["succeeded"] == 1
    assert step.status["completionTime"] == "2026-01-01T01:00:00Z"
    assert set(end_of(step.status)) == {"SuccessCriteriaMet", "Complete"}
    assert is_over({"status": step.status})


def test_a_failed_pod_is_followed_by_another_after_a_pause_and_by_none_beyond_the_limit() -> None:
    first = pod("a", "Failed", "2026-01-01T00:59:56Z")
    step = decide(job(), [first], NOW, BASE)
    assert (step.create, step.again) == (False, 6)
    assert step.status["failed"] == 1
    step = decide(job(), [pod("a", "Failed", "2026-01-01T00:59:50Z")], NOW, BASE)
    assert step.create
    step = decide(job(), [first, pod("b", "Failed", "2026-01-01T00:59:58Z")], NOW, BASE)
    assert not step.create
    assert end_of(step.status)["Failed"] == "BackoffLimitExceeded"


def test_one_that_is_deleted_by_somebody_is_made_again() -> None:
    assert decide(job(), [pod("a", "Running", deleting=True)], NOW, BASE).create


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        ({"completions": 2}, "completions"),
        ({"parallelism": 0}, "parallelism"),
        ({"completionMode": "Indexed"}, "completionMode"),
        ({"suspend": True}, "suspend"),
        ({"ttlSecondsAfterFinished": 5}, "ttlSecondsAfterFinished"),
        ({"template": {"spec": {"restartPolicy": "OnFailure"}}}, "restartPolicy"),
    ],
)
def test_what_is_not_offered_is_refused_by_a_condition(wanted, named) -> None:
    step = decide(job(**wanted), [], NOW, BASE)
    assert not step.create
    assert end_of(step.status)["Failed"] == "NotOffered"
    assert named in (unsupported(job(**wanted)["spec"]) or "")


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        ({}, set()),
        ({"conditions": [{"type": "Complete", "status": "True"}]},
         {"status.completionTime", "status.conditions", "status.startTime"}),
        ({"startTime": "t", "conditions": [{"type": "Failed", "status": "True"}]}, {"status.conditions"}),
        ({"startTime": "t", "conditions": [{"type": t, "status": "True"} for t in ("FailureTarget", "Failed")]}, set()),
    ],
)  # fmt: skip
def test_the_emulator_wants_a_true_end(status, fields) -> None:
    assert {problem.field for problem in jobs.check(job(status=status), None)} == fields
