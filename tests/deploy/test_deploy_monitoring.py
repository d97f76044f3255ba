"""The dashboard and the alerts ask for what the code exports, in PromQL that parses; each alert has its runbook."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import promql_parser
import pytest
import yaml

from flsys_ray.cloud.meter import SERIES, Series
from flsys_ray.core.types import Reason

ROOT = Path(__file__).parents[2]
DASHBOARD = (ROOT / "deploy/grafana/flsys.json").read_text()
ALERTS = (ROOT / "deploy/prometheus/alerts.yaml").read_text()
OUTCOMES = {
    "flsys_check_ins": {"assigned", "unknown-model", "unavailable", *get_args(Reason)},
    "flsys_updates": {"counted", "duplicate", "late", "unusable", "failed"},
    "flsys_rounds": {"committed", "no-quorum"},
}
# Series of Ray 2.60 and of Prometheus itself, with labels: as a node of a cluster with the cloud on it served them.
OTHERS = {
    "up": {"job", "instance"},
    "ray_serve_deployment_replica_healthy": {"application", "deployment", "replica"},
    "ray_serve_replica_processing_queries": {"application", "deployment", "replica"},
    "ray_node_cpu_utilization": {"ip", "instance"},
    "ray_node_mem_used": {"ip", "instance"},
    "ray_node_mem_total": {"ip", "instance"},
}
RULE_KEYS = {"alert", "expr", "for", "labels", "annotations"}
PANEL_KEYS = {
    "id", "title", "description", "type", "datasource", "gridPos", "fieldConfig", "options", "targets",
}  # fmt: skip


def exported() -> dict[str, Series]:
    """Return the names under which Prometheus sees the series of the code."""
    names = {}
    for series in SERIES:
        ends = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}[series.kind]
        names |= {f"ray_{series.name}{end}": series for end in ends}
    return names


def flaws(query: str) -> list[str]:
    """Return which series, labels and outcomes of a query do not exist. Raises `ValueError` if it is no PromQL."""
    found: list[str] = []
    own = exported()
    for selector in selectors(promql_parser.parse(query)):
        series = own.get(selector.name)
        if series is None and selector.name not in OTHERS:
            found.append(f"series {selector.name}")
            continue
        labels = OTHERS[selector.name] if series is None else {*series.labels, "le"}
        for matcher in selector.matchers.matchers:
            if matcher.name not in labels:
                found.append(f"label {matcher.name}")
            elif matcher.name == "outcome" and series and matcher.value not in OUTCOMES[series.name]:
                found.append(f"outcome {matcher.value}")
    return found + grouping_flaws(query)


def grouping_flaws(query: str) -> list[str]:
    """Return labels that a query groups by and no series of it has."""
    known = {"instance"} | {label for series in SERIES for label in (*series.labels, "le")}
    return [
        f"by {label}"
        for group in re.findall(r"\bby \(([^)]*)\)", query)
        for label in re.split(r",\s*", group)
        if label not in known
    ]


def selectors(node: Any) -> list[Any]:
    """Return the vector selectors of a parsed query."""
    if isinstance(node, promql_parser.VectorSelector):
        return [node]
    if isinstance(node, promql_parser.MatrixSelector):
        return selectors(node.vector_selector)
    found = []
    for name in ("lhs", "rhs", "expr", "args"):
        inner = getattr(node, name, None)
        for part in inner if isinstance(inner, list) else [] if inner is None else [inner]:
            found += selectors(part)
    return found


def grafana_queries(text: str) -> list[str]:
    """Return a dashboard's queries, with Grafana's variables replaced by values."""
    queries = [target["expr"] for panel in json.loads(text)["panels"] for target in panel["targets"]]
    return [query.replace("$__rate_interval", "5m").replace("$model", "acme/har") for query in queries]


def dashboard_flaws(text: str) -> list[str]:
    board = json.loads(text)
    found = [flaw for query in grafana_queries(text) for flaw in flaws(query)]
    variables = {variable["name"] for variable in board["templating"]["list"]}
    for panel in board["panels"]:
        found += [f"panel key {key}" for key in set(panel) ^ PANEL_KEYS]
        for target in panel["targets"]:
            used = set(re.findall(r"\$\{?(\w+)", target["expr"] + target["datasource"]["uid"])) - {"__rate_interval"}
            found += [f"variable {name}" for name in used - variables]
    return found


def rules(text: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def alert_flaws(text: str) -> list[str]:
    found = []
    page = (ROOT / "docs/operations.md").read_text()
    anchors = {title.lower() for title in re.findall(r"^### (Flsys\w+)$", page, re.MULTILINE)}
    for rule in rules(text):
        found += [f"rule key {key}" for key in set(rule) ^ RULE_KEYS]
        found += flaws(rule.get("expr", "up"))
        if not re.fullmatch(r"\d+[smh]", rule.get("for", "")):
            found.append(f"for {rule.get('for')}")
        if rule.get("labels", {}).get("severity") not in ("page", "ticket"):
            found.append("severity")
        notes = rule.get("annotations", {})
        place, _, anchor = notes.get("runbook", "").partition("#")
        if place != "docs/operations.md" or anchor != rule["alert"].lower() or anchor not in anchors:
            found.append(f"runbook of {rule['alert']}")
        for label in re.findall(r"\$labels\.(\w+)", notes.get("summary", "")):
            if f"by ({label}" not in rule["expr"] and label not in ("instance",):
                found.append(f"summary names {label}")
    return found


def test_the_dashboard_shows_what_the_code_exports() -> None:
    assert len(grafana_queries(DASHBOARD)) >= 15
    assert dashboard_flaws(DASHBOARD) == []


def test_every_series_of_the_code_is_on_the_dashboard() -> None:
    asked = " ".join(grafana_queries(DASHBOARD))
    assert [series.name for series in SERIES if f"ray_{series.name}" not in asked] == []


def test_panels_do_not_lie_on_each_other() -> None:
    places = [panel["gridPos"] for panel in json.loads(DASHBOARD)["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_alerts_ask_for_what_the_code_exports_and_have_a_runbook() -> None:
    assert len(rules(ALERTS)) >= 8
    assert alert_flaws(ALERTS) == []


def test_every_runbook_is_of_an_alert() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    titles = re.findall(r"^### (Flsys\w+)$", page, re.MULTILINE)
    assert titles == [rule["alert"] for rule in rules(ALERTS)]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("ray_flsys_check_ins_total", "ray_flsys_checkins_total"),
        ("ray_flsys_round_seconds_bucket", "ray_flsys_round_second_bucket"),
        ("by (outcome)", "by (outcom)"),
        ('outcome=\\"counted\\"', 'outcome=\\"count\\"'),
        ('model=~\\"$model\\"', 'modle=~\\"$model\\"'),
        ('model=~\\"$model\\"', 'model=~\\"$modle\\"'),
        ('"gridPos"', '"gridPosition"'),
        ("ray_node_mem_used", "ray_node_memory_used"),
    ],
)
def test_a_typo_in_the_dashboard_is_found(right: str, wrong: str) -> None:
    assert right in DASHBOARD
    assert dashboard_flaws(DASHBOARD.replace(right, wrong, 1))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("ray_flsys_updates_total", "ray_flsys_update_total"),
        ('outcome="failed"', 'outcome="fail"'),
        ('up{job="flsys"}', 'up{jbo="flsys"}'),
        ("severity: page", "severity: pgae"),
        ("for: 5m", "for: 5 minutes"),
        ("#flsysnodeunseen", "#flsysnodeunsen"),
        ("- alert: FlsysNoVersion", "- alert: FlsysNoVersions"),
        ("annotations:", "anotations:"),
        ("$labels.model", "$labels.modle"),
    ],
)
def test_a_typo_in_the_alerts_is_found(right: str, wrong: str) -> None:
    assert right in ALERTS
    assert alert_flaws(ALERTS.replace(right, wrong, 1))


def test_what_is_no_promql_is_found() -> None:
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        flaws("sum(rate(ray_flsys_updates_total[5m])")
