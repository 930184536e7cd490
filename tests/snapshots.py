"""Golden files: YAML that a test makes and compares with what is committed; ``make golden`` writes it anew."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

UPDATE = os.environ.get("UPDATE_GOLDEN") == "1"


class Dumper(yaml.SafeDumper):
    """Without anchors, so that a golden file reads as what kubectl would show."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Dumper.add_representer(str, _text)


def assert_golden(path: Path, objects: Iterable[Any]) -> None:
    """The objects are those of the file; with ``UPDATE_GOLDEN=1`` the file becomes them."""
    text = yaml.dump_all(objects, Dumper=Dumper, sort_keys=False, width=120, explicit_start=True)
    if UPDATE:
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path.name} differs: `make golden`, and read what changed"
