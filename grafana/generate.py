#!/usr/bin/env python3
"""Writes grafana/dashboards/*.json: `python3 grafana/generate.py`. A test compares them.

A panel is a call below: what it asks, in which unit, and what good looks like. Data sources are
variables, so that a dashboard can be imported anywhere.
"""

import json
import pathlib
import urllib.parse

DIRECTORY = pathlib.Path(__file__).resolve().parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# The filter of every expression.
WHERE = 'job=~"$job", instance=~"$instance"'
RATE = "$__rate_interval"


def prom(expression, legend="{{instance}}", exemplar=False, **more):
    expression = expression.replace("$where", WHERE)
    target = {"datasource": SOURCE, "expr": expression, "legendFormat": legend}
    return target | ({"exemplar": True} if exemplar else {}) | more


def quantile(q, metric, by="instance", extra=""):
    return f"histogram_quantile({q}, sum by ({by}, le) (rate({metric}_bucket{{$where{extra}}}[{RATE}])))"


def traces(service, operation):
    """A link of a panel to the traces of one operation, in the time that is shown."""
    query = {"refId": "A", "datasource": {"type": "jaeger", "uid": "${tracing}"}, "queryType": "search"}
    query |= {"service": service, "operation": operation}
    pane = {"datasource": "${tracing}", "queries": [query], "range": {"from": "${__from}", "to": "${__to}"}}
    panes = urllib.parse.quote(json.dumps({"traces": pane}), safe="${}_")
    return {"title": f"traces of {operation}", "url": f"/explore?schemaVersion=1&panes={panes}", "targetBlank": True}


def steps(*pairs):
    return {"mode": "absolute", "steps": [{"color": colour, "value": value} for value, colour in pairs]}


def panel(kind, title, unit, description, targets, width, height, thresholds=None, links=(), options=None, custom=None, mappings=(), **defaults):
    for letter, target in zip("ABCDEFGH", targets):
        target["refId"] = letter
    field = {"unit": unit, "thresholds": thresholds or steps((None, "green")), "mappings": list(mappings), **defaults}
    if custom:
        field["custom"] = custom
    made = {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": field, "overrides": []},
        "options": options or {},
        "gridPos": {"w": width, "h": height},
    }
    return made | ({"links": list(links)} if links else {})


def stat(title, unit, description, expression, thresholds, decimals=None, **more):
    options = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "colorMode": "background", "graphMode": "area"}
    defaults = {"decimals": decimals} if decimals is not None else {}
    return panel("stat", title, unit, description, [prom(expression, "", **more)], 4, 4, thresholds, options=options, **defaults)


def graph(title, unit, description, targets, width=8, height=8, links=(), thresholds=None, log=False, **defaults):
    custom = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 8, "showPoints": "never", "spanNulls": False}
    if thresholds:
        custom["thresholdsStyle"] = {"mode": "dashed"}
    if log:
        custom["scaleDistribution"] = {"type": "log", "log": 10}
    options = {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}, "tooltip": {"mode": "multi", "sort": "desc"}}
    return panel("timeseries", title, unit, description, targets, width, height, thresholds, links, options, custom, min=None if log else 0, **defaults)


def heatmap(title, description, metric, width=12, links=()):
    target = prom(f"sum by (le) (increase({metric}_bucket{{$where}}[{RATE}]))", "{{le}}", exemplar=True, format="heatmap")
    options = {"calculate": False, "yAxis": {"unit": "s"}, "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64}}
    options |= {"exemplars": {"color": "rgba(120,80,220,0.9)"}, "tooltip": {"mode": "single", "yHistogram": True}}
    return panel("heatmap", title, "s", description, [target], width, 8, links=links, options=options)


def row(title):
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"w": 24, "h": 1}}


def lay_out(panels):
    """From left to right, in lines as high as their highest panel."""
    x = y = height = 0
    for number, one in enumerate(panels, 1):
        place = one["gridPos"]
        if x + place["w"] > 24:
            x, y, height = 0, y + height, 0
        place |= {"x": x, "y": y}
        x, height = x + place["w"], max(height, place["h"])
        one["id"] = number
    return panels


