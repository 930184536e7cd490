"""The state file: compaction at start and while running."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agenthive_operator.local.apiserver import store as module
from agenthive_operator.local.apiserver.store import Store


def obj(name: str, text: str = "") -> dict[str, Any]:
    return {"metadata": {"name": name}, "text": text}


def test_a_start_compacts(tmp_path: Path) -> None:
    file = tmp_path / "state"
    store = Store(file)
    for number in range(100):
        store.put("a", ("", "x"), obj("x", str(number)))
    store.put("a", ("", "y"), obj("y"))
    store.remove("a", ("", "y"))
    version = store.version
    store.close()
    before = file.stat().st_size
    again = Store(file)
    assert again.version == version
    found = again.get("a", ("", "x"))
    assert found is not None
    assert found.obj["text"] == "99"
    assert again.get("a", ("", "y")) is None
    assert file.stat().st_size < before / 10
    again.close()


def test_a_long_run_compacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPACT_BYTES", 10_000)
    file = tmp_path / "state"
    store = Store(file)
    for number in range(500):
        store.put("a", ("", "x"), obj("x", f"{number:01000}"))
    assert file.stat().st_size < 20_000
    store.close()
    again = Store(file)
    found = again.get("a", ("", "x"))
    assert found is not None
    assert found.obj["text"].endswith("499")
    again.close()
