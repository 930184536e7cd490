"""Get, list and watch."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from . import errors, tables
from .errors import ApiError, Json
from .kinds import Kind, Registry
from .routing import Form, Target, is_true, metadata_only, number
from .selection import Matcher, both, field_matcher, label_matcher
from .store import Change, Entry, Store

BOOKMARK_SECONDS = 50.0
DEFAULT_WATCH_SECONDS = 1800.0
SNAPSHOTS = 64
SNAPSHOT_SECONDS = 300.0


def matcher(kind: Kind, query: Mapping[str, str]) -> Matcher | None:
    """What the selectors of a request select; they look at objects in the form of ``kind``.

    Raises:
        ApiError: 400.
    """
    labels = label_matcher(query.get("labelSelector", ""))
    fields = field_matcher(query.get("fieldSelector", ""), kind.resource, kind.selectable)
    found = both(labels, fields)
    if found is None or kind.from_storage is None:
        return found
    convert, inner = kind.from_storage, found
    return lambda obj: inner(convert(dict(obj)))


def render_item(kind: Kind, entry: Entry) -> bytes:
    """One object as an item of a list, where those of built-in kinds do not say what they are."""
    raw = render(kind, entry, "object")
    if kind.custom:
        return raw
    head = b'{"apiVersion":"%b","kind":"%b",' % (kind.api_version.encode(), kind.kind.encode())
    if raw.startswith(head):
        return b"{" + raw[len(head) :]
    obj = orjson.loads(raw)
    return orjson.dumps({key: value for key, value in obj.items() if key not in ("apiVersion", "kind")})


def render(kind: Kind, entry: Entry, form: Form) -> bytes:
    """One object as JSON text."""
    if form == "metadata":
        return orjson.dumps(metadata_only(entry.obj))
    if kind.from_storage is not None:
        return orjson.dumps(kind.from_storage(entry.obj))
    return entry.raw


def shown(kind: Kind, entry: Entry) -> Json:
    """One object in the form of ``kind``."""
    return kind.from_storage(entry.obj) if kind.from_storage is not None else entry.obj


@dataclass(slots=True)
class _Snapshot:
    version: int
    rest: list[Entry]
    made: float


@dataclass(slots=True)
class Reader:
    """Answers reads.

    Attributes:
        store: The state.
        registry: The kinds.
    """

    store: Store
    registry: Registry
    _snapshots: OrderedDict[str, _Snapshot] = field(default_factory=OrderedDict)
    _snapshot_count: int = 0

    def get(self, target: Target) -> Entry:
        """One object.

        Raises:
            ApiError: 404.
        """
        entry = self.store.get(target.kind.storage, target.key)
        if entry is None:
            raise errors.not_found(target.kind.group, target.kind.plural, target.name)
        return entry

    def collection(self, target: Target, query: Mapping[str, str], form: Form) -> bytes:
        """A collection as JSON text.

        Raises:
            ApiError: 400 for bad parameters, 410 for a continue token that has expired.
        """
        kind = target.kind
        selected = matcher(kind, query)
        self._check_version(query)
        limit = number(query, "limit") or 0
        token = query.get("continue")
        if token:
            snapshot = self._continued(token)
            version, entries = snapshot.version, snapshot.rest
        else:
            version = self.store.version
            entries = self.store.resource(kind.storage).listed(target.namespace)
            if target.name:
                entries = [entry for entry in entries if entry.obj["metadata"]["name"] == target.name]
            if selected is not None:
                entries = [entry for entry in entries if selected(entry.obj)]
        meta: Json = {"resourceVersion": str(version)}
        if limit and len(entries) > limit:
            meta["continue"] = self._remember(version, entries[limit:])
            if selected is None:
                meta["remainingItemCount"] = len(entries) - limit
            entries = entries[:limit]
        return _list_body(kind, entries, meta, form, query)

    def _check_version(self, query: Mapping[str, str]) -> None:
        match = query.get("resourceVersionMatch", "")
        version = number(query, "resourceVersion")
        if match and version is None:
            problem = errors.forbidden_field(
                "resourceVersionMatch", "resourceVersionMatch is forbidden unless resourceVersion is provided"
            )
            raise errors.unprocessable("meta.k8s.io", "ListOptions", "", [problem])
        if version is not None and version > self.store.version:
            cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
            raise ApiError(
                504, "Timeout", f"Too large resource version: {version}, current: {self.store.version}",
                {"causes": [cause], "retryAfterSeconds": 1},
            )  # fmt: skip
        if match == "Exact" and version != self.store.version:
            raise errors.gone(f"this server keeps no old versions: {version} is not the current {self.store.version}")

    def _remember(self, version: int, rest: list[Entry]) -> str:
        self._snapshot_count += 1
        while len(self._snapshots) >= SNAPSHOTS:
            self._snapshots.popitem(last=False)
        key = str(self._snapshot_count)
        self._snapshots[key] = _Snapshot(version, rest, time.monotonic())
        return base64.urlsafe_b64encode(orjson.dumps({"v": "meta.k8s.io/v1", "rv": version, "start": key})).decode()

    def _continued(self, token: str) -> _Snapshot:
        try:
            key = orjson.loads(base64.urlsafe_b64decode(token))["start"]
        except (binascii.Error, ValueError, KeyError, TypeError) as error:
            raise errors.bad_request(f"continue key is not valid: {error}") from error
        found = self._snapshots.get(key)
        if found is None or time.monotonic() - found.made > SNAPSHOT_SECONDS:
            raise errors.gone(
                "The provided continue parameter is too old to display a consistent list result. You can start a new "
                "list without the continue parameter."
            )
        return found

    async def watch(self, target: Target, query: Mapping[str, str], form: Form) -> AsyncIterator[bytes]:
        """Changes as lines of JSON; each item may hold several.

        Raises:
            ApiError: For bad parameters, before the first item. What goes wrong later comes as an ERROR event.
        """
        kind = target.kind
        if target.name:
            query = {**query, "fieldSelector": f"metadata.name={target.name}"}
        selected = matcher(kind, query)
        version = number(query, "resourceVersion")
        initial = is_true(query.get("sendInitialEvents"))
        bookmarks = is_true(query.get("allowWatchBookmarks"))
        _check_initial(query)
        seconds = number(query, "timeoutSeconds") or DEFAULT_WATCH_SECONDS
        encoder = _Encoder(kind, form, query)
        table = self.store.resource(kind.storage)
        first = b""
        if initial or (version in (None, 0) and "sendInitialEvents" not in query):
            current = self.store.version
            found = table.listed(target.namespace)
            first = b"".join(
                encoder.event("ADDED", entry) for entry in found if selected is None or selected(entry.obj)
            )
            version = current
            if initial and bookmarks:
                first += encoder.bookmark(current, initial=True)
        elif version in (None, 0):
            version = self.store.version
        assert version is not None
        return self._follow(
            table_of=target, start=version, selected=selected, encoder=encoder, first=first,
            deadline=time.monotonic() + seconds, bookmarks=bookmarks,
        )  # fmt: skip

    async def _follow(
        self,
        *,
        table_of: Target,
        start: int,
        selected: Matcher | None,
        encoder: _Encoder,
        first: bytes,
        deadline: float,
        bookmarks: bool,
    ) -> AsyncIterator[bytes]:
        table = self.store.resource(table_of.kind.storage)
        version = start
        # An empty first item: the answer's head must not wait for the first event.
        yield first
        bookmark_at = time.monotonic() + BOOKMARK_SECONDS
        while True:
            changed = table.changed
            try:
                changes = table.since(version)
            except ApiError as error:
                yield encoder.error(error)
                return
            if changes:
                version = changes[-1].version
                lines = b"".join(encoder.change(change, table_of.namespace, selected) for change in changes)
                if lines:
                    yield lines
                    continue
            now = time.monotonic()
            if now >= deadline:
                if bookmarks:
                    yield encoder.bookmark(max(version, self._quiet_version(table_of, version)))
                return
            if bookmarks and now >= bookmark_at:
                version = self._quiet_version(table_of, version)
                yield encoder.bookmark(version)
                bookmark_at = now + BOOKMARK_SECONDS
            pause = min(deadline, bookmark_at if bookmarks else deadline) - now
            try:
                await asyncio.wait_for(changed.wait(), max(pause, 0.01))
            except TimeoutError:
                continue

    def _quiet_version(self, target: Target, seen: int) -> int:
        """The newest version up to which this watch has missed nothing."""
        table = self.store.resource(target.kind.storage)
        return seen if table.history and table.history[-1].version > seen else max(seen, self.store.version)


def _check_initial(query: Mapping[str, str]) -> None:
    match = query.get("resourceVersionMatch", "")
    if "sendInitialEvents" in query:
        if match != "NotOlderThan":
            problem = errors.forbidden_field(
                "resourceVersionMatch", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            )
            raise errors.unprocessable("meta.k8s.io", "ListOptions", "", [problem])
    elif match:
        text = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
        problem = errors.forbidden_field("resourceVersionMatch", text)
        raise errors.unprocessable("meta.k8s.io", "ListOptions", "", [problem])


def _list_body(kind: Kind, entries: list[Entry], meta: Json, form: Form, query: Mapping[str, str]) -> bytes:
    if form == "table":
        include = query.get("includeObject", "Metadata")
        return orjson.dumps(tables.table(kind, [shown(kind, entry) for entry in entries], meta, include))
    if form == "metadata":
        body: Json = {
            "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": meta,
            "items": [metadata_only(entry.obj) for entry in entries] or None,  # null, as the real one says it
        }  # fmt: skip
        return orjson.dumps(body)
    head = orjson.dumps({"kind": kind.list_kind, "apiVersion": kind.api_version, "metadata": meta})
    items = b",".join(render_item(kind, entry) for entry in entries)
    return b'%b,"items":[%b]}' % (head[:-1], items)


class _Encoder:
    """Writes watch events in the form the client asked for."""

    def __init__(self, kind: Kind, form: Form, query: Mapping[str, str]) -> None:
        self.kind = kind
        self.form = form
        self.include = query.get("includeObject", "Metadata")
        self._headed = False

    def change(self, change: Change, namespace: str | None, selected: Matcher | None) -> bytes:
        """The event of a change, seen through the selectors; empty where it does not concern the watch."""
        entry = change.entry
        if namespace is not None and entry.obj["metadata"].get("namespace") != namespace:
            return b""
        if selected is None:
            return self.event(change.type, entry)
        before = change.previous is not None and selected(change.previous.obj)
        if change.type == "DELETED":
            return self.event("DELETED", entry) if before else b""
        after = selected(entry.obj)
        if after:
            return self.event("MODIFIED" if before else "ADDED", entry)
        return self.event("DELETED", entry) if before else b""

    def event(self, type_: str, entry: Entry) -> bytes:
        return b'{"type":"%b","object":%b}\n' % (type_.encode(), self._body(entry))

    def _body(self, entry: Entry) -> bytes:
        if self.form != "table":
            return render(self.kind, entry, self.form)
        meta = {"resourceVersion": entry.obj["metadata"]["resourceVersion"]}
        found = tables.table(self.kind, [shown(self.kind, entry)], meta, self.include)
        if self._headed:
            # Only the first event of a watch says what the columns are.
            del found["columnDefinitions"]
        self._headed = True
        return orjson.dumps(found)

    def bookmark(self, version: int, *, initial: bool = False) -> bytes:
        meta: dict[str, Any] = {"resourceVersion": str(version), "creationTimestamp": None}
        if initial:
            meta["annotations"] = {"k8s.io/initial-events-end": "true"}
        obj: Json = {"kind": self.kind.kind, "apiVersion": self.kind.api_version, "metadata": meta}
        if self.form == "metadata":
            obj |= {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
        elif self.form == "table":
            obj = {
                "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": str(version)},
                "columnDefinitions": [], "rows": [{"cells": [], "object": metadata_only({"metadata": meta})}],
            }  # fmt: skip
        return b'{"type":"BOOKMARK","object":%b}\n' % orjson.dumps(obj)

    def error(self, error: ApiError) -> bytes:
        return b'{"type":"ERROR","object":%b}\n' % orjson.dumps(error.status())
