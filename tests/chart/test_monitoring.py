"""Alerts, runbooks and dashboards: they speak of metrics, labels and reasons that the code has, and of each other."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import promql_parser as promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tests.chart.conftest import CHART, Helm, Promtool

from agenthive import telemetry
from agenthive_operator import metrics as operator_metrics
from agenthive_operator.api import crd
from agenthive_operator.plugin.group import hive
from agenthive_operator.reconcile.context import ALARMING
from agenthive_operator.reconcile.reasons import REASONS

ROOT = CHART.parents[1]
RULES_FILE = CHART / "files" / "rules.yaml"
RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in yaml.safe_load(RULES_FILE.read_text())["groups"] for rule in group["rules"]
}
RUNBOOKS = {path.stem: path.read_text() for path in (ROOT / "docs" / "runbooks").glob("*.md") if path.stem != "README"}
DASHBOARDS = sorted((CHART / "files" / "dashboards").glob("*.json"))
CASES = sorted(path for path in Path(__file__).parent.glob("rules*_test.yaml"))
SCHEMAS = [manifest["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for manifest in crd.crd_manifests()]
#: What Prometheus adds to a sample of a pod.
TARGET_LABELS = {"namespace", "pod", "job", "instance", "container", "endpoint", "service"}
KINDS_OF = {"agenthive_operator_hive_condition": "AgentHive", "agenthive_operator_agent_condition": "Agent"}

each_alert = pytest.mark.parametrize("alert", RULES)
each_dashboard = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)


def exported() -> dict[str, set[str]]:
    """Every series that the operator and agents export, and its labels; names from what a scrape really brings."""
    ours = operator_metrics.Metrics()
    ours.read = lambda: operator_metrics.Snapshot({}, [], acting=True, synced=True)
    text = ours.exposition().decode() + telemetry.Telemetry("agent").exposition().decode()
    own = {operator_metrics.PREFIX + found.name: found.labels for found in operator_metrics.DESCRIPTIONS.values()}
    own |= {name: ("hive", "agent", *found.labels) for name, found in telemetry.METRICS.items()}
    own = {name.removesuffix("_total"): labels for name, labels in own.items()}
    series: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        labels = TARGET_LABELS | set(own.get(family.name, ()))
        for suffix, more in SUFFIXES[family.type].items():
            series[family.name + suffix] = labels | more
    assert {name for name in series if name.startswith("agenthive_")}
    return series


SUFFIXES: Mapping[str, Mapping[str, set[str]]] = {
    "counter": {"_total": set()},
    "gauge": {"": set()},
    "histogram": {"_bucket": {"le"}, "_sum": set(), "_count": set()},
}
EXPORTED = exported()


def parts(expression: Any) -> Iterator[Any]:
    """The expression and all below it."""
    yield expression
    for name in ("expr", "lhs", "rhs", "param", "vector_selector"):
        below = getattr(expression, name, None)
        if below is not None:
            yield from parts(below)
    for argument in getattr(expression, "args", ()):
        yield from parts(argument)


def selectors(expression: Any) -> list[tuple[str, list[Any]]]:
    """Metric and matchers of every selector in it."""
    found = [part for part in parts(expression) if isinstance(part, promql.VectorSelector)]
    return [(part.name or "", list(part.matchers.matchers)) for part in found]


def problems(text: str) -> list[str]:
    """What an expression names that nobody exports."""
    expression = promql.parse(text)
    found, below = [], set()
    for name, matchers in selectors(expression):
        if name not in EXPORTED:
            found.append(f"nobody exports {name}")
            continue
        below |= EXPORTED[name]
        found += [f"{name} has no label {one.name}" for one in matchers if one.name not in EXPORTED[name]]
        found += [f"{name}: {wrong}" for one in matchers for wrong in unknown_values(name, one.name, one.value)]
    for part in parts(expression):
        for modifier in (getattr(part, "modifier", None), getattr(getattr(part, "modifier", None), "matching", None)):
            labels = getattr(modifier, "labels", None) or ()
            found += [f"nothing in {text} has a label {label}" for label in labels if label not in below]
    return found


def unknown_values(metric: str, label: str, value: str) -> list[str]:
    """Which of the values that a matcher lists the code never gives to that label, where the code has a list."""
    known: set[str] = set()
    if metric in KINDS_OF:
        conditions = REASONS[KINDS_OF[metric]]
        known = {"type": set(conditions), "status": {"True", "False", "Unknown"}}.get(label, set())
        known = {reason for reasons in conditions.values() for reason in reasons} if label == "reason" else known
    elif (metric, label) == ("agenthive_messages_handled_total", "result"):
        known = set(telemetry.RESULTS)
    elif label in {"result", "reason", "operation"} and metric in telemetry.METRICS:
        known = set(re.findall(r"\w+", telemetry.METRICS[metric].help))
    if not known or "$" in value:
        return []
    return [f"{label} is never {one}" for one in value.split("|") if one not in known]


@each_alert
def test_an_alert_asks_for_what_is_exported(alert: str) -> None:
    assert problems(RULES[alert]["expr"]) == []


def test_what_nobody_exports_is_found() -> None:
    assert problems("sum by (kind) (agenthive_operator_object)") != []
    assert problems("sum by (colour) (agenthive_operator_objects)") != []
    assert problems('agenthive_operator_objects{colour="red"}') != []
    assert problems('agenthive_operator_hive_condition{reason="NoSuchReason"}') != []
    assert problems('rate(agenthive_messages_handled_total{result="lost"}[5m])') != []
    assert problems("sum by (kind) (agenthive_operator_objects) / on (colour) agenthive_operator_objects") != []


@each_alert
def test_an_alert_says_what_is_wrong(alert: str) -> None:
    rule = RULES[alert]
    assert alert.startswith("AgentHive")
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert set(rule["annotations"]) == {"summary", "description"}
    labels = set().union(*(EXPORTED[name] for name, _ in selectors(promql.parse(rule["expr"]))))
    assert set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values()))) <= labels


def test_every_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    assert set(RUNBOOKS) == set(RULES)


@each_alert
def test_a_runbook_tells_what_it_means_how_to_look_and_what_to_do(alert: str) -> None:
    text = RUNBOOKS[alert]
    assert text.startswith(f"# {alert}\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["What it means", "How to look", "What to do"]
    looking = text.partition("## How to look")[2].partition("## What to do")[0]
    assert re.search(r"^(kubectl|promtool|agenthive|helm) ", looking, re.MULTILINE), "no command"
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert "://" in link or (ROOT / "docs" / "runbooks" / link).exists(), link


def commands(text: str) -> list[list[str]]:
    """Every command of a page, in words, without what it is piped into."""
    lines = re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [shlex.split(line)[: shlex.split(line + " |").index("|")] for block in lines for line in block.splitlines()]


@each_alert
def test_a_runbook_uses_kubectl_hive_as_it_is(alert: str) -> None:
    for name, *arguments in commands(RUNBOOKS[alert]) + inline(RUNBOOKS[alert]):
        if (name, *arguments[:1]) != ("kubectl", "hive"):
            continue
        command, rest = hive, arguments[1:]
        while isinstance(command, click.Group):
            context = click.Context(command)
            _, found, rest = command.resolve_command(context, rest)
            assert found
            command = found
        command.make_context("hive", rest)


def inline(text: str) -> list[list[str]]:
    """Commands within a sentence that have arguments to try."""
    return [shlex.split(found) for found in re.findall(r"`(kubectl hive \w+ \w+ [A-Z][^`]*)`", text)]


@each_alert
def test_a_runbook_names_fields_that_are(alert: str) -> None:
    for path in re.findall(r"\bspec\.[\w.]*\w", RUNBOOKS[alert]):
        assert any(has_field(schema, path.split(".")) for schema in SCHEMAS), path


def has_field(schema: dict[str, Any], path: list[str]) -> bool:
    """Whether a field stands at that path of a schema."""
    for name in path:
        schema = schema.get("properties", {}).get(name) or schema.get("additionalProperties") or {}
    return bool(schema)


def test_the_page_lists_every_alert_with_its_severity() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    listed = dict(re.findall(r"^\| \[(AgentHive\w+)\]\(runbooks/\1\.md\) \| (\w+) \|", page, re.MULTILINE))
    assert listed == {alert: rule["labels"]["severity"] for alert, rule in RULES.items()}


def test_every_warning_of_a_store_that_works_has_an_alert() -> None:
    told = {
        reason
        for rule in RULES.values()
        for name, matchers in selectors(promql.parse(rule["expr"]))
        for one in matchers
        if name in KINDS_OF and one.name == "reason" and one.op in (promql.MatchOp.Equal, promql.MatchOp.Re)
        for reason in one.value.split("|")
    }
    assert told >= ALARMING


def test_every_alert_is_seen_to_fire() -> None:
    cases = "".join(path.read_text() for path in CASES)
    assert set(re.findall(r'alertname[=:] ?"?(\w+)', cases)) == set(RULES)


@pytest.mark.parametrize(
    "arguments", [("check", "rules", RULES_FILE), ("test", "rules", *CASES)], ids=["check", "test"]
)
def test_promtool(promtool: Promtool, arguments: tuple[str | Path, ...]) -> None:
    promtool(*arguments)


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """All panels but headings."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def written_out(expression: str) -> str:
    """A dashboard's expression with what Grafana fills in."""
    return expression.replace("$__rate_interval", "5m")


