"""Rules and alerts: they parse, their tests pass, and each alert has a runbook and both kinds of case."""

import re
import subprocess

import yaml
from conftest import ROOT, tool

PROMETHEUS = ROOT / "deploy/prometheus"


def alerts() -> dict:
    document = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())
    return {rule["alert"]: rule for group in document["groups"] for rule in group["rules"]}


def records() -> list:
    document = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())
    return [rule["record"] for group in document["groups"] for rule in group["rules"]]


def promtool(*arguments: str):
    done = subprocess.run([tool("promtool"), *arguments], cwd=PROMETHEUS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_configuration_and_rules_are_valid():
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "--lint=all", "--lint-fatal", "rules.yml", "alerts.yml")


def test_rules_do_what_their_tests_say():
    promtool("test", "rules", *(str(path) for path in sorted((PROMETHEUS / "tests").glob("*.yml"))))


def test_every_alert_has_a_firing_and_a_silent_case():
    tests = yaml.safe_load((PROMETHEUS / "tests/alerts.yml").read_text())["tests"]
    fires, silent = set(), set()
    for case in tests:
        for check in case["alert_rule_test"]:
            (fires if check.get("exp_alerts") else silent).add(check["alertname"])
    assert fires == silent == set(alerts())


def test_every_recording_rule_is_tested_and_named_by_the_convention():
    text = (PROMETHEUS / "tests/rules.yml").read_text()
    for name in records():
        assert name in text, f"{name} has no test"
        assert re.fullmatch(r"[a-z_]+:syncd_[a-z_]+:[a-z0-9_]+", name), name


def test_every_alert_says_what_it_must():
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs/OPERATIONS.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(alerts()), "one section of docs/OPERATIONS.md for each alert"
    for name, rule in alerts().items():
        assert name.startswith("Syncd")
        assert rule["labels"]["severity"] in ("page", "ticket"), name
        notes = rule["annotations"]
        assert "{{" not in notes["summary"], f"{name}: a summary is static"
        assert "{{" in notes["description"], name
        assert notes["runbook_url"].endswith(f"docs/OPERATIONS.md#{name.lower()}"), name
