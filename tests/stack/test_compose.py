"""The real Dockerfile and the real compose.yaml, with faults across containers while somebody writes.

Base images that no registry gives are stand-ins of tests/stack/images/build. Grafana is left out: there is no stand-in
for it, and its provisioning is checked in test_dashboards.py. SYNCD_STACK_IMAGE names a product image to take instead of
building one. Logs of all containers are kept under target/stack/compose/.
"""

import contextlib
import io
import json
import os
import re
import secrets
import subprocess
import tarfile
import threading
import time

import pytest
import requests
from conftest import ROOT, target, tool
from daemons import DEADLINE, free_port, wait_for

CLIENTS = ["client-1", "client-2"]
DAEMONS = ["server", *CLIENTS]
SERVICES = [*DAEMONS, "prometheus", "jaeger"]
PORTS = [
    *["SERVER_PORT", "SERVER_API_PORT", "SERVER_METRICS_PORT", "CLIENT_1_API_PORT", "CLIENT_1_METRICS_PORT"],
    *["CLIENT_2_API_PORT", "CLIENT_2_METRICS_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT", "JAEGER_PORT"],
    *["OTLP_GRPC_PORT", "OTLP_HTTP_PORT"],
]
# One command of docker's; a build has its own.
COMMAND_SECONDS = 180
BUILD_SECONDS = 3600
# A silent server is lag only after two heartbeats and the skew allowed; the alert wants half a minute of it, for a minute.
ALERT_SECONDS = 240


class Stack:
    """compose.yaml under a project name and ports of its own."""

    def __init__(self):
        self.docker = tool("docker")
        self.project = f"syncd-test-{secrets.token_hex(4)}"
        self.ports = {name: free_port() for name in PORTS}
        self.image = os.environ.get("SYNCD_STACK_IMAGE", "syncd:stack-test")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SYNCD_", "OTEL_", "COMPOSE_"))}
        self.environment = clean | {name: str(port) for name, port in self.ports.items()}
        self.environment |= {"SYNCD_IMAGE": self.image, "DOCKER_BUILDKIT": "1", "SYNCD_REVISION": "stack-test"}
        self.logs = target() / "stack/compose"
        self.logs.mkdir(parents=True, exist_ok=True)
        for old in self.logs.glob("*.log"):
            old.unlink()

    def run(self, *arguments: str, check=True, timeout=COMMAND_SECONDS) -> str:
        """Standard output of a command of docker's."""
        command = [self.docker, *arguments]
        done = subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
        what = f"docker {' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        assert not check or done.returncode == 0, what
        # A container's own standard error is part of what it logged.
        return done.stdout + done.stderr if arguments[0] == "logs" else done.stdout

    def compose(self, *arguments: str, **more) -> str:
        return self.run("compose", "--project-name", self.project, *arguments, **more)

    def up(self, *arguments: str):
        # Grafana by name, since `up` without names would start it too.
        self.compose("up", "--detach", "--no-build", "--pull", "never", *arguments, *SERVICES)

    def container(self, service: str) -> str:
        return self.compose("ps", "--all", "--quiet", service).split()[0]

    def inspect(self, service: str) -> dict:
        return json.loads(self.run("inspect", self.container(service)))[0]

    def health(self, service: str) -> str:
        state = self.inspect(service)["State"]
        return state.get("Health", {}).get("Status", "none") if state["Running"] else state["Status"]

    def all_healthy(self) -> bool:
        return all(self.health(service) == "healthy" for service in SERVICES)

    def keep_logs(self):
        """Adds to the kept logs; before containers are removed, and at the end."""
        for service in [*SERVICES, "keys", "demo-records", "demo-updates"]:
            for container in self.compose("--profile", "demo", "ps", "-aq", service, check=False).split():
                with (self.logs / f"{service}.log").open("ab") as file:
                    subprocess.run([self.docker, "logs", container], stdout=file, stderr=file, timeout=COMMAND_SECONDS)

    def copy(self, service: str, path: str) -> bytes:
        """A file of a container, also of its volumes."""
        command = [self.docker, "cp", f"{self.container(service)}:{path}", "-"]
        archive = subprocess.run(command, capture_output=True, check=True, timeout=COMMAND_SECONDS).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            return files.extractfile(files.next()).read()

    # The APIs as somebody on the host reaches them.

    def url(self, service: str) -> str:
        return f"http://127.0.0.1:{self.ports[service.upper().replace('-', '_') + '_API_PORT']}"

    def get(self, service: str, path: str, **more) -> requests.Response:
        headers = {"authorization": f"Bearer {self.read_token}"}
        return requests.get(self.url(service) + path, headers=headers, timeout=30, **more)

    def status(self, service: str) -> dict:
        """Empty while it does not answer."""
        with contextlib.suppress(requests.RequestException):
            answer = self.get(service, "/v1/status")
            if answer.ok:
                return answer.json()
        return {}

    def export(self, service: str) -> dict:
        lines = self.get(service, "/v1/export").text.splitlines()
        records = [json.loads(line) for line in lines]
        return {record["key"]: record.get("value") for record in records if "key" in record}

    def prometheus(self, path: str, **parameters) -> dict:
        url = f"http://127.0.0.1:{self.ports['PROMETHEUS_PORT']}/api/v1/{path}"
        return requests.get(url, params=parameters, timeout=30).json()["data"]

    def metric(self, expression: str) -> list:
        return [float(series["value"][1]) for series in self.prometheus("query", query=expression)["result"]]

    def alert(self, name: str) -> set:
        alerts = self.prometheus("alerts")["alerts"]
        return {alert["state"] for alert in alerts if alert["labels"]["alertname"] == name}


