"""Pod addresses: each pod its own in 127/8, one block of 65,536 for each control plane of the machine.

A block is claimed by listening on its node address, which the kernel grants to one process and takes back when that
dies: two control planes never share a block. The block and the addresses of StatefulSet pods are written down, so that
those keep them over restarts.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

#: Where the kubelet listens. Not 10250: a real kubelet of this machine listens there on every address.
NODE_PORT = 18250
#: Second byte of the blocks: 127.0 is everybody's.
FIRST_BLOCK, LAST_BLOCK = 16, 250


class AddressError(RuntimeError):
    """No address can be had."""


def blocks(folder: Path, preferred: int | None) -> Iterator[int]:
    """Blocks in the order to try them: the one of last time, then from one that depends on the folder's path."""
    if preferred is not None:
        yield preferred
    count = LAST_BLOCK - FIRST_BLOCK + 1
    start = int.from_bytes(hashlib.sha256(str(folder.absolute()).encode()).digest()[:4]) % count
    for offset in range(count):
        block = FIRST_BLOCK + (start + offset) % count
        if block != preferred:
            yield block


class Addresses:
    """The addresses of one control plane.

    Args:
        file: where the block and the lasting addresses are kept.
        folder: the control plane's folder; picks the block.

    Raises:
        AddressError: no block is free, or this system routes 127/8 nowhere.
    """

    def __init__(self, file: Path, folder: Path) -> None:
        self._file = file
        kept = json.loads(file.read_text()) if file.exists() else {}
        self.block, self.listener = _claim(blocks(folder, kept.get("block")))
        # In another block the old addresses are somebody else's.
        self._lasting: dict[str, str] = kept.get("addresses", {}) if kept.get("block") == self.block else {}
        self._used: set[str] = set(self._lasting.values())
        self._next = 0
        self._save()

    @property
    def node(self) -> str:
        """The node's own address."""
        return f"127.{self.block}.0.1"

    def allocate(self, pod: str, *, lasting: bool) -> str:
        """An address for ``pod`` (``namespace/name``); a lasting one is the same next time.

        Raises:
            AddressError: all are taken.
        """
        if lasting and pod in self._lasting:
            return self._lasting[pod]
        for _ in range(254 * 255):
            # Never reused soon: a late connection to a pod that is gone must not reach another.
            self._next = self._next % (254 * 255) + 1
            address = f"127.{self.block}.{1 + (self._next - 1) // 254}.{1 + (self._next - 1) % 254}"
            if address not in self._used:
                self._used.add(address)
                if lasting:
                    self._lasting[pod] = address
                    self._save()
                return address
        raise AddressError(f"all addresses of 127.{self.block}.0.0/16 are taken by pods")

    def release(self, address: str) -> None:
        """The pod is gone; lasting addresses stay taken."""
        if address not in self._lasting.values():
            self._used.discard(address)

    def close(self) -> None:
        """Give the block back."""
        self.listener.close()

    def _save(self) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps({"block": self.block, "addresses": self._lasting}))
        fresh.replace(self._file)


def _claim(candidates: Iterator[int]) -> tuple[int, socket.socket]:
    refused: OSError | None = None
    for block in candidates:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        # What the last owner left in TIME_WAIT does not keep us out; a listener does.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((f"127.{block}.0.1", NODE_PORT))
            listener.listen(128)
        except OSError as error:
            listener.close()
            refused = error
            continue
        listener.setblocking(False)
        return block, listener
    raise AddressError(
        f"no loopback block of 127.{FIRST_BLOCK}.0.0 to 127.{LAST_BLOCK}.0.0 is free ({refused}): stop another control "
        "plane, or on a system that only has 127.0.0.1 give the loopback interface addresses of 127/8 first"
    )
