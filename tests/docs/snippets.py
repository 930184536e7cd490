"""What stands in fences on the pages: snippets, the commands among them, and a script of a whole page."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    """One fence: where it is, what it is called, what is in it."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that a first line such as ``# words.py`` says to write it into."""
        named = re.match(r"# ([\w.-]+\.(?:py|yaml))\n", self.text)
        return named[1] if named else None


def snippets(page: Path) -> Iterator[Snippet]:
    """Every fence of a page."""
    text = page.read_text()
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Snippet(str(page.relative_to(ROOT)), line, found["language"], textwrap.dedent(found["text"]))


def commands(snippet: Snippet) -> Iterator[str]:
    """The command lines of a console: all lines, or those behind ``$ `` where some have it, the others being output."""
    lines = snippet.text.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    command = ""
    for line in lines:
        command += line
        try:
            shlex.split(command, comments=True)
        except ValueError:  # a quotation that the next line goes on with
            command += "\n"
            continue
        if command.strip():
            yield command
        command = ""


def words(command: str) -> list[list[str]]:
    """The simple commands of a line, each as its words: without assignments before it, redirections and comments."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    skip = False
    for word in lexer:
        if skip:
            skip = False
        elif set(word) <= set("<>"):
            skip = True
        elif set(word) <= set("();|&"):
            found.append([])
        elif found[-1] or not re.match(r"[A-Z_]+=", word):
            found[-1].append(word)
    return [each for each in found if each]


def script(parts: Iterable[Snippet]) -> str:
    """A bash script of snippets in their order: files are written, commands run, one that is said to fail must fail."""
    lines = ["set -euo pipefail", 'must_fail() { if eval "$1"; then echo "this should have failed: $1"; exit 9; fi; }']
    for part in parts:
        if part.file:
            lines += [f"cat > {part.file} <<'END_OF_FILE'", part.text.rstrip("\n"), "END_OF_FILE"]
        elif part.language == "console":
            for command in commands(part):
                failing = re.search(r"\s+# fails\b", command)
                plain = f"must_fail {shlex.quote(command[: failing.start()])}" if failing else command
                lines += [f"echo {shlex.quote('+ ' + command)}", plain]
    return "\n".join(lines) + "\n"
