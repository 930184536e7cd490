"""Who may take the Lease when: the decisions as a table."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from agenthive_operator.plan.lease import Action, Seen, claim_of, claim_spec, decide, micro_time, release_spec, see

NOON = datetime(2026, 11, 28, 12, 0, 0, 5, tzinfo=UTC)


def lease(holder: str, version: int = 1, **spec: Any) -> dict[str, Any]:
    fields = {"holderIdentity": holder, "leaseDurationSeconds": 10, "renewTime": "r1", "leaseTransitions": 3, **spec}
    return {"metadata": {"name": "l", "namespace": "n", "uid": "u", "resourceVersion": str(version)}, "spec": fields}


def seen(holder: str | None, at: float = 100.0) -> Seen:
    return see(None, lease(holder) if holder is not None else None, at)


@pytest.mark.parametrize(
    ("what", "renewed", "tried", "known", "now", "action", "seconds"),
    [
        ("none at all: make it", None, None, seen(None), 100.0, Action.CREATE, 0.0),
        ("let go: take it at once", None, None, seen(""), 100.0, Action.TAKE, 0.0),
        ("another's, fresh: look again soon", None, None, seen("b"), 100.0, Action.WAIT, 2.0),
        ("another's, nearly over: not a moment later", None, None, seen("b"), 109.0, Action.WAIT, 1.0),
        ("another's, over: take it", None, None, seen("b"), 110.0, Action.TAKE, 0.0),
        ("ours by a write that got no answer: write again", None, None, seen("a"), 100.0, Action.TAKE, 0.0),
        ("taking it failed just now: a pause", None, 110.0, seen("b"), 110.2, Action.WAIT, 0.3),
        ("held, fresh: nothing to do", 100.0, None, seen("a"), 101.5, Action.WAIT, 0.5),
        ("held: renew", 100.0, None, seen("a"), 102.0, Action.RENEW, 0.0),
        ("held, renewing failed: a pause", 100.0, 102.0, seen("a"), 102.2, Action.WAIT, 0.3),
        ("held, renewing failed: again", 100.0, 102.0, seen("a"), 102.6, Action.RENEW, 0.0),
        ("held, deleted by somebody: make it again", 100.0, None, seen(None), 100.1, Action.CREATE, 0.0),
        ("not renewed in time", 100.0, 105.9, seen("a"), 106.0, Action.LOST, 0.0),
        ("frozen and awake: lost before anything is tried", 100.0, None, seen("a"), 160.0, Action.LOST, 0.0),
        ("taken by another", 100.0, None, seen("b"), 100.1, Action.LOST, 0.0),
        ("emptied by somebody", 100.0, None, seen(""), 100.1, Action.LOST, 0.0),
    ],
)
def test_what_to_do(
    what: str, renewed: float | None, tried: float | None, known: Seen, now: float, action: Action, seconds: float
) -> None:
    decision = decide("a", renewed, tried, known, now)
    assert decision.action is action, what
    assert decision.seconds == pytest.approx(seconds), what


def test_a_loss_says_why() -> None:
    assert decide("a", 100.0, None, seen("b"), 100.1).why == "b holds it now"
    assert decide("a", 100.0, None, seen(""), 100.1).why == "nobody holds it now"
    assert decide("a", 100.0, None, seen("a"), 107.0).why == "it could not be renewed for 7.0 s"


def test_only_a_change_of_the_claim_counts_as_life() -> None:
    first = see(None, lease("b"), 100.0)
    labelled = see(first, lease("b", version=2), 105.0)
    assert (labelled.since, labelled.free_at, labelled.version) == (100.0, 110.0, "2")
    renewed = see(labelled, lease("b", version=3, renewTime="r2"), 106.0)
    assert (renewed.since, renewed.free_at) == (106.0, 116.0)


@pytest.mark.parametrize("written", ["1970-01-01T00:00:00.000000Z", "2100-01-01T00:00:00.000000Z"])
def test_the_times_in_it_are_not_believed(written: str) -> None:
    known = see(None, lease("b", renewTime=written, acquireTime=written), 100.0)
    assert decide("a", None, None, known, 109.9).action is Action.WAIT
    assert decide("a", None, None, known, 110.0).action is Action.TAKE


def test_a_lease_that_somebody_deletes_stays_its_holders_until_its_time_is_over() -> None:
    gone = see(see(None, lease("b"), 100.0), None, 103.0)
    assert decide("a", None, None, gone, 109.9) == (Action.WAIT, pytest.approx(0.1), "")
    assert decide("a", None, None, gone, 110.0).action is Action.CREATE
    assert see(gone, None, 105.0).free_at == 110.0


def test_a_duration_is_its_holders_word_within_reason() -> None:
    assert see(None, lease("b", leaseDurationSeconds=30), 100.0).free_at == 130.0
    assert claim_of(lease("b", leaseDurationSeconds=None)).seconds == 10.0
    assert claim_of(lease("b", leaseDurationSeconds=10**9)).seconds == 600.0
    assert claim_of({"metadata": {}}).holder == ""


def test_what_is_written() -> None:
    assert claim_spec("a", None, NOON) == {
        "holderIdentity": "a", "leaseDurationSeconds": 10, "acquireTime": "2026-11-28T12:00:00.000005Z",
        "renewTime": "2026-11-28T12:00:00.000005Z", "leaseTransitions": 0,
    }  # fmt: skip
    taken = claim_spec("a", claim_of(lease("b", acquireTime="long ago")), NOON)
    assert (taken["leaseTransitions"], taken["acquireTime"]) == (4, micro_time(NOON))
    renewed = claim_spec("a", claim_of(lease("a", acquireTime="long ago")), NOON)
    assert (renewed["leaseTransitions"], renewed["acquireTime"]) == (3, "long ago")
    assert release_spec(NOON)["holderIdentity"] == ""