def variable(name, label, query):
    values = f"label_values({query}, {name})"
    return {
        "name": name, "label": label, "type": "query", "datasource": SOURCE,
        "query": {"query": values, "refId": name}, "refresh": 2, "sort": 1, "multi": True, "includeAll": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def source_variable(name, label, kind):
    return {"name": name, "label": label, "type": "datasource", "query": kind, "refresh": 1, "current": {}}


def annotation(name, colour, expression, title):
    return {
        "name": name, "datasource": SOURCE, "enable": True, "iconColor": colour, "expr": expression.replace("$where", WHERE),
        "step": "15s", "titleFormat": title, "tagKeys": "job", "useValueForTime": False,
    }


def dashboard(uid, title, description, panels, other):
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["syncd"],
        "schemaVersion": 41,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [
            source_variable("datasource", "Metrics", "prometheus"),
            source_variable("tracing", "Traces", "jaeger"),
            variable("job", "Job", "syncd_build_info"),
            variable("instance", "Instance", 'syncd_build_info{job=~"$job"}'),
        ]},
        "annotations": {"list": [
            annotation("Restarts", "blue", "changes(process_start_time_seconds{$where}[1m]) > 0", "{{instance}} restarted"),
            annotation("Equivocations", "red", "increase(syncd_client_equivocations_total{$where}[1m]) > 0", "{{instance}} found two histories"),
        ]},
        "links": [
            {"type": "link", "title": other[1], "url": f"/d/{other[0]}", "icon": "dashboard", "includeVars": True, "keepTime": True},
            {"type": "link", "title": "What each alert means", "url": "https://github.com/syncd/syncd/blob/main/docs/OPERATIONS.md", "icon": "doc", "targetBlank": True},
        ],
        "panels": lay_out(panels),
    }


ITERATION = "syncd_client_iteration_duration_seconds"
LAG_STEPS = steps((None, "green"), (10, "orange"), (30, "red"))
NONE_STEPS = steps((None, "green"), (1, "orange"))
FATAL_STEPS = steps((None, "green"), (1, "red"))


def replicas():
    """One line for each replica: what it is connected to, what holds it up, how old its state is."""
    def column(expression):
        return prom(expression, format="table", instant=True)

    targets = [
        column("max by (instance) (syncd_client_connected{$where})"),
        column("max by (instance) (syncd_client_sync_lag_seconds{$where})"),
        column("max by (instance) (syncd_client_sync_lag_operations{$where})"),
        column("max by (instance) (syncd_client_size_operations{$where})"),
        column("time() - max by (instance) (syncd_client_last_verified_timestamp_seconds{$where} > 0)"),
        column('max by (instance, reason) (syncd_client_stalled{$where} == 1)'),
    ]
    made = panel(
        "table", "Replicas", "short",
        "Good: connected, no lag, no reason in the last column. A reason says what holds a replica up; docs/OPERATIONS.md has a section on each.",
        targets, 24, 8, options={"showHeader": True, "sortBy": [{"displayName": "Lag", "desc": True}]},
    )
    names = {"Value #A": "Connected", "Value #B": "Lag", "Value #C": "Operations behind", "Value #D": "Operations",
             "Value #E": "Age of the signature", "reason": "Held up by", "instance": "Replica"}
    made["transformations"] = [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": {"Time": True, "Value #F": True}, "renameByName": names}},
    ]

    def override(name, **properties):
        listed = [{"id": identifier.replace("__", "."), "value": value} for identifier, value in properties.items()]
        return {"matcher": {"id": "byName", "options": name}, "properties": listed}

    colour = {"type": "color-background"}
    yes_no = [{"type": "value", "options": {"0": {"text": "no", "color": "red"}, "1": {"text": "yes", "color": "green"}}}]
    made["fieldConfig"]["overrides"] = [
        override("Connected", mappings=yes_no, custom__cellOptions=colour),
        override("Lag", unit="s", thresholds=LAG_STEPS, custom__cellOptions=colour),
        override("Age of the signature", unit="s"),
    ]
    return made


