"""The interface of an image, and the image that is nothing."""

from __future__ import annotations

import os
import pwd
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agenthive_operator.local.kubelet.environment import ConfigError
from agenthive_operator.local.kubelet.rewrite import Rewrite

#: Where a process listens: all pods share one network here, so each has an address of its own.
BIND = "AGENTHIVE_BIND"
#: What a container's process has of our own environment.
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ")


@dataclass(frozen=True, slots=True)
class ImageContext:
    """What an image may use when it makes up a command line."""

    env: Mapping[str, str]
    rewrite: Rewrite
    #: A folder of this container alone, gone with the pod.
    private: Path


@dataclass(frozen=True, slots=True)
class Invocation:
    """A command line, and who it runs as (None: as ourselves)."""

    argv: list[str]
    account: pwd.struct_passwd | None = None


class Image:
    """Defaults of an image: environment, account, signal, and how its entrypoint treats the arguments."""

    #: What asks the process to end.
    stop_signal = signal.SIGTERM
    #: Where the process starts when the container names no workingDir; a path of the container.
    working_dir: str | None = None

    @property
    def account(self) -> pwd.struct_passwd | None:
        """Who the process must run as; None: as ourselves."""
        return None

    def base_env(self) -> dict[str, str]:
        """The variables a container starts with. PATH: this image's programs, this installation's, the machine's."""
        env = {name: os.environ[name] for name in INHERITED if name in os.environ}
        own = str(Path(sys.executable).parent)
        env["PATH"] = os.pathsep.join(
            [*(str(path) for path in self.program_folders()), own, env.get("PATH", os.defpath)]
        )
        return env

    def defaults(self) -> dict[str, str]:
        """Variables the image sets; they speak of the container's paths."""
        return {}

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """The variables as this image's programs need them here, where a pod has no network of its own."""
        return dict(variables)

    def program_folders(self) -> list[Path]:
        """Folders of the image's own programs."""
        return []

    def locate(self, program: str) -> str:
        """The file of a program that the image has under a name of its own; else ``program`` itself."""
        return program

    def invocation(self, command: list[str], args: list[str], context: ImageContext) -> Invocation:
        """What to start; ``command`` and ``args`` are the container's, expanded and rewritten.

        Raises:
            ConfigError: the image cannot start like this.
        """
        raise NotImplementedError


class PlainImage(Image):
    """Any image that is not known: the container has to say what runs."""

    def invocation(self, command: list[str], args: list[str], context: ImageContext) -> Invocation:
        """The container's own command line."""
        if not command:
            raise ConfigError("the image's own entrypoint is unknown in local mode: name the container's command")
        return Invocation([*command, *args])
