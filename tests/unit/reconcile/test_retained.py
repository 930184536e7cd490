"""What a hive takes over from an earlier one of its name."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from agenthive_operator.plan.names import INSTANCE_ANNOTATION, labels
from agenthive_operator.reconcile.hive import known_instance_id, known_password


def secret(hive: str = "demo", instance: str | None = "i1", **metadata: Any) -> dict[str, Any]:
    annotations = {} if instance is None else {INSTANCE_ANNOTATION: instance}
    return {
        "kind": "Secret",
        "metadata": {"name": "demo-redis", "labels": labels(hive, "redis"), "annotations": annotations, **metadata},
        "data": {"password": base64.b64encode(b"pw").decode()},
    }


@pytest.mark.parametrize(
    ("found", "instance", "password"),
    [
        (secret(), "i1", "pw"),
        (None, None, None),
        (secret(hive="other"), None, None),
        (secret(labels={}), None, None),
        (secret(instance=None), None, "pw"),
        (secret(annotations=None), None, "pw"),
        (secret(instance="Not A Label"), None, "pw"),
        (secret(instance="x" * 33), None, "pw"),
        (secret(instance=""), None, "pw"),
    ],
)
def test_what_is_taken_over(found: dict[str, Any] | None, instance: str | None, password: str | None) -> None:
    assert known_instance_id(found, "demo") == instance
    assert known_password(found, "demo") == password
