"""``agenthive version``."""

from __future__ import annotations

import platform

import click

from agenthive.cli.options import Chosen, connection_options
from agenthive.cli.output import print_json


@click.command()
@connection_options
def version(chosen: Chosen) -> None:
    """Print the versions of AgentHive and Python."""
    from agenthive import __version__  # noqa: PLC0415 - costs 30 ms

    if chosen.json:
        print_json({"agenthive": __version__, "python": platform.python_version()})
    else:
        click.echo(f"agenthive {__version__} (Python {platform.python_version()})")
