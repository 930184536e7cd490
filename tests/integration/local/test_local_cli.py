"""``agenthive local up | status | down`` as a person runs it: everything comes up, everything goes, state stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

AGENTHIVE = [sys.executable, "-P", "-m", "agenthive.cli"]
KUBECTL = str(Path(sys.executable).with_name("kubectl"))


def local(*args: str, folder: Path, timeout: float = 90) -> subprocess.CompletedProcess[str]:
    command = [*AGENTHIVE, "local", *args, "--dir", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def processes(folder: Path) -> list[psutil.Process]:
    """Living processes that have ``folder`` in their command line or work below it."""
    found = []
    for process in psutil.process_iter(["cmdline", "status", "cwd"]):
        words = process.info["cmdline"] or []
        below = (process.info["cwd"] or "").startswith(str(folder))
        if process.info["status"] != psutil.STATUS_ZOMBIE and (below or any(str(folder) in word for word in words)):
            found.append(process)
    return found


def kubectl(folder: Path, *args: str, stdin: str | None = None) -> str:
    env = {**os.environ, "KUBECONFIG": str(folder / "kubeconfig")}
    done = subprocess.run(
        [KUBECTL, *args], input=stdin, env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def until(check, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


DEPLOYMENT = json.dumps(
    {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "sleeper"},
        "spec": {
            "selector": {"matchLabels": {"app": "sleeper"}},
            "template": {
                "metadata": {"labels": {"app": "sleeper"}},
                "spec": {"containers": [{"name": "main", "image": "any", "command": ["sleep", "600"]}]},
            },
        },
    }
)


def test_up_down_and_up_again(reachable_folder) -> None:
    folder = reachable_folder / "hive"
    assert local("status", folder=folder).returncode == 1

    up = local("up", "--detach", folder=folder)
    assert up.returncode == 0, up.stderr
    assert up.stdout.splitlines()[-1] == f"export KUBECONFIG={folder}/kubeconfig"
    status = json.loads(local("status", "--output", "json", folder=folder).stdout)
    assert (status["up"], status["operator"], status["pods"]) == (True, "healthy", [])

    second = local("up", folder=folder)
    assert second.returncode != 0
    assert f"pid {status['pid']}" in second.stderr
    detached = local("up", "-d", folder=folder)
    assert detached.returncode != 0
    assert f"pid {status['pid']}" in detached.stderr

    kubectl(folder, "apply", "-f", "-", stdin=DEPLOYMENT)
    kubectl(folder, "wait", "--for=condition=Available", "deployment/sleeper", "--timeout=30s")
    assert "sleeper" in local("status", folder=folder).stdout

    down = local("down", folder=folder)
    assert down.returncode == 0, down.stderr
    assert processes(folder) == []
    assert list((folder / "processes").iterdir()) == []
    assert local("status", folder=folder).returncode == 1
    assert "nothing runs" in local("down", folder=folder).stdout

    audit = reachable_folder / "audit.jsonl"
    assert local("up", "-d", f"--audit-log-path={audit}", folder=folder).returncode == 0
    try:
        kubectl(folder, "wait", "--for=condition=Available", "deployment/sleeper", "--timeout=30s")
        state = json.loads(kubectl(folder, "get", "pods", "-o", "json"))["items"]
        assert [pod["status"]["containerStatuses"][0]["restartCount"] for pod in state] == [1], "the same pod, again"
        events = [json.loads(line) for line in audit.read_text().splitlines()]
        assert any(event["verb"] == "list" and event["objectRef"]["resource"] == "pods" for event in events)
    finally:
        local("down", folder=folder)
    assert processes(folder) == []


def test_what_dies_comes_back_and_a_crash_leaves_nothing(reachable_folder) -> None:
    folder = reachable_folder / "hive"
    assert local("up", "-d", folder=folder).returncode == 0
    try:
        pid = json.loads((folder / "lock").read_text())["pid"]

        def child(word: str) -> psutil.Process:
            return next(p for p in psutil.Process(pid).children() if word in p.cmdline())

        operator, server = child("agenthive_operator"), child("agenthive_operator.local.apiserver")
        kubectl(folder, "apply", "-f", "-", stdin=DEPLOYMENT)
        kubectl(folder, "wait", "--for=condition=Available", "deployment/sleeper", "--timeout=30s")
        operator.kill()
        server.kill()

        def healthy() -> bool:
            status = json.loads(local("status", "-o", "json", folder=folder).stdout)
            return status.get("operator") == "healthy" and len(status.get("pods", [])) == 1

        until(healthy)
        assert child("agenthive_operator").pid != operator.pid
        assert local("status", folder=folder).returncode == 0

        # The control plane itself: killed, its processes go with it, and the next start cleans up and goes on.
        psutil.Process(pid).kill()
        if sys.platform == "linux":
            until(lambda: processes(folder) == [])
        assert local("up", "-d", folder=folder).returncode == 0
        kubectl(folder, "wait", "--for=condition=Available", "deployment/sleeper", "--timeout=30s")
    finally:
        local("down", folder=folder)
    assert processes(folder) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything(reachable_folder, number) -> None:
    folder = reachable_folder / "hive"
    command = [*AGENTHIVE, "local", "up", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.strip())
            if line.startswith("export KUBECONFIG="):
                process.send_signal(number)
        assert process.wait(timeout=30) == 0
    assert lines[-1] == "stopped"
    ends = [line for line in lines if line.endswith("ended")]
    assert ends == ["operator has ended", "pods have ended", "API server has ended"]
    assert processes(folder) == []


def test_a_failure_shows_the_end_of_the_log(reachable_folder, monkeypatch) -> None:
    folder = reachable_folder / "hive"
    folder.mkdir()
    (folder / "state.jsonl").write_text("this is no journal\n")
    up = local("up", "-d", folder=folder)
    assert up.returncode != 0
    assert "state.jsonl" in up.stderr
    assert "the built-in API emulator did not come up" in up.stderr
    assert processes(folder) == []
    (folder / "state.jsonl").unlink()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(reachable_folder))
    assert "no etcd is" in local("up", folder=folder).stderr


def test_the_operator_alone(api_server, reachable_folder) -> None:
    folder = reachable_folder / "hive"
    up = local("up", "-d", "--kubeconfig", str(api_server.kubeconfig), folder=folder)
    try:
        assert up.returncode == 0, up.stderr
        assert up.stdout.splitlines()[-1] == f"export KUBECONFIG={api_server.kubeconfig}"
        status = json.loads(local("status", "-o", "json", folder=folder).stdout)
        assert status["operator"] == "healthy"
        assert len(psutil.Process(status["pid"]).children()) == 1
        flags = (f"--kubeconfig={api_server.kubeconfig}", "--audit-log-path=x")
        assert "leave it or --kubeconfig out" in local("up", *flags, folder=folder).stderr
    finally:
        local("down", folder=folder)
    assert processes(folder) == []


def test_a_bare_control_plane_has_no_operator_to_start_elsewhere(tmp_path) -> None:
    (tmp_path / "kubeconfig").touch()
    done = local("up", "--bare", "--kubeconfig", str(tmp_path / "kubeconfig"), folder=tmp_path / "plane")
    assert done.returncode == 2
    assert "give one of them" in done.stderr