class Writer:
    """Writes through the API until it is stopped; remembers what was acknowledged."""

    def __init__(self, stack: Stack):
        self.stack, self.acknowledged = stack, {}
        self.stopping, self.pausing, self.resting = threading.Event(), threading.Event(), threading.Event()
        self.refused = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        for number in range(10**9):
            while self.pausing.is_set() and not self.stopping.is_set():
                self.resting.set()
                time.sleep(0.02)
            self.resting.clear()
            # Every third overwrites the same key: the last acknowledged value counts.
            key = "writer/again" if number % 3 == 0 else f"writer/{number}"
            if not self._write(key, f"{number}:{secrets.token_hex(8)}"):
                return

    def _write(self, key: str, value: str) -> bool:
        """The same request until it is answered, as the idempotency key allows; false when stopped."""
        headers = {"authorization": f"Bearer {self.stack.api_token}", "idempotency-key": secrets.token_hex(16)}
        headers["content-type"] = "application/octet-stream"
        url = f"{self.stack.url('server')}/v1/keys/{key.replace('/', '%2F')}"
        while not self.stopping.is_set():
            with contextlib.suppress(requests.RequestException):
                answer = requests.put(url, value, headers=headers, timeout=5)
                if answer.ok:
                    self.acknowledged[key] = value
                    return True
                if answer.status_code not in (408, 429, 500, 502, 503, 504):
                    self.refused = f"{answer.status_code}: {answer.text}"
                    return False
            time.sleep(0.05)
        return False

    @contextlib.contextmanager
    def paused(self):
        """Nothing is in flight inside."""
        self.pausing.set()
        wait_for("the writer rests", lambda: self.resting.is_set() or not self.thread.is_alive())
        try:
            yield
        finally:
            self.pausing.clear()

    def stop(self):
        self.stopping.set()
        self.thread.join(30)


@pytest.fixture(scope="module")
def stack():
    stack = Stack()
    for command in (["info"], ["compose", "version"]):
        if subprocess.run([stack.docker, *command], capture_output=True, timeout=60).returncode:
            pytest.skip(f"`docker {command[0]}` does not work (tests/stack/install/docker)")
    bases = subprocess.run([ROOT / "tests/stack/images/build"], capture_output=True, text=True, timeout=BUILD_SECONDS)
    assert bases.returncode == 0, bases.stdout[-2000:] + bases.stderr[-4000:]
    if "SYNCD_STACK_IMAGE" not in os.environ:
        stack.compose("build", "server", timeout=BUILD_SECONDS)
    try:
        stack.up()
        stack.api_token = stack.copy("server", "/keys/server/api.token").decode().strip()
        stack.read_token = stack.copy("client-1", "/keys/client/read.token").decode().strip()
        yield stack
    finally:
        stack.keep_logs()
        stack.compose("--profile", "demo", "down", "--volumes", "--timeout", "5", check=False)


@pytest.fixture(scope="module")
def writer(stack):
    wait_for("everything is healthy", stack.all_healthy)
    writer = Writer(stack)
    yield writer
    writer.stop()


def equal_roots(stack: Stack, service: str) -> bool:
    ours, theirs = stack.status("server"), stack.status(service)
    return bool(ours) and [ours[x] for x in ("database", "size", "root")] == [
        theirs.get(x) for x in ("database", "size", "root")
    ]


