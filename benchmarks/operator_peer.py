"""The operator that a tutorial of kopf leads to: a handler that creates a Deployment for each Agent, nothing else.

``python -m benchmarks.operator_peer`` runs it against the cluster of KUBECONFIG. It keeps kopf's defaults, awaits the
asynchronous client, and needs neither hives nor servers: what it does for an Agent is the least an operator can do.
"""

from __future__ import annotations

import asyncio
from typing import Any

import kopf
from kubernetes.aio import client, config


@kopf.on.startup()
async def connect(memo: kopf.Memo, **_: Any) -> None:
    await config.load_kube_config()
    memo.deployments = client.AppsV1Api(client.ApiClient())


@kopf.on.cleanup()
async def close(memo: kopf.Memo, **_: Any) -> None:
    await memo.deployments.api_client.close()


@kopf.on.create("agents.agenthive.dev")
@kopf.on.update("agents.agenthive.dev")
async def bring_about(memo: kopf.Memo, spec: Any, name: str, namespace: str, **_: Any) -> None:
    body = deployment(spec, name)
    kopf.adopt(body)
    try:
        await memo.deployments.create_namespaced_deployment(namespace, body)
    except client.ApiException as error:
        if error.status != 409:
            raise
        await memo.deployments.patch_namespaced_deployment(name, namespace, body)


def deployment(spec: Any, name: str) -> dict[str, Any]:
    """A Deployment of the simplest kind."""
    labels = {"app": name}
    container = {"name": "agent", "image": "agenthive-runtime:latest", "args": [spec["entrypoint"]]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": spec.get("replicas", 1),
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


if __name__ == "__main__":
    asyncio.run(kopf.operator(clusterwide=True))
