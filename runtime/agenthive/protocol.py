"""The message protocol: what one agent says to another, and its JSON form.

``python -m agenthive.protocol`` prints the JSON Schema that ``docs/message.schema.json`` publishes.
A reader accepts whatever an older or newer writer of the same major version wrote: absent fields take their
defaults, unknown fields are kept and written back.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import is_dataclass
from datetime import UTC, date, datetime
from datetime import time as time_of_day
from enum import Enum, IntEnum, StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union
from uuid import UUID

import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticSerializationError, core_schema, to_jsonable_python

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PROTOCOL_VERSION = 1
DEFAULT_TTL_SECONDS = 3600.0
MAX_BODY_BYTES = 1024 * 1024
"""Most bytes the JSON form of a body may have."""
MAX_BODY_DEPTH = 100
"""Most levels of objects and arrays a body may nest."""
MAX_MESSAGE_BYTES = MAX_BODY_BYTES + 64 * 1024
"""Most bytes the JSON form of a whole message may have."""
MAX_NAME_LENGTH = 253
MAX_ID_LENGTH = 128
REPLY_TYPE = "reply"
SCHEMA_ID = "https://agenthive.dev/schemas/message.schema.json"

#: What ``body`` may be given as: a JSON object, or a model or dataclass that becomes one.
Body: TypeAlias = Union[Mapping[str, Any], BaseModel, "DataclassInstance"]

_INT64_MIN, _UINT64_MAX = -(2**63), 2**64 - 1


class MessageError(ValueError):
    """A document that is no valid message. The text names each field that is wrong and why."""


class MessagePriority(IntEnum):
    """Lane of a message; the higher ones get the larger share of a busy consumer."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3
    CRITICAL = 4


