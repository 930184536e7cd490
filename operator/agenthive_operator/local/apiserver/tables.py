"""Tables: what ``kubectl get`` prints, rendered here as in every API server."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson

from . import jsonpath
from .errors import Json
from .kinds import Kind
from .routing import metadata_only
from .table_columns import COLUMNS, Builtin, age


def table(kind: Kind, objects: list[Json], meta: Json, include: str) -> Json:
    """A Table of ``objects``.

    Args:
        kind: Their kind.
        objects: In the form of that kind.
        meta: Metadata of the list.
        include: What a row carries besides its cells: ``None``, ``Metadata`` or ``Object``.
    """
    columns, cells = _builtin(COLUMNS[kind.resource]) if kind.resource in COLUMNS else _custom(kind)
    rows = []
    for obj in objects:
        row: Json = {"cells": cells(obj)}
        if include == "Metadata":
            row["object"] = metadata_only(obj)
        elif include == "Object":
            row["object"] = obj
        rows.append(row)
    return {
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta, "columnDefinitions": columns, "rows": rows,
    }  # fmt: skip


_NAME: Json = {"name": "Name", "type": "string", "format": "name", "description": "Name of the object.", "priority": 0}


def _builtin(columns: Builtin) -> tuple[list[Json], Callable[[Json], list[Any]]]:
    heads = [_NAME] + [
        {"name": column.name, "type": column.type, "format": "", "description": "", "priority": column.priority}
        for column in columns
    ]
    moment = datetime.now(UTC)
    return heads, lambda obj: [obj["metadata"]["name"], *(column.cell(obj, moment) for column in columns)]


def _custom(kind: Kind) -> tuple[list[Json], Callable[[Json], list[Any]]]:
    heads = [_NAME]
    readers: list[Callable[[Json], Any]] = []
    moment = datetime.now(UTC)
    for column in kind.columns:
        heads.append(
            {
                "name": column.name, "type": column.type, "format": column.format,
                "description": column.description, "priority": column.priority,
            }
        )  # fmt: skip
        readers.append(_reader(column.path, column.type, moment))
    if not kind.columns:
        heads.append({"name": "Age", "type": "date", "format": "", "description": "", "priority": 0})
        readers.append(_reader(".metadata.creationTimestamp", "date", moment))
    return heads, lambda obj: [obj["metadata"]["name"], *(reader(obj) for reader in readers)]


def _reader(path: str, type_: str, moment: datetime) -> Callable[[Json], Any]:
    read = jsonpath.compile_path(path)

    def cell(obj: Json) -> Any:
        values = read(obj)
        if not values:
            return None
        if type_ == "date":
            return age(values[0], moment)
        if type_ in ("integer", "number", "boolean"):
            return values[0]
        if len(values) > 1:
            return orjson.dumps(values).decode()
        value = values[0]
        if value is None or isinstance(value, str):
            return value
        return orjson.dumps(value).decode()

    return cell
