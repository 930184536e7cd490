"""``agenthive send`` and ``agenthive ask``: messages typed by a person or a script."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click
import orjson

from agenthive.cli.options import Chosen, bus_of, connection_options, run_async, settings_of
from agenthive.cli.output import print_json
from agenthive.cli.queues import print_status, status_document

if TYPE_CHECKING:
    from collections.abc import Callable

    from agenthive.bus import Bus, MessageStatus
    from agenthive.protocol import AgentMessage
    from agenthive.settings import Settings

F = TypeVar("F", bound="Callable[..., Any]")

PRIORITIES = ("low", "medium", "high", "critical")
SENDER = "cli"


class Body(click.ParamType[dict[str, Any]]):
    """A JSON object: itself, ``@file``, or ``-`` for standard input."""

    name = "body"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """Read and parse it; a usage error says what is wrong where."""
        source = "BODY"
        text: str | bytes = value
        if value == "-":
            source, text = "standard input", sys.stdin.buffer.read()
        elif value.startswith("@"):
            source = value[1:]
            try:
                text = Path(source).read_bytes()
            except OSError as error:
                self.fail(f"cannot read {source}: {error.strerror}", param, ctx)
        try:
            body = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            self.fail(f'{source} is no JSON: {error}. An object is needed, as in \'{{"topic": "bees"}}\'', param, ctx)
        if not isinstance(body, dict):
            self.fail(f'{source} must be a JSON object, as in \'{{"topic": "bees"}}\', not {text!r:.60}', param, ctx)
        return body


def message_options(function: F, recipient: str = "AGENT") -> F:
    """What ``send``, ``ask`` and ``publish`` have in common."""
    function = click.option("--max-retries", type=click.IntRange(0, 1000), help="Default: the hive's.")(function)
    function = click.option(
        "--from", "sender", metavar="NAME", default=SENDER, show_default=True, help="Sender's name."
    )(function)
    function = click.option("--id", "message_id", metavar="ID", help="An id of your own; sent twice, handled once.")(
        function
    )
    function = click.option(
        "--priority", type=click.Choice(PRIORITIES), default="medium", show_default=True, help="Lane."
    )(function)
    function = click.argument("body", type=Body(), default="{}", metavar="[BODY|@FILE|-]")(function)
    function = click.argument("message_type", metavar="TYPE")(function)
    return click.argument("agent", metavar=recipient, callback=_check_name)(function)


def _check_name(_: click.Context, param: click.Parameter, value: str) -> str:
    from agenthive.bus.keys import check_agent, check_topic  # noqa: PLC0415 - pydantic

    try:
        if param.metavar == "TOPIC":
            return check_topic(value)
        return value and check_agent(value)  # the message says what is wrong with an empty one
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@message_options
@click.option(
    "--ttl", type=click.FloatRange(min=0, min_open=True), help="Seconds until it expires. Default: the hive's."
)
@click.option("--delay", type=click.FloatRange(min=0), help="Seconds before it may be handled.")
@click.option("--ordering-key", metavar="KEY", help="Handled after all earlier messages of KEY.")
@click.option(
    "--on-fail", type=click.Choice(("continue", "halt")), help="If it is given up: go on with KEY, or halt KEY."
)
@click.option("--deduplication-key", metavar="KEY", help="Not sent if one of KEY was a short while ago.")
@click.option("--wait", is_flag=True, help="Wait until it is handled; exit code 1 if it failed or expired.")
@click.option("--timeout", type=click.FloatRange(min=0), default=60.0, show_default=True, help="For --wait, seconds.")
@connection_options
def send(chosen: Chosen, wait: bool, timeout: float, **options: Any) -> None:
    """Send a message of TYPE to AGENT and print its id."""
    run_async(_send(chosen, wait, timeout, options))


@click.command()
@message_options
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True, help="Seconds."
)
@connection_options
def ask(chosen: Chosen, timeout: float, **options: Any) -> None:
    """Send a message of TYPE to AGENT and print what its handler returned, as JSON."""
    run_async(_ask(chosen, timeout, options))


def message_from(
    settings: Settings,
    *,
    agent: str,
    message_type: str,
    body: dict[str, Any],
    priority: str,
    message_id: str | None,
    sender: str,
    max_retries: int | None,
    ttl: float | None = None,
    delay: float | None = None,
    ordering_key: str | None = None,
    on_fail: Literal["continue", "halt"] | None = None,
    deduplication_key: str | None = None,
) -> AgentMessage:
    """The message the options describe.

    Raises:
        pydantic.ValidationError: one of them is not possible.
    """
    from agenthive.protocol import AgentMessage, DeliveryOptions, MessagePriority  # noqa: PLC0415 - pydantic

    options = DeliveryOptions(
        max_retries=max_retries,
        not_before=datetime.now(UTC) + timedelta(seconds=delay) if delay else None,
        ordering_key=ordering_key,
        on_fail=on_fail,
        deduplication_key=deduplication_key,
    )
    fields: dict[str, Any] = {} if message_id is None else {"message_id": message_id}
    return AgentMessage(
        from_agent=sender,
        to_agent=agent,
        message_type=message_type,
        body=body,
        priority=MessagePriority[priority.upper()],
        ttl=settings.messaging.ttl_seconds if ttl is None else ttl,
        delivery_options=options,
        **fields,
    )


async def _send(chosen: Chosen, wait: bool, timeout: float, options: dict[str, Any]) -> None:
    settings = await settings_of(chosen)
    message = message_from(settings, **options)
    async with bus_of(settings) as bus:
        message_id = await bus.send(message)
        if not wait:
            if chosen.json:
                print_json({"agent": message.to_agent, "message_id": message_id})
            else:
                click.echo(message_id)
            return
        status = await _final(bus, message.to_agent, message_id, timeout)
    if chosen.json:
        print_json(status_document(message.to_agent, status))
    else:
        print_status(message.to_agent, status)
    if status.status != "delivered":
        raise click.exceptions.Exit(1)


async def _final(bus: Bus, agent: str, message_id: str, timeout: float) -> MessageStatus:
    """The status once it is final, or whatever it is when the time is up."""
    try:
        async for status in bus.watch(agent, message_id, timeout):
            last = status
    except TimeoutError:
        last = await bus.status(agent, message_id)
    return last


async def _ask(chosen: Chosen, timeout: float, options: dict[str, Any]) -> None:
    settings = await settings_of(chosen)
    message = message_from(settings, ttl=timeout, **options)
    async with bus_of(settings) as bus:
        reply = await bus.request(message, timeout)
    print_json(reply.body.get("result"))
