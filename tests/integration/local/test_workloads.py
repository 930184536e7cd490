"""Deployments and pods as processes: rollout, scale, probes, crashes, messages, mounts, the end."""

from __future__ import annotations

import asyncio
import base64
import json
import signal

import aiohttp
import psutil
import pytest

from agenthive_operator.local.kubelet.addresses import NODE_PORT
from agenthive_operator.local.objects import condition, is_deleting, is_ready
from agenthive_operator.local.resources import DEPLOYMENTS, ENDPOINT_SLICES, PODS, REPLICA_SETS

SERVER = """
import http.server, os, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(os.environ["VERSION"].encode())
    def log_message(self, *args): pass
signal.signal(signal.SIGTERM, lambda *_: (print("bye", flush=True), sys.exit(0)))
print("serving", os.environ["VERSION"], flush=True)
http.server.HTTPServer((os.environ["POD_IP"], 8080), Handler).serve_forever()
"""


def container(code: str, **more) -> dict:
    return {"name": "main", "image": "any", "command": ["python", "-c", code], **more}


def pod(name: str, code: str, *, spec: dict | None = None, **more) -> dict:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 2, "containers": [container(code, **more)], **(spec or {})},
    }


def deployment(name: str, version: str, replicas: int) -> dict:
    serving = container(
        SERVER,
        env=[
            {"name": "VERSION", "value": version},
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ],
        ports=[{"name": "http", "containerPort": 8080}],
        readinessProbe={"httpGet": {"port": "http"}, "periodSeconds": 1},
    )
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [serving], "terminationGracePeriodSeconds": 2},
            },
        },
    }


def service(name: str) -> dict:
    ports = [{"name": "http", "port": 80, "targetPort": "http"}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": ports},
    }


async def complete(node, name: str, replicas: int) -> dict | None:
    found = await node.get(DEPLOYMENTS, name)
    status = (found or {}).get("status") or {}
    figures = [status.get(key, 0) for key in ("replicas", "updatedReplicas", "availableReplicas")]
    seen = status.get("observedGeneration") == found["metadata"]["generation"]
    return found if seen and figures == [replicas] * 3 else None


async def ready_addresses(node, name: str) -> set[str]:
    if node.api.real:  # it takes no loopback addresses in EndpointSlices
        return {p["status"]["podIP"] for p in await node.pods(app=name) if is_ready(p) and not is_deleting(p)}
    slices, _ = await node.client.list(ENDPOINT_SLICES, node.namespace, labels=f"kubernetes.io/service-name={name}")
    return {
        address
        for each in slices
        for endpoint in each["endpoints"] or []
        if endpoint["conditions"]["ready"]
        for address in endpoint["addresses"]
    }


async def http(address: str) -> str | None:
    """The server's answer; None when it ended since its address was read."""
    try:
        reader, writer = await asyncio.open_connection(address, 8080)
    except ConnectionRefusedError:
        return None
    try:
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
    except ConnectionResetError:  # it ended between taking the connection and answering
        return None
    return text.rpartition("\n")[2] or None


