"""The API server of a control plane: the emulator, or etcd and kube-apiserver where KUBEBUILDER_ASSETS names them.

Each runs as processes of its own: it can be killed and comes back without the rest, and its work never delays a probe.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
import time
from pathlib import Path

import aiohttp

from agenthive_operator.local.children import Child
from agenthive_operator.local.client import ApiClient, ApiError, Connection
from agenthive_operator.local.folder import Folder, kept_token
from agenthive_operator.local.kubelet.process import Records

ASSETS_VARIABLE = "KUBEBUILDER_ASSETS"
START_SECONDS = 60.0
AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
"""


class PlaneError(RuntimeError):
    """The API server did not come up; the text holds the end of its log."""


def free_port(preferred: int = 0) -> int:
    """``preferred`` if it is free on 127.0.0.1, else one that is."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise PlaneError("no TCP port of 127.0.0.1 is free")


def kept_port(file: Path, wanted: int) -> int:
    """The port to use: the one asked for, else that of last time, else a free one; written down.

    Raises:
        PlaneError: the port asked for is taken.
    """
    if wanted:
        port = free_port(wanted)
        if port != wanted:
            raise PlaneError(f"port {wanted} of 127.0.0.1 is taken: choose another --port")
    else:
        port = free_port(int(file.read_text()) if file.exists() else 0)
    file.write_text(str(port))
    return port


class Plane:
    """An API server made of child processes, reached by the folder's kubeconfig; ``port`` 0 means that of last time.

    ``audit``: a file that gets a line for each request, in the form of kube-apiserver; None: no such file.

    Raises:
        PlaneError: the port is taken, or KUBEBUILDER_ASSETS names no folder with both programs.
    """

    def __init__(self, folder: Folder, records: Records, *, port: int = 0, audit: Path | None = None) -> None:
        self._folder = folder
        self._records = records
        self._audit = audit
        assets = os.environ.get(ASSETS_VARIABLE)
        self.port = kept_port(folder.root / "port", port)
        self.name = "kube-apiserver" if assets else "the built-in API emulator"
        # The emulator asks kubelets by plain HTTP and shows its own token; the real one by TLS, with a certificate.
        self.kubelet_tls: ssl.SSLContext | None = None
        self.kubelet_token = None if assets else kept_token(folder.root / "token")
        # That of last time may lead elsewhere; it is written again as soon as the server answers.
        folder.kubeconfig.unlink(missing_ok=True)
        self._children = self._real(Path(assets)) if assets else [self._emulator()]

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def pids(self) -> list[int]:
        """The processes that run."""
        return [child.pid for child in self._children if child.pid is not None]

    async def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            PlaneError: it does not.
        """
        for child in self._children:
            child.start()
        deadline = time.monotonic() + START_SECONDS
        while all(child.exit_code is None for child in self._children) and time.monotonic() < deadline:
            if await self._answers():
                return
            await asyncio.sleep(0.05)
        raise PlaneError(f"{self.name} did not come up; the end of its log:\n{tail(self._folder.api_log)}")

    async def _answers(self) -> bool:
        if not self._folder.kubeconfig.exists():
            return False
        try:
            async with ApiClient(Connection.from_kubeconfig(self._folder.kubeconfig)) as client:
                await client.request("GET", "/api/v1/namespaces/default")
        except (ApiError, aiohttp.ClientError, TimeoutError, OSError):
            return False
        return True

    async def stop(self) -> None:
        """End it, the last started first."""
        for child in reversed(self._children):
            await child.stop()

    def _emulator(self) -> Child:
        module = "agenthive_operator.local.apiserver"
        options = ["--dir", str(self._folder.root), "--port", str(self.port)]
        if self._audit is not None:
            options.append(f"--audit-log-path={self._audit}")
        return self._child("apiserver", [sys.executable, "-P", "-m", module, *options])

    def _real(self, assets: Path) -> list[Child]:
        for program in ("etcd", "kube-apiserver"):
            if not (assets / program).exists():
                raise PlaneError(
                    f"{ASSETS_VARIABLE} is {assets}, where no {program} is: unset it, or name a folder with both"
                )
        # Here alone: the package brings the whole emulator along.
        from agenthive_operator.local.apiserver import ensure_client, ensure_tls, write_kubeconfig  # noqa: PLC0415

        root = self._folder.root
        tls, token = ensure_tls(root), kept_token(root / "token")
        shown, shown_key = ensure_client(root)
        self.kubelet_tls = tls.kubelet_context(shown)
        write_kubeconfig(self._folder.kubeconfig, self.url, tls.ca.read_bytes(), token)
        client, peer = free_port(), free_port()
        tokens = root / "tokens.csv"
        tokens.touch(mode=0o600)
        tokens.write_text(f"{token},agenthive-local,agenthive-local,system:masters\n")
        etcd = [
            str(assets / "etcd"), f"--data-dir={root / 'etcd'}", f"--listen-client-urls=http://127.0.0.1:{client}",
            f"--advertise-client-urls=http://127.0.0.1:{client}", f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}", f"--initial-cluster=default=http://127.0.0.1:{peer}",
        ]  # fmt: skip
        server = [
            str(assets / "kube-apiserver"), f"--etcd-servers=http://127.0.0.1:{client}", f"--secure-port={self.port}",
            "--bind-address=127.0.0.1", f"--tls-cert-file={tls.certificate}", f"--tls-private-key-file={tls.key}",
            f"--service-account-key-file={tls.key}", f"--service-account-signing-key-file={tls.key}",
            "--service-account-issuer=https://kubernetes.default.svc", f"--cert-dir={root / 'kube-apiserver'}",
            f"--kubelet-client-certificate={shown}", f"--kubelet-client-key={shown_key}",
            f"--token-auth-file={tokens}", "--authorization-mode=RBAC", "--service-cluster-ip-range=10.96.0.0/16",
            # No controller makes service accounts here; the endpoints of `kubernetes` lead nowhere a pod needs.
            "--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none", "--allow-privileged=true",
        ]  # fmt: skip
        if self._audit is not None:
            policy = root / "audit-policy.yaml"
            policy.write_text(AUDIT_POLICY)
            server += [f"--audit-policy-file={policy}", f"--audit-log-path={self._audit}"]
        return [self._child("etcd", etcd), self._child("kube-apiserver", server)]

    def _child(self, name: str, argv: list[str]) -> Child:
        folder = self._folder
        return Child(name, argv, env=os.environ, cwd=folder.root, log=folder.api_log, records=self._records)


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log."""
    if not log.exists():
        return "(no log)"
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
