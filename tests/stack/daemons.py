"""Real daemons on free ports, and waiting for what they do."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time

import requests
import yaml
from conftest import binary, tool

DEADLINE = 120.0


def wait_for(what, condition, deadline=DEADLINE):
    """The first true value of `condition`; fails after `deadline` seconds."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {deadline} s: {what}"
        time.sleep(0.1)


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Daemon:
    """A daemon of ours; use as a context."""

    def __init__(self, role: str, storage: pathlib.Path, *options: str, environment=None, metrics_port=0):
        self.storage = storage
        self.log = storage.with_suffix(".log")
        storage.parent.mkdir(parents=True, exist_ok=True)
        endpoints = storage / "public/endpoints.json"
        endpoints.unlink(missing_ok=True)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SYNCD_", "OTEL_"))}
        command = [binary(f"syncd-{role}"), "--storage-dir", str(storage), "--api-port", "0"]
        command += ["--metrics-port", str(metrics_port), "--log-format", "json", *options]
        self.process = subprocess.Popen(command, stderr=self.log.open("ab"), env=clean | (environment or {}))
        found = json.loads(wait_for(f"{role} listens", lambda: self._endpoints(endpoints)))
        self.sync, self.api, self.metrics = found.get("sync"), f"http://{found['api']}", found["metrics"]

    def _endpoints(self, path: pathlib.Path):
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        return path.exists() and path.read_text()

    def status(self) -> dict:
        return requests.get(f"{self.api}/v1/status", timeout=30).json()

    def put(self, key: str, value: str, **headers: str) -> requests.Response:
        headers = {"content-type": "text/plain"} | {k.replace("_", "-"): v for k, v in headers.items()}
        return requests.put(f"{self.api}/v1/keys/{key}", value, headers=headers, timeout=30)

    def signal(self, which: signal.Signals):
        self.process.send_signal(which)

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def server(storage: pathlib.Path, *options: str, **more) -> Daemon:
    return Daemon("server", storage, "--port", "0", *options, **more)


def client(storage: pathlib.Path, of: Daemon, *options: str, address=None, **more) -> Daemon:
    public = of.storage / "public"
    trust = ["--server-key", str(public / "identity.pub"), "--trusted-key", str(public / "publisher.pub")]
    trust += ["--database", str(public / "database.id")]
    return Daemon("client", storage, "--server", address or of.sync, *trust, *options, **more)


def wait_equal(replica: Daemon, of: Daemon):
    wait_for("equal roots", lambda: replica.status().get("root") == of.status()["root"])


class Proxy:
    """Carries TCP to `target` until it is cut; use as a context."""

    def __init__(self, target: str):
        host, port = target.rsplit(":", 1)
        self.target, self.is_cut = (host, int(port)), False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.pairs = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                if self.is_cut:
                    client.close()
                    continue
                try:
                    upstream = socket.create_connection(self.target, timeout=10)
                    upstream.settimeout(None)
                except OSError:
                    client.close()
                    continue
                self.pairs.append((client, upstream))
                for source, sink in ((client, upstream), (upstream, client)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pump(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self):
        """Ends every connection and lets none through."""
        self.is_cut = True
        for pair in self.pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self.pairs.clear()

    def mend(self):
        self.is_cut = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.cut()
        self.listener.close()


class Prometheus:
    """A real Prometheus over `jobs`, a map from job to addresses; use as a context."""

    def __init__(self, directory: pathlib.Path, jobs: dict, rule_files=(), interval="1s"):
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        config = {
            "global": {"scrape_interval": interval, "evaluation_interval": interval},
            "rule_files": [str(path) for path in rule_files],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": addresses}]} for job, addresses in jobs.items()
            ],
        }
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.log = directory / "prometheus.log"
        command = [tool("prometheus"), f"--config.file={directory / 'prometheus.yml'}"]
        command += [f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address=127.0.0.1:{self.port}"]
        command += ["--enable-feature=exemplar-storage", "--log.level=warn"]
        self.process = subprocess.Popen(command, stderr=self.log.open("ab"))
        wait_for("Prometheus is ready", self._is_ready)

    def _is_ready(self):
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(f"http://127.0.0.1:{self.port}/-/ready", timeout=5).ok

    def api(self, path: str, **parameters):
        answer = requests.get(f"http://127.0.0.1:{self.port}/api/v1/{path}", params=parameters, timeout=30)
        body = answer.json()
        assert body["status"] == "success", f"{parameters}: {body.get('error')}"
        return body["data"]

    def query(self, expression: str) -> list:
        """Labels and values of an instant query."""
        data = self.api("query", query=expression)
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(series["metric"], float(series["value"][1])) for series in data["result"]]

    def range(self, expression: str, start: float, end: float, step=1.0) -> list:
        """Labels, times and values of a range query."""
        data = self.api("query_range", query=expression, start=start, end=end, step=step)
        return [
            (series["metric"], [float(t) for t, _ in series["values"]], [float(v) for _, v in series["values"]])
            for series in data["result"]
        ]

    def alerts(self) -> dict:
        """State by name of the alerts that are pending or firing; firing wins."""
        states = {}
        for alert in self.api("alerts")["alerts"]:
            name = alert["labels"]["alertname"]
            if states.get(name) != "firing":
                states[name] = alert["state"]
        return states

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)
