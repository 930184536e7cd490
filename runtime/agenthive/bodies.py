"""Typed bodies: which handlers take their message's body as a model, and how JSON becomes one."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Annotated, Any, Union, get_args, get_origin, is_typeddict

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import to_json

from agenthive.protocol import AgentMessage, describe

#: Makes a typed value of parsed JSON; raises pydantic's ValidationError.
Reader = Callable[[Any], Any]

_FORMS = (
    "the first parameter is the message (AgentMessage, or no annotation) "
    "or its body (a pydantic model, a dataclass, a TypedDict or a dict)"
)


def body_type(function: Callable[..., Any], where: str, names: Mapping[str, Any]) -> Any:
    """The type that ``function`` wants its message's body as; None if it takes the message itself.

    Args:
        where: the function, for messages to people.
        names: the local names around the function, for annotations that are text.

    Raises:
        TypeError: the annotation cannot be resolved, or is nothing a body can be.
    """
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    if not parameters or parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
        return None
    annotation = parameters[0].annotation
    if isinstance(annotation, str):
        annotation = _resolve(annotation, function, where, names)
    if annotation in (inspect.Parameter.empty, Any, object, AgentMessage):
        return None
    if isinstance(annotation, type) and issubclass(annotation, AgentMessage):
        return None
    if not _can_be_body(annotation):
        raise TypeError(f"{where}: {parameters[0].name} is annotated {name_of(annotation)}; {_FORMS}")
    return annotation


def _resolve(text: str, function: Callable[..., Any], where: str, names: Mapping[str, Any]) -> Any:
    try:
        # What Python itself does with the annotations of a module that has no `from __future__ import annotations`.
        return eval(text, _globals_of(function), dict(names))  # noqa: S307
    except Exception as error:
        if text.rpartition(".")[2].strip() == "AgentMessage":
            return AgentMessage  # imported for type checkers only
        raise TypeError(
            f"{where}: the annotation {text!r} of its first parameter cannot be resolved ({error}); define or import "
            "the type before the handler, and not under `if TYPE_CHECKING:` only"
        ) from error


def _globals_of(function: Callable[..., Any]) -> dict[str, Any]:
    inner: Any = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    inner = inspect.unwrap(inner)
    if not hasattr(inner, "__globals__"):
        inner = getattr(inner, "__func__", None) or type(inner).__call__
    names: dict[str, Any] = getattr(inner, "__globals__", {})
    return names


def _can_be_body(annotation: Any) -> bool:
    """Whether a JSON object can be one of these."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _can_be_body(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return all(_can_be_body(option) for option in get_args(annotation))
    kind = origin or annotation
    if not isinstance(kind, type):
        return False
    return issubclass(kind, BaseModel | Mapping) or is_dataclass(kind) or is_typeddict(kind)


def name_of(annotation: Any) -> str:
    """A type as its author wrote it, more or less."""
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def reader(annotation: Any) -> Reader:
    """What makes values of a type from parsed JSON, by the rules for JSON (a date is a string there).

    Raises:
        TypeError: pydantic cannot read this type.
    """
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        validate = adapter.validator.validate_json
    except PydanticUserError as error:
        reason = str(error).partition("\n")[0]
        raise TypeError(f"{name_of(annotation)} cannot be read from JSON: {reason}") from error

    def read(value: Any) -> Any:
        return validate(to_json(value))

    return read


@functools.lru_cache(maxsize=256)
def _kept_reader(annotation: Any) -> Reader:
    return reader(annotation)


def read(value: Any, into: Any, what: str) -> Any:
    """``value``, parsed JSON, as a value of the type ``into``.

    Raises:
        ValueError: it does not fit; the text names each field and why.
        TypeError: pydantic cannot read this type.
    """
    try:
        convert = _kept_reader(into)
    except TypeError:  # a type that cannot be a key, such as Annotated with a list
        convert = reader(into)
    try:
        return convert(value)
    except ValidationError as error:
        raise ValueError(f"{what} is no {name_of(into)}: {describe(error)}") from error
