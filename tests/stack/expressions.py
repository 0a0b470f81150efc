"""Every expression of the dashboards, rules and alerts, with Grafana's variables filled in."""

import json
import re

import yaml
from conftest import ROOT

DASHBOARDS = sorted((ROOT / "grafana/dashboards").glob("*.json"))
PROMETHEUS = ROOT / "deploy/prometheus"


def dashboards() -> dict:
    """Documents by file name."""
    return {path.name: json.loads(path.read_text()) for path in DASHBOARDS}


def panels(dashboard: dict) -> list:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def fill_in(expression: str, interval: str) -> str:
    for variable, value in {
        "$__rate_interval": interval,
        "$__range": interval,
        "$job": ".*",
        "$instance": ".*",
    }.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, expression
    return expression


def of_dashboards(interval: str):
    for name, dashboard in dashboards().items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                where = f"panel '{panel['title']}' {target['refId']} of {name}"
                yield where, fill_in(target["expr"], interval)
        for annotation in dashboard["annotations"]["list"]:
            yield f"annotation {annotation['name']} of {name}", fill_in(annotation["expr"], interval)


def of_rules():
    for name in ("rules.yml", "alerts.yml"):
        for group in yaml.safe_load((PROMETHEUS / name).read_text())["groups"]:
            for rule in group["rules"]:
                kind = "alert" if "alert" in rule else "rule"
                yield f"{kind} {rule[kind if kind == 'alert' else 'record']}", rule["expr"]


def expressions(interval: str):
    """Pairs of where an expression stands (`panel …`, `annotation …`, `rule …`, `alert …`) and the expression."""
    yield from of_dashboards(interval)
    yield from of_rules()


def metric_names(expression: str) -> set:
    """The names of metrics in an expression that begin like ours or the library's; not those of recording rules."""
    without_text = re.sub(r'"[^"]*"', '""', expression)
    return set(re.findall(r"(?<![:\w])(?:syncd|process|runtime)_[a-z0-9_]+", without_text))
