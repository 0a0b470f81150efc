"""The dashboards: as generated, within Grafana's model, over metrics that exist, readable."""

import importlib.util
import itertools
import json
import re

import pytest
import requests
import yaml
from conftest import ROOT
from daemons import client, server, wait_equal
from expressions import dashboards, expressions, metric_names, panels
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

UIDS = {"syncd-overview.json": "syncd-overview", "syncd-internals.json": "syncd-internals"}


def by_name():
    return pytest.mark.parametrize("name", sorted(UIDS))


def test_uids_are_stable():
    assert {name: made["uid"] for name, made in dashboards().items()} == UIDS


def test_what_is_committed_is_what_is_generated():
    specification = importlib.util.spec_from_file_location("generate", ROOT / "grafana/generate.py")
    generate = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(generate)
    for path, text in generate.documents():
        assert path.read_text() == text, f"{path.name}: run python3 grafana/generate.py"


def lost(ours, theirs, path=""):
    """Paths of what the model did not give back."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            if key not in theirs:
                # The model leaves out what is empty or the default.
                if value not in (None, False, [], {}, ""):
                    yield f"{path}.{key}"
            else:
                yield from lost(value, theirs[key], f"{path}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list):
        if len(ours) != len(theirs):
            yield path
        for number, (mine, other) in enumerate(zip(ours, theirs)):
            yield from lost(mine, other, f"{path}[{number}]")
    elif ours != theirs:
        yield f"{path}: {ours!r} became {theirs!r}"


@by_name()
def test_a_dashboard_is_within_grafanas_model(name):
    register_default_plugins()
    ours = dashboards()[name]
    model = Dashboard.from_json(json.loads(json.dumps(ours)))
    theirs = json.loads(JSONEncoder(sort_keys=True).encode(model))
    # What Prometheus adds to an annotation; the model knows those of every source only.
    added = re.compile(r"\.annotations\.list\[\d+\]\.(step|titleFormat|tagKeys)")
    assert [path for path in lost(ours, theirs) if not added.fullmatch(path)] == []


@by_name()
def test_panels_say_what_they_show(name):
    dashboard = dashboards()[name]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels(dashboard):
        title = panel["title"]
        assert len(panel["description"]) > 20, f"{title}: says what good looks like"
        assert panel["fieldConfig"]["defaults"]["unit"], f"{title}: has a unit"
        assert panel["datasource"]["uid"] == "${datasource}", title
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}", title
            assert not re.search(r"\[\d+[smh]\]", target["expr"]) or "over_time" in target["expr"] or "increase" in target["expr"], title


@by_name()
def test_panels_do_not_overlap(name):
    places = [panel["gridPos"] for panel in dashboards()[name]["panels"]]
    for place in places:
        assert place["x"] + place["w"] <= 24
    for a, b in itertools.combinations(places, 2):
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"] or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert apart, (a, b)


def test_data_sources_are_provisioned():
    document = yaml.safe_load((ROOT / "grafana/provisioning/datasources/datasources.yaml").read_text())
    kinds = {source["type"]: source["uid"] for source in document["datasources"]}
    assert kinds == {"prometheus": "prometheus", "jaeger": "jaeger"}
    prometheus = next(source for source in document["datasources"] if source["type"] == "prometheus")
    (destination,) = prometheus["jsonData"]["exemplarTraceIdDestinations"]
    assert destination == {"name": "trace_id", "datasourceUid": kinds["jaeger"]}
    for dashboard in dashboards().values():
        wanted = {v["query"] for v in dashboard["templating"]["list"] if v["type"] == "datasource"}
        assert wanted == set(kinds)


def test_links_lead_somewhere():
    for dashboard in dashboards().values():
        for link in dashboard["links"]:
            if link["url"].startswith("/d/"):
                assert link["url"].removeprefix("/d/") in UIDS.values()
            else:
                assert (ROOT / link["url"].split("/blob/main/")[1].split("#")[0]).exists()


def test_every_metric_exists(tmp_path):
    with server(tmp_path / "server", "-i", "100") as of, client(tmp_path / "client", of) as replica:
        wait_equal(replica, of)
        requests.get(f"{of.api}/v1/status", timeout=30)
        found = set()
        for daemon in (of, replica):
            text = requests.get(f"http://{daemon.metrics}/metrics", timeout=30).text
            found |= {re.split(r"[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")}
        missing = {
            f"{where}: {name}"
            for where, expression in expressions(interval="1m")
            for name in metric_names(expression)
            if name not in found
        }
        assert missing == set()
