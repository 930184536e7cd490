"""What the API server's refusals mean for a person: a quota, a pod template, or something else. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from agenthive_operator.backends.kube import ApiError
from agenthive_operator.reconcile.conditions import Problem

REFUSED: Final = frozenset({400, 403, 405, 413, 422})
UNTYPED: Final = "failed to create typed patch object"
"""How server-side apply refuses fields that a kind does not have, or values of another type: with status 500."""
QUOTA: Final = "exceeded quota"
NO_DRY_RUN: Final = "does not support dry run"
NO_RIGHT: Final = re.compile(r'cannot \w+ resource "')
_PODS_SUFFIX: Final = re.compile(r'([Pp]ods? "[^"]*?)(-[a-z0-9]+)?-[a-z0-9]{5}"')


def is_refusal(error: ApiError) -> bool:
    """Whether the same request will be refused until somebody changes something."""
    return error.status in REFUSED or (error.status == 500 and UNTYPED in error.message)


def refusal(error: ApiError, what: str) -> Problem:
    """The problem that the refusal of ``what`` (kind and name of a child) is."""
    reason = "QuotaExceeded" if error.status == 403 and QUOTA in error.message else "ApplyRejected"
    return Problem(reason, f"{what}: {error.message}")


def template_refusal(error: ApiError, name: str, fields: Sequence[str]) -> Problem | None:
    """The problem that the refusal of a dry run of the Deployment ``name`` is; None where it says nothing.

    ``fields``: where users wrote parts of its template.
    """
    if NO_DRY_RUN in error.message:
        return None
    problem = refusal(error, f"Deployment {name}")
    if problem.reason == "QuotaExceeded" or NO_RIGHT.search(error.message):
        return problem
    return Problem("PodTemplateRejected", f"{problem.message}; correct {' or '.join(fields)}")


def pods_refused(message: str) -> Problem | None:
    """The problem that a ReplicaSet's failure to create pods is; ``message`` is the server's, empty for none.

    Each attempt makes up another name for the pod: it is left out, or the status would change with each.
    """
    if not message:
        return None
    text = _PODS_SUFFIX.sub(r'\1"', message)
    return Problem("QuotaExceeded" if QUOTA in text else "PodsRefused", text)