class MessageDeliveryStatus(StrEnum):
    """Where a message stands. ``delivered`` means that a handler finished and the message was acknowledged."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"
    EXPIRED = "expired"


_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


def new_message_id() -> str:
    """A UUIDv7: unique, and sorted by the millisecond it was made in."""
    moment, noise = f"{time.time_ns() // 1_000_000:012x}", os.urandom(10).hex()
    return f"{moment[:8]}-{moment[8:]}-7{noise[:3]}-{_VARIANT[noise[3]]}{noise[4:7]}-{noise[8:]}"


def _now() -> datetime:
    return datetime.now(UTC)


def _to_utc(value: datetime) -> datetime:
    return value.astimezone(UTC)


def _check_json(value: Any, path: str, depth: int) -> Any:
    """``value`` as plain JSON data of its own (tuples become lists); ValueError names the first place that is not."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if kind is int:
        if not _INT64_MIN <= value <= _UINT64_MAX:
            raise ValueError(f"{path} is an integer of more than 64 bits; send it as a string")
        return value
    if kind is float:
        if not math.isfinite(value):
            raise ValueError(f"{path} is {value}, which JSON cannot express; send null or a string")
        return value
    if depth >= MAX_BODY_DEPTH:
        raise ValueError(f"body nests deeper than {MAX_BODY_DEPTH} levels")
    if isinstance(value, Mapping):
        plain = True
        for key in value:
            if type(key) is not str:
                if not isinstance(key, str):
                    raise ValueError(f"{path} has the key {key!r}, but the keys of a JSON object are strings")
                plain = False
        if not plain:  # enums, for example
            value = {str.__str__(key): item for key, item in value.items()}
        return {key: _check_json(item, f"{path}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_check_json(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    return _check_json(_jsonable(value, path), path, depth)


def _jsonable(value: Any, path: str) -> Any:
    """The JSON of what is none and has only one obvious form in it; ValueError for anything else."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return str.__str__(value)  # of a subclass, whatever its own __str__ says
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, datetime | date | time_of_day):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if is_dataclass(value) and not isinstance(value, type):
        return to_jsonable_python(value, by_alias=True)
    raise ValueError(
        f"{path} is a {type(value).__name__}, which is not JSON; convert it to a string, number, list or object"
    )


def _own_body(value: Any) -> dict[str, Any]:
    """A copy of a body given in Python: what the caller changes later changes no message."""
    if not isinstance(value, Mapping):
        kind = type(value).__name__
        value = _jsonable(value, "body") if isinstance(value, BaseModel) or is_dataclass(value) else None
        if not isinstance(value, dict):
            raise ValueError(f"body must be a JSON object (a dict or a model), not {kind}")
    body: dict[str, Any] = _check_json(value, "body", 0)
    try:
        size = len(orjson.dumps(body))
    except (TypeError, ValueError) as error:
        raise ValueError(f"body cannot be written as JSON: {error}") from error
    if size > MAX_BODY_BYTES:
        raise ValueError(
            f"body has {size} bytes as JSON, the limit is {MAX_BODY_BYTES}; store it and send where it can be found"
        )
    return body


class _JsonBody:
    """Schema of ``body``: JSON that was just parsed is taken as it is, a Python object is checked and copied."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        parsed = core_schema.dict_schema(core_schema.str_schema(), core_schema.any_schema())
        return core_schema.json_or_python_schema(
            json_schema=parsed,
            python_schema=core_schema.no_info_plain_validator_function(_own_body),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "object", "additionalProperties": True}


class _Utc:
    """Schema of a moment: one in UTC is taken as it is, without a call into Python; any other is converted to UTC."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        aware = core_schema.datetime_schema(tz_constraint="aware")
        return core_schema.union_schema(
            [
                core_schema.datetime_schema(tz_constraint=0),
                core_schema.no_info_after_validator_function(_to_utc, aware),
            ],
            mode="left_to_right",
            custom_error_type="utc_datetime",
            custom_error_message="Input should be a date and time with a time zone, such as 2026-01-31T12:00:00Z",
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "format": "date-time"}


Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH, pattern=r"\S")]
UtcDatetime = Annotated[datetime, _Utc]


class DeliveryOptions(BaseModel):
    """How one message is delivered; what is absent is decided by the hive's ``messaging`` policy."""

    model_config = ConfigDict(frozen=True, extra="allow")

    require_ack: bool = Field(True, description="False: acknowledged when claimed, so handled at most once.")
    max_retries: int | None = Field(
        None, ge=0, le=1000, description="Retries after the first attempt before the dead letters."
    )
    retry_delay: float | None = Field(
        None, ge=0, le=86_400, allow_inf_nan=False, description="Delay before the first retry, seconds; then doubling."
    )
    not_before: UtcDatetime | None = Field(
        None, description="Not handed to a handler before this time; the ttl counts from it."
    )
    deduplication_key: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="Messages of one key to one agent within the hive's deduplicationSeconds are one: the first.",
    )
    ordering_key: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="Messages of one key to one agent are handled one after the other, in order of acceptance.",
    )
    on_fail: Literal["continue", "halt"] | None = Field(
        None,
        description="With an ordering_key, when this message is given up: continue (default) with the next, or halt "
        "the key until the dead letter is redriven or purged, or the key is resumed.",
    )
    persistent: bool = Field(True, description="False: never written to the PostgreSQL message log.")

    @field_validator("ordering_key")  # runs only where a key is given
    @classmethod
    def _order_or_delay(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("not_before") is not None:
            raise ValueError("ordering_key and not_before exclude each other: a delayed message has no place in order")
        if value is not None and info.data.get("require_ack") is False:
            raise ValueError(
                "ordering_key and require_ack: false exclude each other: the next message of the key follows when this "
                "one was acknowledged"
            )
        return value

    @field_validator("on_fail")  # runs only where it is given
    @classmethod
    def _end_of_a_key(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and "ordering_key" in info.data and info.data["ordering_key"] is None:
            raise ValueError("on_fail needs an ordering_key: it says what becomes of the key's later messages")
        return value


_DEFAULT_OPTIONS = DeliveryOptions()
_OPTIONS = {"delivery_options"}


class AgentMessage(BaseModel):
    """One message from an agent to an agent. Immutable; ``model_copy(update=…)`` makes a changed one.

    Raises pydantic's ValidationError for an empty name, a naive clock, a ttl that is not positive and a body
    that is not a JSON object or has more than 1 MiB.
    """

    model_config = ConfigDict(frozen=True, extra="allow", title="AgentMessage")

    message_id: str = Field(
        default_factory=new_message_id,
        min_length=1,
        max_length=MAX_ID_LENGTH,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="Unique id, no control characters; a UUIDv7 by default. Sending one id twice delivers one message.",
    )
    from_agent: Name = Field(description="Name of the sender.")
    to_agent: Name = Field(description="Name of the agent that handles the message, or # and the topic it came by.")
    message_type: Name = Field(description="Which handler of the agent it is for.")
    priority: MessagePriority = Field(MessagePriority.MEDIUM, description="1 low, 2 medium, 3 high, 4 critical.")
    timestamp: UtcDatetime = Field(default_factory=_now, description="When the sender made the message (UTC).")
    ttl: float = Field(
        DEFAULT_TTL_SECONDS,
        gt=0,
        allow_inf_nan=False,
        description="Seconds after acceptance (or not_before) when the message expires; absent means the hive's.",
    )
    body: Annotated[dict[str, Any], _JsonBody] = Field(
        default_factory=dict, description="What is said: a JSON object of at most 1 MiB."
    )
    delivery_options: DeliveryOptions = Field(
        default_factory=lambda: _DEFAULT_OPTIONS, description="How the message is delivered."
    )
    correlation_id: str | None = Field(
        None, min_length=1, max_length=MAX_ID_LENGTH, description="Id of the message this one answers or belongs to."
    )
    reply_to: str | None = Field(
        None, min_length=1, max_length=MAX_NAME_LENGTH, description="Where the reply goes; set by a request."
    )
    traceparent: str | None = Field(None, max_length=256, description="W3C trace context of the sender.")
    version: int = Field(PROTOCOL_VERSION, ge=1, le=PROTOCOL_VERSION, description="Major version of this protocol.")

    def to_json(self) -> bytes:
        """The wire form: one JSON document, without what is absent and without options that were not given."""
        if self.delivery_options is _DEFAULT_OPTIONS and not self.__pydantic_extra__:
            # As below in a third of the time: what has no options is what there is most of.
            fields = {name: value for name, value in self.__dict__.items() if value is not None}
            del fields["delivery_options"]
            return orjson.dumps(fields, option=orjson.OPT_UTC_Z)
        exclude = _OPTIONS if self.delivery_options is _DEFAULT_OPTIONS else None
        try:
            return self.__pydantic_serializer__.to_json(self, exclude_none=True, exclude=exclude)
        except PydanticSerializationError as error:  # an unknown field, which nobody has looked at
            raise MessageError(f"the message cannot be written as JSON: {error}") from error

    @classmethod
    def from_json(cls, data: bytes | bytearray | str) -> AgentMessage:
        """Read the wire form. Raises MessageError, whose text names what is wrong with which field."""
        raw = data.encode() if isinstance(data, str) else data
        if len(raw) > MAX_MESSAGE_BYTES:
            raise MessageError(f"message has {len(raw)} bytes, the limit is {MAX_MESSAGE_BYTES}")
        try:
            if b"NaN" in raw or b"Infinity" in raw:  # pydantic takes them for numbers, JSON has no such thing
                orjson.loads(raw)
            message = cls.__pydantic_validator__.validate_json(raw)
        except orjson.JSONDecodeError as error:
            raise MessageError(f"not a valid message: Invalid JSON: {error}") from error
        except ValidationError as error:
            raise MessageError(_of_newer_version(raw) or f"not a valid message: {describe(error)}") from error
        assert isinstance(message, cls)
        return message

    def reply(self, result: Any) -> AgentMessage:
        """The reply to this request: type ``reply``, body ``{"result": result}``, correlation_id this message's id."""
        return AgentMessage(
            from_agent=self.to_agent,
            to_agent=self.from_agent,
            message_type=REPLY_TYPE,
            priority=self.priority,
            ttl=self.ttl,
            body={"result": result},
            correlation_id=self.message_id,
            traceparent=self.traceparent,
        )


def _of_newer_version(raw: bytes | bytearray) -> str | None:
    """What to say of a document of a later major version, in which everything may mean something else."""
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    version = document.get("version") if isinstance(document, dict) else None
    if type(version) is not int or version <= PROTOCOL_VERSION:
        return None
    return (
        f"message of protocol version {version}; this process reads version {PROTOCOL_VERSION}: "
        "upgrade the receiving agent, then redrive"
    )


def describe(error: ValidationError) -> str:
    """A pydantic error as one line for people: ``field: what is wrong`` of each, without the input's value."""
    parts = []
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        place = ".".join(str(step) for step in item["loc"])
        parts.append(f"{place}: {item['msg']}" if place else item["msg"])
    return "; ".join(parts)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the wire form."""
    schema = AgentMessage.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, **schema}


def main() -> None:
    """Print the JSON Schema."""
    sys.stdout.buffer.write(orjson.dumps(json_schema(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


if __name__ == "__main__":
    main()
