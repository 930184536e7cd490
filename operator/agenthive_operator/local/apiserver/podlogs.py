"""``kubectl logs``: the question goes on to the kubelet of the pod's node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web

from . import errors
from .errors import ApiError, Json
from .routing import Target

if TYPE_CHECKING:
    from .handlers import Api

_PASSED = (
    "follow", "previous", "tailLines", "sinceSeconds", "sinceTime", "timestamps", "limitBytes", "stream",
)  # fmt: skip


def kubelet_url(node: Json) -> str:
    """Where the kubelet of a node listens.

    Raises:
        ApiError: 500 where the node does not say.
    """
    status = node.get("status", {})
    port = status.get("daemonEndpoints", {}).get("kubeletEndpoint", {}).get("Port")
    address = next((a["address"] for a in status.get("addresses", ()) if a.get("type") == "InternalIP"), None)
    if not port or not address:
        raise errors.internal(f"node {node['metadata']['name']} names no kubelet address and port in its status")
    return f"http://{address}:{port}"


def _container(pod: Json, wanted: str) -> str:
    names = [
        container["name"] for group in ("initContainers", "containers") for container in pod["spec"].get(group, ())
    ]
    if wanted:
        if wanted not in names:
            raise errors.bad_request(f"container {wanted} is not valid for pod {pod['metadata']['name']}")
        return wanted
    choice = [container["name"] for container in pod["spec"]["containers"]]
    if len(choice) > 1:
        text = f"a container name must be specified for pod {pod['metadata']['name']}, choose one of: {choice}"
        raise errors.bad_request(text)
    return str(choice[0])


async def proxy_log(api: Api, request: web.BaseRequest, target: Target) -> web.StreamResponse:
    """Stream a container's log from its kubelet.

    Raises:
        ApiError: 400 for a pod that is not scheduled or a container it has not, 500 where no kubelet answers.
    """
    pod = api.reader.get(target).obj
    container = _container(pod, request.query.get("container", ""))
    node_name = pod["spec"].get("nodeName")
    if not node_name:
        text = f'container "{container}" in pod "{target.name}" is waiting to start: no node assigned'
        raise errors.bad_request(text)
    node = api.store.get("nodes", ("", node_name))
    if node is None:
        raise errors.internal(f"pod {target.name} is on node {node_name}, which does not exist")
    url = f"{kubelet_url(node.obj)}/containerLogs/{target.namespace}/{target.name}/{container}"
    query = {key: request.query[key] for key in _PASSED if key in request.query}
    if api.kubelets is None:
        # A followed log has no end.
        api.kubelets = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=5))
    try:
        async with api.kubelets.get(url, params=query, headers={"Authorization": api.authorization}) as answer:
            if answer.status != 200:
                text = (await answer.text()).strip()
                code = answer.status if answer.status in (400, 404) else 500
                raise ApiError(code, "BadRequest" if code == 400 else "InternalError", text or str(answer.status))
            response = web.StreamResponse(headers={"Content-Type": "text/plain"})
            response.enable_chunked_encoding()
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response
    except aiohttp.ClientConnectorError as error:
        raise errors.internal(f"Get {url}: the kubelet does not answer: {error}") from error
