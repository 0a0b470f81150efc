"""Traces as Jaeger shows them, over both protocols: services, parents, attributes, no orphan."""

import os
import pathlib
import secrets
import subprocess

import pytest
import requests
from conftest import tool
from daemons import client, free_port, server, wait_equal, wait_for

HERE = pathlib.Path(__file__).parent
# Spans leave at once, so that the test need not wait for the usual five seconds.
AT_ONCE = {"OTEL_BSP_SCHEDULE_DELAY": "100"}


class Jaeger:
    def __init__(self, directory: pathlib.Path):
        self.query, self.grpc, self.http = free_port(), free_port(), free_port()
        ports = {"QUERY_PORT": str(self.query), "GRPC_PORT": str(self.grpc), "HTTP_PORT": str(self.http)}
        command = [tool("jaeger"), "--config", f"file:{HERE / 'jaeger.yaml'}"]
        log = (directory / "jaeger.log").open("wb")
        self.process = subprocess.Popen(command, env=os.environ | ports, stdout=log, stderr=log)
        wait_for("Jaeger answers", lambda: self.get("services") is not None)

    def get(self, path: str):
        try:
            answer = requests.get(f"http://127.0.0.1:{self.query}/api/{path}", timeout=10)
        except requests.ConnectionError:
            return None
        # An empty list comes as null.
        return (answer.json().get("data") or []) if answer.ok else None

    def environment(self, protocol: str) -> dict:
        port = self.grpc if protocol == "grpc" else self.http
        return AT_ONCE | {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        }

    def trace(self, identifier: str) -> list:
        """The spans of a trace, each with its service, tags and parent."""
        found = self.get(f"traces/{identifier}") or []
        return [span for trace in found for span in spans_of(trace)]

    def traces(self, service: str, operation: str) -> list:
        found = self.get(f"traces?service={service}&operation={operation}&limit=100&lookback=1h") or []
        return [spans_of(trace) for trace in found]


def spans_of(trace: dict) -> list:
    return [
        {
            "id": span["spanID"],
            "trace": span["traceID"],
            "name": span["operationName"],
            "service": trace["processes"][span["processID"]]["serviceName"],
            "tags": {tag["key"]: tag["value"] for tag in span["tags"]},
            "resource": {tag["key"]: tag["value"] for tag in trace["processes"][span["processID"]]["tags"]},
            "parents": [ref["spanID"] for ref in span["references"] if ref["refType"] == "CHILD_OF"],
            "links": [(ref["traceID"], ref["spanID"]) for ref in span["references"] if ref["refType"] != "CHILD_OF"],
        }
        for span in trace["spans"]
    ]


def named(spans: list, name: str) -> list:
    return [span for span in spans if span["name"] == name]


@pytest.fixture(scope="module")
def jaeger(tmp_path_factory):
    running = Jaeger(tmp_path_factory.mktemp("jaeger"))
    yield running
    running.process.kill()
    running.process.wait()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_one_trace_over_both_processes(jaeger, tmp_path, protocol):
    suffix = protocol.replace("/", "-")
    names = [{"OTEL_SERVICE_NAME": f"{role}-{suffix}", "OTEL_RESOURCE_ATTRIBUTES": "zone=b"} for role in ("publisher", "replica")]
    environment = jaeger.environment(protocol)
    with server(tmp_path / "server", "-o", "0", "-i", "2000", environment=environment | names[0]) as of, client(
        tmp_path / "client", of, "--batch-size", "100", environment=environment | names[1]
    ) as replica:
        wait_equal(replica, of)
        trace = secrets.token_hex(16)
        parent = secrets.token_hex(8)
        assert of.put("a", "1", traceparent=f"00-{trace}-{parent}-01").ok
        wait_equal(replica, of)
        replica.stop()
        of.stop()
    server_name, client_name = names[0]["OTEL_SERVICE_NAME"], names[1]["OTEL_SERVICE_NAME"]

    # A write goes on with its caller's trace, down to the log.
    spans = wait_for("the write's trace", lambda: (found := jaeger.trace(trace)) and len(found) >= 6 and found)
    chain = ["api.request", "publisher.commit", "publisher.commit.append", "ledger.log.append"]
    above = parent
    for name in chain:
        (span,) = named(spans, name)
        assert span["parents"] == [above], name
        assert span["service"] == server_name
        assert span["resource"]["zone"] == "b"
        above = span["id"]
    (request,) = named(spans, "api.request")
    assert request["tags"]["http.route"] == "/v1/keys/{*key}"
    assert str(request["tags"]["http.response.status_code"]) == "200"

    # The replica applied it in an iteration of its own, which points to the commit.
    (commit,) = named(spans, "publisher.commit")
    applied = [
        span
        for spans in jaeger.traces(client_name, "client.commit.apply")
        for span in named(spans, "client.commit.apply")
        if (trace, commit["id"]) in span["links"]
    ]
    assert len(applied) == 1

    # A state sync is one tree over both processes, without an orphan.
    (synced,) = jaeger.traces(client_name, "client.state.sync")
    (iteration,) = named(synced, "client.iteration")
    assert iteration["parents"] == []
    assert iteration["tags"]["kind"] == "state_sync"
    (sync,) = named(synced, "client.state.sync")
    assert sync["parents"] == [iteration["id"]]
    known = {span["id"]: span for span in synced}
    served = named(synced, "serve.request")
    assert len(served) > 10, "2,000 operations by 100 and their boundary"
    for span in served:
        assert span["service"] == server_name
        (above,) = span["parents"]
        assert known[above]["name"] == "link.request"
        assert known[above]["service"] == client_name
        assert known[above]["tags"]["request"] == span["tags"]["request"]
    orphans = [span for span in synced if any(above not in known for above in span["parents"])]
    assert orphans == []


def test_a_sampler_samples(jaeger, tmp_path):
    off = jaeger.environment("grpc") | {"OTEL_SERVICE_NAME": "unsampled", "OTEL_TRACES_SAMPLER": "parentbased_always_off"}
    with server(tmp_path / "server", "-o", "0", environment=off) as of:
        assert of.put("a", "1").ok
        # A caller who records its trace gets our part of it.
        trace = secrets.token_hex(16)
        assert of.put("b", "1", traceparent=f"00-{trace}-{secrets.token_hex(8)}-01").ok
        of.stop()
    wait_for("the sampled trace", lambda: jaeger.trace(trace))
    assert len(jaeger.traces("unsampled", "api.request")) == 1
