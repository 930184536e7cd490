"""Jobs as the API server takes them: defaults, the selector and labels it makes up, and what it refuses."""

from __future__ import annotations

from . import errors
from .errors import FieldError, Json

_POLICIES = ("OnFailure", "Never")
_IMMUTABLE = ("completions", "completionMode", "selector", "template")
_STARTS_WITH = "batch.kubernetes.io/"


def fill(obj: Json, old: Json | None) -> None:
    """Defaults, before those of the pod template; changes ``obj``."""
    spec = obj.setdefault("spec", {})
    if "completions" not in spec and "parallelism" not in spec:
        spec["completions"] = 1
    defaults = {
        "parallelism": 1, "backoffLimit": 6, "completionMode": "NonIndexed", "suspend": False, "manualSelector": False,
        "podReplacementPolicy": "TerminatingOrFailed",
    }  # fmt: skip
    for name, value in defaults.items():
        spec.setdefault(name, value)
    meta = obj["metadata"]
    if old is not None or spec["manualSelector"]:
        return
    named = {"controller-uid": meta["uid"], "job-name": meta.get("name", "")}
    template = spec.setdefault("template", {}).setdefault("metadata", {})
    template["labels"] = {
        **(template.get("labels") or {}), **{_STARTS_WITH + name: value for name, value in named.items()}, **named
    }  # fmt: skip
    spec["selector"] = {"matchLabels": {_STARTS_WITH + "controller-uid": meta["uid"]}}
    if not meta.get("labels"):
        meta["labels"] = dict(template["labels"])


def check(obj: Json, old: Json | None) -> list[FieldError]:
    """What is wrong with a Job besides its pods' spec."""
    spec = obj.get("spec", {})
    found: list[FieldError] = []
    policy = spec.get("template", {}).get("spec", {}).get("restartPolicy")
    if policy not in _POLICIES:
        text = "valid values: " + ", ".join(f'"{name}"' for name in _POLICIES)
        found.append(errors.required("spec.template.spec.restartPolicy", text))
    found += [
        errors.invalid(f"spec.{name}", spec[name], "must be greater than or equal to 0")
        for name in ("completions", "parallelism", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished")
        if spec.get(name, 0) < 0
    ]
    if old is not None:
        found += [
            errors.invalid(f"spec.{name}", spec.get(name), "field is immutable")
            for name in _IMMUTABLE
            if spec.get(name) != old["spec"].get(name)
        ]
    return found + _check_end(obj.get("status", {}))


def _check_end(status: Json) -> list[FieldError]:
    """A Job that ended has to say since when, and has met its end beforehand."""
    true = {entry.get("type") for entry in status.get("conditions", ()) if entry.get("status") == "True"}
    found: list[FieldError] = []
    if "Complete" in true and "completionTime" not in status:
        found.append(errors.required("status.completionTime", "completionTime is required for Complete jobs"))
    for end, before in (("Complete", "SuccessCriteriaMet"), ("Failed", "FailureTarget")):
        if end in true and before not in true:
            text = f"cannot set {end}=True condition without the {before}=true condition"
            found.append(errors.invalid("status.conditions", [], text))
    if true & {"Complete", "Failed"} and "startTime" not in status:
        found.append(errors.required("status.startTime", "startTime is required for finished job"))
    return found
