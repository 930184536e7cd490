"""A control plane with a kubelet, and kubectl against it: what an end-to-end test works with.

The same tests run on the embedded control plane (the default), on a real API server where ``KUBEBUILDER_ASSETS`` names
one, and on an existing cluster with an operator where ``AGENTHIVE_E2E_KUBECONFIG`` names its kubeconfig. A test that
needs more than the common ground says so: ``@pytest.mark.needs("processes")``, pods that are processes of this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
EXISTING = os.environ.get("AGENTHIVE_E2E_KUBECONFIG")
PATIENCE = 90.0


class CommandError(AssertionError):
    """A command that was expected to work did not; the message is what it printed."""


def command(*arguments: str | Path, stdin: str | None = None, env: dict[str, str] | None = None) -> str:
    """Run a program of the virtual environment to its end and return what it printed."""
    program, *rest = (str(argument) for argument in arguments)
    result = subprocess.run(
        [str(BIN / program), *rest], input=stdin, env={**os.environ, **(env or {})}, text=True, capture_output=True,
        check=False, timeout=PATIENCE * 2,
    )  # fmt: skip
    if result.returncode != 0:
        raise CommandError(f"{' '.join([program, *rest])}: exit {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


class Plane:
    """One control plane and one namespace of it."""

    def __init__(self, kubeconfig: Path, folder: Path | None, namespace: str = "default") -> None:
        self.kubeconfig = kubeconfig
        self.folder = folder
        self.namespace = namespace

    @property
    def env(self) -> dict[str, str]:
        return {"KUBECONFIG": str(self.kubeconfig)}

    def kubectl(self, *arguments: str | Path, stdin: str | None = None) -> str:
        return command("kubectl", "--namespace", self.namespace, *arguments, stdin=stdin, env=self.env)

    def agenthive(self, *arguments: str | Path) -> str:
        return command("agenthive", "--namespace", self.namespace, *arguments, env=self.env)

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *objects: dict[str, Any]) -> None:
        for manifest in objects:
            self.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    def wait(self, condition: str, *what: str, timeout: float = PATIENCE) -> None:
        self.kubectl("wait", f"--for={condition}", *what, f"--timeout={timeout:.0f}s")

    def until(self, holds: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
        """Poll until ``holds`` is true and return what it returned; else fail, naming ``what``."""
        deadline = time.monotonic() + timeout
        while True:
            answer = holds()
            if answer:
                return answer
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout:.0f} s: {what}\n{self.describe()}")
            time.sleep(0.2)

    def condition(self, what: str, kind: str = "Ready") -> dict[str, str]:
        """The condition ``kind`` of ``what`` (``hive/atlas``); empty while there is none."""
        conditions = self.get(what).get("status", {}).get("conditions", [])
        return next((condition for condition in conditions if condition["type"] == kind), {})

    def describe(self) -> str:
        """What a person would look at first when a test fails."""
        return self.kubectl("get", "hive,agents,pods,events", "-o", "wide")

    def processes(self, prefix: str) -> list[psutil.Process]:
        """The processes of this namespace's pods whose names start with ``prefix``: found by the pods' addresses."""
        pods = [pod for pod in self.get("pods")["items"] if pod["metadata"]["name"].startswith(prefix)]
        addresses = {pod["status"]["podIP"] for pod in pods}
        return [process for process in psutil.process_iter() if listens_on(process) in addresses]


def listens_on(process: psutil.Process) -> str | None:
    """The pod address of a process of local mode: in its environment, or in the title that Valkey puts in its place."""
    try:
        words = process.cmdline()
    except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
        return None
    if words[:1] and "valkey-server" in words[0]:
        return " ".join(words).split()[1].partition(":")[0]
    return environment(process).get("AGENTHIVE_BIND")


def environment(process: psutil.Process) -> dict[str, str]:
    """A process's environment; empty where it may not be read."""
    try:
        return process.environ()
    except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
        return {}


def local_folder() -> Path:
    """A folder for a local control plane that PostgreSQL's account can reach."""
    folder = Path(tempfile.mkdtemp(prefix="agenthive-e2e-"))
    folder.chmod(0o755)
    return folder


def hive(name: str = "hive", **spec: Any) -> dict[str, Any]:
    """An AgentHive with nothing kept on disk."""
    ephemeral = {"managed": {"ephemeral": True}}
    return {
        "apiVersion": "agenthive.dev/v1alpha1",
        "kind": "AgentHive",
        "metadata": {"name": name},
        "spec": {"redis": ephemeral, "postgres": ephemeral, **spec},
    }


def agent(name: str, *, hive: str = "hive", code: str | None = None, **spec: Any) -> list[dict[str, Any]]:
    """An Agent and, with ``code``, the ConfigMap that holds it."""
    manifest: dict[str, Any] = {
        "apiVersion": "agenthive.dev/v1alpha1",
        "kind": "Agent",
        "metadata": {"name": name},
        "spec": {"hiveRef": {"name": hive}, "entrypoint": "code:agent", **spec},
    }
    if code is None:
        return [manifest]
    manifest["spec"]["codeFrom"] = {"configMapRef": {"name": f"{name}-code"}}
    data = {"code.py": code}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"{name}-code"}, "data": data},
        manifest,
    ]


ECHO = """
from agenthive import Agent

agent = Agent("echo")


@agent.on("echo")
async def echo(message, ctx):
    return message.body
"""
