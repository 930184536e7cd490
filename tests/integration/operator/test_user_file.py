"""The users of a managed Redis outlive its restarts while no operator runs: it finds them in a file when it starts."""

from __future__ import annotations

import base64
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
import redis.exceptions
from tests.conftest import server_folder, wait_until

from agenthive.bus import Bus
from agenthive.bus.access import user_name
from agenthive.bus.keys import AgentKeys
from agenthive.settings import HiveScope
from agenthive_operator.backends.kube import Object
from agenthive_operator.backends.resolve import Resolver
from agenthive_operator.local import servers
from agenthive_operator.plan.servers import SECRET_PATH
from agenthive_operator.plan.users import lines_in
from agenthive_operator.reconcile import users
from agenthive_operator.reconcile.context import Options

from .conftest import Cluster, running_operator
from .test_password_rotation import finished, switched
from .test_rotation import add_pod, ask, settled
from .test_users import lets_in, message, scope_in, url_of

FILE = "demo-redis-users"


class Kubelet:
    """What a kubelet does for the pod of the managed Redis: mounts, starts the server, tells that it is ready."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.address = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}.{secrets.randbelow(250) + 2}"
        self.process: subprocess.Popen[bytes] | None = None

    async def mount(self) -> None:
        """The files of the pod's volumes as they are now."""
        template = (await self.cluster.exists("StatefulSet", "demo-redis"))["spec"]["template"]
        (volume,) = [entry for entry in template["spec"]["volumes"] if entry["name"] == "secret"]
        mounted = self.folder / "secret"
        mounted.mkdir(exist_ok=True)
        for path in mounted.iterdir():
            path.unlink()
        for source in volume["projected"]["sources"]:
            secret = await self.cluster.get("Secret", source["secret"]["name"])
            assert secret is not None or source["secret"].get("optional")
            for name, value in ((secret or {}).get("data") or {}).items():
                (mounted / name).write_bytes(base64.b64decode(value))
        config = (await self.cluster.need("ConfigMap", "demo-redis"))["data"]["redis.conf"]
        config = config.replace(SECRET_PATH, str(mounted)).replace("dir /data", f"dir {self.folder}")
        (self.folder / "redis.conf").write_text(config + f"bind {self.address}\n")

    def start(self) -> None:
        """Start the server with what is mounted; it answers then."""
        command = [str(servers.valkey_server()), str(self.folder / "redis.conf")]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(self._answers, self.process, "valkey-server")

    def _answers(self) -> bool:
        with redis.Redis(host=self.address, retry=None) as client:
            try:
                client.ping()
            except redis.exceptions.AuthenticationError:
                return True  # who has no password is told so
            except redis.exceptions.RedisError:
                return False
        raise AssertionError("the server lets in who has no password")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    async def ready(self) -> None:
        """The pod, and that it is ready."""
        template = (await self.cluster.exists("StatefulSet", "demo-redis"))["spec"]["template"]
        await self.cluster.create(
            "Pod",
            "demo-redis-0",
            metadata={"labels": template["metadata"]["labels"]},
            spec={"containers": [{"name": "redis", "image": "valkey"}]},
        )
        await self.cluster.patch_status(
            "Pod", "demo-redis-0", phase="Running", conditions=[{"type": "Ready", "status": "True"}],
            podIP=self.address, podIPs=[{"ip": self.address}],
        )  # fmt: skip

    async def url(self, agent: str) -> str:
        """The URL that an agent's pods use, as it is dialled from here."""
        return await Resolver(self.cluster.kube, enabled=True).resolve(await url_of(self.cluster, agent))


@pytest.fixture
def kubelet(cluster: Cluster) -> Iterator[Kubelet]:
    with server_folder("managed") as folder:
        kubelet = Kubelet(cluster, folder)
        yield kubelet
        kubelet.kill()


