"""Fixtures every kind of test may use: a real Valkey and a real PostgreSQL from the wheels, on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis as redis_py
from tests import order, rights

from agenthive_operator import rbac
from agenthive_operator.local import servers

STARTUP_SECONDS = 30.0
#: Environment of Python processes that end by SIGKILL: they never tell which lines they ran, and to note them costs a
#: third of their time.
UNMEASURED = {"COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""}


def pytest_configure(config: pytest.Config) -> None:
    """Compare what operators ask for with the rights their code names."""
    rights.install(config)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where files run side by side, the longest begin."""
    if hasattr(config, "workerinput"):
        order.reorder(items)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], what: str) -> None:
    """Poll a server that is starting until ``ready``; a server that exits fails at once."""
    deadline = time.monotonic() + STARTUP_SECONDS
    while not ready():
        if process.poll() is not None:
            raise RuntimeError(f"{what} exited with {process.returncode} while starting")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} was not ready within {STARTUP_SECONDS:.0f} s")
        time.sleep(0.02)


class ValkeyServer:
    """A Valkey process of one test or session: AOF on, no eviction, password."""

    def __init__(self, folder: Path, *, extra: tuple[str, ...] = (), password: str = "") -> None:
        self.folder = folder
        self.port = free_port()
        self.password = password or secrets.token_hex(8)
        self.extra = extra
        self.process: subprocess.Popen[bytes] | None = None
        (folder / "valkey.conf").write_text(
            f"bind 127.0.0.1\nport {self.port}\ndir {folder}\nappendonly yes\nappendfsync everysec\n"
            f"save ''\nmaxmemory-policy noeviction\nrequirepass {self.password}\n"
        )

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        with (self.folder / "valkey.log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(servers.valkey_server()), str(self.folder / "valkey.conf"), *self.extra], stdout=log, stderr=log
            )
        wait_until(self._answers, self.process, "valkey-server")

    def _answers(self) -> bool:
        try:
            with redis_py.Redis.from_url(self.url, socket_timeout=1) as client:
                return bool(client.ping())
        except redis_py.RedisError:
            return False

    def kill(self) -> None:
        """SIGKILL; ``start`` brings it back with what the AOF holds."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=10)


class PostgresTemplate:
    """A data folder that was never started: a copy takes a fifth of the time that making another one takes."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / "data"
        self.password = secrets.token_hex(8)
        servers.init_postgres(self._data, superuser="postgres", password=self.password)

    def copy(self, data: Path) -> None:
        subprocess.run(["cp", "-a", str(self._data), str(data)], check=True)


