"""Hooks of MkDocs: what GitHub shows in another way than the site does.

A link from docs/ to a file of the repository leads to ``repo_url`` in mkdocs.yml, at the commit that the environment
variable ``GITHUB_SHA`` names or at main; where there is no ``repo_url`` its text stays, without a link. A bar in a
table's code loses the backslash before it.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

_CELL = re.compile(r"<td[ >].*?</td>", re.DOTALL)
#: A link as Markdown has it: `[text](target)`. Pages hold none across lines and none with a title.
_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


class MissingTargetError(Exception):
    """A page links a file of the repository that is not there."""


def outward(markdown: str, page: str, root: Path, repository: str | None) -> str:
    """``markdown`` with its links to files outside of docs/ rewritten.

    Args:
        markdown: The text of a page.
        page: Its path below docs/, with slashes.
        root: The repository.
        repository: The address of the repository; None leaves the text of a link.

    Raises:
        MissingTargetError: A link leads to a file that the repository does not have.
    """

    def replaced(link: re.Match[str]) -> str:
        target, _, anchor = link["target"].partition("#")
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
        if not target or ":" in target or path.startswith("docs/"):
            return link[0]
        if not (root / path).exists():
            raise MissingTargetError(f"docs/{page} links {link['target']}: the repository has no {path}")
        if not repository:
            return link["text"]
        kind = "tree" if (root / path).is_dir() else "blob"
        address = f"{repository.rstrip('/')}/{kind}/{os.environ.get('GITHUB_SHA') or 'main'}/{path}"
        return f"[{link['text']}]({address}{'#' if anchor else ''}{anchor})"

    return _LINK.sub(replaced, markdown)


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """MkDocs calls this for each page before it is rendered."""
    root = Path(config.config_file_path).parent
    try:
        return outward(markdown, page.file.src_uri, root, config.repo_url)
    except MissingTargetError as error:
        from mkdocs.exceptions import PluginError  # noqa: PLC0415 - only where MkDocs runs

        raise PluginError(str(error)) from error


def on_page_content(html: str, **_: Any) -> str:
    """MkDocs calls this for each rendered page."""
    return _CELL.sub(lambda cell: cell[0].replace("\\|", "|"), html)
