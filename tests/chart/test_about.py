"""What the chart says of itself: its README and its annotations are those of what it holds."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import pytest
import yaml
from tests.chart.conftest import CHART
from tests.chart.test_manifests import our_problems

ROOT = CHART.parents[1]
ABOUT: dict[str, Any] = yaml.safe_load((CHART / "Chart.yaml").read_text())
ANNOTATIONS = {
    name.removeprefix("artifacthub.io/"): yaml.safe_load(text) for name, text in ABOUT["annotations"].items()
}


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """hack/chart_readme.py."""
    spec = importlib.util.spec_from_file_location("chart_readme", ROOT / "hack" / "chart_readme.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_of_the_values(generator: ModuleType) -> None:
    made = generator.readme(ABOUT, (CHART / "values.yaml").read_text())
    assert made == (CHART / "README.md").read_text(), "run `make chart-docs`"


def test_comments_are_found_where_they_stand(generator: ModuleType) -> None:
    text = "a:\n  # One\n  # and a half.\n  b: {c: 1}\n# Two | three.\nd:\n  e: [1]\n"
    page = generator.readme(ABOUT, text)
    assert page.endswith('| `a.b` | `{"c": 1}` | One and a half. |\n| `d` | `{"e": [1]}` | Two \\| three. |\n')


def test_a_comment_above_others_that_have_their_own(generator: ModuleType) -> None:
    page = generator.readme(ABOUT, "# All.\na:\n  # One.\n  b: 1\n")
    assert page.endswith("| `a` |  | All. |\n| `a.b` | `1` | One. |\n")


def test_a_value_without_a_comment_is_refused(generator: ModuleType) -> None:
    with pytest.raises(generator.UndocumentedError, match=r"a comment above a\.c$"):
        generator.readme(ABOUT, "a:\n  # One.\n  b: 1\n  c: 2\n")


def test_links_of_the_readme_lead_somewhere(generator: ModuleType) -> None:
    for part in generator.HEAD.split("](")[1:]:
        assert (CHART / part.partition(")")[0]).exists()


def test_annotations_are_of_this_version() -> None:
    images = [entry["image"] for entry in ANNOTATIONS["images"]]
    assert images == [f"agenthive-{name}:{ABOUT['appVersion']}" for name in ("operator", "runtime")]
    assert ANNOTATIONS["changes"]
    kinds = {"added", "changed", "deprecated", "removed", "fixed", "security"}
    assert all(entry["kind"] in kinds and entry["description"] for entry in ANNOTATIONS["changes"])
    assert ANNOTATIONS["prerelease"] is ABOUT["version"].startswith("0.")
    assert ANNOTATIONS["license"] in (ROOT / "pyproject.toml").read_text()


def test_annotations_name_the_definitions_and_valid_examples() -> None:
    crds = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))]
    assert {entry["name"]: entry["kind"] for entry in ANNOTATIONS["crds"]} == {
        crd["metadata"]["name"]: crd["spec"]["names"]["kind"] for crd in crds
    }
    assert {entry["kind"] for entry in ANNOTATIONS["crdsExamples"]} == {entry["kind"] for entry in ANNOTATIONS["crds"]}
    for example in ANNOTATIONS["crdsExamples"]:
        assert our_problems(example) == []
