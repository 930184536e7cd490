"""``kubectl exec``: a command with a container's environment, its streams in the channels of one websocket.

The protocol is v5.channel.k8s.io, as kubectl speaks it since 1.30: the first byte of a frame is its channel.
Terminals are refused: what runs here is a process of this machine, and a shell on it needs no kubelet.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, Final

import orjson
from aiohttp import WSMsgType, web

from agenthive_operator.local.kubelet.process import Command, Process, StartError

PROTOCOL: Final = "v5.channel.k8s.io"
STDIN, STDOUT, STDERR, ERROR, CLOSE = 0, 1, 2, 3, 255
#: What waits to be read by a slow caller, frames; beyond it the output is cut by ending the command.
MAX_WAITING: Final = 4096


def status_of(code: int) -> dict[str, Any]:
    """The Status that tells the caller how the command ended."""
    status: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}}
    if code == 0:
        return {**status, "status": "Success"}
    return {
        **status,
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def failure(message: str) -> dict[str, Any]:
    """The Status where the command could not be run at all."""
    return {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": "InternalError", "code": 500,
    }  # fmt: skip


async def serve_exec(request: web.Request, command: Command) -> web.WebSocketResponse:
    """Run ``command`` for the caller; it is killed when the caller goes away."""
    if request.query.get("tty") in {"true", "1"}:
        raise web.HTTPBadRequest(text="terminals are not offered in local mode: leave out -t")
    socket = web.WebSocketResponse(protocols=(PROTOCOL,), max_msg_size=0)
    if PROTOCOL not in request.headers.get("Sec-WebSocket-Protocol", ""):
        raise web.HTTPBadRequest(
            text=f"exec speaks websockets with {PROTOCOL}: that takes kubectl 1.30 and kube-apiserver 1.36, or newer"
        )
    await socket.prepare(request)
    frames: asyncio.Queue[bytes | None] = asyncio.Queue()
    # A real API server calls it otherwise than its own clients do.
    wants_stdin = bool({request.query.get("stdin"), request.query.get("input")} & {"true", "1"})
    read_end, write_end = os.pipe() if wants_stdin else (None, None)
    process: Process

    def output(name: str, data: bytes) -> None:
        frames.put_nowait(bytes([STDOUT if name == "stdout" else STDERR]) + data)
        if frames.qsize() > MAX_WAITING:
            process.kill()

    try:
        process = Process(command, output, stdin=read_end)
    except StartError as error:
        if write_end is not None:
            os.close(write_end)
        await socket.send_bytes(bytes([ERROR]) + orjson.dumps(failure(str(error))))
        await socket.close()
        return socket
    finally:
        if read_end is not None:
            os.close(read_end)
    sending = asyncio.create_task(_send(socket, frames))
    listening = asyncio.create_task(_listen(socket, write_end))
    ended = asyncio.create_task(process.wait())
    try:
        await asyncio.wait({ended, sending, listening}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            frames.put_nowait(bytes([ERROR]) + orjson.dumps(status_of(ended.result())))
        frames.put_nowait(None)
        await sending
    finally:
        process.kill()
        for task in (sending, listening, ended):
            task.cancel()
        await asyncio.gather(sending, listening, ended, return_exceptions=True)
    await socket.close()
    return socket


async def _send(socket: web.WebSocketResponse, frames: asyncio.Queue[bytes | None]) -> None:
    while (frame := await frames.get()) is not None:
        try:
            await socket.send_bytes(frame)
        except ConnectionError:
            return


async def _listen(socket: web.WebSocketResponse, write_end: int | None) -> None:
    """Feed standard input until the caller leaves."""
    pipe = None
    if write_end is not None:
        loop = asyncio.get_running_loop()
        file = os.fdopen(write_end, "wb", buffering=0)
        transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, file)
        pipe = asyncio.StreamWriter(transport, protocol, None, loop)
    try:
        async for message in socket:
            if message.type is not WSMsgType.BINARY or not message.data:
                continue
            channel, data = message.data[0], message.data[1:]
            if pipe is None:
                continue
            try:
                if channel == STDIN and data:
                    pipe.write(data)
                    await pipe.drain()
                elif channel == CLOSE and data == bytes([STDIN]):
                    pipe.close()
                    pipe = None
            except ConnectionError:
                pipe = None  # the command reads no more of it, or has ended: its exit code says what became of it
    finally:
        if pipe is not None:
            pipe.close()