def overview():
    follow = ', kind="follow"'
    panels = [
        stat("Fresh replicas", "percentunit", "Replicas whose state is less than 10 s old. Good: 100 %.",
             "avg(max_over_time(syncd_client_sync_lag_seconds{$where}[1m]) < bool 10)", steps((None, "red"), (0.5, "orange"), (1, "green"))),
        stat("Worst lag", "s", "Age of the oldest state that a replica serves. Good: 0. It rises with the clock while a replica is cut off.",
             "max(max_over_time(syncd_client_sync_lag_seconds{$where}[1m]))", LAG_STEPS, 1),
        stat("Iteration, 99th percentile", "s", "From received to durable on the replica. Good: milliseconds.",
             f"histogram_quantile(0.99, sum by (le) (rate({ITERATION}_bucket{{$where{follow}}}[{RATE}])))", steps((None, "green"), (0.1, "orange"), (1, "red"))),
        stat("Root churn", "ops", "Signed states a second. Good: as many as there are commits; 0 only while nobody writes.",
             f"sum(rate(syncd_server_root_changes_total{{$where}}[{RATE}]))", steps((None, "green")), 1),
        stat("Refused in an hour", "short", "Answers and checkpoints that replicas refused. Good: 0. The panel below has the reasons.",
             "sum(increase(syncd_client_rejected_total{$where}[1h]))", NONE_STEPS, 0),
        stat("Equivocations", "short", "Replicas that found two histories signed by one key. Good: 0; anything else is an incident.",
             "sum(max_over_time(syncd_client_equivocations_total{$where}[1h]))", FATAL_STEPS, 0),
        graph("Sync lag", "s", "Good: 0. Above 30 s SyncdLagHigh follows. A straight rise is a replica that is cut off.",
              [prom("max by (instance) (max_over_time(syncd_client_sync_lag_seconds{$where}[15s]))")], thresholds=steps((None, "transparent"), (30, "red")), height=9,
              links=[traces("syncd-client", "client.iteration")]),
        graph("Iteration time", "s", "Median and 99th percentile of an advance, from received to durable. Good: steady, in milliseconds. Dots lead to traces.",
              [prom(quantile(0.5, ITERATION, extra=follow), "{{instance}} median", exemplar=True), prom(quantile(0.99, ITERATION, extra=follow), "{{instance}} 99 %", exemplar=True)],
              log=True, height=9, links=[traces("syncd-client", "client.commit.apply")]),
        graph("Root churn", "ops", "New roots a second. Good: the replicas' lines lie on the server's; above it they catch up, below it they fall behind.",
              [prom(f"sum by (instance) (rate(syncd_server_root_changes_total{{$where}}[{RATE}]))", "server {{instance}}"),
               prom(f"sum by (instance) (rate(syncd_client_root_changes_total{{$where}}[{RATE}]))", "replica {{instance}}")], height=9),
        replicas(),
        graph("Commit to replica", "s", "From the publisher's commit until it is durable on the replica. Good: milliseconds; the clocks of both machines are in it.",
              [prom(quantile(0.5, "syncd_client_commit_to_apply_seconds"), "{{instance}} median", exemplar=True),
               prom(quantile(0.99, "syncd_client_commit_to_apply_seconds"), "{{instance}} 99 %", exemplar=True)], log=True),
        graph("Writes", "ops", "Committed changes a second by source. Good: what the writers send.",
              [prom(f"sum by (source) (rate(syncd_server_operations_total{{$where}}[{RATE}]))", "{{source}}")], links=[traces("syncd-server", "publisher.commit")]),
        graph("Refused", "ops", "What replicas and servers refused, by reason. Good: nothing. Replicas: SyncdProofRejected. Servers: peers turned away.",
              [prom(f"sum by (instance, reason) (rate(syncd_client_rejected_total{{$where}}[{RATE}])) > 0 or sum(rate(syncd_client_rejected_total{{$where}}[{RATE}]))", "replica {{instance}} {{reason}}"),
               prom(f"sum by (instance, reason) (rate(syncd_server_rejected_total{{$where}}[{RATE}])) > 0 or sum(rate(syncd_server_rejected_total{{$where}}[{RATE}]))", "server {{instance}} {{reason}}")]),
    ]
    about = "Is every replica fresh, how far behind is the worst, how long does an iteration take, how fast does the root churn, is anything refused"
    return dashboard("syncd-overview", "syncd overview", about, panels, ("syncd-internals", "Internals"))


