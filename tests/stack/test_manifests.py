"""deploy/ for Kubernetes: rendered, checked, run as rendered, and applied to a real API server."""

import base64
import contextlib
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile

import kubernetes_validate
import pytest
import requests
import yaml
from apiserver import ApiServer
from conftest import ROOT, binary, tool
from daemons import free_port, wait_for

COMPONENTS = ["monitoring", "tracing"]
# Name of a rendering: the overlay and its components.
RENDERINGS = {
    "base": ("base", []),
    "dev": ("overlays/dev", []),
    "production": ("overlays/production", []),
    "production+tracing": ("overlays/production", ["tracing"]),
    "production+monitoring": ("overlays/production", ["monitoring"]),
    "dev+all": ("overlays/dev", COMPONENTS),
    "production+all": ("overlays/production", COMPONENTS),
}
# Those that deploy/README.md promises.
VERSIONS = [f"1.{minor}" for minor in range(30, 38)]
# Made at run time, or made by others: what the manifests may name without holding it.
ACCESS_LABEL = "syncd-access"
STRANGERS = {
    "prometheus": ("monitoring", {"app.kubernetes.io/name": "prometheus"}),
    "dns": ("kube-system", {"k8s-app": "kube-dns"}),
    "collector": ("observability", {"app.kubernetes.io/name": "opentelemetry-collector"}),
}


# --- rendering ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tree(tmp_path_factory) -> pathlib.Path:
    """A copy of what kustomize reads, with keys."""
    tree = tmp_path_factory.mktemp("tree")
    for part in ("deploy", "grafana"):
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("keys"))
    make_keys(tree / "keys")
    shutil.copytree(tree / "keys", tree / "deploy/overlays/dev/keys")
    return tree


def make_keys(directory: pathlib.Path):
    environment = {"PATH": os.environ["PATH"], "SYNCCTL": binary("syncctl")}
    subprocess.run([ROOT / "deploy/make-keys", directory], check=True, env=environment)


def monitoring_sources() -> list[pathlib.Path]:
    """What the monitoring component is made of."""
    dashboards = [f"grafana/dashboards/syncd-{name}.json" for name in ("overview", "internals")]
    return [ROOT / path for path in ("deploy/prometheus/rules.yml", "deploy/prometheus/alerts.yml", *dashboards)]


