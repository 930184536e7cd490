"""``send``, ``ask`` and ``dlq``: the commands of the runtime's own ``agenthive``, run in a ready pod of the hive.

Their options and help are the runtime's. Bodies go through standard input: arguments of an exec stand in the API
server's audit log.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import click
import orjson
from click.core import ParameterSource

from agenthive.cli.letters import dlq as runtime_dlq
from agenthive.cli.messages import ask as runtime_ask
from agenthive.cli.messages import send as runtime_send
from agenthive.cli.options import run_async
from agenthive_operator.plugin.session import Asked, options, session_of

SHORT: Final = {
    "ask": "Send a message and print the answer.",
    "send": "Send a message and print its id.",
    "list": "List them, and why each died.",
    "show": "Show one whole.",
    "redrive": "Put them back into the queue.",
    "purge": "Throw them away, for good.",
}
# Which hive is known from the Agent, and how to answer from our own options.
_OURS = frozenset({"hive", "namespace", "output"})


def in_pod(command: click.Command, path: Sequence[str], *, any_agent: bool) -> click.Command:
    """``command`` of the runtime as a verb here: run in a pod of the agent that its first argument names."""

    @options
    def verb(asked: Asked, **values: Any) -> None:
        context = click.get_current_context()
        given = {name for name in values if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
        if path == ("dlq", "purge") and not values["yes"] and sys.stdin.isatty():
            click.confirm(f"Throw dead letters of {values['agent']} away, for good?", abort=True, err=True)
            values["yes"] = True
            given.add("yes")
        elif path == ("dlq", "purge") and not values["yes"]:
            raise click.UsageError("purge asks before it throws dead letters away; where nobody can answer, give --yes")
        words, stdin = arguments(command, values, given)
        name = str(values["agent"])
        code = run_async(_run(asked, name, [*path, *words], stdin, any_agent=any_agent))
        if code:
            raise click.exceptions.Exit(code)

    own: list[click.Parameter] = verb.__click_params__  # type: ignore[attr-defined]
    kept = [parameter for parameter in command.params if parameter.name not in _OURS]
    return click.Command(
        path[-1], callback=verb, params=[*kept, *reversed(own)], help=command.help, short_help=SHORT[path[-1]]
    )


def arguments(command: click.Command, values: Mapping[str, Any], given: set[str]) -> tuple[list[str], bytes | None]:
    """The words that say to ``command`` what was said here, and its standard input if it has a body. Pure."""
    words: list[str] = []
    positional: list[str] = []
    stdin = None
    for parameter in command.params:
        name = parameter.name or ""
        if name in _OURS or name not in values:
            continue
        value = values[name]
        if name == "body":
            positional.append("-")
            stdin = orjson.dumps(value)
        elif isinstance(parameter, click.Argument):
            positional += [str(item) for item in value] if parameter.nargs == -1 else [str(value)]
        elif name in given and isinstance(parameter, click.Option):
            if parameter.is_flag:
                words += [parameter.opts[0]] if value else []
            else:
                words.append(f"{parameter.opts[0]}={value.isoformat() if isinstance(value, datetime) else value}")
    return [*words, "--", *positional], stdin


async def _run(asked: Asked, agent: str, words: list[str], stdin: bytes | None, *, any_agent: bool) -> int:
    async with session_of(asked) as session:
        found = await session.agent(agent)
        hive = str(found["spec"]["hiveRef"]["name"])
        pod = await session.ready_pod(hive, agent, any_agent=any_agent)
        output = ["--output=json"] if asked.json else []
        return (await session.run(pod, ["agenthive", *output, *words], stdin)).code


send = in_pod(runtime_send, ("send",), any_agent=True)
ask = in_pod(runtime_ask, ("ask",), any_agent=True)


@click.group()
def dlq() -> None:
    """Dead letters: messages of an agent that were given up."""


for _name, _command in runtime_dlq.commands.items():
    # An agent's login may not read the dead letters of another.
    dlq.add_command(in_pod(_command, ("dlq", _name), any_agent=False))
