"""A real Kubernetes API server over a real etcd, on free ports of this machine.

There is no scheduler and no kubelet: objects are validated, defaulted, admitted and stored, controllers make what they
stand for where they are asked for, and no pod ever runs.
"""

import contextlib
import json
import os
import pathlib
import subprocess

import requests
import yaml
from conftest import tool
from daemons import free_port, wait_for

TOKEN = "administrator"


class ApiServer:
    """Use as a context."""

    def __init__(self, directory: pathlib.Path):
        programs = [tool(name) for name in ("etcd", "kube-apiserver", "kubectl")]
        etcd, apiserver, self.program = programs
        self.directory = directory
        self.processes = []
        store, peer, self.port = free_port(), free_port(), free_port()
        data = directory / "etcd"
        store, peer = f"http://127.0.0.1:{store}", f"http://127.0.0.1:{peer}"
        self._start(
            *[etcd, "--name=only", f"--data-dir={data}", "--log-level=warn", "--unsafe-no-fsync"],
            *[f"--listen-client-urls={store}", f"--advertise-client-urls={store}"],
            *[f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=only={peer}"],
        )
        key = directory / "service-accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        (directory / "tokens.csv").write_text(f"{TOKEN},admin,admin,system:masters\n")
        self._start(
            *[apiserver, f"--etcd-servers={store}", f"--secure-port={self.port}", "--bind-address=127.0.0.1"],
            *[f"--cert-dir={directory / 'certificates'}", f"--token-auth-file={directory / 'tokens.csv'}"],
            *[f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}"],
            *["--service-account-issuer=https://kubernetes.default.svc", "--service-cluster-ip-range=10.96.0.0/16"],
            # It would publish its own address, which must not be a loopback one.
            *["--endpoint-reconciler-type=none", "--authorization-mode=RBAC"],
        )
        self.authority = directory / "certificates/apiserver.crt"
        wait_for("the API server is ready", self._is_ready)
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(directory), "KUBECONFIG": str(self._config())}

    def start_controllers(self, *names: str):
        """Some of the controllers of kube-controller-manager."""
        self._start(
            *[tool("kube-controller-manager"), f"--kubeconfig={self.environment['KUBECONFIG']}", "--secure-port=0"],
            *["--leader-elect=false", f"--controllers={','.join(names)}", "--concurrent-statefulset-syncs=2"],
        )

    def _start(self, *command):
        log = self.directory / f"{pathlib.Path(command[0]).name}.log"
        self.processes.append((subprocess.Popen(command, stdout=log.open("ab"), stderr=subprocess.STDOUT), log))

    def _is_ready(self):
        for process, log in self.processes:
            assert process.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(requests.RequestException, OSError):
            url, header = f"https://127.0.0.1:{self.port}/readyz", {"authorization": f"Bearer {TOKEN}"}
            return requests.get(url, headers=header, verify=str(self.authority), timeout=5).ok

    def _config(self) -> pathlib.Path:
        cluster = {"server": f"https://127.0.0.1:{self.port}", "certificate-authority": str(self.authority)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "only", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": TOKEN}}],
            "contexts": [{"name": "only", "context": {"cluster": "only", "user": "admin"}}],
            "current-context": "only",
        }
        path = self.directory / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    def try_kubectl(self, *arguments, stdin: str | None = None, **more) -> subprocess.CompletedProcess:
        command = [self.program, *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, env=self.environment, **more)

    def kubectl(self, *arguments, **more) -> str:
        """What it printed, warnings included; fails where it does."""
        done = self.try_kubectl(*arguments, **more)
        assert done.returncode == 0, f"kubectl {' '.join(map(str, arguments))}: {done.stderr}"
        return done.stderr + done.stdout

    def get(self, *arguments) -> dict:
        return json.loads(self.kubectl("get", "-o", "json", *arguments))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process, _ in reversed(self.processes):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
