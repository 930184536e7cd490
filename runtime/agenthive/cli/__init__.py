"""The command line ``agenthive``. Each command is imported when it is used."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from agenthive.cli.options import Chosen, connection_options

#: Command → where it is.
COMMANDS = {
    "ask": "agenthive.cli.messages:ask",
    "audit": "agenthive.cli.audit:audit",
    "cancel": "agenthive.cli.queues:cancel",
    "db": "agenthive.cli.db:db",
    "dlq": "agenthive.cli.letters:dlq",
    "log": "agenthive.cli.records:log",
    "metrics": "agenthive.cli.records:metrics",
    "publish": "agenthive.cli.topics:publish",
    "resume": "agenthive.cli.ordering:resume",
    "run": "agenthive.cli.run:run",
    "send": "agenthive.cli.messages:send",
    "status": "agenthive.cli.queues:status",
    "topics": "agenthive.cli.topics:topics",
    "version": "agenthive.cli.version:version",
    "watch": "agenthive.cli.queues:watch",
}
#: Other distributions, and the operator of this one, add commands here.
ENTRY_POINTS = "agenthive.commands"

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class LazyGroup(click.Group):
    """A group that imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command's name, sorted."""
        return sorted({*COMMANDS, *_added()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command; None if there is none of that name."""
        if cmd_name in COMMANDS:
            module, _, attribute = COMMANDS[cmd_name].partition(":")
            command = getattr(importlib.import_module(module), attribute)
        elif (entry_point := _added().get(cmd_name)) is not None:
            try:
                command = entry_point.load()
            except ImportError as error:
                command = _unavailable(cmd_name, error)
        else:
            return None
        assert isinstance(command, click.Command)
        return command


def _added() -> dict[str, Any]:
    from importlib.metadata import entry_points  # noqa: PLC0415 - costs 30 ms that `agenthive run` does not have

    return {entry_point.name: entry_point for entry_point in entry_points(group=ENTRY_POINTS)}


def _unavailable(name: str, error: ImportError) -> click.Command:
    def explain(**_: object) -> None:
        raise click.ClickException(
            f"{name} needs more than is installed ({error}): pip install 'agenthive-k8s[{name}]'"
        )

    return click.Command(
        name,
        callback=explain,
        short_help="(not installed)",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@connection_options
@click.pass_context
def agenthive(ctx: click.Context, chosen: Chosen) -> None:
    """Fleets of agents on Kubernetes.

    Which hive: that of AGENTHIVE_REDIS_URL and its companions in the environment, otherwise --hive in the cluster
    of KUBECONFIG.
    """
    ctx.obj = chosen


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed (one line on stderr says why), 2 not understood."""
    run_group(agenthive, "agenthive", arguments)


def run_group(group: click.Group, name: str, arguments: list[str] | None) -> None:
    """Run a group of commands under ``name`` and exit, as ``main`` does."""
    try:
        code = group.main(args=arguments, prog_name=name, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = EXIT_USAGE
    except click.UsageError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:
        code = _fail(name, error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        code = _fail(name, "interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output left, as `head` does. Nothing more can be said, not even at exit.
        sys.stdout = None
        code = EXIT_FAILED
    except Exception as error:
        code = _fail(name, *_explain(error))
    sys.exit(code if isinstance(code, int) else 0)


def _fail(name: str, text: str, code: int) -> int:
    click.echo(f"{name}: {text}", err=True)
    return code


def _explain(error: Exception) -> tuple[str, int]:
    """One line about an error a person can do something about; anything else is a bug and keeps its traceback."""
    from pydantic import ValidationError  # noqa: PLC0415 - only when something went wrong

    from agenthive.protocol import describe  # noqa: PLC0415

    if isinstance(error, ValidationError):
        return describe(error), EXIT_USAGE
    ours = type(error).__module__.startswith(("agenthive.bus", "agenthive.store", "agenthive_operator"))
    if ours or isinstance(error, OSError) or type(error) is LookupError:
        return " ".join(str(error).split()) or type(error).__name__, EXIT_FAILED
    raise error
