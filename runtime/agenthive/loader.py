"""Find the agent that ``agenthive run module:attribute`` names; every mistake becomes one readable line."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agenthive.agent import Agent

#: What the kubelet keeps of a termination message.
TERMINATION_LOG_BYTES = 4096
DEFAULT_TERMINATION_LOG = "/dev/termination-log"


class ConfigurationError(Exception):
    """The process cannot run as it is configured; only a change of code, image or environment helps. Exit code 2."""


def load_agent(entrypoint: str) -> Agent:
    """Import ``module:attribute`` and return the agent there.

    The current directory is importable, as it is for ``python -m``.

    Args:
        entrypoint: dotted module, a colon, the attribute (dots allowed) that holds an ``Agent``.

    Raises:
        ConfigurationError: not of that form, the import failed, no such attribute, not an Agent, or it handles nothing.
    """
    from agenthive.agent import Agent  # noqa: PLC0415 - the parser of the command line needs none of it

    module_name, colon, attribute = entrypoint.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigurationError(
            f"entrypoint {entrypoint!r} is not of the form module:attribute, as in summarizer:agent"
        )
    if (here := os.getcwd()) not in sys.path:  # noqa: PTH109 - sys.path holds strings
        sys.path.insert(0, here)
    found: object = _import(entrypoint, module_name)
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            agents = sorted(name for name, value in vars(sys.modules[module_name]).items() if isinstance(value, Agent))
            hint = f"; agents there: {', '.join(agents)}" if agents else "; the module defines no Agent"
            raise ConfigurationError(f"entrypoint {entrypoint}: {module_name} has no {attribute!r}{hint}") from None
    if not isinstance(found, Agent):
        raise ConfigurationError(
            f"entrypoint {entrypoint}: {attribute} is {type(found).__name__!r}, not an agenthive.Agent"
        )
    if not found.handlers:
        raise ConfigurationError(
            f"entrypoint {entrypoint}: {found.name} handles no message type; decorate a function with @agent.on('…')"
        )
    return found


def _import(entrypoint: str, module_name: str) -> object:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            hint = "is its file in the image, in codeFrom's ConfigMap or on PYTHONPATH?"
        else:
            hint = f"is {missing.partition('.')[0]} installed in the image?"
        raise ConfigurationError(f"entrypoint {entrypoint}: {last_line(error)}; {hint}") from error
    except Exception as error:
        # Whatever the user's module raises while it is imported is the reason it cannot run.
        raise ConfigurationError(
            f"entrypoint {entrypoint}: {last_line(error)}; raised {place(error)} while {module_name} was imported"
        ) from error


def last_line(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]


def place(error: BaseException) -> str:
    """Where in the user's code: the innermost frame outside the import system."""
    if isinstance(error, SyntaxError):
        return f"in {error.filename}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    return f"in {frames[-1].filename}:{frames[-1].lineno}" if frames else "there"


def write_termination_log(path: str, reason: str) -> None:
    """Leave ``reason`` where the kubelet reads it (at most 4096 bytes, its end); outside a pod nothing happens."""
    # The default path is never created: in a pod the kubelet made it, anywhere else there is nobody to read it.
    flags = os.O_WRONLY | os.O_TRUNC | (0 if path == DEFAULT_TERMINATION_LOG else os.O_CREAT)
    try:
        descriptor = os.open(path, flags, 0o644)
    except OSError:
        return
    with os.fdopen(descriptor, "wb") as log:
        log.write(reason.encode()[-TERMINATION_LOG_BYTES:])
