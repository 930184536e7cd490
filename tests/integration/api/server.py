"""A plain HTTP client of the API server under test: what it answers is asserted as it is on the wire."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

APPLY = "application/apply-patch+yaml"
JSON = "application/json"

PATHS = {
    "AgentHive": "/apis/agenthive.dev/v1alpha1/namespaces/{}/agenthives",
    "Agent": "/apis/agenthive.dev/v1alpha1/namespaces/{}/agents",
    "Secret": "/api/v1/namespaces/{}/secrets",
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "Service": "/api/v1/namespaces/{}/services",
    "StatefulSet": "/apis/apps/v1/namespaces/{}/statefulsets",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "Pod": "/api/v1/namespaces/{}/pods",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
}


@dataclass
class Server:
    """Requests in one namespace over one connection."""

    connection: http.client.HTTPConnection
    token: str
    namespace: str = field(default="default")

    @classmethod
    def of(cls, api: Any, namespace: str) -> Server:
        """For the ``api_server`` fixture; the namespace is created with Pod Security ``restricted``."""
        host = urlsplit(api.url).netloc
        server = cls(http.client.HTTPSConnection(host, context=api.client_ssl(), timeout=30), api.token, namespace)
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}
        status, answer = server.request("POST", "/api/v1/namespaces", manifest)
        assert status == 201, answer
        return server

    def close(self) -> None:
        """Delete the namespace and hang up."""
        self.request("DELETE", f"/api/v1/namespaces/{self.namespace}")
        self.connection.close()

    def request(self, method: str, path: str, body: Any = None, content: str = JSON) -> tuple[int, dict[str, Any]]:
        """Status and JSON body of one request."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": content, "Accept": JSON}
        self.connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = self.connection.getresponse()
        return response.status, json.loads(response.read() or b"{}")

    def path(self, kind: str, name: str = "", tail: str = "") -> str:
        """Path of a kind, of one object, or of a subresource (``/status``)."""
        base = PATHS[kind].format(self.namespace)
        return f"{base}/{name}{tail}" if name else base

    def apply(self, manifest: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Server-side apply as the operator does it, unknown fields refused."""
        path = self.path(manifest["kind"], manifest["metadata"]["name"])
        query = "?fieldManager=agenthive-operator&force=true&fieldValidation=Strict"
        return self.request("PATCH", path + query, manifest, APPLY)
