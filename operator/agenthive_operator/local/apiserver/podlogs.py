"""``kubectl logs`` and ``kubectl exec``: the question goes on to the kubelet of the pod's node."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import WSMsgType, web

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


def _kubelet(api: Api, request: web.BaseRequest, target: Target, verb: str) -> tuple[aiohttp.ClientSession, str]:
    """Whom to ask for a container, and at which URL.

    Raises:
        ApiError: see ``proxy_log``.
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
    if api.kubelets is None:
        # A followed log has no end.
        api.kubelets = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=5))
    return api.kubelets, f"{kubelet_url(node.obj)}/{verb}/{target.namespace}/{target.name}/{container}"


async def proxy_exec(api: Api, request: web.BaseRequest, target: Target) -> web.StreamResponse:
    """Join the caller's websocket with one to the kubelet.

    Raises:
        ApiError: as ``proxy_log``, and 400 for what the kubelet refuses.
    """
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise errors.bad_request("exec speaks websockets; use kubectl 1.30 or newer")
    kubelets, url = _kubelet(api, request, target, "exec")
    offered = [part.strip() for part in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
    pairs = [(key, value) for key, value in request.query.items() if key in ("command", "stdin", "tty")]
    headers = {"Authorization": api.authorization}
    try:
        async with kubelets.ws_connect(url, params=pairs, protocols=offered, headers=headers, max_msg_size=0) as inner:
            outer = web.WebSocketResponse(protocols=(inner.protocol,) if inner.protocol else (), max_msg_size=0)
            await outer.prepare(request)
            await _join(outer, inner)
            return outer
    except aiohttp.WSServerHandshakeError as error:
        raise errors.bad_request(
            f"the kubelet refuses to run a command in pod {target.name}: is its container running? "
            "Terminals (-t) are not offered"
        ) from error
    except aiohttp.ClientConnectorError as error:
        raise errors.internal(f"Get {url}: the kubelet does not answer: {error}") from error


async def _join(outer: web.WebSocketResponse, inner: aiohttp.ClientWebSocketResponse) -> None:
    """Pass frames both ways until either side closes."""

    async def inwards() -> None:
        async for message in outer:
            if message.type is WSMsgType.BINARY:
                await inner.send_bytes(message.data)

    async def outwards() -> None:
        async for message in inner:
            if message.type is WSMsgType.BINARY:
                await outer.send_bytes(message.data)

    tasks = [asyncio.create_task(inwards()), asyncio.create_task(outwards())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await outer.close()


async def proxy_log(api: Api, request: web.BaseRequest, target: Target) -> web.StreamResponse:
    """Stream a container's log from its kubelet.

    Raises:
        ApiError: 400 for a pod that is not scheduled or a container it has not, 500 where no kubelet answers.
    """
    kubelets, url = _kubelet(api, request, target, "containerLogs")
    query = {key: request.query[key] for key in _PASSED if key in request.query}
    try:
        async with kubelets.get(url, params=query, headers={"Authorization": api.authorization}) as answer:
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