def internals():
    third, half = 8, 12
    rate = lambda metric, by: f"sum by ({by}) (rate({metric}{{$where}}[{RATE}]))"
    panels = [
        row("Writing"),
        heatmap("Commit latency", "From the drained queue to the acknowledgement. Good: one dark band in milliseconds; a second band is the disk.",
                "syncd_server_commit_duration_seconds", links=[traces("syncd-server", "publisher.commit")]),
        graph("Commits", "ops", "Commits a second. Good: as steady as the writers; several writes share a commit under load.",
              [prom(rate("syncd_server_commits_total", "instance"))], half),
        graph("Write queue", "short", "Requests that wait for the publisher, and idempotency keys remembered. Good: a queue near 0; at --max-queue-requests writers get 429.",
              [prom("syncd_server_queue_requests{$where}", "waiting {{instance}}"), prom("syncd_server_idempotency_entries{$where}", "keys {{instance}}")], third),
        graph("Log size", "bytes", "Bytes of the commit log. Good: below --log-retention-bytes, flat after its retention.", [prom("syncd_server_log_bytes{$where}")], third),
        graph("Log reach", "short", "Commits that a replica may be behind and still follow. A replica behind by more syncs its state.",
              [prom("syncd_server_sequence{$where} - syncd_server_log_first_sequence{$where}")], third),
        row("Serving replicas"),
        heatmap("Request latency", "From a replica's request to its answer. Good: below 10 ms.", "syncd_server_request_duration_seconds", links=[traces("syncd-server", "serve.request")]),
        graph("Requests", "reqps", "Requests of replicas by kind and result. Good: few while all follow; many operations during a state sync; only ok.",
              [prom(rate("syncd_server_requests_total", "request, result"), "{{request}} {{result}}")], half),
        graph("Sessions", "short", "Connected replicas, and those that follow. Good: equal to each other and to the number of replicas.",
              [prom("syncd_server_sessions{$where}", "sessions {{instance}}"), prom("syncd_server_followers{$where}", "followers {{instance}}")], third),
        graph("Unread answers", "bytes", "Answers made and not yet read; at most 256 MiB. Good: near 0. Slow readers are closed.", [prom("syncd_server_unread_bytes{$where}")], third),
        graph("Throttled and turned away", "ops", "Requests that waited for the quota of their key, and peers turned away by reason. Good: 0.",
              [prom(rate("syncd_server_throttled_total", "instance"), "throttled {{instance}}"), prom(rate("syncd_server_rejected_total", "reason"), "{{reason}}")], third),
        graph("Held operations", "short", "Operations that state syncs and exports keep from being pruned; at most 1,048,576. Good: 0 when none runs.",
              [prom("syncd_server_held_operations{$where}")], third),
        row("Replicating"),
        graph("State sync", "short", "Operations held of the running state sync, and of its target. Good: the first reaches the second; both 0 while none runs.",
              [prom("syncd_client_state_sync_operations{$where}", "held {{instance}}"), prom("syncd_client_state_sync_target_operations{$where}", "target {{instance}}")], third,
              links=[traces("syncd-client", "client.state.sync")]),
        graph("State sync, time left", "s", "Seconds until the running state sync ends. Good: falls to 0.", [prom("syncd_client_state_sync_eta_seconds{$where}")], third),
        graph("Resumed operations", "short", "Operations of interrupted state syncs that were used again, in an hour.", [prom("sum by (instance) (increase(syncd_client_resumed_operations_total{$where}[1h]))")], third),
        graph("Operations", "short", "Operations of the replicas and of the newest checkpoint that they know. Good: one line.",
              [prom("syncd_client_size_operations{$where}", "{{instance}}"), prom("syncd_client_target_size_operations{$where}", "known to {{instance}}"), prom("syncd_server_size_operations{$where}", "server {{instance}}")], third),
        graph("Operations behind", "short", "Good: 0, short peaks under load.", [prom("syncd_client_sync_lag_operations{$where}")], third),
        graph("Operations applied", "ops", "Operations added to replicas a second.", [prom(rate("syncd_client_operations_applied_total", "instance"))], third),
        graph("Iterations", "ops", "Advances by kind and result. Good: follow ok; a state sync only for a new or long absent replica.",
              [prom(rate("syncd_client_iterations_total", "kind, result"), "{{kind}} {{result}}")], third),
        graph("Reconnects", "ops", "Connections that ended or could not be made, by reason. Good: none.",
              [prom(f"sum by (reason) (rate(syncd_client_reconnects_total{{$where}}[{RATE}]))", "{{reason}}")], third),
        graph("Traffic", "Bps", "Bytes between servers and replicas.",
              [prom(rate("syncd_client_received_bytes_total", "instance"), "received {{instance}}"), prom(rate("syncd_server_sent_bytes_total", "instance"), "sent {{instance}}")], third),
        row("HTTP API"),
        graph("Requests", "reqps", "Requests by route and status. Good: 2xx; 429 is busy, 5xx is an error of ours.",
              [prom(rate("syncd_http_requests_total", "route, method, code"), "{{method}} {{route}} {{code}}")], half, links=[traces("syncd-server", "api.request")]),
        graph("Duration, 99th percentile", "s", "From the head of a request to the head of its answer. Writes wait for their commit.",
              [prom(quantile(0.99, "syncd_http_request_duration_seconds", "route"), "{{route}}", exemplar=True)], half, log=True),
        graph("HTTP connections", "short", "Connections open on the API and metrics ports. Good: far below syncd_connections_max.",
              [prom(f"sum by (instance, port) (syncd_http_connections{{$where}})", "{{port}} {{instance}}")], third),
        graph("HTTP connections closed", "ops", "Closed from this side: idle or with a slow body where a port was full, or with an answer that nobody took. Good: none.",
              [prom(rate("syncd_http_rejected_total", "instance, port, reason"), "{{port}} {{reason}} {{instance}}")], third),
        graph("Exports", "ops", "Exports that ended, by result. Good: complete.", [prom(rate("syncd_http_exports_total", "instance, result"), "{{result}} {{instance}}")], third),
        row("Resources"),
        graph("Processor", "percentunit", "Processor time; 100 % is one core.", [prom(f"rate(process_cpu_seconds_total{{$where}}[{RATE}])")], third),
        graph("Memory", "bytes", "Resident memory. Good: flat; docs/LIMITS.md says how much a server may need.", [prom("process_resident_memory_bytes{$where}")], third),
        graph("Open files", "percentunit", "Of the descriptors allowed. Good: far below 100 %.", [prom("process_open_fds{$where} / (process_max_fds{$where} > 0)")], third),
        graph("Storage operations", "ops", "Reads, writes and syncs of the storage.",
              [prom(rate("runtime_storage_reads_total", "instance"), "reads {{instance}}"), prom(rate("runtime_storage_writes_total", "instance"), "writes {{instance}}"),
               prom(rate("runtime_storage_syncs_total", "instance"), "syncs {{instance}}")], third),
        graph("Storage errors", "ops", "Failures by what was done. Good: 0; SyncdStorageFailing otherwise.", [prom(rate("syncd_storage_errors_total", "instance, operation"), "{{operation}} {{instance}}")], third),
        graph("Clocks", "s", "How far the newest signature lies in a replica's future, and jumps of clocks in an hour. Good: 0; SyncdClockStepped otherwise.",
              [prom("syncd_client_signature_ahead_seconds{$where}", "ahead {{instance}}"),
               prom("sum by (instance, direction) (increase(syncd_server_clock_steps_total{$where}[1h]) or increase(syncd_client_clock_steps_total{$where}[1h]))", "jumps {{direction}} {{instance}}")], third),
        graph("Log lines dropped", "ops", "Lines of the log that nobody took in time. Good: none; SyncdLogLinesDropped otherwise.", [prom(rate("syncd_log_lines_dropped_total", "instance"), "{{instance}}")], third),
        graph("Spans", "ops", "Spans exported, and given up because no collector took them. Good: none given up.", [prom(rate("syncd_trace_spans_total", "instance, result"), "{{result}} {{instance}}")], third),
    ]
    about = "Where to go on from the overview: commits, queue, log, requests, state sync, HTTP, resources"
    return dashboard("syncd-internals", "syncd internals", about, panels, ("syncd-overview", "Overview"))


def documents():
    for made in (overview(), internals()):
        yield DIRECTORY / f"{made['uid']}.json", json.dumps(made, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DIRECTORY.mkdir(exist_ok=True)
    for path, text in documents():
        path.write_text(text)