@pytest.fixture
def options(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Options:
    """An operator that finds the server at its pod's address, and writes files sooner."""
    monkeypatch.setattr(users, "SETTLE_SECONDS", 0.5)
    return Options(namespaces=(cluster.namespace,), cleanup_seconds=3.0, resolve_services=True)


async def make_hive(cluster: Cluster, kubelet: Kubelet, postgres_url: str) -> HiveScope:
    await cluster.create("Secret", "urls", stringData={"postgres": postgres_url})
    external = {"urlSecretRef": {"name": "urls", "key": "postgres"}}
    await cluster.create("AgentHive", "demo", spec={"postgres": {"external": external}})
    await kubelet.mount()
    kubelet.start()
    await kubelet.ready()
    return await scope_in(cluster)


async def users_in(cluster: Cluster, scope: HiveScope) -> dict[str, int]:
    """The agents in the file, with how many passwords each has."""
    secret = await cluster.get("Secret", FILE)
    text = base64.b64decode(secret["data"]["users.acl"]).decode() if secret else ""
    found = lines_in(scope, text)
    assert "".join(found.values()) == text
    return {agent: line.count(" #") for agent, line in found.items()}


async def until_file(cluster: Cluster, scope: HiveScope, wanted: dict[str, int]) -> Object:
    async def check() -> bool:
        return await users_in(cluster, scope) == wanted

    await cluster.until(f"the file has the users {wanted}", check)
    return await cluster.need("Secret", FILE)


async def test_agents_come_in_at_once_though_no_operator_runs(
    cluster: Cluster, options: Options, kubelet: Kubelet, postgres_url: str
) -> None:
    async with running_operator(options):
        scope = await make_hive(cluster, kubelet, postgres_url)
        assert await cluster.get("Secret", FILE) is None, "nobody has a user"
        for name in ("anna", "bert"):
            await cluster.agent(name, "demo")
        await settled(cluster, "anna", "bert")
        written = await until_file(cluster, scope, {"anna": 1, "bert": 1})
        text = "user default on nopass +@all\nuser x +nonsense\n"
        await cluster.patch("Secret", FILE, stringData={"users.acl": text})

        async def mended() -> bool:
            return (await cluster.need("Secret", FILE))["data"] == written["data"]

        await cluster.until("what somebody wrote there is gone", mended)
    await restart(kubelet)
    anna, bert = await kubelet.url("anna"), await kubelet.url("bert")
    bus = await Bus.connect(anna, scope)  # functions come from the append-only file
    await bus.send(message("bert"))
    await bus.aclose()
    async with redis.asyncio.Redis.from_url(anna, protocol=2) as spy:
        for command in (
            ("XRANGE", AgentKeys.of(scope, "bert").dead, "-", "+"),
            ("CONFIG", "GET", "*"),
            ("ACL", "LIST"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                await spy.execute_command(*command)
    assert await rules(kubelet, cluster, scope, "bert")
    before = await rules(kubelet, cluster, scope, "anna")

    async with running_operator(options):  # finds all as it is to be
        await ask(cluster, "Agent", "anna", "1")
        await add_pod(cluster, "anna", "former")
        second = await switched(cluster, "anna")
        both = await until_file(cluster, scope, {"anna": 2, "bert": 1})
        assert await rules(kubelet, cluster, scope, "anna") == before, "the file says what ACL SETUSER says"
    await restart(kubelet)
    second = await kubelet.url("anna")
    assert [await lets_in(url) for url in (anna, second, bert)] == [True, True, True]
    assert both["metadata"]["uid"] == written["metadata"]["uid"]

    async with running_operator(options):
        await cluster.pods_ready("anna")
        await cluster.delete("Pod", "former")
        await finished(cluster, "anna")
        await cluster.delete("Agent", "bert")
        await until_file(cluster, scope, {"anna": 1})
    await restart(kubelet)
    assert [await lets_in(url) for url in (anna, second, bert)] == [False, True, False]


async def restart(kubelet: Kubelet) -> None:
    kubelet.kill()
    await kubelet.mount()
    kubelet.start()


async def rules(kubelet: Kubelet, cluster: Cluster, scope: HiveScope, agent: str) -> dict[str, Any]:
    """What the server says of a user, beside its passwords."""
    secret = await cluster.need("Secret", "demo-redis")
    password = base64.b64decode(secret["data"]["password"]).decode()
    async with redis.asyncio.Redis(host=kubelet.address, password=password, protocol=2) as root:
        answer = await root.execute_command("ACL", "GETUSER", user_name(scope, agent))
    found = {answer[at].decode(): answer[at + 1] for at in range(0, len(answer), 2)}
    del found["passwords"]
    return found
