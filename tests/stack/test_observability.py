"""Every panel, rule and alert against a live system and a real Prometheus.

A server under load, two replicas, one of them behind a proxy that is cut and mended. The rules and
alerts are those of deploy/prometheus, with every `for` shortened so that the test ends.
"""

import pathlib
import subprocess
import threading
import time

import pytest
import requests
import yaml
from conftest import ROOT, tool
from daemons import Prometheus, Proxy, client, server, wait_equal, wait_for
from expressions import expressions

# Windows and steps of a dashboard, as Grafana would fill them in here.
INTERVAL = "15s"
# How long a `for` lasts in this test.
PATIENCE = "3s"
# What has no series while nothing is wrong.
SILENT = ["annotation Restarts", "annotation Equivocations", "panel 'Replicas' F", "alert "]


def quick_rules(directory: pathlib.Path) -> list:
    """Copies of the rule files whose alerts fire after PATIENCE."""
    made = []
    for source in ("rules.yml", "alerts.yml"):
        document = yaml.safe_load((ROOT / "deploy/prometheus" / source).read_text())
        for group in document["groups"]:
            group["interval"] = "1s"
            for rule in group["rules"]:
                if "alert" in rule and "for" in rule:
                    rule["for"] = PATIENCE
        made.append(directory / source)
        made[-1].write_text(yaml.safe_dump(document))
    return made


class Load:
    """Writes and reads of every kind, until stopped."""

    def __init__(self, of, replicas):
        self.of, self.replicas, self.is_over = of, replicas, threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        number = 0
        while not self.is_over.wait(0.05):
            number += 1
            self.of.put(f"load/{number % 100}", str(number), Idempotency_Key=f"load-{number}")
            for replica in self.replicas:
                requests.get(f"{replica.api}/v1/keys/load/{number % 100}", timeout=30)
            if number % 20 == 0:
                requests.get(f"{self.of.api}/no/such/route", timeout=30)

    def stop(self):
        self.is_over.set()
        self.thread.join(30)


class System:
    def __init__(self, directory: pathlib.Path):
        quick, skew = ["--heartbeat-interval", "1s"], ["--handshake-skew", "1s"]
        self.server = server(directory / "server", "-i", "1000", "-t", "100ms", *quick)
        self.proxy = Proxy(self.server.sync)
        self.near = client(directory / "near", self.server, *skew)
        self.far = client(directory / "far", self.server, *skew, address=self.proxy.address)
        for replica in (self.near, self.far):
            wait_for("a verified state", lambda replica=replica: replica.status().get("root"))
        self.load = Load(self.server, [self.near, self.far])
        jobs = {"syncd-server": [self.server.metrics], "syncd-client": [self.near.metrics, self.far.metrics]}
        self.prometheus = Prometheus(directory / "prometheus", jobs, quick_rules(directory))

    def stop(self):
        self.load.stop()
        self.prometheus.__exit__()
        for daemon in (self.near, self.far, self.server):
            daemon.stop()
        self.proxy.__exit__()


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    running = System(tmp_path_factory.mktemp("system"))
    yield running
    running.stop()


def lag(system, instance) -> float:
    found = system.prometheus.query(f'syncd_client_sync_lag_seconds{{instance="{instance}"}}')
    return found[0][1] if found else -1.0


def test_metrics_are_clean(system):
    for daemon in (system.server, system.near):
        text = requests.get(f"http://{daemon.metrics}/metrics", timeout=30).content
        checked = subprocess.run([tool("promtool"), "check", "metrics"], input=text, capture_output=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_expression_has_series(system):
    # Enough scrapes for every window, and what is recorded recorded.
    wait_for("a history", lambda: system.prometheus.query("count_over_time(up[30s]) > 20"))
    wrong = []
    for where, expression in expressions(interval=INTERVAL):
        found = system.prometheus.query(expression)
        is_silent = any(where.startswith(start) for start in SILENT)
        if bool(found) == is_silent:
            wrong.append(f"{where}: {expression}: {found}")
    assert wrong == []


def test_lag_rises_on_the_replica_that_is_cut_off_and_alerts_follow(system):
    far, near = system.far.metrics, system.near.metrics
    wait_for("a quiet beginning", lambda: lag(system, far) == 0.0 and lag(system, near) == 0.0)
    firing = {name for name, state in system.prometheus.alerts().items() if state == "firing"}
    assert firing == set(), "nothing is wrong yet"
    system.proxy.cut()
    begun = time.time()
    wait_for("lag", lambda: lag(system, far) > 5)
    wait_for("more lag", lambda: lag(system, far) > 15)
    assert lag(system, near) < 3
    expected = {"SyncdLagHigh", "SyncdDisconnected"}
    wait_for(
        f"{expected} fire",
        lambda: all(system.prometheus.alerts().get(name) == "firing" for name in expected),
    )
    # The table of replicas says what holds it up.
    held_up = [expression for where, expression in expressions(interval=INTERVAL) if where.startswith("panel 'Replicas' F")]
    ((labels, _),) = system.prometheus.query(held_up[0])
    assert (labels["instance"], labels["reason"]) == (far, "disconnected")
    # The lag in seconds grew with the clock.
    ((_, times, values),) = system.prometheus.range(
        f'syncd_client_sync_lag_seconds{{instance="{far}"}}', begun + 6, time.time()
    )
    slope = (values[-1] - values[0]) / (times[-1] - times[0])
    assert 0.8 < slope < 1.2, f"{slope} seconds of lag a second"
    system.proxy.mend()
    wait_for("no lag", lambda: lag(system, far) == 0.0)
    wait_for(
        f"{expected} resolve",
        lambda: not expected & set(system.prometheus.alerts()),
    )
    system.load.stop()
    wait_equal(system.far, system.near)
