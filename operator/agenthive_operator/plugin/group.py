"""The verbs of ``kubectl hive``."""

from __future__ import annotations

import click

from agenthive_operator.plugin.bus import ask, dlq, send
from agenthive_operator.plugin.logs import logs
from agenthive_operator.plugin.plan import plan
from agenthive_operator.plugin.session import Asked, options
from agenthive_operator.plugin.status import status, top
from agenthive_operator.plugin.why import why


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@options
@click.pass_context
def hive(ctx: click.Context, asked: Asked) -> None:
    """Hives and their agents in the cluster of the current context."""
    ctx.obj = asked


for command in (ask, dlq, logs, plan, send, status, top, why):
    hive.add_command(command)
