"""CEL rules of custom resources (``x-kubernetes-validations``), compiled once and evaluated as the API server does."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Any

import cel
import orjson
from cel.stdlib import add_stdlib_to_context

from .celfuncs import FUNCTIONS
from .errors import FieldError, Json, invalid, shown
from .structural import Rule, Schema, item_key

_ABSENT = object()
#: Values that are remembered for each schema to have passed.
_SETTLED = 4096

# Words of CEL that cannot be field names there; the API server renames the fields for the rules.
_RESERVED = {
    "true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import",
    "let", "loop", "package", "namespace", "return", "var", "void", "while",
}  # fmt: skip


@lru_cache(maxsize=4096)
def program(source: str) -> Any:
    """The compiled rule.

    Raises:
        ValueError: The text is not CEL, or uses syntax this server does not have.
    """
    return cel.compile(source)


@lru_cache(maxsize=4096)
def is_transition(source: str) -> bool:
    """Whether a rule looks at ``oldSelf``."""
    return "oldSelf" in program(source).variables()


def problem_of(rule: Json) -> tuple[str, str] | None:
    """What is wrong with a rule in a CRD: the field and the reason."""
    text = rule.get("rule", "")
    if not text.strip():
        return "rule", "rule is not specified"
    for field in ("rule", "messageExpression"):
        source = rule.get(field)
        if not source:
            continue
        try:
            compiled = program(source)
        except ValueError as error:
            return field, f"compilation failed: {error}"
        unknown = set(compiled.functions()) - _known_functions()
        if unknown:
            return field, f"compilation failed: this server has no function {', '.join(sorted(unknown))}"
    if rule.get("optionalOldSelf") and not is_transition(text):
        return "optionalOldSelf", "may not be set on a rule that does not use oldSelf"
    message = rule.get("message", "")
    if "\n" in text and not message:
        return "message", "message must be specified if rule contains line breaks"
    if message and ("\n" in message or not message.strip()):
        return "message", "message must not contain line breaks"
    return None


@lru_cache(maxsize=1)
def _known_functions() -> frozenset[str]:
    context = _context()
    own = set(context.functions)
    core = {
        "size", "contains", "startsWith", "endsWith", "matches", "has", "all", "exists", "exists_one", "existsOne",
        "map", "filter", "int", "uint", "double", "string", "bytes", "bool", "timestamp", "duration", "type", "dyn",
        "getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getHours",
        "getMinutes", "getSeconds", "getMilliseconds", "hasValue", "value", "orValue", "or", "optional.of",
        "optional.none", "optional.ofNonZeroValue", "optMap", "optFlatMap",
    }  # fmt: skip
    # Operators look like `_+_`, `@in`, `!_`, `-_`.
    return frozenset(own | core | set(_OPERATORS))


_OPERATORS = (
    "_+_", "_-_", "_*_", "_/_", "_%_", "_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_", "_&&_", "_||_", "_?_:_", "_[_]",
    "!_", "-_", "@in", "_in_", "@not_strictly_false", "_?._", "_[?_]", "not_strictly_false",
)  # fmt: skip


def _context() -> Any:
    context = cel.Context()
    add_stdlib_to_context(context)
    for name, function in FUNCTIONS.items():
        context.add_function(name, function)
    return context


_SHARED = _context()


def _names(value: Any, schema: Schema) -> Any:
    """``value`` as rules see it: declared fields under their escaped names."""
    if isinstance(value, dict):
        if not schema.properties:
            below = schema.additional
            if below is None or not _renames(below):
                return value
            return {key: _names(item, below) for key, item in value.items()}
        return {
            escaped(key) if key in schema.properties else key: _names(item, schema.properties[key])
            if key in schema.properties
            else item
            for key, item in value.items()
        }
    if isinstance(value, list) and schema.items is not None and _renames(schema.items):
        return [_names(item, schema.items) for item in value]
    return value


def _renames(schema: Schema) -> bool:
    """Whether any field below has a name that rules see differently."""
    known = schema.__dict__.get("_renames")
    if known is None:
        known = any(escaped(name) != name for name in schema.properties) or any(
            _renames(below) for below in schema.below()
        )
        schema.__dict__["_renames"] = known
    return bool(known)


@lru_cache(maxsize=4096)
def escaped(name: str) -> str:
    """A field's name in CEL: ``__namespace__``, ``a__dash__b``."""
    if name in _RESERVED:
        return f"__{name}__"
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and "__" not in name:
        return name
    table = {"__": "__underscores__", ".": "__dot__", "-": "__dash__", "/": "__slash__"}
    return re.sub(r"__|[.\-/]", lambda found: table[found[0]], name)


def check(obj: Json, schema: Schema, old: Json | None) -> list[FieldError]:
    """Evaluate every rule of a valid object.

    Args:
        obj: The object, defaulted.
        schema: The schema of the whole object.
        old: Its predecessor; None when it is new. Rules that use ``oldSelf`` run on updates only, unless they have
            ``optionalOldSelf``; the others are not evaluated where nothing changed.
    """
    found: list[FieldError] = []
    _walk(_at_root(obj), schema, "", _ABSENT if old is None else _at_root(old), found)
    return found


