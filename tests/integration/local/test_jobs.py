"""Jobs as processes, and a pod that speaks to the API with its account's token."""

from __future__ import annotations

import json

from agenthive_operator.local.objects import condition
from agenthive_operator.local.resources import JOBS, PODS

# kubectl is beside the interpreter, and reads the KUBECONFIG that the pod got.
ASKS = """
import subprocess, sys
print(subprocess.run(["kubectl", "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"], check=True, text=True,
                     capture_output=True).stdout)
"""


def job(name: str, code: str, *, spec: dict | None = None, **more) -> dict:
    pod = {
        "restartPolicy": "Never",
        "containers": [{"name": "main", "image": "any", "command": ["python", "-c", code]}],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"template": {"spec": {**pod, **(spec or {})}}, **more},
    }


async def test_a_job_runs_with_the_rights_of_its_account_and_is_cleared_away(node) -> None:
    node.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "asker"}})
    node.apply(job("asks", ASKS, spec={"serviceAccountName": "asker", "automountServiceAccountToken": True}))
    await node.kubectl("wait", "--for=condition=Complete", "job/asks", "--timeout=20s")
    (pod,) = await node.pods(**{"batch.kubernetes.io/job-name": "asks"})
    said = (await node.kubectl("logs", "job/asks")).strip()
    assert said == (f"system:serviceaccount:{node.namespace}:asker" if node.api.real else "admin")
    row = (await node.kubectl("get", "jobs", "--no-headers")).split()
    assert row[:3] == ["asks", "Complete", "1/1"]
    await node.kubectl("delete", "job/asks")
    await node.until_gone(PODS, pod["metadata"]["name"])


async def test_a_job_fails_after_its_last_try(node) -> None:
    node.apply(job("fails", "raise SystemExit(3)", backoffLimit=1))
    await node.kubectl("wait", "--for=condition=Failed", "job/fails", "--timeout=20s")
    found = await node.get(JOBS, "fails")
    assert found["status"]["failed"] == 2
    assert condition(found, "Failed")["reason"] == "BackoffLimitExceeded"
    assert len(await node.pods(**{"job-name": "fails"})) == 2


async def test_a_job_ends_at_its_deadline(node) -> None:
    node.apply(job("hangs", "import time; time.sleep(600)", activeDeadlineSeconds=1))
    await node.kubectl("wait", "--for=condition=Failed", "job/hangs", "--timeout=20s")

    async def alone() -> bool:
        return not await node.pods(**{"job-name": "hangs"})

    await node.until(alone, "its pod is gone")


async def test_jobs_are_taken_and_refused_as_by_the_real_server(node) -> None:
    wrong = job("wrong", "", spec={"restartPolicy": "Always"})
    said = node.api.kubectl("create", "-n", node.namespace, "-f", "-", stdin=json.dumps(wrong), check=False).stderr
    assert 'spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never"' in said
    node.apply(job("right", "import time; time.sleep(600)"))
    found = await node.get(JOBS, "right")
    uid = found["metadata"]["uid"]
    assert found["spec"]["selector"] == {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
    names = {"controller-uid": uid, "job-name": "right"}
    labels = names | {f"batch.kubernetes.io/{name}": value for name, value in names.items()}
    assert found["metadata"]["labels"] == found["spec"]["template"]["metadata"]["labels"] == labels
    rest = {name: value for name, value in found["spec"].items() if name not in {"template", "selector"}}
    assert rest == {
        "backoffLimit": 6, "completionMode": "NonIndexed", "completions": 1, "manualSelector": False, "parallelism": 1,
        "podReplacementPolicy": "TerminatingOrFailed", "suspend": False,
    }  # fmt: skip
    said = await node.kubectl("patch", "job/right", "--type=merge", "-p", '{"spec":{"completions":3}}', check=False)
    assert "spec.completions: Invalid value: 3: field is immutable" in said
    # Said nothing about its pods, they stay.
    await node.client.request("DELETE", JOBS.path(node.namespace, "right"))
    await node.until_gone(JOBS, "right")
    (pod,) = await node.pods(**{"job-name": "right"})
    assert not pod["metadata"].get("ownerReferences")


async def test_a_pod_without_its_account_waits_for_it(node) -> None:
    node.apply(job("early", ASKS, spec={"serviceAccountName": "late", "automountServiceAccountToken": True}))

    async def refused() -> bool:
        pods = await node.pods(**{"job-name": "early"})
        return any("serviceaccounts" in json.dumps(pod.get("status", {})) for pod in pods)

    await node.until(refused, "the pod says that its account is not there")
    node.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "late"}})
    await node.kubectl("wait", "--for=condition=Complete", "job/early", "--timeout=20s")
