"""Redis in its other forms, from the one program of the wheel: a Cluster, and a master that sentinels watch."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis as redis_py
from tests.conftest import STARTUP_SECONDS, ValkeyServer, free_port, server_folder, wait_until

from agenthive.bus.cluster import SLOTS, slot_of
from agenthive_operator.local import servers


def poll(ready: Callable[[], bool], what: str, seconds: float = STARTUP_SECONDS) -> None:
    """Wait until ``ready``; for what servers agree upon among themselves."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.02)


def ask(server: ValkeyServer, *command: Any) -> Any:
    """One command on one server."""
    with redis_py.Redis.from_url(server.url, socket_timeout=5, protocol=2) as client:
        return client.execute_command(*command)


class RedisCluster:
    """Masters that share the slots, and a replica of the first one where asked for; one password."""

    def __init__(self, folder: Path, *, masters: int = 3, replica: bool = False) -> None:
        self.password = secrets.token_hex(8)
        self.nodes: list[ValkeyServer] = []
        for n in range(masters + replica):
            home = folder / f"node-{n}"
            home.mkdir()
            extra = (
                "--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--cluster-node-timeout", "1000",
                "--masterauth", self.password, "--cluster-replica-validity-factor", "0",
                "--repl-diskless-sync-delay", "0",
            )  # fmt: skip
            self.nodes.append(ValkeyServer(home, extra=extra, password=self.password))
        self.masters = self.nodes[:masters]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"redis+cluster://:{self.password}@{hosts}"

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        share = SLOTS // len(self.masters)
        for n, node in enumerate(self.masters):
            last = SLOTS - 1 if node is self.masters[-1] else (n + 1) * share - 1
            ask(node, "CLUSTER", "ADDSLOTSRANGE", n * share, last)
            ask(node, "CLUSTER", "SET-CONFIG-EPOCH", n + 1)
        for node in self.nodes[1:]:
            ask(self.nodes[0], "CLUSTER", "MEET", "127.0.0.1", node.port, node.extra[3])
        poll(lambda: all(self._known(node) == len(self.nodes) for node in self.nodes), "the nodes meet")
        for replica in self.nodes[len(self.masters) :]:
            ask(replica, "CLUSTER", "REPLICATE", self.id_of(self.masters[0]))
            poll(lambda node=replica: ask(node, "INFO", "replication")["master_link_status"] == "up", "the replica")
        poll(lambda: all(self.state(node)["cluster_state"] == "ok" for node in self.nodes), "the cluster is up")

    def state(self, node: ValkeyServer) -> dict[str, str]:
        """CLUSTER INFO."""
        lines = ask(node, "CLUSTER", "INFO").decode().split()
        return dict(line.split(":", 1) for line in lines)

    def _known(self, node: ValkeyServer) -> int:
        return int(self.state(node)["cluster_known_nodes"])

    def id_of(self, node: ValkeyServer) -> str:
        return ask(node, "CLUSTER", "MYID").decode()

    def owner(self, key: str) -> ValkeyServer:
        """The master that owns a key, by its own account."""
        slot = slot_of(key)
        for first, last, (_, port, *_), *_ in ask(self.live()[0], "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"nobody owns slot {slot}")

    def live(self) -> list[ValkeyServer]:
        return [node for node in self.nodes if node.process is not None and node.process.poll() is None]

    def migrate(self, slot: int, target: ValkeyServer, *, before_the_end: Callable[[], None] = lambda: None) -> int:
        """Move one slot key by key, as ``redis-cli --cluster reshard`` does; returns how many keys moved."""
        source = next(
            node
            for node in self.masters
            for first, last, (_, port, *_), *_ in ask(node, "CLUSTER", "SLOTS")
            if first <= slot <= last and port == node.port
        )
        ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))
        moved = 0
        while keys := ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            ask(
                source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "AUTH", self.password, "KEYS", *keys
            )  # fmt: skip
            moved += len(keys)
        before_the_end()
        for node in (target, source, *self.masters):
            ask(node, "CLUSTER", "SETSLOT", slot, "NODE", self.id_of(target))
        return moved

    def stop(self) -> None:
        for node in self.live():
            node.kill()


