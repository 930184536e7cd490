"""The operator's log: what is being looked at is a field of every line, whichever module writes it."""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Final

from agenthive.logs import configure as configure_output

_subject: ContextVar[Mapping[str, str] | None] = ContextVar("subject", default=None)


@contextlib.contextmanager
def about(kind: str, namespace: str, name: str) -> Iterator[None]:
    """Lines logged inside speak of this object, and of one look at it that has an id of its own."""
    field = "hive" if kind == "AgentHive" else "agent"
    token = _subject.set({"namespace": namespace, field: name, "reconcile": secrets.token_hex(4)})
    try:
        yield
    finally:
        _subject.reset(token)


def add_subject(record: logging.LogRecord) -> bool:
    """A filter that lets everything pass, with the fields of what is being looked at."""
    for name, value in (_subject.get() or {}).items():
        if not hasattr(record, name):
            setattr(record, name, value)
    return True


class Sparing:
    """Lets ``burst`` lines of one topic through in ``seconds``, and then says how many were left out.

    When an API server is away, each of a thousand objects could say so at each attempt.
    """

    def __init__(self, *, burst: int = 10, seconds: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._seconds = seconds
        self._clock = clock
        self._told: dict[str, tuple[float, int]] = {}

    def admits(self, topic: str) -> int | None:
        """How many lines were left out before this one; None where this one is to be left out, too."""
        now = self._clock()
        since, count = self._told.get(topic, (now, 0))
        if now - since >= self._seconds:
            self._told[topic] = now, 1
            return max(0, count - self._burst)
        self._told[topic] = since, count + 1
        return 0 if count < self._burst else None

    def log(self, logger: logging.Logger, level: int, topic: str, text: str, *values: object) -> None:
        """Log a line of a topic, unless there were many; where debugging is on, all are logged."""
        left_out = self.admits(topic)
        if left_out is None:
            logger.debug(text, *values)
        elif left_out:
            logger.log(level, text + " (and %d lines like this before)", *values, left_out)
        else:
            logger.log(level, text, *values)


_ERROR: Final = re.compile(r"-> (\w+)|has failed: (\w*)")


class FewLines(logging.Filter):
    """What kopf says of a server that fails: one line for each kind of failure now and then, without tracebacks.

    It tells each attempt of each watch, with the traceback of what ended it. It is begun again in any case.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sparing = Sparing(burst=2)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is to be logged."""
        if not record.name.startswith("kopf") or record.levelno < logging.WARNING:
            return True
        record.exc_info = record.exc_text = None
        found = _ERROR.search(record.getMessage())
        return self._sparing.admits(found.group() if found else str(record.msg)[:60]) is not None


def configure(level: str, form: str) -> None:
    """Send everything logged to standard error.

    Args:
        level: name of the least level that is written.
        form: ``json``, ``text``, or ``auto``: text on a terminal, JSON elsewhere.
    """
    configure_output(level, form, {})
    for handler in logging.getLogger().handlers:
        handler.addFilter(add_subject)
        handler.addFilter(FewLines())
    logging.getLogger("kopf").setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)  # warns that a thread gets no signals
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
