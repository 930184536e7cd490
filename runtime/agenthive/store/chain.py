"""Rows of the audit trail as chains of hashes: making them and checking them. Pure (but for ``person``).

The hash of a row covers every other column of it, each with its length before it, and ``previous`` is the hash of the
row before, so no row can be changed, removed or put in between without the rows behind it showing that.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

#: ``agent`` of rows that no agent wrote, but a tool of the hive's operators.
TOOL = ""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Event(NamedTuple):
    """What a process has to say, before it has a place in a chain. ``details`` is JSON text."""

    at: datetime
    action: str
    subject: str
    details: str


class AuditRow(NamedTuple):
    """One row of ``audit_log``, in the order of its columns."""

    chain: str
    seq: int
    at: datetime
    agent: str
    actor: str
    action: str
    subject: str
    details: str
    previous: bytes
    hash: bytes


class Head(NamedTuple):
    """How far a chain is, was, or is known to have been."""

    seq: int
    at: datetime
    hash: bytes


Kind = Literal["changed", "missing", "inserted", "cut off", "removed"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The first thing that is wrong with a chain.

    Attributes:
        chain: its name.
        seq: number of the row; of rows that are missing the first.
        at: the row's time, of rows that are missing that of the row behind them; None where there is none.
        kind: ``changed`` (this row or, where the text says so, the one before it), ``missing`` (rows in between or at
            the beginning), ``inserted``, ``cut off`` (rows at the end that a checkpoint knows), ``removed`` (the whole
            chain that a checkpoint knows).
        text: what is wrong, as a sentence.
    """

    chain: str
    seq: int
    at: datetime | None
    kind: Kind
    text: str


def digest(*fields: bytes) -> bytes:
    """SHA-256 over the fields, each behind its length, so that no two lists of fields read the same."""
    state = hashlib.sha256()
    for field in fields:
        state.update(len(field).to_bytes(8, "big"))
        state.update(field)
    return state.digest()


def first_hash(chain: str) -> bytes:
    """What the first row of ``chain`` has as ``previous``."""
    return digest(b"agenthive audit chain", chain.encode())