@each_dashboard
def test_a_dashboard_asks_for_what_is_exported(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    asked = [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
    assert asked
    wrong = {expression: problems(written_out(expression)) for expression in asked}
    assert not {expression: found for expression, found in wrong.items() if found}


@each_dashboard
def test_variables_of_a_dashboard(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    variables = {entry["name"]: entry for entry in dashboard["templating"]["list"]}
    for entry in variables.values():
        if entry["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", entry["query"]["query"]).groups()  # type: ignore[union-attr]
            assert label in EXPORTED[metric]
            inner = re.search(r"\{.*\}", entry["query"]["query"])
            assert problems(metric + (inner[0] if inner else "")) == []
    texts = [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
    texts += [json.dumps(entry["query"]) for entry in variables.values()]
    used = set(re.findall(r"\$(?!__)(\w+)", " ".join(texts)))
    assert used <= set(variables)
    assert set(variables) - {"datasource"} <= used


@each_dashboard
def test_a_dashboard_is_whole(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    assert dashboard["uid"] == f"agenthive-{path.stem}"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    cells = [(place["x"] + x, place["y"] + y) for place in places for x in range(place["w"]) for y in range(place["h"])]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert all(0 <= x < 24 for x, _ in cells)
    for panel in panels(dashboard):
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_dashboards_are_configmaps_that_a_sidecar_finds(helm: Helm) -> None:
    done = helm("template", "hives", CHART, "-n", "system", "--set", "monitoring.dashboards.enabled=true")
    maps = [found for found in yaml.safe_load_all(done.stdout) if found and found["kind"] == "ConfigMap"]
    assert [found["metadata"]["name"] for found in maps] == [
        f"hives-agenthive-dashboard-{path.stem}" for path in DASHBOARDS
    ]
    for found, path in zip(maps, DASHBOARDS, strict=True):
        assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert found["metadata"]["annotations"] == {"grafana_folder": "AgentHive"}
        assert found["data"] == {f"agenthive-{path.name}": path.read_text()}


def rendered_rules(helm: Helm, *values: str) -> dict[str, dict[str, Any]]:
    """The rules of the rendered PrometheusRule by alert."""
    sets = [part for value in ("monitoring.prometheusRule.enabled=true", *values) for part in ("--set", value)]
    done = helm("template", "hives", CHART, "-n", "system", *sets)
    (found,) = (found for found in yaml.safe_load_all(done.stdout) if found and found["kind"] == "PrometheusRule")
    return {rule["alert"]: rule for group in found["spec"]["groups"] for rule in group["rules"]}


def test_the_release_has_the_rules_of_the_file_with_links(helm: Helm) -> None:
    found = rendered_rules(helm, "monitoring.prometheusRule.runbooks=https://example.com/books/")
    assert list(found) == list(RULES)
    for alert, rule in found.items():
        assert rule["annotations"].pop("runbook_url") == f"https://example.com/books/{alert}.md"
        assert rule == RULES[alert]


def test_alerts_are_left_out_and_weighed_by_values(helm: Helm) -> None:
    choice = "monitoring.prometheusRule."
    found = rendered_rules(
        helm,
        f"{choice}disabled={{AgentHiveCacheFull,AgentHiveSaturated}}",
        f"{choice}severities.AgentHiveDeadLetters=page",
    )
    assert set(RULES) - set(found) == {"AgentHiveCacheFull", "AgentHiveSaturated"}
    assert found["AgentHiveDeadLetters"]["labels"] == {"severity": "page"}
    for wrong in ("disabled={AgentHiveCacheFul}", "severities.AgentHiveCacheFul=page"):
        done = helm(
            "template", "hives", CHART, "--set", f"{choice}enabled=true", "--set", choice + wrong, check=False
        )  # fmt: skip
        assert done.returncode != 0
        assert "there is no alert AgentHiveCacheFul;" in done.stderr
