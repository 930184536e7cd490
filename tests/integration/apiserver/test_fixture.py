"""The fixture that other tests build on."""

from __future__ import annotations

import json
from typing import Any


def test_kubectl_reaches_the_server(api_server: Any, kube_namespace: str) -> None:
    found = json.loads(api_server.kubectl("get", "namespace", kube_namespace, "-o", "json").stdout)
    assert found["status"]["phase"] == "Active"
