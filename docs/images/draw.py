#!/usr/bin/env python3
"""Draws docs/images/*.png from a run that it makes: `just images`.

A server that generates load, two replicas, a real Prometheus that scrapes them each second. One
replica is cut off for half a minute. What is drawn is what Prometheus answers to the expressions of
the three headline panels of the dashboard `syncd-overview`.
"""

import pathlib
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tests/stack"))

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plot
from daemons import Prometheus, Proxy, client, server

# Seconds of the run: before the cut, cut off, after it.
BEFORE, CUT, AFTER = 40, 30, 50
# Lag counts from two heartbeats and the tolerated skew on: with the defaults, twenty seconds.
QUICK, SKEW = ["--heartbeat-interval", "1s"], ["--handshake-skew", "1s"]
COLOURS = {"server": "#7b61b8", "replica-1": "#2a9d6f", "replica-2": "#d9822b"}


def panels():
    lag = "syncd_client_sync_lag_seconds"
    churn = "rate(syncd_{}_root_changes_total[10s])"
    time_of = (
        "histogram_quantile({}, sum by (instance, le) "
        '(rate(syncd_client_iteration_duration_seconds_bucket{{kind="follow"}}[10s])))'
    )
    return [
        ("sync-lag", "Sync lag: how old is what a replica serves", "seconds", [(lag, "{}")], "linear"),
        ("iteration-time", "Iteration time: from received to durable", "seconds", [(time_of.format(0.5), "{}, median"), (time_of.format(0.99), "{}, 99th percentile")], "log"),
        ("root-churn", "Root churn: new states a second", "roots a second", [(churn.format("server"), "{}"), (churn.format("client"), "{}")], "linear"),
    ]


def with_gaps(times, values):
    """The samples, with a hole where Prometheus has none."""
    last = None
    for t, v in zip(times, values):
        if last is not None and t - last > 2:
            yield last + 1, float("nan")
        yield t, v
        last = t


def draw(prometheus, names, start, end, cut):
    for file, title, unit, expressions, scale in panels():
        figure, axes = plot.subplots(figsize=(8, 2.6), dpi=110)
        for expression, label in expressions:
            for labels, times, values in prometheus.range(expression, start, end):
                name = names[labels["instance"]]
                points = [(t - start, v) for t, v in with_gaps(times, values)]
                style = "-" if "99th" not in label else ":"
                axes.plot(*zip(*points), style, color=COLOURS[name], label=label.format(name), linewidth=1.6)
        axes.axvspan(cut - start, cut - start + CUT, color="#d33", alpha=0.08, linewidth=0)
        axes.annotate("replica-2 cut off", (cut - start + 1, 0.92), xycoords=("data", "axes fraction"), color="#a33", fontsize=8)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_ylabel(unit, fontsize=8)
        axes.set_yscale(scale)
        if scale == "linear":
            axes.set_ylim(bottom=0)
        axes.set_xlim(0, end - start)
        axes.set_xlabel("seconds", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        figure.savefig(HERE / f"{file}.png", bbox_inches="tight")
        plot.close(figure)


def main():
    directory = pathlib.Path(tempfile.mkdtemp(prefix="syncd-images-"))
    with server(directory / "server", "-i", "10000", "-t", "50ms", *QUICK) as of, Proxy(of.sync) as proxy, client(
        directory / "replica-1", of, *SKEW
    ) as first, client(directory / "replica-2", of, *SKEW, address=proxy.address) as second:
        names = {of.metrics: "server", first.metrics: "replica-1", second.metrics: "replica-2"}
        jobs = {"syncd-server": [of.metrics], "syncd-client": [first.metrics, second.metrics]}
        with Prometheus(directory / "prometheus", jobs) as prometheus:
            # Rates need a window behind them before the picture begins.
            time.sleep(15)
            start = time.time()
            time.sleep(BEFORE)
            cut = time.time()
            proxy.cut()
            time.sleep(CUT)
            proxy.mend()
            time.sleep(AFTER)
            draw(prometheus, names, start, time.time(), cut)
        second.stop()
        first.stop()
        of.stop()


main()
