"""Certificates as files of the operator's own, for the libraries that read them by path; and what agents get of them.

Files lie in a folder that only this process's account may enter, below a digest of what they hold: a URL that names
them is another one when they change. They go with the hive, or when it has had newer ones several times since.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Final

from agenthive_operator.plan.checksum import digest
from agenthive_operator.plan.external import TLS_PATH, file_names, with_options

KEPT: Final = 4
"""Sets of files per owner that stay: what was found good last may be older than what is looked at."""


class CertificateFolder:
    """The files of all hives. Nothing is on the disk before the first certificate."""

    def __init__(self) -> None:
        self._root: Path | None = None
        self._owned: dict[Hashable, deque[str]] = {}
        self._texts: dict[str, Mapping[str, str]] = {}

    def place(self, owner: Hashable, files: Mapping[str, str]) -> str:
        """The folder with exactly these files; ``owner`` keeps it until ``forget``. Raises ``OSError``."""
        if not files:
            return TLS_PATH
        if self._root is None:
            self._root = Path(tempfile.mkdtemp(prefix="agenthive-tls-"))  # mode 0700
        name = digest(files)
        folder = self._root / name
        if name not in self._texts:
            folder.mkdir(mode=0o700, exist_ok=True)
            for file, text in files.items():
                handle = os.open(folder / file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(handle, "w") as stream:
                    stream.write(text)
            self._texts[name] = dict(files)
        kept = self._owned.setdefault(owner, deque())
        if name in kept:
            kept.remove(name)
        kept.append(name)
        while len(kept) > KEPT:
            kept.popleft()
            self._sweep()
        return str(folder)

    def forget(self, owner: Hashable) -> None:
        """Nobody connects for ``owner`` any more."""
        if self._owned.pop(owner, None):
            self._sweep()

    def mounted(self, url: str) -> tuple[str, dict[str, str]] | None:
        """``url`` as pods see it, and the files that they need for it; None where those are gone from here."""
        paths: dict[str, str] = {}
        texts: dict[str, str] = {}
        for option, folder, name in file_names(url):
            if self._root is None or Path(folder).parent != self._root:
                continue  # a file of the image
            held = self._texts.get(Path(folder).name)
            if held is None:
                return None
            paths[option], texts[name] = f"{TLS_PATH}/{name}", held[name]
        return (with_options(url, paths) if paths else url), texts

    def close(self) -> None:
        """Remove everything."""
        root, self._root = self._root, None
        self._owned.clear()
        self._texts.clear()
        if root is not None:
            shutil.rmtree(root, ignore_errors=True)

    def _sweep(self) -> None:
        used = {name for kept in self._owned.values() for name in kept}
        for name in self._texts.keys() - used:
            del self._texts[name]
            if self._root is not None:
                shutil.rmtree(self._root / name, ignore_errors=True)
