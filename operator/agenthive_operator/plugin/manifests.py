"""What a file would make of the objects in the cluster: asked of the API server by kubectl, with nothing written.

kubectl itself reads the files and merges them with what is there (``--dry-run=server``): so the answer is that of the
``kubectl apply`` that follows, defaults, rules and admission among it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import click
import orjson

from agenthive_operator.api.meta import API_VERSION
from agenthive_operator.plan.differences import Difference, differences
from agenthive_operator.plan.preview import changed_keys, changes
from agenthive_operator.plugin.session import Asked

Object = dict[str, Any]
_ANNOUNCED = "Warning: "
# What kubectl puts before the reason for which a patch was refused: the patch, and the object once more.
_PATCH = re.compile(r'error when applying patch:\n.*?\nfor: "[^"]*": (?:error when patching "[^"]*": )?', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Change:
    """One object of the files: as it is (None where it is new), and as it would be."""

    before: Object | None
    after: Object

    @property
    def kind(self) -> str:
        """Its kind."""
        return str(self.after["kind"])

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.after["metadata"]["name"])

    @property
    def namespace(self) -> str | None:
        """Its namespace; None where its kind has none."""
        namespace = self.after["metadata"].get("namespace")
        return None if namespace is None else str(namespace)

    @property
    def is_ours(self) -> bool:
        """Whether it is a hive or an Agent."""
        return str(self.after["apiVersion"]) == API_VERSION

    @property
    def fields(self) -> list[Difference]:
        """What differs; of hives and Agents against the defaults where it was absent."""
        if self.before is None or not (found := differences(self.before, self.after)) or not self.is_ours:
            return [] if self.before is None else found
        return changes(self.before, self.after) or found

    @property
    def what(self) -> Literal["new", "changed", "unchanged"]:
        """Whether it is new, or differs."""
        if self.before is None:
            return "new"
        return "changed" if self.fields else "unchanged"

    @property
    def text(self) -> list[str]:
        """What differs, in words; of a Secret only the names of keys."""
        if self.kind in {"Secret", "ConfigMap"} and self.before is not None:
            return changed_keys(self.before, self.after) or [field.name for field in self.fields]
        return [str(field) for field in self.fields]


@dataclass(frozen=True, slots=True)
class Files:
    """Where the documents are, in the words of ``kubectl apply``."""

    names: Sequence[str] = ()
    kustomize: str | None = None
    recursive: bool = False
    server_side: bool = False
    force_conflicts: bool = False

    @property
    def words(self) -> list[str]:
        """The options of ``kubectl apply``."""
        words = [f"--filename={name}" for name in self.names]
        words += [f"--kustomize={self.kustomize}"] if self.kustomize else []
        flags = {"recursive": self.recursive, "server-side": self.server_side, "force-conflicts": self.force_conflicts}
        return words + [f"--{name}" for name, given in flags.items() if given]


def changes_of(asked: Asked, files: Files) -> list[Change]:
    """Each object of the files, before and after.

    Raises:
        click.ClickException: there is no kubectl, or the API server refuses one of them.
    """
    ran = _kubectl(asked, ["apply", "--dry-run=server", "--output=json", *files.words], namespace=asked.namespace)
    if ran.returncode:
        raise click.ClickException(refused(ran.stderr))
    for line in ran.stderr.splitlines():
        click.echo(line.removeprefix(_ANNOUNCED), err=True)
    after = _items(ran.stdout)
    found = _kubectl(asked, ["get", "--ignore-not-found", "--output=json", "--filename=-"], stdin=_list(after))
    if found.returncode:
        raise click.ClickException(f"what is there now cannot be read: {_line(found.stderr)}")
    before = {_identity(obj): obj for obj in _items(found.stdout)}
    return [Change(before.get(_identity(obj)), obj) for obj in after]


def _kubectl(
    asked: Asked, words: Sequence[str], *, namespace: str | None = None, stdin: bytes | None = None
) -> subprocess.CompletedProcess[str]:
    program = shutil.which("kubectl")
    if program is None:
        raise click.ClickException("plan asks the API server through kubectl, and there is no kubectl on PATH")
    given = {"kubeconfig": asked.kubeconfig, "context": asked.context, "namespace": namespace}
    command = [program, *words, *(f"--{name}={text}" for name, text in given.items() if text)]
    # Without input of ours, kubectl reads the caller's: that is what `-f -` means.
    ran = subprocess.run(command, input=stdin, capture_output=True, check=False)
    return subprocess.CompletedProcess(command, ran.returncode, ran.stdout.decode(), ran.stderr.decode())


def _list(objects: Sequence[Object]) -> bytes:
    """The objects by name alone."""
    items = [
        {
            "apiVersion": obj["apiVersion"],
            "kind": obj["kind"],
            "metadata": {key: obj["metadata"][key] for key in ("name", "namespace") if key in obj["metadata"]},
        }
        for obj in objects
    ]
    return orjson.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def _items(text: str) -> list[Object]:
    """The objects that kubectl printed: one, or a list of them, or none."""
    if not text.strip():
        return []
    document: Object = orjson.loads(text)
    return list(document["items"]) if document["kind"] == "List" else [document]


def _identity(obj: Mapping[str, Any]) -> tuple[str, str, str, str]:
    group = str(obj["apiVersion"]).rpartition("/")[0]
    return group, str(obj["kind"]), str(obj["metadata"].get("namespace", "")), str(obj["metadata"]["name"])


def refused(text: str) -> str:
    """What kubectl said of files that cannot be applied as they are."""
    short = _PATCH.sub("", text.strip())
    lines = dict.fromkeys(line for line in short.splitlines() if not line.startswith(_ANNOUNCED))
    said = "\n  ".join(line.removeprefix("error: ") for line in lines) or "kubectl gave no reason"
    hint = ""
    if "namespaces " in text and "not found" in text:
        hint = "\nIf the same files make that namespace: apply it first."
    return f"this cannot be applied as it is:\n  {said}{hint}"


def _line(text: str) -> str:
    return " ".join(text.split()) or "kubectl gave no reason"
