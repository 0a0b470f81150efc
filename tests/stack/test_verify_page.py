"""The page that verifies proof files, in a real browser, from a file, without a network."""

import json
import pathlib
import shutil
import subprocess

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from conftest import ROOT

VECTORS = ROOT / "crates/syncd-verify/tests/vectors"
PROOFS = json.loads((VECTORS / "trust.json").read_text())["proofs"]
# Without these the browser itself looks for its maker's servers.
OPTIONS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
           "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-quic"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    targets = subprocess.run(["rustup", "target", "list", "--installed"], capture_output=True, text=True, check=False)
    if "wasm32-unknown-unknown" not in targets.stdout:
        pytest.skip("the target wasm32-unknown-unknown is not installed (rustup target add)")
    into = tmp_path_factory.mktemp("page")
    subprocess.run([ROOT / "crates/syncd-verify-web/build", into], check=True)
    return into / "verify.html"


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    for program in ["chromium", "chromedriver"]:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed (tests/stack/install/)")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for option in [*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(option)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    browser.set_network_conditions(offline=True, latency=0, throughput=0)
    browser.get(page.as_uri())
    WebDriverWait(browser, 30).until(lambda b: b.execute_script("return document.body.dataset.ready"))
    yield browser
    browser.quit()


def verify(browser, path: pathlib.Path, proof: dict, key: str = "") -> tuple[str, str]:
    """What the page says: its headline and all of it."""
    for name, value in [("publisher", proof["publisher"]), ("database", proof["database"]), ("key", key)]:
        field = browser.find_element(By.ID, name)
        field.clear()
        field.send_keys(value)
    browser.execute_script("document.getElementById('result').replaceChildren(); document.getElementById('file').value = ''")
    browser.find_element(By.ID, "file").send_keys(str(path))
    result = WebDriverWait(browser, 30).until(
        lambda b: (found := b.find_element(By.ID, "result")).text and found)
    return result.find_element(By.TAG_NAME, "strong").text, result.text


@pytest.mark.parametrize("proof", PROOFS, ids=lambda proof: proof["file"])
def test_every_vector_is_proved(browser, proof):
    title, text = verify(browser, VECTORS / proof["file"], proof)
    assert title == ("ABSENT" if "absent" in proof["file"] else "PROVED"), text
    assert proof["says"] in text


@pytest.mark.parametrize("proof", PROOFS, ids=lambda proof: proof["file"])
def test_what_is_not_trusted_or_changed_is_not_proved(browser, proof, tmp_path):
    path = VECTORS / proof["file"]
    stranger = "2815b7983822cd393aa681de0fca0c13be0a0bb12aed1058f571a2f811c194d4"
    assert verify(browser, path, {**proof, "publisher": stranger})[0] == "NOT PROVED"
    assert verify(browser, path, {**proof, "database": "00" * 32})[0] == "NOT PROVED"
    assert verify(browser, path, proof, key="another key")[0] == "NOT PROVED"
    content = json.loads(path.read_text())
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps({**content, "proof_b64": content["proof_b64"][::-1]}))
    assert verify(browser, changed, proof)[0] == "NOT PROVED"
