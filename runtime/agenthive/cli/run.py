"""``agenthive run``: what a pod runs."""

from __future__ import annotations

import logging
import os
import signal
import sys
from types import FrameType
from typing import Any

import click

EXIT_CONFIGURATION = 2


@click.command()
@click.argument("entrypoint", metavar="MODULE:ATTRIBUTE")
@click.option(
    "--agent", metavar="NAME", help="Receive messages under this name. Default: AGENTHIVE_AGENT, then the code's."
)
@click.option(
    "--concurrency", type=click.IntRange(1, 10_000), help="Handlers at a time. Default: AGENTHIVE_CONCURRENCY, 10."
)
@click.option(
    "--port", type=click.IntRange(0, 65_535), help="Of the health pages; 0: any. Default: AGENTHIVE_HTTP_PORT, 8080."
)
def run(entrypoint: str, agent: str | None, concurrency: int | None, port: int | None) -> None:
    """Run the agent at MODULE:ATTRIBUTE, as in summarizer:agent, until SIGTERM; then drain.

    Exit codes: 0 drained, 1 failed, 2 cannot run as configured (the reason is on stderr and in the termination log).
    """
    # Until the loop listens to signals: process 1 of a container ignores what it has no handler for.
    signal.signal(signal.SIGTERM, _exit_now)
    from pydantic import ValidationError  # noqa: PLC0415 - everything below waits for the handler above
    from pydantic_settings import SettingsError  # noqa: PLC0415

    from agenthive import loader  # noqa: PLC0415
    from agenthive.protocol import describe  # noqa: PLC0415
    from agenthive.settings import Settings  # noqa: PLC0415

    # Read by hand: the reason that the settings cannot be read is to be left there, too.
    termination_log = os.environ.get("AGENTHIVE_TERMINATION_LOG", loader.DEFAULT_TERMINATION_LOG)
    try:
        try:
            settings = _with(Settings(), agent=agent, concurrency=concurrency, http_port=port)
        except ValidationError as error:
            raise loader.ConfigurationError(f"AGENTHIVE_* environment: {describe(error)}") from error
        except SettingsError as error:
            raise loader.ConfigurationError(f"AGENTHIVE_* environment: {error}: {error.__cause__}") from error
        _start(entrypoint, settings)
    except loader.ConfigurationError as error:
        _give_up(termination_log, str(error), EXIT_CONFIGURATION)
    except Exception as error:
        logging.getLogger("agenthive").exception("the agent process failed")
        _give_up(termination_log, f"{loader.last_line(error)}; {loader.place(error)}", 1)


def _start(entrypoint: str, settings: Any) -> None:
    from agenthive import loader, logs  # noqa: PLC0415

    logs.configure(
        settings.log_level,
        settings.log_format,
        {
            name: value
            for name, value in (("hive", settings.hive), ("agent", settings.agent), ("pod", settings.pod))
            if value
        },
    )
    agent = loader.load_agent(entrypoint)
    from agenthive import runner  # noqa: PLC0415 - after the user's module: its errors are told without Redis's import

    runner.run(agent, settings)


def _with(settings: Any, **changes: Any) -> Any:
    return settings.replace(**{name: value for name, value in changes.items() if value is not None})


def _exit_now(number: int, _frame: FrameType | None) -> None:
    # Nothing has been claimed yet, so there is nothing to drain.
    sys.exit(0)


def _give_up(termination_log: str, reason: str, code: int) -> None:
    from agenthive.loader import write_termination_log  # noqa: PLC0415

    write_termination_log(termination_log, reason)
    click.echo(f"agenthive run: {reason}", err=True)
    sys.exit(code)
