"""Probes: the counting that turns results into verdicts, and the three ways to ask."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

import aiohttp

from agenthive_operator.local.resources import Obj


class Kind(StrEnum):
    """The three probes of a container."""

    STARTUP = "startup"
    LIVENESS = "liveness"
    READINESS = "readiness"


@dataclass(frozen=True, slots=True)
class Settings:
    """How often to ask and what counts. Seconds and numbers of results in a row."""

    initial_delay: float = 0.0
    period: float = 10.0
    timeout: float = 1.0
    success_threshold: int = 1
    failure_threshold: int = 3

    @classmethod
    def of(cls, probe: Obj) -> Settings:
        """From a probe's spec; what it leaves out has the API's defaults."""
        return cls(
            initial_delay=float(probe.get("initialDelaySeconds") or 0),
            period=float(probe.get("periodSeconds") or 10),
            timeout=float(probe.get("timeoutSeconds") or 1),
            success_threshold=int(probe.get("successThreshold") or 1),
            failure_threshold=int(probe.get("failureThreshold") or 3),
        )


@dataclass(slots=True)
class Verdict:
    """The state of one probe: None until enough results in a row say True or False."""

    settings: Settings
    value: bool | None = None
    _last: bool | None = None
    _run: int = 0

    def observe(self, success: bool) -> bool:
        """Count one result; whether the verdict changed."""
        self._run = self._run + 1 if success is self._last else 1
        self._last = success
        threshold = self.settings.success_threshold if success else self.settings.failure_threshold
        if self._run < threshold or self.value is success:
            return False
        self.value = success
        return True


@dataclass(frozen=True, slots=True)
class Result:
    """One answer, and in words why it failed."""

    success: bool
    message: str = ""


#: Runs a command in the container: its exit code and output.
Exec = Callable[[list[str], float], Awaitable[tuple[int, str]]]


class ProbeError(Exception):
    """The probe asks for something local mode does not do."""


def port_number(port: int | str, container: Obj) -> int:
    """The number of a port given by number or by name.

    Raises:
        ProbeError: the container has no port of that name.
    """
    if isinstance(port, int):
        return port
    for candidate in container.get("ports") or []:
        if candidate.get("name") == port:
            return int(candidate["containerPort"])
    if port.isdigit():
        return int(port)
    raise ProbeError(f"container {container['name']} has no port named {port!r}")


async def ask(probe: Obj, container: Obj, pod_ip: str, run: Exec) -> Result:
    """Ask once. A check that cannot be made counts as failed, with the reason."""
    timeout = Settings.of(probe).timeout
    try:
        async with asyncio.timeout(timeout):
            if "exec" in probe:
                code, output = await run(list(probe["exec"].get("command") or []), timeout)
                return Result(code == 0, output.strip() or f"exit code {code}")
            if "httpGet" in probe:
                return await _http(probe["httpGet"], container, pod_ip, timeout)
            if "tcpSocket" in probe:
                return await _tcp(probe["tcpSocket"], container, pod_ip)
    except TimeoutError:
        return Result(False, f"no answer within {timeout:g} s")
    except (OSError, aiohttp.ClientError, ProbeError) as error:
        return Result(False, str(error) or type(error).__name__)
    return Result(False, "the probe names none of exec, httpGet, tcpSocket; grpc is not offered in local mode")


async def _http(action: Obj, container: Obj, pod_ip: str, timeout: float) -> Result:
    scheme = (action.get("scheme") or "HTTP").lower()
    host = action.get("host") or pod_ip
    url = f"{scheme}://{host}:{port_number(action['port'], container)}/{(action.get('path') or '/').lstrip('/')}"
    headers = {"User-Agent": "kube-probe/agenthive", "Accept": "*/*", "Connection": "close"}
    headers |= {header["name"]: header["value"] for header in action.get("httpHeaders") or []}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout)) as session,
        # As the real one, without a look at the certificate.
        session.get(url, headers=headers, ssl=False, allow_redirects=False) as response,
    ):
        if 200 <= response.status < 400:
            return Result(True)
        text = (await response.content.read(1024)).decode(errors="replace").strip()
        return Result(False, f"HTTP probe failed with statuscode: {response.status} {text}".rstrip())


async def _tcp(action: Obj, container: Obj, pod_ip: str) -> Result:
    host = action.get("host") or pod_ip
    _, writer = await asyncio.open_connection(host, port_number(action["port"], container))
    writer.close()
    await writer.wait_closed()
    return Result(True)