def settle(stack: Stack, writer: Writer, deadline=DEADLINE):
    """After a fault: all is healthy, writes go through, roots are equal, no acknowledged write is lost anywhere."""
    wait_for("everything is healthy", stack.all_healthy, deadline)
    before = len(writer.acknowledged)
    wait_for("writes go through", lambda: len(writer.acknowledged) > before + 3 or writer.refused, deadline)
    assert not writer.refused, writer.refused
    with writer.paused():
        size = stack.status("server")["size"]
        for client in CLIENTS:
            wait_for(f"{client} reaches {size}", lambda: stack.status(client).get("size", 0) >= size)
            wait_for(f"{client} has the server's root", lambda: equal_roots(stack, client))
        for service in DAEMONS:
            records = stack.export(service)
            lost = {k: v for k, v in writer.acknowledged.items() if records.get(k) != v}
            assert not lost, f"{service} lost {len(lost)} of {len(writer.acknowledged)}: {sorted(lost.items())[:5]}"


def test_everything_becomes_healthy_by_itself(stack):
    wait_for("everything is healthy", stack.all_healthy)
    keys = stack.inspect("keys")["State"]
    assert (keys["Status"], keys["ExitCode"]) == ("exited", 0)
    for client in CLIENTS:
        wait_for(f"{client} has the server's root", lambda: equal_roots(stack, client))


def test_image(stack):
    image = json.loads(stack.run("image", "inspect", stack.image))[0]
    config = image["Config"]
    assert (config["User"], config["StopSignal"], config["Entrypoint"]) == ("65532:65532", "SIGTERM", None)
    assert config["Healthcheck"]["Test"] == ["CMD", "syncctl", "health"]
    assert list(config["Volumes"]) == ["/var/lib/syncd"]
    if "SYNCD_STACK_IMAGE" not in os.environ:
        labels = {k.rsplit(".", 1)[1]: v for k, v in config["Labels"].items() if k.startswith("org.opencontainers")}
        assert (labels["title"], labels["revision"]) == ("syncd", "stack-test")
        assert {"version", "created", "licenses", "description"} <= set(labels)
    container = stack.run("create", stack.image).strip()
    try:
        command = [stack.docker, "export", container]
        archive = subprocess.run(command, capture_output=True, check=True, timeout=COMMAND_SECONDS).stdout
    finally:
        stack.run("rm", "--volumes", container)
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        members = {member.name: member for member in files}
        binaries = {name: files.extractfile(f"usr/local/bin/{name}").read() for name in ("syncd-server", "syncctl")}
    shells = [name for name in members if re.fullmatch(r"(.*/)?s?bin/(\w*sh|busybox|apt.*|dpkg|perl)", name)]
    assert not shells, "a shell or package manager is in the image"
    for name in ("syncd-server", "syncd-client", "syncctl"):
        program = members[f"usr/local/bin/{name}"]
        assert (program.uid, program.mode & 0o7777) == (0, 0o755), name
    assert not any(b".symtab" in binary for binary in binaries.values()), "not stripped"
    writable = {name for name, member in members.items() if member.uid == 65532 and not name.startswith("home/")}
    expected = {"var/lib/syncd", "var/lib/syncd/public"}
    assert {name.rstrip("/") for name in writable if not name.startswith("keys")} == expected
    # It says what it is for; each program is there.
    assert "Usage: syncctl" in stack.run("run", "--rm", stack.image)
    for name in ("syncd-server", "syncd-client", "syncctl"):
        assert stack.run("run", "--rm", "--read-only", stack.image, name, "--version").startswith(name)


def test_containers_are_confined(stack):
    for service in SERVICES:
        about = stack.inspect(service)
        host = about["HostConfig"]
        assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"], service
        assert "no-new-privileges:true" in host["SecurityOpt"], service
        assert host["Memory"] > 0 and host["PidsLimit"] > 0, service
        assert host["RestartPolicy"]["Name"] == "unless-stopped", service
        for bindings in host["PortBindings"].values():
            assert all(binding["HostIp"] == "127.0.0.1" for binding in bindings), service
        with open(f"/proc/{about['State']['Pid']}/status") as file:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        assert "0" not in status["Uid"].split(), f"{service} runs as root"
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, service
        assert status["NoNewPrivs"] == "1", service
    for daemon in DAEMONS:
        assert stack.inspect(daemon)["Config"]["StopTimeout"] > 10, "above --shutdown-grace"