class SentinelSetUp:
    """A master, its replica and sentinels of a password of their own, which know the master as ``the-bus``."""

    SERVICE = "the-bus"

    def __init__(self, folder: Path, *, sentinels: int = 1) -> None:
        self.folder = folder
        self.password = secrets.token_hex(8)
        self.sentinel_password = secrets.token_hex(8)
        self.servers: list[ValkeyServer] = []
        for name in ("one", "two"):
            (folder / name).mkdir()
            extra: tuple[str, ...] = ("--masterauth", self.password, "--repl-diskless-sync-delay", "0")
            self.servers.append(ValkeyServer(folder / name, extra=extra, password=self.password))
        self.ports = [free_port() for _ in range(sentinels)]
        self.sentinels: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        own = f"sentinel_password={self.sentinel_password}"
        return f"redis+sentinel://:{self.password}@{hosts}/{self.SERVICE}/0?{own}"

    def start(self) -> None:
        master, replica = self.servers
        master.start()
        replica.start()
        ask(replica, "REPLICAOF", "127.0.0.1", master.port)
        poll(lambda: ask(replica, "INFO", "replication")["master_link_status"] == "up", "the replica follows")
        for port in self.ports:
            self._start_sentinel(port, master)
        poll(lambda: all(self._sees_replica(port) for port in self.ports), "the sentinels see the replica")

    def _start_sentinel(self, port: int, master: ValkeyServer) -> None:
        conf = self.folder / f"sentinel-{port}.conf"
        name = self.SERVICE
        conf.write_text(
            f"bind 127.0.0.1\nport {port}\ndir {self.folder}\nrequirepass {self.sentinel_password}\n"
            f"sentinel sentinel-pass {self.sentinel_password}\n"
            f"sentinel monitor {name} 127.0.0.1 {master.port} {len(self.ports) // 2 + 1}\n"
            f"sentinel auth-pass {name} {self.password}\nsentinel down-after-milliseconds {name} 500\n"
            f"sentinel failover-timeout {name} 3000\n"
        )
        with (self.folder / f"sentinel-{port}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(servers.valkey_server()), str(conf), "--sentinel"], stdout=log, stderr=log
            )  # fmt: skip
        self.sentinels.append(process)
        wait_until(lambda: self._ask(port, "PING") is not None, process, "the sentinel")

    def _ask(self, port: int, *command: Any) -> Any:
        try:
            with redis_py.Redis(port=port, password=self.sentinel_password, socket_timeout=2, protocol=2) as client:
                return client.execute_command(*command)
        except redis_py.RedisError:
            return None

    def _sees_replica(self, port: int) -> bool:
        info = self._ask(port, "INFO", "sentinel") or {}
        entry = info.get("master0", {})
        return int(entry.get("slaves", 0)) == 1 and int(entry.get("sentinels", 0)) == len(self.ports)

    def master(self) -> ValkeyServer:
        """Whom the first sentinel calls the master."""
        _, port = self._ask(self.ports[0], "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.SERVICE)
        return next(server for server in self.servers if server.port == int(port))

    def fail_over(self) -> bool:
        """Ask for a planned failover until there has been one, as whoever plans it does: a sentinel says no
        (NOGOODSLAVE) while its last look at the replica is too old, and gives up one that takes too long.

        Returns:
            bool: whether the first server is the master no more.
        """
        told = self._ask(self.ports[0], "SENTINEL MASTER", self.SERVICE) or {}
        if int(told.get("port", 0)) == self.servers[0].port and "failover_in_progress" not in str(told.get("flags")):
            self._ask(self.ports[0], "SENTINEL", "FAILOVER", self.SERVICE)
        return self.master() is not self.servers[0]

    def stop(self) -> None:
        for process in self.sentinels:
            process.kill()
            process.wait()
        for server in self.servers:
            if server.process is not None and server.process.poll() is None:
                server.kill()


@contextlib.contextmanager
def running_cluster(**options: Any) -> Iterator[RedisCluster]:
    """A Redis Cluster on loopback."""
    with server_folder("cluster") as folder:
        cluster = RedisCluster(folder, **options)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@contextlib.contextmanager
def running_sentinels(**options: Any) -> Iterator[SentinelSetUp]:
    """A master, a replica and sentinels on loopback."""
    with server_folder("sentinel") as folder:
        setup = SentinelSetUp(folder, **options)
        try:
            setup.start()
            yield setup
        finally:
            setup.stop()
