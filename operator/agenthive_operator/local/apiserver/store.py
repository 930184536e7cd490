"""Objects in memory: their resourceVersions, a bounded log of changes for watches, and the journal on disk.

An object that is stored is never changed again: every write stores a new one. So readers need no copies, and the JSON
text made once serves the journal, every answer and every watch.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import orjson

from .errors import Json, gone
from .journal import Journal

EventType = Literal["ADDED", "MODIFIED", "DELETED"]
Key = tuple[str, str]
"""Namespace (empty for cluster-scoped objects) and name."""

WATCH_LOG = 10_000
"""Changes kept for each resource; a watch that is further behind is told 410."""

COMPACT_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of one object."""

    obj: Json
    raw: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Change:
    """One step in a resource's history."""

    version: int
    type: EventType
    entry: Entry
    previous: Entry | None


@dataclass(slots=True)
class Resource:
    """All objects of one resource and its recent history."""

    name: str
    objects: dict[Key, Entry] = field(default_factory=dict)
    history: list[Change] = field(default_factory=list)
    oldest: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def record(self, change: Change) -> None:
        self.history.append(change)
        if len(self.history) > 2 * WATCH_LOG:
            self.oldest = self.history[WATCH_LOG - 1].version
            del self.history[:WATCH_LOG]
        self.changed.set()
        self.changed = asyncio.Event()

    def since(self, version: int) -> list[Change]:
        """Changes after ``version``.

        Raises:
            ApiError: 410 when the log no longer reaches back that far.
        """
        if version < self.oldest:
            raise gone(f"too old resource version: {version} ({self.oldest})")
        if not self.history or self.history[-1].version <= version:
            return []
        start = bisect.bisect_right(self.history, version, key=lambda change: change.version)
        return self.history[start:]

    def listed(self, namespace: str | None) -> list[Entry]:
        """Objects of a namespace, or all, in the order of their keys."""
        keys = sorted(key for key in self.objects if namespace is None or key[0] == namespace)
        return [self.objects[key] for key in keys]


class Store:
    """The server's state.

    Args:
        state_file: Where it is kept; None keeps it in memory only.

    Raises:
        JournalError: The state file is not ours or is damaged.
    """

    def __init__(self, state_file: Path | None) -> None:
        # 1 is what the first list of an empty server answers; the first object gets 2.
        self.version = 1
        self._first = 1
        self.resources: dict[str, Resource] = {}
        self._journal = Journal(state_file) if state_file is not None else None
        if self._journal is not None:
            self._replay(self._journal)
            self.compact()
        self._first = self.version

    def resource(self, name: str) -> Resource:
        """The resource of that name, for instance ``agents.agenthive.dev``; made when first asked for."""
        found = self.resources.get(name)
        if found is None:
            # Nothing has happened to it since the server started.
            found = self.resources[name] = Resource(name, oldest=self._first)
        return found

    def get(self, resource: str, key: Key) -> Entry | None:
        return self.resource(resource).objects.get(key)

    def put(self, resource: str, key: Key, obj: Json) -> Entry:
        """Store ``obj`` (which the caller gives away) under a new resourceVersion.

        Raises:
            OSError: The journal could not be written; nothing has changed.
        """
        table = self.resource(resource)
        version = self.version + 1
        obj["metadata"]["resourceVersion"] = str(version)
        raw = orjson.dumps(obj)
        self._write(b'{"r":%b,"o":%b}\n' % (orjson.dumps(resource), raw))
        self.version = version
        entry = Entry(obj, raw, version)
        previous = table.objects.get(key)
        table.objects[key] = entry
        table.record(Change(version, "ADDED" if previous is None else "MODIFIED", entry, previous))
        return entry

    def remove(self, resource: str, key: Key, last: Json | None = None) -> Entry:
        """Delete an object; returns its last state (``last`` where it changed on the way out), with the
        resourceVersion of its deletion.

        Raises:
            KeyError: There is no such object.
            OSError: The journal could not be written; nothing has changed.
        """
        table = self.resource(resource)
        previous = table.objects[key]
        version = self.version + 1
        line = orjson.dumps({"r": resource, "d": key, "v": version}) + b"\n"
        self._write(line)
        self.version = version
        del table.objects[key]
        last = last or previous.obj
        last = last | {"metadata": last["metadata"] | {"resourceVersion": str(version)}}
        entry = Entry(last, orjson.dumps(last), version)
        table.record(Change(version, "DELETED", entry, previous))
        return entry

    def drop(self, resource: str) -> None:
        """Forget a resource whose kind is gone; its watches end."""
        table = self.resources.pop(resource, None)
        if table is not None:
            table.oldest = self.version + 1
            table.changed.set()

    def compact(self) -> None:
        """Rewrite the journal with nothing but what exists."""
        if self._journal is not None:
            self._journal.rewrite({"version": self.version}, self._snapshot())

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    def _snapshot(self) -> Iterator[bytes]:
        for resource in self.resources.values():
            name = orjson.dumps(resource.name)
            for entry in resource.objects.values():
                yield b'{"r":%b,"o":%b}\n' % (name, entry.raw)

    def _write(self, line: bytes) -> None:
        if self._journal is None:
            return
        # Rewriting costs as much as what is alive: only when most of a large file is history.
        if self._journal.size > max(COMPACT_BYTES, 4 * self._journal.compacted):
            self.compact()
        self._journal.append(line)

    def _replay(self, journal: Journal) -> None:
        for change in journal.load():
            if "version" in change:
                self.version = max(self.version, int(change["version"]))
            elif "d" in change:
                namespace, name = change["d"]
                self.resource(change["r"]).objects.pop((namespace, name), None)
                self.version = max(self.version, int(change["v"]))
            else:
                obj = change["o"]
                meta = obj["metadata"]
                version = int(meta["resourceVersion"])
                entry = Entry(obj, orjson.dumps(obj), version)
                self.resource(change["r"]).objects[meta.get("namespace", ""), meta["name"]] = entry
                self.version = max(self.version, version)
        for resource in self.resources.values():
            resource.oldest = self.version
