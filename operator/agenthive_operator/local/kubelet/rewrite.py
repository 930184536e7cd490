"""The one place where a container's view of the world becomes this machine's: mount paths and Service names in text.

A container sees ``/data`` and ``demo-redis.default.svc``; the process that stands for it has neither. Environment
values, arguments and the configuration file of a known server pass through ``Rewrite.text`` before the process starts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

#: ``[host.]service.namespace.svc[.cluster.local][:port]``
_SERVICE = re.compile(
    r"(?<![\w.-])(?:(?P<host>[a-z0-9-]+)\.)?(?P<service>[a-z0-9-]+)\.(?P<namespace>[a-z0-9-]+)\.svc(?:\.cluster\.local)?"
    r"(?P<port>:\d+)?(?![\w-]|\.\w)"
)


@dataclass(frozen=True, slots=True)
class ServiceName:
    """A Service, or one pod (``host``) below a headless one, as named in a text."""

    namespace: str
    service: str
    host: str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """Where a Service name leads: an address, and the port numbers that differ there."""

    address: str
    ports: Mapping[int, int] = field(default_factory=dict)


def service_names(texts: Iterable[str]) -> set[ServiceName]:
    """Every Service named in ``texts``."""
    return {_name(match) for text in texts for match in _SERVICE.finditer(text)}


def _name(match: re.Match[str]) -> ServiceName:
    return ServiceName(match["namespace"], match["service"], match["host"])


@dataclass(frozen=True)
class Rewrite:
    """Paths and names of one container.

    Args:
        paths: path in the container → path on this machine; a path stands for everything below it.
        targets: Services that have an address; a name that is not in it stays as it is.
    """

    paths: Mapping[str, str] = field(default_factory=dict)
    targets: Mapping[ServiceName, Target] = field(default_factory=dict)

    def text(self, value: str) -> str:
        """``value`` with paths and names replaced."""
        return self._with_paths(self._with_services(value))

    def path(self, value: str) -> str | None:
        """Where a path of the container lies on this machine; None when nothing is mounted there."""
        rewritten = self._with_paths(value)
        return rewritten if rewritten != value else None

    def _with_services(self, value: str) -> str:
        def replace(match: re.Match[str]) -> str:
            target = self.targets.get(_name(match))
            if target is None:
                return match[0]
            port = int(match["port"][1:]) if match["port"] else None
            return target.address if port is None else f"{target.address}:{target.ports.get(port, port)}"

        return _SERVICE.sub(replace, value) if self.targets else value

    def _with_paths(self, value: str) -> str:
        if self._pattern is None:
            return value
        return self._pattern.sub(lambda match: self._normal[match[0]], value)

    @cached_property
    def _normal(self) -> dict[str, str]:
        return {path.rstrip("/"): target for path, target in self.paths.items() if path.rstrip("/")}

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        # A path begins where no other path goes on (``=/data``, ``:/data``, ``file:///data``) and ends with its last
        # segment (``/data/x`` and ``/data:``, not ``/database``). The longest mount wins.
        if not self._normal:
            return None
        paths = "|".join(re.escape(path) for path in sorted(self._normal, key=len, reverse=True))
        return re.compile(rf"(?:(?<![\w./-])|(?<=://))(?:{paths})(?![\w.-])")
