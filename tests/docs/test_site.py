"""The pages as a site: built strictly, with links that hold, and a reference that is that of the code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hack import reference
from hack.site_hooks import MissingTargetError, outward

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "AGENTHIVE_REPOSITORY_URL": "https://git.example.com/team/hive"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    install = (tmp_path / "install" / "index.html").read_text()
    assert "https://git.example.com/team/hive/blob/main/charts/agenthive/values.yaml" in install
    assert 'href="../high-availability/"' in install
    assert "sentinel_tls=true|false" in (tmp_path / "delivery" / "index.html").read_text()
    # Nothing is fetched from elsewhere when a page is read.
    assert "fonts.googleapis.com" not in install


def test_what_the_site_calls_strict_is_all_that_it_could_be() -> None:
    text = (ROOT / "mkdocs.yml").read_text().replace("!ENV [AGENTHIVE_REPOSITORY_URL, null]", "null")
    config = yaml.safe_load(text)
    assert config["strict"] is True
    assert set(config["validation"]["links"].values()) == {"warn"}


@pytest.mark.parametrize("name", reference.pages())
def test_the_reference_is_that_of_the_code(name: str) -> None:
    assert (DOCS / "reference" / name).read_text() == reference.pages()[name], "run: make docs"


def test_the_reference_is_written_into_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main([str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"agenthive.md", "agent.md", "settings.md", "cli.md"}
    assert reference.main([]) == 2
    assert "FOLDER" in capsys.readouterr().err


def test_every_setting_says_what_it_means() -> None:
    rows = [line for line in reference.settings_page().splitlines() if line.startswith("| `")]
    assert len(rows) > 40
    assert not [line for line in rows if line.endswith("|  |")]


@pytest.mark.parametrize(
    ("written", "becomes"),
    [
        ("[x](../README.md)", "[x](https://h/r/blob/main/README.md)"),
        ("[x](../README.md#try-it)", "[x](https://h/r/blob/main/README.md#try-it)"),
        ("[x](../examples/hello)", "[x](https://h/r/tree/main/examples/hello)"),
        ("[x](delivery.md#topics)", "[x](delivery.md#topics)"),
        ("[x](#here)", "[x](#here)"),
        ("[x](https://example.com)", "[x](https://example.com)"),
    ],
)
def test_links_out_of_the_documents(written: str, becomes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_SHA", raising=False)
    assert outward(written, "page.md", ROOT, "https://h/r/") == becomes


def test_links_out_of_the_documents_name_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_SHA", "abc")
    assert outward("[x](../../crds)", "reference/agent.md", ROOT, "https://h/r") == "[x](https://h/r/tree/abc/crds)"


def test_without_a_repository_a_link_out_of_the_documents_is_text() -> None:
    assert outward("see [the chart](../charts/agenthive).", "page.md", ROOT, None) == "see the chart."


def test_a_link_to_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(MissingTargetError, match=r"docs/page\.md links \.\./nowhere\.txt"):
        outward("[x](../nowhere.txt)", "page.md", ROOT, None)
