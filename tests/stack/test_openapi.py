"""The OpenAPI document against live daemons: requests made from it, and every answer held against it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import requests
from conftest import ROOT
from daemons import client, free_port, server, wait_equal
from openapi_spec_validator import OpenAPIV31SpecValidator

HERE = pathlib.Path(__file__).parent
DOCUMENT = ROOT / "docs/openapi.json"
# Requests made of each operation in each phase.
EXAMPLES = 30
# Stateful testing aside: it follows links, and the document has none.
ALL_PHASES = ["--phases", "examples,coverage,fuzzing"]
# One run of schemathesis.
RUN_SECONDS = 120
TOKEN = "a-token-of-reads"


@pytest.fixture(scope="module", params=["any", "keyless"])
def pair(request, tmp_path_factory):
    """A server with some records, and its replica."""
    directory = tmp_path_factory.mktemp(request.param)
    options = ["--db", request.param]
    with server(directory / "server", "-o", "0", "-i", "50", *options) as of:
        with client(directory / "client", of, *options) as replica:
            wait_equal(replica, of)
            yield of, replica


def conforms(api: str, directory: pathlib.Path, *options: str):
    """Fails with what schemathesis found; `directory` takes what it leaves."""
    command = [str(pathlib.Path(sys.executable).parent / "st"), "--config-file", str(HERE / "schemathesis/schemathesis.toml")]
    command += ["run", str(DOCUMENT), "--url", api]
    command += ["--max-examples", str(EXAMPLES), "--generation-deterministic"]
    command += ["--continue-on-failure", "--request-timeout", "20", "--warnings", "off", "--no-color", *options]
    environment = os.environ | {"PYTHONPATH": str(HERE / "schemathesis"), "SCHEMATHESIS_HOOKS": "hooks"}
    done = subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True, timeout=RUN_SECONDS)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
    assert "12 selected / 12 total" in done.stdout, done.stdout[:2000]


def test_the_document_is_openapi():
    document = json.loads(DOCUMENT.read_text())
    assert document["openapi"] == "3.1.0"
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_both_serve_the_committed_document(pair):
    committed = json.loads(DOCUMENT.read_text())
    for daemon in pair:
        answer = requests.get(f"{daemon.api}/v1/openapi.json", timeout=30)
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == committed


def test_a_server_answers_as_it_says(pair, tmp_path):
    of, _ = pair
    conforms(of.api, tmp_path, *ALL_PHASES)


def test_a_replica_answers_as_it_says(pair, tmp_path):
    _, replica = pair
    # The document is of both daemons: `Allow` leaves out the writes that a replica refuses.
    conforms(replica.api, tmp_path, *ALL_PHASES, "--exclude-checks", "allow_header_conformance")


def test_a_replica_without_values_answers_as_it_says(tmp_path):
    options = ["--db", "keyless"]
    few, without = ["--phases", "coverage", "--exclude-checks"], "allow_header_conformance,positive_data_acceptance"
    with server(tmp_path / "server", "-o", "0", "-i", "50", *options) as of:
        with client(tmp_path / "compact", of, *options, "--mode", "compact") as compact:
            wait_equal(compact, of)
            assert requests.get(f"{compact.api}/v1/export", timeout=30).json()["code"] == "compact"
            conforms(compact.api, tmp_path, *few, without)
        # Nobody listens there.
        with client(tmp_path / "alone", of, *options, address=f"127.0.0.1:{free_port()}") as alone:
            assert requests.get(f"{alone.api}/v1/export", timeout=30).json()["code"] == "no_verified_state"
            # 503 is the answer to reads here.
            conforms(alone.api, tmp_path, *few, f"{without},not_a_server_error")


def test_the_document_needs_the_token_of_reads(tmp_path):
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    with server(tmp_path / "server", "-o", "0", "--read-token-file", str(token)) as of:
        url = f"{of.api}/v1/openapi.json"
        refused = requests.get(url, timeout=30)
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
        assert requests.get(url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=30).ok
