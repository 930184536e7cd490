"""A TCP proxy that cuts connections in the middle of what they carry."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from typing import Self

CHUNK = 65_536
MOST_LATE_SECONDS = 0.5
WAYS = ("command", "answer", "late")


class Proxy:
    """Listens on loopback between clients and one server; ``_serve`` of a subclass has each connection."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(client, to_client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        raise NotImplementedError


class CuttingProxy(Proxy):
    """Between clients and one server on loopback.

    While ``cutting``, each connection ends after a number of bytes, mostly in the middle of something, in one of three
    ways. ``command``: the server gets but the beginning of a command. ``answer``: the server has acted, and the client
    gets but the beginning of the answer. ``late``: the client is cut off, and the rest of its command arrives at the
    server some time later, as packets that a slow network sends again.
    """

    def __init__(self, port: int, chance: random.Random) -> None:
        super().__init__(port)
        self._chance = chance
        self.cutting = True
        self.cuts: Counter[str] = Counter()

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            to_client.transport.abort()
            return
        way = self._chance.choice(WAYS)
        # Evenly over the orders of magnitude: in the greeting, in the first command, after many batches.
        budget = int(10 ** self._chance.uniform(1.5, 4.5))
        up = asyncio.create_task(self._carry(client, to_server, budget if way != "answer" else None))
        down = asyncio.create_task(self._carry(server, to_client, budget if way == "answer" else None))
        try:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            to_client.transport.abort()
            cut = next((end.result() for end in (up, down) if end.done() and end.result() is not None), None)
            if cut is not None:
                self.cuts[way] += 1
                if way == "late":
                    await asyncio.sleep(self._chance.uniform(0, MOST_LATE_SECONDS))
                    to_server.write(cut)
                    await to_server.drain()
        except OSError:
            pass  # the server closed first
        finally:
            for end in (up, down):
                end.cancel()
            to_client.transport.abort()
            to_server.close()  # after what was written

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: int | None
    ) -> bytes | None:
        """Carry bytes until one side ends (None) or the budget is used up; then what was read beyond it."""
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                if budget is not None and self.cutting:
                    if len(data) >= budget:
                        writer.write(data[:budget])
                        return data[budget:]
                    budget -= len(data)
                writer.write(data)
                await writer.drain()
        return None


class ScriptedProxy(Proxy):
    """Between clients and one server on loopback; what is to happen to commands of one function is written down.

    ``answer``: the server acts, and the client is cut off before the answer. ``late``: the client is cut off, and the
    command waits here for ``deliver``.
    """

    def __init__(self, port: int, function: str, script: list[str]) -> None:
        super().__init__(port)
        self._function = f"_{function}\r\n".encode()
        self.script = script
        self._late: list[tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aexit__(self, *error: object) -> None:
        await super().__aexit__(*error)
        for _, _, to_server in self._late:
            to_server.close()

    async def deliver(self) -> bytes:
        """Let what is late arrive. Returns what the server answers, to nobody."""
        command, server, to_server = self._late.pop(0)
        to_server.write(command)
        answer = await server.readuntil(b"\r\n")
        to_server.close()
        return answer

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        answers = asyncio.create_task(self._carry(server, to_client))
        fate = ""
        try:
            while data := await client.read(CHUNK):
                if self._function in data and self.script:
                    fate = self.script.pop(0)
                    answers.cancel()
                    await asyncio.wait((answers,))
                    break
                to_server.write(data)
            if fate == "answer":
                to_server.write(data)
                await server.readuntil(b"\r\n")
            elif fate == "late":
                self._late.append((data, server, to_server))
        finally:
            answers.cancel()
            to_client.transport.abort()
            if fate != "late":
                to_server.close()

    async def _carry(self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await server.read(CHUNK):
                to_client.write(data)
        to_client.close()
