"""The merge of ``spec.podTemplate`` into the operator's pod template: a strategic merge by the one table of keys."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from agenthive_operator.mergekeys import Path, pod_template_rule


def merge_pod_template(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``patch`` merged in, as a strategic merge patch would.

    Objects merge field by field. Lists that have a merge key in Kubernetes (containers, env, volumes, volumeMounts …)
    merge item by item: known items keep their place, new ones follow. Other lists are replaced. None removes a field.

    Args:
        base: A PodTemplateSpec; it is not changed.
        patch: A partial PodTemplateSpec. What is malformed replaces what it names: the API server then refuses it.
    """
    return _merge_objects(base, patch, ())


def _merge_objects(base: Mapping[str, Any], patch: Mapping[str, Any], path: Path) -> dict[str, Any]:
    result = dict(base)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merge_values(base.get(key), value, (*path, key))
    return result


def _merge_values(base: Any, patch: Any, path: Path) -> Any:
    if isinstance(base, Mapping) and isinstance(patch, Mapping):
        return _merge_objects(base, patch, path)
    if isinstance(patch, Mapping):
        # Nothing to merge into, but a None below still means absent.
        return _merge_objects({}, patch, path)
    rule = pod_template_rule(path)
    if isinstance(base, list) and isinstance(patch, list) and rule is not None and rule.patch_key is not None:
        return _merge_lists(base, patch, rule.patch_key, path)
    return copy.deepcopy(patch)


def _merge_lists(base: Sequence[Any], patch: Sequence[Any], key: str, path: Path) -> list[Any]:
    result = list(base)
    for item in patch:
        place = next((i for i, known in enumerate(result) if _same(known, item, key)), None)
        if place is None:
            result.append(copy.deepcopy(item))
        elif path[-1] == "env":
            # A variable has a value or a source: a patch of the one must not leave the other behind.
            result[place] = copy.deepcopy(item)
        else:
            result[place] = _merge_objects(result[place], item, path)
    return result


def _same(known: Any, item: Any, key: str) -> bool:
    return isinstance(known, Mapping) and isinstance(item, Mapping) and key in item and known.get(key) == item[key]