def directory_of(tree: pathlib.Path, rendering: str) -> pathlib.Path:
    """A directory to give to kubectl -k."""
    overlay, components = RENDERINGS[rendering]
    if not components:
        return tree / "deploy" / overlay
    if "monitoring" in components:
        missing = [str(path.relative_to(ROOT)) for path in monitoring_sources() if not path.exists()]
        if missing:
            pytest.skip(f"the monitoring component needs {', '.join(missing)}")
        assert (ROOT / "deploy/prometheus/prometheusrule.yaml").exists(), "run deploy/prometheus/make-prometheusrule"
    made = tree / "deploy/overlays" / rendering
    made.mkdir(exist_ok=True)
    kustomization = {"resources": [f"../../{overlay}"], "components": [f"../../components/{c}" for c in components]}
    (made / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return made


@functools.cache
def render(tree: pathlib.Path, rendering: str) -> str:
    command = [tool("kubectl"), "kustomize", directory_of(tree, rendering)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


class Rendered:
    """The objects of a rendering."""

    def __init__(self, text: str, also=()):
        self.text = text
        self.objects = [object for object in yaml.safe_load_all(text) if object]
        self.also = list(also)

    def of(self, kind: str) -> list[dict]:
        return [object for object in self.objects if object["kind"] == kind]

    def find(self, kind: str, name: str) -> dict:
        found = [o for o in self.objects + self.also if o["kind"] == kind and o["metadata"]["name"] == name]
        assert len(found) == 1, f"{kind} {name}: {len(found)} of them"
        return found[0]

    def data(self, kind: str, name: str) -> dict[str, str]:
        """What a ConfigMap or a Secret holds."""
        object = self.find(kind, name)
        data = object.get("data", {})
        return {key: base64.b64decode(value).decode() for key, value in data.items()} if kind == "Secret" else data

    def files(self, volume: dict) -> dict[str, str]:
        """The files of a volume that is made of Secrets and ConfigMaps."""
        files = {}
        for source in volume.get("projected", {}).get("sources", [volume]):
            for kind, field, name in (("Secret", "secret", "secretName"), ("ConfigMap", "configMap", "name")):
                if field not in source:
                    continue
                part = source[field]
                data = self.data(kind, part.get(name) or part["name"])
                items = part.get("items", [{"key": key, "path": key} for key in data])
                files |= {item["path"]: data[item["key"]] for item in items}
        return files

    def environment(self, container: dict) -> dict[str, str]:
        environment = {}
        for source in container.get("envFrom", []):
            environment |= self.data("ConfigMap", source["configMapRef"]["name"])
        return environment | {entry["name"]: entry["value"] for entry in container.get("env", [])}


@pytest.fixture(params=RENDERINGS)
def rendered(request, tree) -> Rendered:
    return Rendered(render(tree, request.param), made_by_hand(tree))


def pod_of(workload: dict) -> dict:
    return workload["spec"]["template"]["spec"]


def container_of(workload: dict) -> dict:
    (container,) = pod_of(workload)["containers"]
    return container


def ports_of(workload: dict) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container_of(workload)["ports"]}


def readme_commands() -> list[str]:
    """The lines of deploy/README.md's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "deploy/README.md").read_text(), re.S)
    return [line for block in blocks for line in block.splitlines()]


def creating_commands() -> list[str]:
    """The commands of deploy/README.md that make what the manifests only name."""
    commands = [line for line in readme_commands() if line.startswith("kubectl -n syncd create")]
    return [line for line in commands if "| kubectl apply" not in line and "syncd-publisher-next" not in line]


@functools.cache
def printed_by(line: str, tree: pathlib.Path) -> str:
    line = line.split(" --dry-run")[0].replace("kubectl", tool("kubectl"), 1) + " --dry-run=client -o yaml"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tree), "database": "ab" * 32}
    done = subprocess.run(["bash", "-euc", line], cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}: {done.stderr}"
    return done.stdout


def made_by(line: str, tree: pathlib.Path) -> dict:
    """The object that a `kubectl create` of deploy/README.md makes, with the keys of `tree`."""
    return yaml.safe_load(printed_by(line, tree))


def made_by_hand(tree: pathlib.Path) -> list[dict]:
    """The objects that deploy/README.md has users make."""
    return [made_by(line, tree) for line in creating_commands()]


# --- checks of the text ------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_of_its_schema(rendered, version):
    for object in rendered.objects:
        if object["apiVersion"].startswith("monitoring.coreos.com/"):
            continue  # No registry here has its schema.
        try:
            kubernetes_validate.validate(object, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            pytest.fail(f"{object['kind']} {object['metadata']['name']}: {error.message}")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_job_is_of_its_schema(version):
    for path in maintenance():
        kubernetes_validate.validate(yaml.safe_load(path.read_text()), version, strict=True)


def maintenance() -> list[pathlib.Path]:
    return sorted((ROOT / "deploy/maintenance").glob("*.yaml"))


def test_policies_of_checkov(tree, tmp_path):
    checkov = tool("checkov")
    paths = maintenance()
    for name in ("base", "dev", "production+tracing"):
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(render(tree, name))
    command = [checkov, "--skip-download", "--config-file", ROOT / "deploy/.checkov.yaml", "-o", "json", "-f", *paths]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    report = json.loads(done.stdout)
    failed = [f"{f['check_id']} {f['check_name']}: {f['resource']}" for f in report["results"]["failed_checks"]]
    assert not failed, "\n".join(failed)
    assert report["summary"]["passed"] > 300 and not report["summary"]["parsing_errors"], report["summary"]


def test_accepted_findings_are_still_found(tree, tmp_path):
    """An exception that is needed no more goes."""
    checkov = tool("checkov")
    accepted = yaml.safe_load((ROOT / "deploy/.checkov.yaml").read_text())["skip-check"]
    path = tmp_path / "production.yaml"
    path.write_text(render(tree, "production"))
    command = [checkov, "--skip-download", "--framework", "kubernetes", "-o", "json", "-f", path]
    command += ["--check", ",".join(accepted)]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout)
    assert {finding["check_id"] for finding in report["results"]["failed_checks"]} == set(accepted)


def matches(selector: dict, labels: dict) -> bool:
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In", expression
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True


def test_selectors_match_the_pods_they_are_for(rendered):
    workloads = {w["metadata"]["name"]: w for w in rendered.of("StatefulSet")}
    labels = {name: w["spec"]["template"]["metadata"]["labels"] for name, w in workloads.items()}
    assert set(workloads) == {"syncd-server", "syncd-client"}

    def matched(selector):
        return {name for name in labels if matches(selector, labels[name])}

    for name, workload in workloads.items():
        assert matched(workload["spec"]["selector"]) == {name}
        assert rendered.find("Service", workload["spec"]["serviceName"])["spec"]["clusterIP"] == "None"
        for constraint in pod_of(workload).get("topologySpreadConstraints", []):
            assert matched(constraint["labelSelector"]) == {name}
    for service in rendered.of("Service"):
        name = service["metadata"]["name"].removesuffix("-headless")
        assert matched({"matchLabels": service["spec"]["selector"]}) == {name}
    budgets = [matched(budget["spec"]["selector"]) for budget in rendered.of("PodDisruptionBudget")]
    assert sorted(map(sorted, budgets)) == [["syncd-client"], ["syncd-server"]]
    for policy in rendered.of("NetworkPolicy"):
        assert matched(policy["spec"]["podSelector"]), policy["metadata"]["name"]
    for monitor in rendered.of("PodMonitor"):
        assert matched(monitor["spec"]["selector"]) == set(workloads)
        ports = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
        assert all(ports <= set(ports_of(workload)) for workload in workloads.values())


def test_ports_are_the_ports_of_the_containers(rendered):
    for workload in rendered.of("StatefulSet"):
        name, ports, container = workload["metadata"]["name"], ports_of(workload), container_of(workload)
        environment = rendered.environment(container)
        configured = {"metrics": environment["SYNCD_METRICS_PORT"], "api": environment["SYNCD_API_PORT"]}
        if name == "syncd-server":
            configured["sync"] = environment["SYNCD_PORT"]
        assert {key: int(port) for key, port in configured.items()} == ports
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] == "metrics"
        for service in (name, f"{name}-headless"):
            for port in rendered.find("Service", service)["spec"]["ports"]:
                assert (port["targetPort"], port["port"]) == (port["name"], ports[port["name"]])
    client = rendered.environment(container_of(rendered.find("StatefulSet", "syncd-client")))
    host, port = client["SYNCD_SERVER"].split(":")
    (sync,) = [p for p in rendered.find("Service", host)["spec"]["ports"] if p["port"] == int(port)]
    assert sync["targetPort"] == "sync"


def flags_of(program: str) -> set[str]:
    """The environment variables that --help names, of all subcommands."""
    path = binary(program)
    text = subprocess.run([path, "--help"], capture_output=True, text=True, check=True).stdout
    for command in re.findall(r"^  ([a-z][a-z-]+) ", text, re.M) if program == "syncctl" else []:
        if command != "help":
            text += subprocess.run([path, command, "--help"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"\[\s*env:\s+(SYNCD_[A-Z_]+)=", text))


def test_every_variable_is_a_flag(rendered):
    # In the pod of a daemon, syncctl reads these.
    for_syncctl = {"SYNCD_API", "SYNCD_TOKEN_FILE"}
    assert for_syncctl <= flags_of("syncctl")
    for workload in rendered.of("StatefulSet"):
        container = container_of(workload)
        (command,) = container["command"]
        directory, program = os.path.split(command)
        assert (directory, program) == ("/usr/local/bin", workload["metadata"]["name"])
        ours = {name for name in rendered.environment(container) if not name.startswith("OTEL_")}
        assert ours - for_syncctl <= flags_of(program)


def test_maintenance_uses_flags_and_volumes_that_exist(tree):
    rendered = Rendered(render(tree, "production"), made_by_hand(tree))
    server = rendered.find("StatefulSet", "syncd-server")
    names = {f"data-{server['metadata']['name']}-0"}
    for path in maintenance():
        job = yaml.safe_load(path.read_text())
        container = container_of(job)
        help = subprocess.run([binary("syncctl"), container["command"][1], "--help"], capture_output=True, text=True)
        variables = rendered.environment(container)
        assert all(f"{name}=" in help.stdout for name in variables), path
        assert pod_of(job)["securityContext"] == pod_of(server)["securityContext"]
        image = container_of(server)["image"]
        assert container["image"] == image, f"{path}: the base has {image}"
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert all(any(value.startswith(mount) for mount in mounts) for value in variables.values())
        for volume in pod_of(job)["volumes"]:
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in names
            elif volume["secret"]["secretName"] != "syncd-publisher-next":
                rendered.find("Secret", volume["secret"]["secretName"])


def test_everything_named_exists_or_is_made_by_a_documented_command(rendered):
    used = set()
    for workload in rendered.of("StatefulSet"):
        rendered.find("ServiceAccount", pod_of(workload)["serviceAccountName"])
        container = container_of(workload)
        files, mounts = {}, {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        for volume in pod_of(workload)["volumes"]:
            for path, content in rendered.files(volume).items():
                files[f"{mounts[volume['name']]}/{path}"] = content
        claims = {claim["metadata"]["name"] for claim in workload["spec"]["volumeClaimTemplates"]}
        assert set(mounts) == claims | {volume["name"] for volume in pod_of(workload)["volumes"]}
        paths = {v for v in rendered.environment(container).values() if v.startswith("/")}
        assert paths - set(files) == {"/var/lib/syncd"} <= set(mounts.values())
        assert set(files) <= paths, "a file that nobody reads"
        used |= set(rendered.environment(container))
    assert "SYNCD_TRUSTED_KEY" in used


def test_no_secret_is_in_the_files():
    for path in (ROOT / "deploy").rglob("*"):
        if path.is_file() and "keys" not in path.relative_to(ROOT).parts:
            assert not re.search(r"kind: Secret|PRIVATE KEY|\b[0-9a-f]{64}\b", path.read_text()), path
    command = ["git", "check-ignore", "deploy/overlays/dev/keys/publisher.key", "keys/publisher.key"]
    assert len(subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()) == 2


def test_the_image_is_the_one_that_is_built_here(tree):
    """Its tag is the version; its programs, user and volume are where the manifests have them."""
    version = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    server = Rendered(render(tree, "production")).find("StatefulSet", "syncd-server")
    assert container_of(server)["image"] == f"ghcr.io/syncd/syncd:{version}"
    if not (ROOT / "Dockerfile").exists():
        pytest.skip("there is no Dockerfile")
    text = (ROOT / "Dockerfile").read_text()
    user = pod_of(server)["securityContext"]["runAsUser"]
    assert re.search(rf"^USER {user}:{user}$", text, re.M)
    assert re.search(r"^COPY .* /usr/local/bin/$", text, re.M) and '"/var/lib/syncd"' in text


def seconds(duration: str) -> int:
    return int(re.fullmatch(r"(\d+)s", duration)[1])


def test_pods_have_time_to_drain(rendered):
    """The pause before the stop counts against the grace period, and so do the last spans (2 s)."""
    for workload in rendered.of("StatefulSet"):
        container = container_of(workload)
        pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        drain = seconds(rendered.environment(container)["SYNCD_SHUTDOWN_GRACE"])
        assert pod_of(workload)["terminationGracePeriodSeconds"] >= pause + drain + 2 + 5


def test_pods_ask_for_nothing(rendered):
    for workload in rendered.of("StatefulSet"):
        pod, container = pod_of(workload), container_of(workload)
        assert pod["automountServiceAccountToken"] is False and pod["enableServiceLinks"] is False
        assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsUser"] == 65532
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert set(container["resources"]["limits"]) == set(container["resources"]["requests"])


# --- network policies, evaluated ---------------------------------------------------------------


def allows(rendered: Rendered, direction: str, subject: dict, peer: tuple, port: int | str, names: dict) -> bool:
    """Whether the policies on the pod with labels `subject` let `peer` (namespace, its labels, the pod's
    labels) through; by the rules of NetworkPolicy: what any policy selects, only what some rule names."""
    namespace, namespace_labels, labels = peer
    home = rendered.of("Namespace")[0]["metadata"]["name"]
    kind, side = direction.capitalize(), "from" if direction == "ingress" else "to"
    policies = [p["spec"] for p in rendered.of("NetworkPolicy")]
    policies = [p for p in policies if kind in p["policyTypes"] and matches(p["podSelector"], subject)]
    for rule in (rule for policy in policies for rule in policy.get(direction, [])):
        ports = {names.get(entry["port"], entry["port"]) for entry in rule["ports"]}
        for entry in rule[side]:
            if "namespaceSelector" in entry:
                of_namespace = matches(entry["namespaceSelector"], namespace_labels)
            else:
                of_namespace = namespace == home
            if port in ports and of_namespace and matches(entry["podSelector"], labels):
                return True
    return not policies


def test_network_policies_allow_what_is_needed_and_nothing_else(rendered):
    home = rendered.of("Namespace")[0]["metadata"]["name"]
    server, client = (rendered.find("StatefulSet", f"syncd-{role}") for role in ("server", "client"))
    labels = {role: w["spec"]["template"]["metadata"]["labels"] for role, w in (("server", server), ("client", client))}
    ports = {"server": ports_of(server), "client": ports_of(client)}

    def of_namespace(name, **more):
        return name, {"kubernetes.io/metadata.name": name} | more

    here, shop = of_namespace(home), of_namespace("shop", **{ACCESS_LABEL: "true"})
    peers = {name: (*of_namespace(namespace), pod) for name, (namespace, pod) in STRANGERS.items()}
    peers |= {role: (*here, labels[role]) for role in labels}
    for verb in ("read", "write"):
        peers |= {verb: (*shop, {ACCESS_LABEL: verb}), f"{verb} here": (*here, {ACCESS_LABEL: verb})}
    peers["uninvited"] = (*of_namespace("attic"), {ACCESS_LABEL: "write"})
    peers["unlabelled"] = (*shop, {"app": "shop"})
    peers["stranger in monitoring"] = (*of_namespace("monitoring"), {"app": "another"})
    allowed = {
        (name, role, port)
        for name in peers
        for role in ports
        for port, number in ports[role].items()
        if allows(rendered, "ingress", labels[role], peers[name], number, ports[role])
    }
    assert allowed == {
        ("client", "server", "sync"),
        ("prometheus", "server", "metrics"),
        ("prometheus", "client", "metrics"),
        *((name, "server", "api") for name in ("write", "write here")),
        *((name, "client", "api") for name in ("read", "read here", "write", "write here")),
    }
    out = {
        (role, name, port)
        for role in ports
        for name in peers
        for port in (53, 443, 4317, *ports["server"].values(), *ports["client"].values())
        if allows(rendered, "egress", labels[role], peers[name], port, {})
    }
    expected = {("client", "server", ports["server"]["sync"]), ("client", "dns", 53)}
    endpoint = rendered.environment(container_of(server)).get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if endpoint:
        host, port = re.fullmatch(r"http://([^:]+):(\d+)", endpoint).groups()
        assert host.split(".")[1] == STRANGERS["collector"][0]
        expected |= {(role, "collector", int(port)) for role in ports} | {(role, "dns", 53) for role in ports}
    assert out == expected


def test_readme_names_every_stranger():
    text = " ".join((ROOT / "deploy/README.md").read_text().split())
    for namespace, labels in STRANGERS.values():
        ((key, value),) = labels.items()
        assert f"`{namespace}`" in text and f"{key}: {value}" in text


# --- monitoring --------------------------------------------------------------------------------


def test_prometheus_rule_holds_the_rules_and_alerts(tree):
    rendered = Rendered(render(tree, "production+monitoring"))
    (rule,) = rendered.of("PrometheusRule")
    groups = []
    for name in ("rules.yml", "alerts.yml"):
        groups += yaml.safe_load((ROOT / "deploy/prometheus" / name).read_text())["groups"]
    assert rule["spec"]["groups"] == groups, "run deploy/prometheus/make-prometheusrule"


def test_dashboards_are_config_maps_for_the_sidecar(tree):
    rendered = Rendered(render(tree, "production+monitoring"))
    maps = [m for m in rendered.of("ConfigMap") if m["metadata"].get("labels", {}).get("grafana_dashboard") == "1"]
    found = {name: json.loads(text) for m in maps for name, text in m["data"].items()}
    files = {path.name: json.loads(path.read_text()) for path in (ROOT / "grafana/dashboards").glob("*.json")}
    assert found == files
    # kubectl keeps what was applied in an annotation, which may have 256 KiB with everything else in it.
    assert all(len(json.dumps(m)) < 200 * 1024 for m in maps)


# --- the daemons, started as rendered ----------------------------------------------------------


class Container:
    """The container of a workload, to be run as a process: its command, its environment and nothing else of it, the
    files of its volumes with the owner and mode that the kubelet gives them (root, the group's right to read), under
    the container's user if this is root. Paths are moved below a directory and ports are free ones."""

    def __init__(self, rendered: Rendered, workload: dict, directory: pathlib.Path, storage=None, **changed: str):
        self.container, self.directory = container_of(workload), directory
        directory.mkdir(mode=0o755)
        context = pod_of(workload)["securityContext"]
        user = {"user": context["runAsUser"], "group": context["runAsGroup"], "extra_groups": [context["fsGroup"]]}
        self.user = user if os.geteuid() == 0 else {}
        volumes = {volume["name"]: volume for volume in pod_of(workload)["volumes"]}
        for mount in self.container["volumeMounts"]:
            path = self._moved(mount["mountPath"])
            path.parent.mkdir(parents=True, exist_ok=True)
            volume = volumes.get(mount["name"], {"persistentVolumeClaim": {}})
            if "persistentVolumeClaim" not in volume:
                path.mkdir()
                self._write_files(path, rendered.files(volume), volume, context["fsGroup"])
            elif storage:
                path.symlink_to(storage)
            else:
                path.mkdir()
                self._hand_over(path, context["fsGroup"], 0o2775)
        environment = rendered.environment(self.container)
        environment = {name: str(self._moved(v)) if v.startswith("/") else v for name, v in environment.items()}
        for name in environment:
            if re.fullmatch(r"SYNCD_(API_|METRICS_)?PORT", name):
                environment[name] = "0"
        # A container runtime sets PATH by the image, HOME by the user's entry, and nothing else.
        self.environment = {"HOME": "/nonexistent", "PATH": "/usr/local/bin"} | environment | changed
        self.storage = pathlib.Path(environment["SYNCD_STORAGE_DIR"])
        self.options = {"cwd": "/", "env": self.environment, **self.user}
        program, *arguments = self.container["command"]
        self.command = [self._program(program), *arguments]

    def _moved(self, path: str) -> pathlib.Path:
        return self.directory / path.lstrip("/")

    def _hand_over(self, path: pathlib.Path, group: int, mode: int):
        if self.user:
            os.chown(path, 0, group)
        path.chmod(mode)

    def _write_files(self, path: pathlib.Path, files: dict, volume: dict, group: int):
        source = volume.get("projected") or volume.get("secret") or volume["configMap"]
        for name, content in files.items():
            (path / name).write_text(content)
            self._hand_over(path / name, group, source.get("defaultMode", 0o644) | 0o440)

    def _program(self, path: str) -> str:
        """A copy that the container's user may run, wherever cargo built it."""
        copy = self.directory.parent / "bin" / os.path.basename(path)
        if not copy.exists():
            copy.parent.mkdir(mode=0o755, exist_ok=True)
            shutil.copy(binary(copy.name), copy)
        return str(copy)

    def run(self) -> str:
        """Runs it to its end, as a Job's; its log."""
        done = subprocess.run(self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **self.options)
        assert done.returncode == 0, done.stdout
        return done.stdout


class Pod(Container):
    """A running daemon; use as a context."""

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.log = self.directory / "log"
        endpoints = self.storage / "public/endpoints.json"
        endpoints.unlink(missing_ok=True)
        self.process = subprocess.Popen(self.command, stderr=self.log.open("ab"), **self.options)
        listens = f"{self.command[0]} listens"
        found = wait_for(listens, lambda: self._is_alive() and endpoints.exists() and endpoints.read_text())
        self.addresses = {name: "127.0.0.1:" + a.rsplit(":", 1)[1] for name, a in json.loads(found).items()}
        self.environment["SYNCD_API"] = f"http://{self.addresses['api']}"

    def _is_alive(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        return True

    def probe(self, name: str) -> bool:
        """Whether a probe of the manifest succeeds now."""
        self._is_alive()
        probe = self.container[name]
        address = self.addresses[probe["httpGet"]["port"]]
        url = f"http://{address}{probe['httpGet']['path']}"
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(url, timeout=probe["timeoutSeconds"]).status_code < 400
        return False

    def syncctl(self, *arguments: str) -> str:
        """What `kubectl exec POD -- syncctl ...` would print."""
        command = [self._program("syncctl"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, **self.options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def node():
    """A directory that the container's user can reach, which pytest's are not."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="syncd-node-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


def pin_database(rendered: Rendered, server: Pod):
    """Makes the ConfigMap that the replicas' pods wait for, out of the server's answer."""
    value = json.loads(server.syncctl("status", "--json"))
    (path,) = set(re.findall(r"syncctl status --json \| jq -r (\S+)\)", (ROOT / "deploy/README.md").read_text()))
    for field in path.lstrip(".").split("."):
        value = value[field]
    rendered.find("ConfigMap", "syncd-database")["data"]["database.id"] = value


@pytest.mark.parametrize("rendering", ["dev", "production+tracing"])
def test_daemons_run_with_what_is_rendered(tree, node, rendering):
    """One server, then two replicas that share an identity, by the steps of deploy/README.md."""
    rendered = Rendered(render(tree, rendering), made_by_hand(tree))
    server_set, client_set = (rendered.find("StatefulSet", f"syncd-{role}") for role in ("server", "client"))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Pod(rendered, server_set, node / "server"))
        for probe in PROBES:
            wait_for(f"the server's {probe}", lambda: server.probe(probe))
        pin_database(rendered, server)
        address = {"SYNCD_SERVER": server.addresses["sync"]}
        clients = [stack.enter_context(Pod(rendered, client_set, node / f"client-{n}", **address)) for n in range(2)]
        for client in clients:
            for probe in PROBES:
                wait_for(f"a replica's {probe}", lambda: client.probe(probe))
        server.syncctl("put", "greeting", "hello")
        for client in clients:
            wait_for("the write", lambda: client.syncctl("export").count("greeting") == 1)
            assert client.syncctl("get", "greeting") == "hello"
            url = f"http://{client.addresses['api']}/v1/keys/greeting"
            assert requests.get(url, timeout=10).status_code == 401
        metrics = requests.get(f"http://{server.addresses['metrics']}/metrics", timeout=10).text
        assert re.search(r"^syncd_server_followers 2$", metrics, re.M), metrics
        assert "any replica may connect" not in server.log.read_text()
        for pod in (*clients, server):
            assert pod.terminate() == 0, pod.log.read_text()[-3000:]


def test_a_replica_with_another_identity_is_not_let_in(tree, node):
    """The list of authorised clients is in force as mounted."""
    rendered = Rendered(render(tree, "production"), made_by_hand(tree))
    server_set, client_set = (rendered.find("StatefulSet", f"syncd-{role}") for role in ("server", "client"))
    with Pod(rendered, server_set, node / "server") as server:
        pin_database(rendered, server)
        make_keys(node / "others")
        other = base64.b64encode((node / "others/client.key").read_bytes()).decode()
        rendered.find("Secret", "syncd-client-keys")["data"]["identity.key"] = other
        with Pod(rendered, client_set, node / "client", SYNCD_SERVER=server.addresses["sync"]) as client:
            url = f"http://{server.addresses['metrics']}/metrics"
            refused = re.compile(r'^syncd_server_rejected_total\{reason="unauthorized"\} [1-9]', re.M)
            wait_for("a refusal", lambda: refused.search(requests.get(url, timeout=10).text))
            assert client.probe("livenessProbe") and not client.probe("readinessProbe")


def replaced(rendered: Rendered, tree: pathlib.Path, kind: str, name: str):
    """Replaces an object as deploy/README.md does."""
    (line,) = [c for c in readme_commands() if f" create {kind}" in c and f" {name} " in c and "| kubectl apply" in c]
    made = made_by(line, tree)
    rendered.also = [o for o in rendered.also if (o["kind"], o["metadata"]["name"]) != (made["kind"], name)] + [made]


def job(name: str) -> dict:
    return yaml.safe_load((ROOT / f"deploy/maintenance/{name}.yaml").read_text())


def test_the_publisher_key_is_rotated_by_its_job(tree, node):
    """By the steps of deploy/README.md; a replica that runs on follows the new key by itself."""
    rendered = Rendered(render(tree, "production"), made_by_hand(tree))
    server_set, client_set = (rendered.find("StatefulSet", f"syncd-{role}") for role in ("server", "client"))
    port = str(free_port())
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Pod(rendered, server_set, node / "server", SYNCD_PORT=port))
        pin_database(rendered, server)
        client = stack.enter_context(Pod(rendered, client_set, node / "client", SYNCD_SERVER=f"127.0.0.1:{port}"))
        server.syncctl("put", "before", "1")
        wait_for("readiness", lambda: client.probe("readinessProbe"))
        assert server.terminate() == 0

        (keygen,) = [line for line in readme_commands() if line.startswith("syncctl keygen")]
        subprocess.run(["bash", "-euc", keygen.replace("syncctl", binary("syncctl"), 1)], cwd=tree, check=True)
        (line,) = [c for c in readme_commands() if " create secret generic syncd-publisher-next " in c]
        rendered.also.append(made_by(line, tree))
        Container(rendered, job("rotate-key"), node / "job", storage=server.storage).run()
        replaced(rendered, tree, "secret generic", "syncd-server-keys")

        server = Pod(rendered, server_set, node / "server-2", storage=server.storage, SYNCD_PORT=port)
        server = stack.enter_context(server)
        server.syncctl("put", "after", "2")
        wait_for("a write under the new key", lambda: '"after"' in client.syncctl("export"))
        # A new replica trusts the new key alone.
        replaced(rendered, tree, "configmap", "syncd-trust")
        fresh = Pod(rendered, client_set, node / "client-2", SYNCD_SERVER=f"127.0.0.1:{port}")
        fresh = stack.enter_context(fresh)
        wait_for("readiness", lambda: fresh.probe("readinessProbe"))
        assert (fresh.syncctl("get", "before"), fresh.syncctl("get", "after")) == ("1", "2")


def test_a_new_epoch_is_begun_by_its_job(tree, node):
    rendered = Rendered(render(tree, "production"), made_by_hand(tree))
    server_set, client_set = (rendered.find("StatefulSet", f"syncd-{role}") for role in ("server", "client"))
    with Pod(rendered, server_set, node / "server") as server:
        pin_database(rendered, server)
        server.syncctl("put", "key", "kept")
        assert server.terminate() == 0
    before = rendered.find("ConfigMap", "syncd-database")["data"]["database.id"]
    log = Container(rendered, job("new-epoch"), node / "job", storage=server.storage).run()
    (pattern,) = [re.search(r"grep -x '(.*?)'", line)[1] for line in readme_commands() if "grep -x" in line]
    grep = subprocess.run(["grep", "-x", pattern], input=log, capture_output=True, text=True, check=True)
    rendered.find("ConfigMap", "syncd-database")["data"]["database.id"] = grep.stdout.strip()
    assert grep.stdout.strip() != before
    with Pod(rendered, server_set, node / "server-2", storage=server.storage) as server:
        with Pod(rendered, client_set, node / "client", SYNCD_SERVER=server.addresses["sync"]) as client:
            wait_for("readiness", lambda: client.probe("readinessProbe"))
            assert client.syncctl("get", "key") == "kept"


# --- a real API server -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with ApiServer(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def apply(cluster: ApiServer, directory: pathlib.Path, *more: str) -> list[str]:
    """What `kubectl apply -k` says of each object; warnings fail."""
    output = cluster.kubectl("apply", "-k", directory, *more)
    assert "Warning" not in output, output
    return output.splitlines()


def versions(cluster: ApiServer, directory: pathlib.Path) -> dict[str, str]:
    """The version of each object as it is stored; any change raises it."""
    objects = cluster.get("-k", directory)["items"]
    return {f"{o['kind']} {o['metadata']['name']}": o["metadata"]["resourceVersion"] for o in objects}


# Of these, kubectl sends lists that the server has filled with defaults, or Secrets whose base64 is wrapped, and calls
# them configured although nothing changes.
ALWAYS_CONFIGURED = ("statefulset.", "poddisruptionbudget.", "secret/")


def check_applied(cluster: ApiServer, directory: pathlib.Path):
    """Applying again changes nothing, and the server has nothing that is not in the files."""
    apply(cluster, directory)
    before = versions(cluster, directory)
    again = apply(cluster, directory)
    changed = [line for line in again if not line.endswith(" unchanged") and not line.startswith(ALWAYS_CONFIGURED)]
    assert again and not changed, "\n".join(changed)
    assert versions(cluster, directory) == before
    # From one way of applying to the other, the StatefulSets' lists of claims have to be taken over: the server has
    # filled them with defaults, so that they are not what the files hold.
    apply(cluster, directory, "--server-side", "--force-conflicts")
    before = versions(cluster, directory)
    assert all("serverside-applied" in line for line in apply(cluster, directory, "--server-side"))
    assert versions(cluster, directory) == before
    for mode in ([], ["--server-side"]):
        done = cluster.try_kubectl("diff", "-k", directory, *mode)
        assert done.returncode == 0, done.stdout + done.stderr


def bare_pod(workload: dict) -> dict:
    """A pod as the StatefulSet's controller makes it."""
    template, name = workload["spec"]["template"], workload["metadata"]["name"]
    claims = [c["metadata"]["name"] for c in workload["spec"]["volumeClaimTemplates"]]
    volumes = [{"name": c, "persistentVolumeClaim": {"claimName": f"{c}-{name}-0"}} for c in claims]
    spec = template["spec"] | {"volumes": template["spec"]["volumes"] + volumes}
    metadata = {"name": f"{name}-0", "namespace": workload["metadata"]["namespace"]}
    metadata["labels"] = template["metadata"]["labels"]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def check_pods_are_admitted(cluster: ApiServer, namespace: str):
    """By the restricted Pod Security standard, which the namespace enforces: made worse, they are refused."""
    for name in ("syncd-server", "syncd-client"):
        pod = bare_pod(cluster.get("-n", namespace, "statefulset", name))
        create = ["create", "--dry-run=server", "-f", "-"]
        output = cluster.kubectl(*create, stdin=json.dumps(pod))
        assert "created (server dry run)" in output and "Warning" not in output, output
        pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
        refused = cluster.try_kubectl(*create, stdin=json.dumps(pod))
        assert refused.returncode != 0 and 'violates PodSecurity "restricted' in refused.stderr, refused.stderr


def run_readme(cluster: ApiServer, tree: pathlib.Path, commands: list[str]):
    environment = cluster.environment | {"database": "ab" * 32}
    for line in commands:
        line = line.replace("kubectl", cluster.program, 1)
        done = subprocess.run(["bash", "-euc", line], cwd=tree, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}: {done.stderr}"


def test_dev_is_applied(cluster, tree):
    check_applied(cluster, directory_of(tree, "dev"))
    check_pods_are_admitted(cluster, "syncd-dev")


def test_production_is_applied_by_the_steps_of_the_readme(cluster, tree):
    lines = [line for line in readme_commands() if line.startswith("kubectl")]
    run_readme(cluster, tree, [line for line in lines if "namespace.yaml" in line] + creating_commands())
    check_applied(cluster, directory_of(tree, "production"))
    check_pods_are_admitted(cluster, "syncd")
    rendered = Rendered(render(tree, "production"))
    for workload in rendered.of("StatefulSet"):
        stored = cluster.get("-n", "syncd", "statefulset", workload["metadata"]["name"])
        for volume in pod_of(stored)["volumes"]:
            for source in volume.get("projected", {}).get("sources", [volume]):
                for kind, field, name in (("secret", "secret", "secretName"), ("configmap", "configMap", "name")):
                    if field in source:
                        cluster.get("-n", "syncd", kind, source[field].get(name) or source[field]["name"])


def test_tracing_is_applied(cluster, tree):
    """Over what is there, as when a component is added to an overlay in use."""
    check_applied(cluster, directory_of(tree, "production+tracing"))


def test_monitoring_is_applied(cluster, tree):
    directory = directory_of(tree, "production+all")
    cluster.kubectl("apply", "-f", ROOT / "tests/stack/crds.yaml")
    crds = ["crd/podmonitors.monitoring.coreos.com", "crd/prometheusrules.monitoring.coreos.com"]
    cluster.kubectl("wait", "--for=condition=established", "--timeout=60s", *crds)
    check_applied(cluster, directory)


def test_maintenance_jobs_are_admitted(cluster, tree):
    cluster.kubectl("apply", "-f", ROOT / "deploy/base/namespace.yaml")
    for path in maintenance():
        output = cluster.kubectl("create", "--dry-run=server", "-f", path)
        assert "created (server dry run)" in output and "Warning" not in output, output


@pytest.fixture
def controlled(tmp_path):
    """An API server with the controllers that make pods and claims, and judge budgets."""
    with ApiServer(tmp_path) as cluster:
        controllers = ["statefulset", "disruption", "persistentvolumeclaim-protection", "garbage-collector"]
        cluster.start_controllers(*(f"{name}-controller" for name in controllers))
        yield cluster


def test_controllers_make_scale_and_keep_what_they_should(controlled, tree):
    """The commands of deploy/README.md, with pods that nobody runs and that are said to be ready."""

    def names(kind: str) -> set[str]:
        return {object["metadata"]["name"] for object in controlled.get("-n", "syncd", kind)["items"]}

    def pods(clients: int, servers=1) -> set[str]:
        return {f"syncd-server-{n}" for n in range(servers)} | {f"syncd-client-{n}" for n in range(clients)}

    def wait_for_names(kind: str, expected: set[str]):
        wait_for(f"{kind} {sorted(expected)}", lambda: names(kind) == expected, 60)

    def say_ready():
        status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        for pod in names("pods"):
            patch = json.dumps({"status": status})
            controlled.kubectl("-n", "syncd", "patch", "pod", pod, "--subresource=status", "-p", patch)

    def documented(part: str) -> list[str]:
        return [line for line in readme_commands() if line.startswith("kubectl -n syncd ") and part in line]

    run_readme(controlled, tree, ["kubectl apply -f deploy/base/namespace.yaml", *creating_commands()])
    apply(controlled, directory_of(tree, "production"))
    wait_for_names("pods", pods(3))
    claims = {f"data-{pod}" for pod in pods(3)}
    assert names("persistentvolumeclaims") == claims
    say_ready()
    run_readme(controlled, tree, documented(" rollout status "))
    for budget in ("syncd-server", "syncd-client"):

        def allowed(budget=budget):
            return controlled.get("-n", "syncd", "poddisruptionbudget", budget)["status"].get("disruptionsAllowed")

        wait_for(f"the budget of {budget}", lambda: allowed() == 1, 60)

    # A damaged replica gets a new volume.
    def stored(kind: str, name: str) -> str:
        return controlled.get("-n", "syncd", kind, name)["metadata"]["uid"]

    before = stored("persistentvolumeclaim", "data-syncd-client-0")
    run_readme(controlled, tree, documented("delete persistentvolumeclaim/") + documented("delete pod/syncd-client"))
    wait_for("another claim", lambda: names("persistentvolumeclaims") == claims and names("pods") == pods(3), 60)
    wait_for("another volume", lambda: stored("persistentvolumeclaim", "data-syncd-client-0") != before, 60)
    wait_for_names("pods", pods(3))

    # More replicas, by themselves; fewer, with their volumes.
    run_readme(controlled, tree, documented("--replicas=5"))
    wait_for_names("pods", pods(5))
    controlled.kubectl("-n", "syncd", "scale", "statefulset/syncd-client", "--replicas=3")
    wait_for_names("pods", pods(3))
    wait_for_names("persistentvolumeclaims", claims)

    # The server's volume stays whatever is done to it.
    run_readme(controlled, tree, documented("statefulset/syncd-server statefulset/syncd-client --replicas=0"))
    run_readme(controlled, tree, documented("--for=delete"))
    wait_for_names("persistentvolumeclaims", {"data-syncd-server-0"})
    controlled.kubectl("-n", "syncd", "delete", "statefulset", "syncd-server")
    run_readme(controlled, tree, ["kubectl apply -k " + str(directory_of(tree, "production"))])
    wait_for_names("pods", pods(3))
    assert names("persistentvolumeclaims") == claims
