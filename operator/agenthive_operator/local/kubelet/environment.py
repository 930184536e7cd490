"""A container's environment and command line from its spec: pure functions over objects fetched before."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agenthive_operator.local.resources import Obj
from agenthive_operator.plan import quantity

_REFERENCE = re.compile(r"\$\$|\$\(([^()$\s]+)\)")
_SUBSCRIPT = re.compile(r"^metadata\.(labels|annotations)\['([^']+)'\]$")


class ConfigError(Exception):
    """A pod refers to something that is not there (yet), or asks for what local mode does not do."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A Secret or ConfigMap that a pod uses."""

    kind: str
    name: str


#: What was found for each reference: its data as bytes by key; None when there is no such object.
Sources = Mapping[Reference, Mapping[str, bytes] | None]


def references(container: Obj) -> set[Reference]:
    """The Secrets and ConfigMaps in a container's ``env`` and ``envFrom``."""
    found = set()
    for source in container.get("envFrom") or []:
        if "secretRef" in source:
            found.add(Reference("Secret", source["secretRef"]["name"]))
        if "configMapRef" in source:
            found.add(Reference("ConfigMap", source["configMapRef"]["name"]))
    for variable in container.get("env") or []:
        value_from = variable.get("valueFrom") or {}
        if "secretKeyRef" in value_from:
            found.add(Reference("Secret", value_from["secretKeyRef"]["name"]))
        if "configMapKeyRef" in value_from:
            found.add(Reference("ConfigMap", value_from["configMapKeyRef"]["name"]))
    return found


def data_of(obj: Obj | None) -> dict[str, bytes] | None:
    """The data of a Secret or ConfigMap, decoded."""
    if obj is None:
        return None
    if obj["kind"] == "Secret":
        return {key: base64.b64decode(value) for key, value in (obj.get("data") or {}).items()}
    data = {key: value.encode() for key, value in (obj.get("data") or {}).items()}
    return data | {key: base64.b64decode(value) for key, value in (obj.get("binaryData") or {}).items()}


def expand(text: str, variables: Mapping[str, str]) -> str:
    """``$(NAME)`` replaced by the variable; ``$$`` is a dollar; an unknown name stays as it is written."""

    def replace(match: re.Match[str]) -> str:
        if match[1] is None:
            return "$"
        return variables.get(match[1], match[0])

    return _REFERENCE.sub(replace, text)


def environment(container: Obj, pod: Obj, sources: Sources, *, base: Mapping[str, str]) -> dict[str, str]:
    """The container's variables: ``base``, then envFrom, then env in order, each able to use those before it.

    Raises:
        ConfigError: an object or key that is not optional is missing.
    """
    variables = dict(base)
    for source in container.get("envFrom") or []:
        variables |= _from_source(source, sources)
    for variable in container.get("env") or []:
        if "valueFrom" in variable:
            value = _value_from(variable["valueFrom"], container, pod, sources)
            if value is None:
                continue
        else:
            value = expand(variable.get("value") or "", variables)
        variables[variable["name"]] = value
    return variables


def _from_source(source: Obj, sources: Sources) -> dict[str, str]:
    kind, reference = (
        ("Secret", source["secretRef"]) if "secretRef" in source else ("ConfigMap", source["configMapRef"])
    )
    data = sources[Reference(kind, reference["name"])]
    if data is None:
        if reference.get("optional"):
            return {}
        raise ConfigError(f'{kind.lower()} "{reference["name"]}" not found')
    prefix = source.get("prefix") or ""
    return {prefix + key: _text(value, kind, reference["name"], key) for key, value in data.items() if "=" not in key}


def _text(value: bytes, kind: str, name: str, key: str) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"key {key} of {kind} {name} is not text: mount it as a file instead") from error
    if "\0" in text:
        raise ConfigError(f"key {key} of {kind} {name} holds a NUL byte: mount it as a file instead")
    return text


def _value_from(value_from: Obj, container: Obj, pod: Obj, sources: Sources) -> str | None:
    if "fieldRef" in value_from:
        return field(pod, value_from["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in value_from:
        return resource_field(container, value_from["resourceFieldRef"])
    kind, selector = (
        ("Secret", value_from["secretKeyRef"])
        if "secretKeyRef" in value_from
        else ("ConfigMap", value_from["configMapKeyRef"])
    )
    data = sources[Reference(kind, selector["name"])]
    if data is None:
        if selector.get("optional"):
            return None
        raise ConfigError(f'{kind.lower()} "{selector["name"]}" not found')
    if selector["key"] not in data:
        if selector.get("optional"):
            return None
        raise ConfigError(
            f"couldn't find key {selector['key']} in {kind} {pod['metadata']['namespace']}/{selector['name']}"
        )
    return _text(data[selector["key"]], kind, selector["name"], selector["key"])


def field(pod: Obj, path: str) -> str:
    """A field of the downward API.

    Raises:
        ConfigError: no such field is offered.
    """
    meta, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
    if (found := _SUBSCRIPT.match(path)) is not None:
        return str((meta.get(found[1]) or {}).get(found[2], ""))
    if path in {"metadata.labels", "metadata.annotations"}:
        entries = meta.get(path.removeprefix("metadata.")) or {}
        return "".join(f'{key}="{_escaped(value)}"\n' for key, value in sorted(entries.items())).rstrip("\n")
    simple = {
        "metadata.name": meta["name"],
        "metadata.namespace": meta["namespace"],
        "metadata.uid": meta["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.hostIP": status.get("hostIP", ""),
        "status.hostIPs": status.get("hostIP", ""),
        "status.podIP": status.get("podIP", ""),
        "status.podIPs": status.get("podIP", ""),
    }
    if path not in simple:
        raise ConfigError(f"fieldPath {path!r} is not offered: use one of {', '.join(sorted(simple))}")
    return str(simple[path])


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def resource_field(container: Obj, reference: Obj) -> str:
    """``limits.cpu``, ``requests.memory`` … in units of the divisor, rounded up; 0 without a limit.

    Raises:
        ConfigError: the resource is not of that form, or it or the divisor is no quantity.
    """
    side, _, name = reference["resource"].partition(".")
    if side not in {"limits", "requests"} or not name:
        raise ConfigError(
            f"resourceFieldRef {reference['resource']!r} is not offered: use limits.<name> or requests.<name>"
        )
    amount = ((container.get("resources") or {}).get(side) or {}).get(name, "0")
    try:
        divisor = quantity.value(reference.get("divisor") or "1") or 1
        return str(math.ceil(quantity.value(amount) / divisor))
    except ValueError as error:
        raise ConfigError(f"resourceFieldRef {reference['resource']}: {error}") from error


def command_line(words: Iterable[str], variables: Mapping[str, str]) -> list[str]:
    """``command`` or ``args`` with ``$(NAME)`` expanded."""
    return [expand(word, variables) for word in words]
