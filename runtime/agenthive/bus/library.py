"""The server-side functions: one library, named by the hash of its source."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources

from agenthive.bus.wire import Command, Connection, ReplyError

FILES = (
    "prelude.lua",
    "order.lua",
    "send.lua",
    "every.lua",
    "finish.lua",
    "claim.lua",
    "lease.lua",
    "topics.lua",
    "look.lua",
    "letters.lua",
    "cancel.lua",
    "touch.lua",
    "cache.lua",
)
MISSING = "ERR Function not found"
_READING = re.compile(r"^define\('(\w+)'.*'no-writes'", re.MULTILINE)
_READING_COMMANDS = frozenset({"INFO", "PING", "SCAN", "SMEMBERS", "XLEN", "XRANGE", "XREVRANGE"})


class Library:
    """Source and names of the functions. Two versions of the package differ in hash and so never share a function."""

    def __init__(self, source: str) -> None:
        self.version = hashlib.sha256(source.encode()).hexdigest()[:12]
        self.name = f"agenthive_{self.version}"
        self._readers = {f"{self.name}_{function}" for function in _READING.findall(source)}
        self.code = f"#!lua name={self.name}\n" + source.replace("@VERSION@", self.version)

    def call(self, function: str, key: str, *arguments: str | bytes | int) -> Command:
        """The command that calls ``function`` for the agent whose gate is ``key``."""
        return ("FCALL", f"{self.name}_{function}", 1, key, *arguments)

    def only_reads(self, commands: Sequence[Command]) -> bool:
        """Whether no command writes, so that doing them twice is doing them once."""
        return all(
            command[1] in self._readers if command[0] == "FCALL" else command[0] in _READING_COMMANDS
            for command in commands
        )

    async def load(self, connection: Connection, timeout: float) -> None:
        """Put the library into the server unless it is there. Raises ReplyError when the server refuses it."""
        (answer,) = await connection.execute([("FUNCTION", "LOAD", self.code)], timeout)
        if not isinstance(answer, ReplyError) or "already exists" in str(answer):
            return
        if answer.code == "OOM":  # refused without a look at it; a worker that comes to drain the queues must get in
            (found,) = await connection.execute([("FUNCTION", "LIST", "LIBRARYNAME", self.name)], timeout)
            if found and not isinstance(found, ReplyError):
                return
        raise answer


@cache
def library() -> Library:
    """The library of this version of the package."""
    folder = resources.files("agenthive.bus").joinpath("lua")
    return Library("".join(folder.joinpath(name).read_text(encoding="utf-8") for name in FILES))
