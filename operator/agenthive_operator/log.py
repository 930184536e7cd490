"""The operator's log: what is being looked at is a field of every line, whichever module writes it."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Iterator, Mapping
from contextvars import ContextVar

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


def configure(level: str, form: str) -> None:
    """Send everything logged to standard error.

    Args:
        level: name of the least level that is written.
        form: ``json``, ``text``, or ``auto``: text on a terminal, JSON elsewhere.
    """
    configure_output(level, form, {})
    for handler in logging.getLogger().handlers:
        handler.addFilter(add_subject)
    logging.getLogger("kopf").setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)  # warns that a thread gets no signals
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
