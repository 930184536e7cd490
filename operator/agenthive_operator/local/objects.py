"""Small questions about Kubernetes objects, asked by every controller and by the kubelet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from agenthive_operator.local.resources import Obj, Resource

#: Letters of generated names: no vowels, so that none spells a word; as the real API server's.
SAFE_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
Key = tuple[str, str]  # namespace, name


def key_of(obj: Obj) -> Key:
    """(namespace, name)."""
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def uid_of(obj: Obj) -> str:
    """The object's uid."""
    return str(obj["metadata"]["uid"])


def version_of(obj: Obj) -> int:
    """The resourceVersion as the number it is (comparable since Kubernetes says so)."""
    return int(obj["metadata"].get("resourceVersion") or 0)


def labels_of(obj: Obj) -> dict[str, str]:
    """The labels, empty when there are none."""
    return dict(obj["metadata"].get("labels") or {})


def is_deleting(obj: Obj) -> bool:
    """Whether deletion was asked for."""
    return bool(obj["metadata"].get("deletionTimestamp"))


def controller_of(obj: Obj) -> Obj | None:
    """The owner reference with ``controller: true``."""
    for reference in obj["metadata"].get("ownerReferences") or []:
        if reference.get("controller"):
            return dict(reference)
    return None


def owner_reference(owner: Obj, resource: Resource) -> Obj:
    """A controlling, blocking reference to ``owner``."""
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "name": owner["metadata"]["name"],
        "uid": uid_of(owner),
        "controller": True,
        "blockOwnerDeletion": True,
    }


def matches(selector: Obj | None, labels: dict[str, str]) -> bool:
    """Whether a LabelSelector (matchLabels, matchExpressions) selects ``labels``; an empty one selects everything."""
    if selector is None:
        return False
    for name, value in (selector.get("matchLabels") or {}).items():
        if labels.get(name) != value:
            return False
    for rule in selector.get("matchExpressions") or []:
        name, values = rule["key"], rule.get("values") or []
        holds = {
            "In": labels.get(name) in values,
            "NotIn": labels.get(name) not in values,
            "Exists": name in labels,
            "DoesNotExist": name not in labels,
        }
        if not holds[rule["operator"]]:
            return False
    return True


def condition(obj: Obj, kind: str) -> Obj | None:
    """The condition of that type in ``status.conditions``."""
    for entry in (obj.get("status") or {}).get("conditions") or []:
        if entry.get("type") == kind:
            return dict(entry)
    return None


def is_ready(pod: Obj) -> bool:
    """Whether the pod's Ready condition is True."""
    found = condition(pod, "Ready")
    return found is not None and found.get("status") == "True"


def is_finished(pod: Obj) -> bool:
    """Whether the pod's phase is final."""
    return (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}


def is_available(pod: Obj, min_ready_seconds: int, now: datetime) -> bool:
    """Whether the pod has been ready for ``min_ready_seconds``."""
    found = condition(pod, "Ready")
    if found is None or found.get("status") != "True":
        return False
    since = parse_time(found.get("lastTransitionTime"))
    return min_ready_seconds == 0 or (since is not None and (now - since).total_seconds() >= min_ready_seconds)


def set_condition(conditions: Iterable[Obj], new: Obj, now: str) -> list[Obj]:
    """``conditions`` with ``new`` in place of its namesake; the transition time moves only with the status."""
    result, placed = [], False
    for old in conditions:
        if old["type"] != new["type"]:
            result.append(old)
            continue
        same = old.get("status") == new["status"]
        result.append({**new, "lastTransitionTime": old.get("lastTransitionTime", now) if same else now})
        placed = True
    if not placed:
        result.append({**new, "lastTransitionTime": now})
    return result


def utc_now() -> datetime:
    """The time, UTC."""
    return datetime.now(UTC)


def format_time(moment: datetime) -> str:
    """RFC 3339 with whole seconds, as Kubernetes writes times."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str | None) -> datetime | None:
    """The time of an RFC 3339 text, None of None."""
    return None if text is None else datetime.fromisoformat(text.replace("Z", "+00:00"))


def digest(value: Any, length: int = 10) -> str:
    """A short hash of a JSON value that may stand in a name: the same for the same value, however it is ordered."""
    number = int.from_bytes(hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()[:12])
    letters = []
    for _ in range(length):
        number, index = divmod(number, len(SAFE_LETTERS))
        letters.append(SAFE_LETTERS[index])
    return "".join(letters)
