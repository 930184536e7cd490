"""Validation of NetworkPolicies."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from . import errors
from .errors import FieldError, Json

_PROTOCOLS = ("TCP", "UDP", "SCTP")
_DIRECTIONS = ("Ingress", "Egress")
_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")
_PORT_NAME = re.compile(r"^(?=.{1,15}$)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*$")
_RANGE = "must be between 1 and 65535, inclusive"
_CIDR = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"


def check_network_policy(obj: Json, _: Json | None) -> list[FieldError]:
    """What is wrong with a NetworkPolicy's spec."""
    spec = obj.get("spec", {})
    found = _selector(spec.get("podSelector", {}), "spec.podSelector")
    for group, peers in (("ingress", "from"), ("egress", "to")):
        for index, rule in enumerate(spec.get(group, ())):
            here = f"spec.{group}[{index}]"
            for place, port in enumerate(rule.get("ports", ())):
                found += _port(port, f"{here}.ports[{place}]")
            for place, peer in enumerate(rule.get(peers, ())):
                found += _peer(peer, f"{here}.{peers}[{place}]")
    for index, direction in enumerate(spec.get("policyTypes", ())):
        if direction not in _DIRECTIONS:
            found.append(errors.not_supported(f"spec.policyTypes[{index}]", direction, _DIRECTIONS))
    return found


def _port(port: Json, path: str) -> list[FieldError]:
    found = []
    if port.get("protocol", "TCP") not in _PROTOCOLS:
        found.append(errors.not_supported(f"{path}.protocol", port["protocol"], _PROTOCOLS))
    number, end = port.get("port"), port.get("endPort")
    if isinstance(number, int) and not 1 <= number <= 65535:
        found.append(errors.invalid(f"{path}.port", number, _RANGE))
    if isinstance(number, str) and not _PORT_NAME.match(number):
        text = "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"
        found.append(errors.invalid(f"{path}.port", number, text))
    if end is not None:
        found += _end_port(number, end, f"{path}.endPort")
    return found


def _end_port(number: Any, end: int, path: str) -> list[FieldError]:
    if number is None:
        return [errors.invalid(path, end, "may not be specified when `port` is not specified")]
    if isinstance(number, str):
        return [errors.invalid(path, end, "may not be specified when `port` is non-numeric")]
    found = []
    if end < number:
        # The real one names the port here.
        found.append(errors.invalid(path, number, "must be greater than or equal to `port`"))
    if not 1 <= end <= 65535:
        found.append(errors.invalid(path, end, _RANGE))
    return found


def _peer(peer: Json, path: str) -> list[FieldError]:
    if not peer:
        return [errors.required(path, "must specify a peer")]
    found: list[FieldError] = []
    for name in ("podSelector", "namespaceSelector"):
        if name in peer:
            found += _selector(peer[name], f"{path}.{name}")
    if "ipBlock" in peer:
        found += _block(peer["ipBlock"], f"{path}.ipBlock")
        if len(peer) > 1:
            found.append(errors.forbidden_field(path, "may not specify both ipBlock and another peer"))
    return found


def _block(block: Json, path: str) -> list[FieldError]:
    text = block.get("cidr", "")
    if not text:
        return [errors.required(f"{path}.cidr")]
    whole = _network(text)
    if whole is None:
        return [errors.invalid(f"{path}.cidr", text, _CIDR)]
    found = []
    for index, excepted in enumerate(block.get("except", ())):
        part = _network(excepted)
        here = f"{path}.except[{index}]"
        if part is None:
            found.append(errors.invalid(here, excepted, _CIDR))
        elif part.version != whole.version or part == whole or not _within(part, whole):
            found.append(errors.invalid(here, excepted, "must be a strict subset of `cidr`"))
    return found


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text, strict=False) if "/" in text else None
    except ValueError:
        return None


def _within(part: Network, whole: Network) -> bool:
    return whole.prefixlen < part.prefixlen and part.network_address in whole


def _selector(selector: Json, path: str) -> list[FieldError]:
    found = []
    for index, term in enumerate(selector.get("matchExpressions", ())):
        here, operator = f"{path}.matchExpressions[{index}]", term.get("operator", "")
        if operator not in _OPERATORS:
            found.append(errors.invalid(f"{here}.operator", operator, "not a valid selector operator"))
        elif operator in ("In", "NotIn") and not term.get("values"):
            text = "must be specified when `operator` is 'In' or 'NotIn'"
            found.append(errors.required(f"{here}.values", text))
        elif operator in ("Exists", "DoesNotExist") and term.get("values"):
            text = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
            found.append(errors.forbidden_field(f"{here}.values", text))
    return found
