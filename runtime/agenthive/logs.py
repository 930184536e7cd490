"""Logs of an agent process: one JSON document a line for machines, plain lines on a terminal."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

import orjson

if TYPE_CHECKING:
    from agenthive.context import Context

#: Attributes every LogRecord has; anything else came through ``extra=`` and is worth a field.
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def current_message() -> Context | None:
    """What is being handled here, if anything; a CLI that only logs need not load what a context needs."""
    module = sys.modules.get("agenthive.context")
    return module.current.get() if module is not None else None


class JsonFormatter(logging.Formatter):
    """``{"time", "level", "logger", "message", …}`` with the process's fields and the handled message's ids."""

    def __init__(self, fields: dict[str, str]) -> None:
        super().__init__()
        self.fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self.fields,
        }
        ctx = current_message()
        if ctx is not None:
            entry["message_id"] = ctx.message.message_id
            entry["message_type"] = ctx.message.message_type
            entry["attempt"] = ctx.attempt
        entry.update({name: value for name, value in vars(record).items() if name not in STANDARD})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(entry, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


class TextFormatter(logging.Formatter):
    """For people: time, level, logger, text, and the id of the message in hand."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s  %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name logging calls
        """The line, with the message's id at its end."""
        ctx = current_message()
        line = super().formatMessage(record)
        return line if ctx is None else f"{line}  [{ctx.message.message_type} {ctx.message.message_id}]"


def configure(level: str, form: str, fields: dict[str, str], stream: TextIO | None = None) -> None:
    """Send everything logged to ``stream``.

    Args:
        level: name of the least level that is written, as in ``logging``.
        form: ``json``, ``text``, or ``auto``: text on a terminal, JSON elsewhere.
        fields: added to every JSON line (agent, pod …).
        stream: where to; default standard error.
    """
    stream = sys.stderr if stream is None else stream
    if form == "auto":
        form = "text" if stream.isatty() else "json"
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter() if form == "text" else JsonFormatter(fields))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