def row_hash(row: AuditRow) -> bytes:
    """What ``row.hash`` has to be; ``row.hash`` itself does not count."""
    return digest(
        b"agenthive audit row 1",
        row.chain.encode(),
        b"%d" % row.seq,
        b"%d" % ((row.at - _EPOCH) // _MICROSECOND),
        row.agent.encode(),
        row.actor.encode(),
        row.action.encode(),
        row.subject.encode(),
        row.details.encode(),
        row.previous,
    )


def start(chain: str) -> Head:
    """The head of a chain without rows."""
    return Head(0, _EPOCH, first_hash(chain))


def head_of(row: AuditRow) -> Head:
    """The head of a chain whose last row is ``row``."""
    return Head(row.seq, row.at, row.hash)


def follow(chain: str, agent: str, actor: str, head: Head, events: Iterable[Event]) -> list[AuditRow]:
    """The rows of ``events`` behind ``head``. Their times never go back, whatever the clock did."""
    rows: list[AuditRow] = []
    for event in events:
        at = max(event.at, head.at)
        row = AuditRow(chain, head.seq + 1, at, agent, actor, *event[1:], previous=head.hash, hash=b"")
        row = row._replace(hash=row_hash(row))
        rows.append(row)
        head = head_of(row)
    return rows


class Verifier:
    """Reads rows in the order of (chain, seq, at) and finds the first bad row of each chain; keeps none.

    Args:
        checkpoint: where each chain is known to have been.
    """

    def __init__(self, checkpoint: Mapping[str, Head] | None = None) -> None:
        self._expected = dict(checkpoint or {})
        self._chain: str | None = None
        self._head = start("")
        self._known: Head | None = None
        #: The row that was read last, judged when the next is known: its number may be there twice.
        self._held: AuditRow | None = None
        self._bad = False
        self.rows = 0
        self.chains = 0
        #: What was found, a finding per chain at most.
        self.findings: list[Finding] = []

    def feed(self, rows: Iterable[AuditRow], anchors: Mapping[str, Head]) -> None:
        """Go on with ``rows``.

        Args:
            rows: in the order of (chain, seq, at).
            anchors: of chains that begin in ``rows``: the last row that retention has removed.
        """
        for row in rows:
            self.rows += 1
            if row.chain != self._chain:
                self._end_chain()
                self._begin_chain(row.chain, anchors.get(row.chain))
            if self._bad:
                continue
            if self._held is not None and self._held.seq == row.seq:
                self._found(row, "inserted", f"there are two rows of number {row.seq}: one of them was inserted")
                continue
            self._judge_held()
            self._held = row

    def finish(self, anchors: Mapping[str, Head]) -> list[Finding]:
        """After the last row.

        Args:
            anchors: those of the chains that ``unseen`` names.

        Returns:
            All findings.
        """
        self._end_chain()
        for chain, known in self._expected.items():
            anchor = anchors.get(chain)
            if anchor is None:
                text = f"the whole chain is missing: the checkpoint knows {known.seq} rows of it"
                self.findings.append(Finding(chain, 1, None, "removed", text))
            elif anchor.seq < known.seq:
                self.findings.append(_cut_off(chain, anchor.seq, known))
            elif anchor.seq == known.seq and anchor.hash != known.hash:
                text = f"what retention has kept of row {known.seq} is not what the checkpoint knows"
                self.findings.append(Finding(chain, known.seq, anchor.at, "changed", text))
        self._expected = {}
        return self.findings

    def unseen(self) -> list[str]:
        """Chains of the checkpoint of which no row was read so far."""
        return sorted(self._expected)

    def _begin_chain(self, chain: str, anchor: Head | None) -> None:
        self.chains += 1
        self._chain, self._head, self._bad = chain, anchor or start(chain), False
        self._known = self._expected.pop(chain, None)
        if anchor is not None and self._known is not None and self._known.seq == anchor.seq:
            self._compare(self._known, anchor.at, anchor.hash)

    def _end_chain(self) -> None:
        self._judge_held()
        if self._chain is not None and not self._bad and self._known is not None and self._head.seq < self._known.seq:
            self.findings.append(_cut_off(self._chain, self._head.seq, self._known))
        self._chain = None

    def _judge_held(self) -> None:
        row, self._held = self._held, None
        if row is None or self._bad:
            return
        expected = self._head.seq + 1
        if row.seq < expected:
            self._found(row, "inserted", f"rows up to {self._head.seq} were removed by retention: this one came later")
        elif row.seq > expected:
            gap = f"row {expected} is" if row.seq == expected + 1 else f"rows {expected} to {row.seq - 1} are"
            self._found(row._replace(seq=expected), "missing", f"{gap} missing before row {row.seq}")
        elif row_hash(row) != row.hash:
            self._found(row, "changed", "the row was changed: its hash does not fit what is in it")
        elif row.previous != self._head.hash:
            before = f"row {self._head.seq}" if self._head.seq else "the start of its chain"
            self._found(row, "changed", f"the row does not continue {before}: one of them was changed")
        else:
            self._head = head_of(row)
            if self._known is not None and self._known.seq == row.seq:
                self._compare(self._known, row.at, row.hash)

    def _compare(self, known: Head, at: datetime, found: bytes) -> None:
        if known.hash != found and self._chain is not None:
            self._bad = True
            text = "the row is not the one that the checkpoint knows: it or rows before it were changed"
            self.findings.append(Finding(self._chain, known.seq, at, "changed", text))

    def _found(self, row: AuditRow, kind: Kind, text: str) -> None:
        self._bad, self._held = True, None
        self.findings.append(Finding(row.chain, row.seq, row.at, kind, text))


def _cut_off(chain: str, last: int, known: Head) -> Finding:
    text = f"the chain was cut off behind row {last}: the checkpoint knows it up to row {known.seq}"
    return Finding(chain, last + 1, None, "cut off", text)


def person() -> str:
    """Who runs this process: ``user@host``."""
    user = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    with suppress(OSError, KeyError):  # a user that no passwd file knows
        user = getpass.getuser()
    return f"{user}@{socket.gethostname()}"