def test_secrets_stay_apart(stack):
    project = f"{stack.project}_"
    mounts = {
        service: {m["Name"].removeprefix(project): m["RW"] for m in stack.inspect(service)["Mounts"] if "Name" in m}
        for service in DAEMONS
    }
    own = {"server-data": True, "server-public": True, "keys-server": False}
    assert mounts["server"] == own, "the publisher's key is the server's alone"
    for client in CLIENTS:
        assert mounts[client] == {f"{client}-data": True, f"keys-{client}": False, "server-public": False}
    # A token is needed on every port that writes or reads, the right one.
    url = f"{stack.url('server')}/v1/keys/a"
    content = {"content-type": "application/octet-stream"}
    for token in (None, "wrong-token", stack.read_token):
        headers = content | ({"authorization": f"Bearer {token}"} if token else {})
        assert requests.put(url, "1", headers=headers, timeout=30).status_code == 401
    for service in DAEMONS:
        assert requests.get(f"{stack.url(service)}/v1/status", timeout=30).status_code == 401
    # Neither is in a log or in what `docker inspect` shows.
    for service in [*DAEMONS, "keys"]:
        shown = json.dumps(stack.inspect(service)) + stack.compose("logs", service)
        assert stack.api_token not in shown and stack.read_token not in shown
    # Making keys again changes none.
    before = stack.copy("server", "/keys/server/publisher.key")
    stack.compose("run", "--rm", "--no-deps", "keys")
    assert stack.copy("server", "/keys/server/publisher.key") == before
    assert stack.copy("server", "/keys/server/api.token").decode().strip() == stack.api_token


def test_a_replica_that_is_not_listed_stays_out(stack):
    volume = f"{stack.project}_stranger:/var/lib/syncd"
    key = "/var/lib/syncd/stranger.key"
    stack.run("run", "--rm", "--volume", volume, stack.image, "syncctl", "keygen", "--output", key)
    # As client-1 but for its key.
    own = ["--volume", volume, "--env", f"SYNCD_IDENTITY_KEY={key}"]
    container = stack.compose("run", "--detach", "--no-deps", *own, "client-1").split()[-1]
    try:
        wait_for("it is told why", lambda: "not authorise this client's key" in stack.run("logs", container))
        refused = 'syncd_server_rejected_total{reason="unauthorized"} > 0'
        wait_for("the server counts it", lambda: stack.metric(refused))
    finally:
        with (stack.logs / "stranger.log").open("w") as file:
            file.write(stack.run("logs", container))
        stack.run("rm", "--force", "--volumes", container)
        stack.run("volume", "rm", "--force", f"{stack.project}_stranger")


def test_logs_are_json_lines(stack):
    for service in DAEMONS:
        lines = stack.compose("logs", "--no-log-prefix", "--no-color", service).splitlines()
        assert len(lines) > 3, service
        for line in lines:
            entry = json.loads(line)
            assert {"timestamp", "level", "target", "message"} <= set(entry), line


def test_metrics_and_traces_arrive(stack):
    def up():
        series = stack.prometheus("query", query="up")["result"]
        return {(s["metric"]["job"], s["metric"]["instance"]) for s in series if s["value"][1] == "1"}
    expected = {("syncd-server", "server:9090"), ("syncd-client", "client-1:9091"), ("syncd-client", "client-2:9091")}
    wait_for("Prometheus scrapes all three", lambda: up() == expected)
    rules = stack.prometheus("rules")["groups"]
    assert rules and all(rule["health"] != "err" for group in rules for rule in group["rules"])
    url = f"http://127.0.0.1:{stack.ports['JAEGER_PORT']}/api/services"
    services = {"syncd-server", "syncd-client"}
    wait_for("Jaeger has traces", lambda: services <= set(requests.get(url, timeout=30).json()["data"] or []))


@pytest.mark.parametrize("service", SERVICES)
def test_one_is_killed(stack, writer, service):
    stack.compose("kill", "--signal", "KILL", service)
    wait_for("it is dead", lambda: stack.health(service) == "exited")
    stack.up()
    settle(stack, writer)


def test_a_crash_is_restarted_without_help(stack, writer):
    # A kill by the engine counts as a stop; one from outside is a crash.
    for service in ("server", "client-1"):
        before = stack.inspect(service)
        os.kill(before["State"]["Pid"], 9)
        wait_for("it is restarted", lambda: stack.inspect(service)["RestartCount"] > before["RestartCount"])
    settle(stack, writer)


def test_all_are_killed_at_once(stack, writer):
    stack.compose("kill", "--signal", "KILL")
    wait_for("all are dead", lambda: all(stack.health(service) == "exited" for service in SERVICES))
    stack.up()
    settle(stack, writer)