async def test_deployment_rolls_scales_and_is_collected(node) -> None:
    node.apply(deployment("web", "1", 2), service("web"))
    first = await node.until(lambda: complete(node, "web", 2), "complete")
    assert condition(first, "Available")["status"] == "True"
    assert first["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "1"
    addresses = await node.until(lambda: ready_addresses(node, "web"), "endpoints")
    assert {await http(each) for each in addresses} == {"1"}

    # While it rolls, someone always answers.
    node.apply(deployment("web", "2", 2))
    versions = set()

    async def rolled() -> bool:
        answers = {await http(each) for each in await ready_addresses(node, "web")} - {None}
        assert answers, "no endpoint in the middle of a rollout"
        versions.update(answers)
        return await complete(node, "web", 2) is not None and answers == {"2"}

    await node.until(rolled, "rolled")
    assert versions == {"1", "2"}
    sets, _ = await node.client.list(REPLICA_SETS, node.namespace)
    assert sorted(rs["spec"]["replicas"] for rs in sets) == [0, 2]

    await node.kubectl("scale", "deployment/web", "--replicas=1")
    await node.until(lambda: complete(node, "web", 1), "scaled down")

    # A killed pod is replaced, a deleted Deployment takes everything along.
    (old,) = [p for p in await node.pods(app="web") if not p["metadata"].get("deletionTimestamp")]
    await node.kubectl("delete", "pod", old["metadata"]["name"])
    await node.until(lambda: complete(node, "web", 1), "replaced")
    await node.kubectl("delete", "deployment", "web")

    async def nothing() -> bool:
        return not await node.pods() and not (await node.client.list(REPLICA_SETS, node.namespace))[0]

    await node.until(nothing, "collected")
    await node.kubectl("delete", "service", "web")


async def test_rollout_undo_and_a_rollout_that_hangs(node) -> None:
    node.apply(deployment("web", "1", 1))
    await node.until(lambda: complete(node, "web", 1), "complete")
    broken = deployment("web", "2", 1)
    broken["spec"]["template"]["spec"]["containers"][0]["command"] = ["no-such-program"]
    node.apply(broken)

    async def failing() -> bool:
        return any(
            "executable file not found" in json.dumps(p["status"]) and "StartError" in json.dumps(p["status"])
            for p in await node.pods(app="web")
        )

    await node.until(failing, "the new pod does not start")
    assert sum(map(is_ready, await node.pods(app="web"))) == 1, "the old pod serves on"
    await node.kubectl("rollout", "undo", "deployment/web")
    found = await node.until(lambda: complete(node, "web", 1), "undone")
    assert found["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "3"
    await node.kubectl("delete", "deployment", "web", "--cascade=foreground")
    assert await node.get(DEPLOYMENTS, "web") is None
    assert await node.pods(app="web") == [], "foreground: the pods went first"


async def test_orphans_are_adopted(node) -> None:
    node.apply(deployment("web", "1", 1))
    await node.until(lambda: complete(node, "web", 1), "complete")
    (before,) = await node.pods(app="web")
    await node.kubectl("delete", "deployment", "web", "--cascade=orphan")

    async def orphaned() -> bool:
        (each,) = (await node.client.list(REPLICA_SETS, node.namespace))[0]
        return not each["metadata"].get("ownerReferences")

    await node.until(orphaned, "orphaned")
    node.apply(deployment("web", "1", 1))
    await node.until(lambda: complete(node, "web", 1), "adopted")
    assert [p["metadata"]["uid"] for p in await node.pods(app="web")] == [before["metadata"]["uid"]]
    await node.kubectl("delete", "deployment", "web")


async def test_crash_loop_with_messages_and_logs(node) -> None:
    code = (
        "import os, sys; print('starting'); print('to stderr', file=sys.stderr);"
        "open(os.environ['AGENTHIVE_TERMINATION_LOG'], 'w').write('it broke'); sys.exit(3)"
    )
    node.apply(pod("crash", code))

    def looping(found: dict) -> bool:
        (each,) = found["status"].get("containerStatuses") or [{}]
        waiting = (each.get("state") or {}).get("waiting") or {}
        return each.get("restartCount", 0) >= 2 and waiting.get("reason") == "CrashLoopBackOff"

    found = await node.until_pod("crash", looping, "CrashLoopBackOff")
    (state,) = found["status"]["containerStatuses"]
    ended = state["lastState"]["terminated"]
    assert (ended["exitCode"], ended["reason"], ended["message"]) == (3, "Error", "it broke")
    assert found["status"]["phase"] == "Running"
    assert condition(found, "Ready")["reason"] == "ContainersNotReady"
    assert set((await node.kubectl("logs", "crash", "--previous")).splitlines()) == {"starting", "to stderr"}
    await node.until(
        lambda: node.kubectl("get", "events", "--field-selector=reason=BackOff", "-o", "name"), "a BackOff event"
    )
    await node.kubectl("delete", "pod", "crash")


async def test_message_falls_back_to_the_log(node) -> None:
    node.apply(
        pod(
            "fallback",
            "print('line 1'); raise SystemExit('the reason')",
            spec={"restartPolicy": "Never"},
            terminationMessagePolicy="FallbackToLogsOnError",
        )
    )
    found = await node.until_pod("fallback", lambda p: p["status"].get("phase") == "Failed", "failed")
    (state,) = found["status"]["containerStatuses"]
    assert "the reason" in state["state"]["terminated"]["message"]
    assert state["restartCount"] == 0
    assert condition(found, "Ready")["reason"] == "PodFailed"
    await node.kubectl("delete", "pod", "fallback")


async def test_logs(node) -> None:
    code = """
import signal, sys, time
for n in range(5): print("line", n, flush=True)
signal.signal(signal.SIGTERM, lambda *_: (print("the end", flush=True), sys.exit(0)))
signal.pause()
"""
    node.apply(pod("talker", code))
    await node.until_ready("talker")

    async def all_lines() -> bool:
        return (await node.kubectl("logs", "talker")).splitlines() == [f"line {n}" for n in range(5)]

    await node.until(all_lines, "five lines")
    assert (await node.kubectl("logs", "talker", "--tail=2")).splitlines() == ["line 3", "line 4"]
    assert (await node.kubectl("logs", "talker", "--since=1h", "--timestamps")).splitlines()[0].endswith("Z line 0")
    assert "previous terminated container" in await node.kubectl("logs", "talker", "--previous", check=False)
    follower = asyncio.create_task(node.kubectl("logs", "-f", "talker", "--tail=1"))
    writers = node.kubelet._host.writers

    async def followed() -> bool:
        return any(writer._followers for writer in writers.values())

    await node.until(followed, "kubectl follows")
    await node.kubectl("delete", "pod", "talker", "--wait=false")
    assert (await follower).splitlines() == ["line 4", "the end"]
    await node.until_gone(PODS, "talker")


async def test_mounts_names_and_environment(node) -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "creds"},
        "data": {"password": base64.b64encode(b"pw").decode()},
    }
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "code"}, "data": {"task.py": "VALUE = 42"}}
    code = """
import json, os, pathlib, sys, tempfile
import task
scratch = pathlib.Path(os.environ["SCRATCH"]); scratch.joinpath("x").write_text("y")
print(json.dumps({
    "value": task.VALUE,
    "secret": pathlib.Path(sys.argv[1]).read_text(),
    "mode": oct(pathlib.Path(sys.argv[1]).resolve().stat().st_mode & 0o777),
    "tmp": tempfile.gettempdir().startswith(os.environ["SCRATCH"]),
    "labels": pathlib.Path("/etc/podinfo/labels".replace("/etc/podinfo", os.environ["INFO"])).read_text(),
    "env": {k: os.environ[k] for k in ("ME", "URL", "HOSTNAME")},
    "foreign": "PYTEST_CURRENT_TEST" in os.environ,
    "cwd": os.getcwd(),
}), flush=True)
"""
    spec = {
        "restartPolicy": "Never",
        "volumes": [
            {"name": "creds", "secret": {"secretName": "creds"}},
            {"name": "code", "configMap": {"name": "code"}},
            {"name": "scratch", "emptyDir": {}},
            {"name": "info", "downwardAPI": {"items": [
                {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        ],
    }  # fmt: skip
    reader = pod(
        "reader",
        code,
        spec=spec,
        args=["/etc/creds/password"],
        env=[
            {"name": "PYTHONPATH", "value": "/agenthive/code"},
            {"name": "SCRATCH", "value": "/tmp"},
            {"name": "INFO", "value": "/etc/podinfo"},
            {"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "creds", "key": "password"}}},
            {"name": "URL", "value": f"http://:$(PW)@web.{node.namespace}.svc:80/"},
        ],
        volumeMounts=[
            {"name": "creds", "mountPath": "/etc/creds", "readOnly": True},
            {"name": "code", "mountPath": "/agenthive/code"},
            {"name": "scratch", "mountPath": "/tmp"},
            {"name": "info", "mountPath": "/etc/podinfo"},
        ],
    )
    node.apply(reader)
    held = await node.until_pod("reader", lambda p: "not found" in json.dumps(p["status"]), "waits for the Secret")
    assert held["status"]["phase"] == "Pending"
    # The Secret comes, and a Service without a ready endpoint: the start waits for one.
    node.apply(secret, config, service("web"))
    await node.until_pod(
        "reader", lambda p: "ready endpoint of web" in json.dumps(p["status"]), "waits for the Service"
    )
    node.apply(deployment("web", "1", 1))
    await node.until_pod("reader", lambda p: p["status"].get("phase") == "Succeeded", "done")
    said = json.loads(await node.kubectl("logs", "reader"))
    (address,) = await ready_addresses(node, "web")
    assert said["env"] == {"ME": "reader", "URL": f"http://:pw@{address}:8080/", "HOSTNAME": "reader"}
    assert (said["value"], said["secret"], said["mode"], said["tmp"]) == (42, "pw", "0o600", True)
    assert said["labels"] == 'app="reader"'
    assert not said["foreign"]
    assert said["cwd"].startswith(str(node.folder))
    await node.kubectl("delete", "deployment/web", "service/web", "pod/reader", "secret/creds", "configmap/code")


async def test_probes_restart_and_hold_back(node) -> None:
    code = """
import os, pathlib, time
state = pathlib.Path(os.environ["STATE"])
state.joinpath("started").touch()
time.sleep(600)
"""
    check = "import os, pathlib, sys; sys.exit(not pathlib.Path(os.environ['STATE'], sys.argv[1]).exists())"
    probe = {"periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 10}
    broken = "import os, pathlib, sys; sys.exit(pathlib.Path(os.environ['STATE'], 'broken').exists())"
    node.apply(
        pod(
            "probed",
            code,
            spec={"volumes": [{"name": "state", "emptyDir": {}}]},
            env=[{"name": "STATE", "value": "/state"}],
            volumeMounts=[{"name": "state", "mountPath": "/state"}],
            startupProbe={**probe, "failureThreshold": 30, "exec": {"command": ["python", "-c", check, "started"]}},
            readinessProbe={**probe, "exec": {"command": ["python", "-c", check, "ready"]}},
            livenessProbe={**probe, "exec": {"command": ["python", "-c", broken]}},
        )
    )
    found = await node.until_pod(
        "probed", lambda p: (p["status"].get("containerStatuses") or [{}])[0].get("started"), "started"
    )
    assert not is_ready(found)
    state = node.folder / "volumes" / "pods" / found["metadata"]["uid"] / "volumes" / "state"
    (state / "ready").touch()
    await node.until_ready("probed")
    (state / "ready").unlink()
    await node.until_pod("probed", lambda p: not is_ready(p), "not ready")
    (state / "broken").touch()
    found = await node.until_pod(
        "probed", lambda p: p["status"]["containerStatuses"][0]["restartCount"] >= 1, "restart"
    )
    assert found["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 128 + signal.SIGTERM
    await node.kubectl("delete", "pod", "probed", "--wait=false")
    await node.until_gone(PODS, "probed")


async def test_init_containers_run_one_after_another(node) -> None:
    write = "import os, pathlib; p = pathlib.Path(os.environ['STATE'], 'order'); p.open('a').write('{}')"
    mounted = {
        "env": [{"name": "STATE", "value": "/state"}],
        "volumeMounts": [{"name": "state", "mountPath": "/state"}],
    }
    inits = [{**container(write.format(n), **mounted), "name": f"init-{n}"} for n in (1, 2)]
    read = "import os, pathlib; print(pathlib.Path(os.environ['STATE'], 'order').read_text())"
    spec = {
        "restartPolicy": "Never",
        "initContainers": inits,
        "volumes": [{"name": "state", "emptyDir": {}}],
    }
    node.apply(pod("ordered", read, spec=spec, **mounted))
    found = await node.until_pod("ordered", lambda p: p["status"].get("phase") == "Succeeded", "done")
    assert (await node.kubectl("logs", "ordered", "-c", "main")).strip() == "12"
    assert [s["state"]["terminated"]["exitCode"] for s in found["status"]["initContainerStatuses"]] == [0, 0]
    failing = {**spec, "initContainers": [{**container("raise SystemExit(7)"), "name": "init"}]}
    node.apply(pod("stopped", read, spec=failing, **mounted))
    found = await node.until_pod("stopped", lambda p: p["status"].get("phase") == "Failed", "failed")
    assert condition(found, "Initialized")["status"] == "False"
    await node.kubectl("delete", "pod", "ordered", "stopped")


@pytest.mark.parametrize(("patient", "code"), [(True, 0), (False, 137)])
async def test_grace(node, patient, code) -> None:
    handler = "lambda *_: sys.exit(0)" if patient else "signal.SIG_IGN"
    script = f"import signal, sys; signal.signal(signal.SIGTERM, {handler}); print('on', flush=True)\n"
    script += "while True: signal.pause()"
    # Much for the one that obeys, so that its end cannot be the kubelet's.
    node.apply(pod("grace", script, spec={"terminationGracePeriodSeconds": 60 if patient else 1}))
    await node.until_ready("grace")
    await node.until(lambda: node.kubectl("logs", "grace"), "handler installed")
    last: list[dict] = []
    pods = node.kubelet._pods
    pods.on_change(lambda old, new: last.append(new) if new and new["metadata"]["name"] == "grace" else None)
    async with asyncio.timeout(30):
        await node.kubectl("delete", "pod", "grace")
    codes = {
        state["state"]["terminated"]["exitCode"]
        for each in last
        for state in each["status"].get("containerStatuses") or []
        if "terminated" in state["state"]
    }
    assert codes == {code}


async def test_children_of_a_container_end_with_it(node) -> None:
    code = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""
    node.apply(pod("parent", code))
    await node.until_ready("parent")
    child = int(await node.until(lambda: node.kubectl("logs", "parent"), "the child's pid"))
    await node.kubectl("delete", "pod", "parent", "--grace-period=0", "--force")

    async def ended() -> bool:
        return not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE

    await node.until(ended, "the child has ended")


async def test_what_is_not_offered_is_said(node) -> None:
    node.apply(pod("grpc", "1", spec={"volumes": [{"name": "v", "nfs": {"server": "x", "path": "/"}}]}))
    await node.until_pod("grpc", lambda p: "nfs is not offered in local mode" in json.dumps(p["status"]), "says so")
    await node.kubectl("delete", "pod", "grpc")


async def test_logs_are_not_for_everybody(node) -> None:
    node.apply(pod("quiet", "import time; print('private', flush=True); time.sleep(600)"))
    await node.until_ready("quiet")
    if not node.api.real:
        url = f"http://{node.kubelet.addresses.node}:{NODE_PORT}/containerLogs/{node.namespace}/quiet/main"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            assert answer.status == 401
        asked = {"Authorization": f"Bearer {node.api.token}"}
        async with aiohttp.ClientSession(headers=asked) as session:
            for query, status in (("tailLines=-1", 400), ("sinceSeconds=x", 400), ("limitBytes=3", 200)):
                async with session.get(f"{url}?{query}") as answer:
                    assert answer.status == status
            async with session.get(url.replace("quiet", "nobody")) as answer:
                assert answer.status == 404
    await node.until(lambda: node.kubectl("logs", "quiet", "--limit-bytes=7"), "the log")
    await node.kubectl("delete", "pod", "quiet", "--force", "--grace-period=0")