def _at_root(obj: Json) -> Json:
    """A whole object as rules see it: of metadata, the names only."""
    meta = {key: obj["metadata"][key] for key in ("name", "generateName") if key in obj["metadata"]}
    return {**obj, "metadata": meta}


def _walk(value: Any, schema: Schema, path: str, old: Any, found: list[FieldError]) -> None:
    if not schema.has_rules or value is None:
        return
    unchanged = old is not _ABSENT and old == value
    rules = [rule for rule in schema.rules if _applies(rule, old, unchanged=unchanged)]
    known = _Settled(schema, value) if unchanged and rules else None
    if known is not None and known.passed:
        rules = []  # what a transition says of a value that stays is always the same
    if rules:
        # Once for all rules here: handing values to the engine costs more than most rules.
        _SHARED.add_variable("self", _names(value, schema))
        before_names = None if old is _ABSENT else _names(old, schema)
        problems = [problem for rule in rules if (problem := _evaluate(value, rule, path, old, before_names))]
        found += problems
        if known is not None and not problems:
            known.note()
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        for name, below in value.items():
            child = schema.properties.get(name) or schema.additional
            if child is not None and child.has_rules:
                where = f"{path}.{name}" if name in schema.properties and path else name
                if name not in schema.properties:
                    where = f"{path}[{name}]"
                _walk(below, child, where, before.get(name, _ABSENT), found)
    elif isinstance(value, list) and schema.items is not None and schema.items.has_rules:
        earlier: dict[bytes, Any] = {}
        if isinstance(old, list) and schema.list_type == "map":
            earlier = {item_key(item, schema): item for item in old}
        for index, item in enumerate(value):
            was = earlier.get(item_key(item, schema), _ABSENT) if earlier else _ABSENT
            _walk(item, schema.items, f"{path}[{index}]", was, found)


class _Settled:
    """Whether the transition rules of ``schema`` passed before, for this very value that does not change."""

    def __init__(self, schema: Schema, value: Any) -> None:
        self._values: dict[bytes, None] = schema.__dict__.setdefault("_settled", {})
        self._key = hashlib.blake2b(orjson.dumps(value), digest_size=16).digest()

    @property
    def passed(self) -> bool:
        return self._key in self._values

    def note(self) -> None:
        if len(self._values) >= _SETTLED:
            del self._values[next(iter(self._values))]
        self._values[self._key] = None


def _applies(rule: Rule, old: Any, *, unchanged: bool) -> bool:
    if not is_transition(rule.rule):
        return not unchanged
    return old is not _ABSENT or rule.optional_old_self


def _evaluate(value: Any, rule: Rule, path: str, old: Any, old_names: Any) -> FieldError | None:
    """One rule; ``self`` is set already."""
    context = _SHARED
    if rule.optional_old_self:
        context.add_variable("oldSelf", cel.OptionalValue.none() if old is _ABSENT else cel.OptionalValue.of(old_names))
    elif is_transition(rule.rule):
        context.add_variable("oldSelf", old_names)
    where = _location(path, rule)
    try:
        if program(rule.rule).execute(context) is True:
            return None
    except (TypeError, KeyError, ValueError, RuntimeError, IndexError, OverflowError) as error:
        text = f"{rule.message or 'failed rule: ' + rule.rule}: rule could not be evaluated: {error}"
        return _invalid(where, value, text)
    return _failure(value, rule, where, context)


def _location(path: str, rule: Rule) -> str:
    # The root has no name; the API server prints it so.
    return f"{path}{rule.field_path}".lstrip(".") or "<nil>"


def _failure(value: Any, rule: Rule, where: str, context: Any) -> FieldError:
    message = _message(rule, context)
    match rule.reason:
        case "FieldValueRequired":
            return FieldError(rule.reason, where, f"Required value: {message}")
        case "FieldValueForbidden":
            return FieldError(rule.reason, where, f"Forbidden: {message}")
        case "FieldValueDuplicate":
            return FieldError(rule.reason, where, f"Duplicate value: {shown(value)}")
    return _invalid(where, value, message)


def _invalid(where: str, value: Any, message: str) -> FieldError:
    """As the API server puts it: it shows scalars, and leaves out objects and lists."""
    if isinstance(value, dict | list):
        return FieldError("FieldValueInvalid", where, f"Invalid value: {message}")
    return invalid(where, value, message)


def _message(rule: Rule, context: Any) -> str:
    if rule.message_expression:
        try:
            text = program(rule.message_expression).execute(context)
        except (TypeError, KeyError, ValueError, RuntimeError, IndexError, OverflowError):
            text = ""
        # As in Kubernetes: an expression that fails or yields no single line gives way to the message.
        if isinstance(text, str) and text.strip() and "\n" not in text:
            return text
    return rule.message or f"failed rule: {rule.rule.strip()}"