def test_a_frozen_server_is_seen(stack, writer):
    lag = "min(syncd_client_sync_lag_seconds)"
    assert max(stack.metric(lag)) < 5
    stack.compose("pause", "server")
    try:
        wait_for("both lag", lambda: max(stack.metric(lag), default=0) > 15)
        for client in CLIENTS:
            assert stack.get(client, "/v1/keys/writer%2Fagain").ok, "a replica answers on"
        wait_for("a replica that lags is not ready", lambda: stack.health("client-1") == "unhealthy")
        wait_for("somebody is alarmed", lambda: "firing" in stack.alert("SyncdLagHigh"), ALERT_SECONDS)
    finally:
        stack.compose("unpause", "server")
    settle(stack, writer)
    wait_for("the alarm ends", lambda: not stack.alert("SyncdLagHigh"))
    assert max(stack.metric(lag)) < 5


def test_a_replica_loses_the_network(stack, writer):
    container, network = stack.container("client-1"), f"{stack.project}_default"
    stack.run("network", "disconnect", network, container)
    try:
        def state():
            # Not from the host: its ports are gone as well.
            return json.loads(stack.compose("exec", "-T", "client-1", "syncctl", "status", "--json"))["status"]
        wait_for("it notices", lambda: state()["state"] not in ("following", "polling"))
        assert stack.compose("exec", "-T", "client-1", "syncctl", "get", "writer/again"), "it answers on"
    finally:
        stack.run("network", "connect", "--alias", "client-1", network, container)
    settle(stack, writer)


@contextlib.contextmanager
def rule(stack: Stack, service: str, *arguments: str):
    """A rule of iptables on what comes into a container; gives how many packets it met."""
    pid = stack.inspect(service)["State"]["Pid"]

    def iptables(*arguments: str) -> str:
        command = ["nsenter", "--target", str(pid), "--net", "iptables", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    iptables("--append", "INPUT", "--protocol", "tcp", *arguments)
    try:
        yield lambda: int(iptables("--list", "INPUT", "--verbose", "--exact", "--numeric").splitlines()[2].split()[0])
    finally:
        iptables("--delete", "INPUT", "--protocol", "tcp", *arguments)


def test_packets_are_lost(stack, writer):
    from_server = ["--source-port", "8080", "--match", "statistic", "--mode", "random", "--probability"]
    with rule(stack, "client-2", *from_server, "0.2", "--jump", "DROP") as dropped:
        wait_for("packets are lost", lambda: dropped() > 20)
        size = stack.status("server")["size"]
        wait_for("it follows on", lambda: stack.status("client-2").get("size", 0) >= size)
    count = "sum(syncd_client_reconnects_total{instance='client-2:9091'})"
    before = stack.metric(count) or [0]
    with rule(stack, "client-2", *from_server, "0.2", "--jump", "REJECT", "--reject-with", "tcp-reset"):
        wait_for("connections break", lambda: (stack.metric(count) or [0])[0] > before[0])
    settle(stack, writer)


def test_a_stop_is_a_drain_and_volumes_stay(stack, writer):
    before = {service: stack.status(service) for service in DAEMONS}
    stack.compose("stop")
    for service in DAEMONS:
        state = stack.inspect(service)["State"]
        assert (state["ExitCode"], state["OOMKilled"]) == (0, False), service
        last = stack.compose("logs", "--no-log-prefix", "--tail", "1", service)
        assert json.loads(last)["message"] == "stopped", last
    stack.keep_logs()
    stack.compose("down")
    stack.up()
    settle(stack, writer)
    for service in DAEMONS:
        after = stack.status(service)
        assert after["database"] == before[service]["database"] and after["size"] >= before[service]["size"]
    # Nobody began anew.
    built = stack.metric('sum(syncd_client_iterations_total{kind="state_sync"}) or vector(0)')
    assert built == [0], "a replica was built again instead of reopened"


def test_the_server_is_replaced(stack, writer):
    stack.keep_logs()
    before = stack.container("server")
    stack.compose("up", "--detach", "--no-build", "--pull", "never", "--force-recreate", "--no-deps", "server")
    assert stack.container("server") != before
    settle(stack, writer)


def test_the_demo_profile_brings_real_records(stack, writer):
    command = ["--profile", "demo", "up", "--detach", "--no-build", "--pull", "never", "--no-recreate", "--wait"]
    stack.compose(*command, "demo-records", "demo-updates")
    first = "0ad/amd64".replace("/", "%2F")
    wait_for("a replica has the records", lambda: stack.get("client-2", f"/v1/keys/{first}").ok)
    assert stack.inspect("demo-records")["State"]["ExitCode"] == 0
    assert stack.health("demo-updates") == "healthy", "it trickles, and goes on"
    settle(stack, writer)
