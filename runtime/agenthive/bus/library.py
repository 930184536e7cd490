"""The server-side functions: one library, named by the hash of its source."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources

from agenthive.bus.errors import FunctionsMissing
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
        """Put the library into the server unless it is there.

        Raises FunctionsMissing where it is not and this user may not load it, ReplyError when the server refuses it.
        """
        # Asked first by a function without keys: most find it there, and need not the right to look at libraries. It
        # also answers where memory is full, when LOAD is refused without a look at it.
        (there,) = await connection.execute([("FCALL", f"{self.name}_clock", 0)], timeout)
        if not isinstance(there, ReplyError):
            return
        if MISSING not in str(there) and there.code != "NOPERM":
            raise there
        (answer,) = await connection.execute([("FUNCTION", "LOAD", self.code)], timeout)
        if not isinstance(answer, ReplyError) or "already exists" in str(answer):
            return
        if answer.code == "NOPERM" and MISSING in str(there):
            from agenthive import __version__  # noqa: PLC0415 - it takes a look at what is installed

            raise FunctionsMissing(
                f"it has no library {self.name}, which is the bus of agenthive {__version__}, and this user may"
                " not load it. The operator loads that of its own version: give the agent's image the same version of"
                " agenthive, or upgrade the operator; if it is the same, wait until it has looked at this Redis"
            )
        raise answer


@cache
def library() -> Library:
    """The library of this version of the package."""
    folder = resources.files("agenthive.bus").joinpath("lua")
    return Library("".join(folder.joinpath(name).read_text(encoding="utf-8") for name in FILES))