class PostgresServer:
    """A PostgreSQL process of one test or session: scram, loopback TCP only, fsync on."""

    def __init__(self, folder: Path, template: PostgresTemplate) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.port = free_port()
        self.password = template.password
        #: More of postgres's arguments, for the next start.
        self.extra: tuple[str, ...] = ()
        self.process: subprocess.Popen[bytes] | None = None
        template.copy(self.data)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        with (self.folder / "postgres.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    str(servers.postgres_program("postgres")), "-D", str(self.data), "-p", str(self.port),
                    "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "max_connections=300",
                    *self.extra,
                ],
                stdout=log, stderr=log, cwd=self.data, **servers.run_as(servers.unprivileged_account()),
            )  # fmt: skip
        wait_until(self._answers, self.process, "postgres")

    def _answers(self) -> bool:
        probe = [str(servers.postgres_program("pg_isready")), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(probe, check=False).returncode == 0

    def kill(self) -> None:
        """SIGKILL of the postmaster and every backend: one left behind would hold its shared memory and locks."""
        assert self.process is not None
        postmaster = psutil.Process(self.process.pid)
        postmaster.suspend()  # forks no more
        family = postmaster.children(recursive=True)
        for process in (postmaster, *family):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        psutil.wait_procs(family, timeout=10)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(2)  # SIGINT: fast shutdown
            self.process.wait(timeout=20)


@contextlib.contextmanager
def server_folder(name: str) -> Iterator[Path]:
    """A folder that PostgreSQL's own account can reach, which pytest's tmp_path is not when we are root."""
    folder = Path(tempfile.mkdtemp(prefix=f"agenthive-{name}-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """One Valkey for the session; a test isolates itself by a namespace or hive of its own (``unique``)."""
    with server_folder("valkey") as folder:
        server = ValkeyServer(folder)
        server.start()
        yield server
        server.stop()


@pytest.fixture
def own_valkey() -> Iterator[ValkeyServer]:
    """A Valkey of the test's own: to be killed, stopped, filled.

    It syncs always: under ``everysec`` what was confirmed waits in its memory as long as the sync before takes, and a
    SIGKILL then loses it. A test about that sets it back.
    """
    with server_folder("valkey") as folder:
        server = ValkeyServer(folder, extra=("--appendfsync", "always"))
        server.start()
        yield server
        server.stop()


@pytest.fixture(scope="session")
def postgres_template() -> Iterator[PostgresTemplate]:
    """What every PostgreSQL of the session begins with."""
    with server_folder("postgres") as folder:
        yield PostgresTemplate(folder)


@pytest.fixture(scope="session")
def postgres(postgres_template: PostgresTemplate) -> Iterator[PostgresServer]:
    """One PostgreSQL for the session; a test gets a database of its own from ``postgres_url``."""
    with server_folder("postgres") as folder:
        server = PostgresServer(folder, postgres_template)
        server.start()
        yield server
        server.stop()


@pytest.fixture
def own_postgres(postgres_template: PostgresTemplate) -> Iterator[PostgresServer]:
    """A PostgreSQL of the test's own: to be killed and restarted."""
    with server_folder("postgres") as folder:
        server = PostgresServer(folder, postgres_template)
        server.start()
        yield server
        server.stop()


@pytest.fixture
def redis_url(valkey: ValkeyServer) -> str:
    """URL of the session's Valkey."""
    return valkey.url


@pytest.fixture
async def postgres_url(postgres: PostgresServer) -> AsyncIterator[str]:
    """URL of a fresh database, dropped afterwards."""
    name = f"test_{secrets.token_hex(6)}"
    admin = await asyncpg.connect(postgres.url())
    await admin.execute(f"CREATE DATABASE {name}")
    try:
        yield postgres.url(name)
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


@pytest.fixture
def unique() -> str:
    """A DNS label no other test uses: for hive or namespace names."""
    return f"t{os.getpid():x}{secrets.token_hex(4)}"


# ---- A Kubernetes API server -------------------------------------------------------------------------------------

KUBECTL = Path(sys.executable).with_name("kubectl")


@dataclass(frozen=True)
class KubeApi:
    """An API server with the CRDs applied: the emulator, or the real one where KUBEBUILDER_ASSETS names it."""

    url: str
    token: str
    ca: Path
    kubeconfig: Path
    operator_kubeconfig: Path
    """That of an operator: where the API server is the real one, its user has the operator's rights and no others."""
    real: bool

    def kubectl(self, *args: str, stdin: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run kubectl; a failure shows what it printed."""
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig), "HOME": str(self.kubeconfig.parent)}
        done = subprocess.run(
            [str(KUBECTL), *args], input=stdin, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(f"kubectl {' '.join(args)} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def call(self, method: str, path: str, body: dict[str, object] | None = None) -> None:
        """One request that has to succeed."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, context=self.client_ssl(), timeout=30) as answer:
            answer.read()

    def client_ssl(self) -> ssl.SSLContext:
        """For HTTP clients in Python."""
        return ssl.create_default_context(cafile=str(self.ca))

    def apply_crds(self) -> None:
        """Apply the repository's CRDs and wait until they are served."""
        crds = Path(__file__).parent.parent / "crds"
        if any(crds.glob("*.yaml")):
            self.kubectl("apply", "--server-side", "-f", str(crds))
            self.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(crds))


@contextlib.contextmanager
def running_emulator(folder: Path, *flags: str) -> Iterator[KubeApi]:
    """The emulator as a process of its own."""
    with (folder / "emulator.log").open("ab") as log:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "agenthive_operator.local.apiserver", "--dir", str(folder),
                f"--audit-log-path={rights.audit_file()}", *flags,
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
    kubeconfig = folder / "kubeconfig"
    try:
        wait_until(lambda: b"/kubeconfig\n" in (folder / "emulator.log").read_bytes(), process, "the API emulator")
        user = json.loads(kubeconfig.read_text())
        url = user["clusters"][0]["cluster"]["server"]
        yield KubeApi(url, user["users"][0]["user"]["token"], folder / "ca.crt", kubeconfig, kubeconfig, real=False)
    finally:
        process.terminate()
        process.wait(timeout=10)


@contextlib.contextmanager
def running_kube_apiserver(folder: Path, assets: Path) -> Iterator[KubeApi]:
    """etcd and kube-apiserver, as envtest starts them; a token that may do everything, and the operator's."""
    from agenthive_operator.local.apiserver import ensure_client, ensure_tls, write_kubeconfig

    tls, (shown, shown_key) = ensure_tls(folder), ensure_client(folder)
    token, etcd, peer, port = secrets.token_hex(16), free_port(), free_port(), free_port()
    operator = secrets.token_hex(16)
    (folder / "tokens.csv").write_text(f"{token},admin,admin,system:masters\n{operator},{OPERATOR},{OPERATOR}\n")
    (folder / "audit.yaml").write_text(AUDIT_POLICY)
    started: list[subprocess.Popen[bytes]] = []
    with (folder / "servers.log").open("ab") as log:
        try:
            started.append(
                subprocess.Popen(
                    [
                        str(assets / "etcd"), "--data-dir", str(folder / "etcd"), "--unsafe-no-fsync",
                        f"--listen-client-urls=http://127.0.0.1:{etcd}",
                        f"--advertise-client-urls=http://127.0.0.1:{etcd}", f"--listen-peer-urls=http://127.0.0.1:{peer}",
                    ],
                    stdout=log, stderr=log,
                )
            )  # fmt: skip
            started.append(
                subprocess.Popen(
                    [
                        str(assets / "kube-apiserver"), f"--etcd-servers=http://127.0.0.1:{etcd}",
                        f"--secure-port={port}", "--bind-address=127.0.0.1", f"--tls-cert-file={tls.certificate}",
                        f"--tls-private-key-file={tls.key}", f"--service-account-key-file={tls.key}",
                        f"--service-account-signing-key-file={tls.key}",
                        "--service-account-issuer=https://kubernetes.default.svc", f"--cert-dir={folder}",
                        f"--token-auth-file={folder / 'tokens.csv'}", "--authorization-mode=RBAC",
                        f"--kubelet-client-certificate={shown}", f"--kubelet-client-key={shown_key}",
                        "--service-cluster-ip-range=10.96.0.0/16", "--disable-admission-plugins=ServiceAccount",
                        "--allow-privileged=true", "--endpoint-reconciler-type=none",
                        f"--audit-policy-file={folder / 'audit.yaml'}", f"--audit-log-path={rights.audit_file()}",
                    ],
                    stdout=log, stderr=log,
                )
            )  # fmt: skip
            url = f"https://127.0.0.1:{port}"
            kubeconfig = folder / "kubeconfig"
            write_kubeconfig(kubeconfig, url, tls.ca.read_bytes(), token)
            write_kubeconfig(folder / "operator.kubeconfig", url, tls.ca.read_bytes(), operator)
            api = KubeApi(url, token, tls.ca, kubeconfig, folder / "operator.kubeconfig", real=True)

            def ready() -> bool:
                return (
                    started[0].poll() is None
                    and api.kubectl("get", "--raw", "/readyz", check=False).returncode == 0
                    and api.kubectl("get", "namespace", "default", check=False).returncode == 0
                )

            wait_until(ready, started[1], "kube-apiserver")
            grant(api)
            yield api
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait(timeout=30)


OPERATOR = "agenthive-operator"
AUDIT_POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
"""


def grant(api: KubeApi) -> None:
    """Give the operator's user what its code asks for and no more."""
    group, metadata = "rbac.authorization.k8s.io", {"name": OPERATOR}
    role = {"kind": "ClusterRole", "rules": rbac.rules(rbac.rights(), *rbac.SCOPES)}
    binding = {
        "kind": "ClusterRoleBinding",
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": OPERATOR},
        "subjects": [{"apiGroup": group, "kind": "User", "name": OPERATOR}],
    }
    for plural, body in (("clusterroles", role), ("clusterrolebindings", binding)):
        path = f"/apis/{group}/v1/{plural}"
        api.call("POST", path, {"apiVersion": f"{group}/v1", "metadata": metadata, **body})


@pytest.fixture(scope="session")
def api_server() -> Iterator[KubeApi]:
    """One API server for the session, with the CRDs; a test isolates itself by a namespace of its own."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    with server_folder("apiserver") as folder, contextlib.ExitStack() as stack:
        if assets:
            api = stack.enter_context(running_kube_apiserver(folder, Path(assets)))
        else:
            api = stack.enter_context(running_emulator(folder, "--memory"))
        api.apply_crds()
        yield api


@pytest.fixture
def kube_namespace(api_server: KubeApi, unique: str) -> Iterator[str]:
    """A namespace of the test's own, deleted afterwards."""
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": unique}}
    api_server.call("POST", "/api/v1/namespaces", manifest)
    yield unique
    api_server.call("DELETE", f"/api/v1/namespaces/{unique}")
