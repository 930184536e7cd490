"""``kubectl hive``: what a person asks of a hive, by the rights that kubectl has."""

from __future__ import annotations

import sys

import click


def main(arguments: list[str] | None = None) -> None:
    """Run the plugin and exit: 0 done, 1 refused or failed (one line on stderr says why), 2 not understood."""
    from agenthive.cli import run_group  # noqa: PLC0415 - as below

    try:
        from agenthive_operator.plugin.group import hive  # noqa: PLC0415 - may lack what the extra brings
    except ImportError as error:
        click.echo(f"kubectl hive: more is needed ({error}): pip install 'agenthive-k8s[operator]'", err=True)
        sys.exit(1)
    run_group(hive, "kubectl hive", arguments)
