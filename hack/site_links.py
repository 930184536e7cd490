"""Hook of MkDocs: links from docs/ to files of the repository, which a site does not hold.

On GitHub such a link works as it is written. On the site it leads to ``repo_url`` in mkdocs.yml, at the commit that the
environment variable ``GITHUB_SHA`` names or at main; where there is no ``repo_url`` the text stays, without a link.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

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
