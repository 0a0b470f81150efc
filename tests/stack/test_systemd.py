"""deploy/systemd: units that systemd understands, and that leave the daemons little of the machine."""

import re
import subprocess

import pytest
from conftest import ROOT, binary, tool

UNITS = ROOT / "deploy/systemd"
# As `systemd-analyze security` counts: 0 is closed, 10 is open. 1.9 and less it calls OK.
EXPOSURE_MAX = 19


@pytest.fixture(params=["syncd-server", "syncd-client"])
def unit(request, tmp_path):
    """A unit with this build's programs and a user that exists, so that everything it names is there."""
    text = (UNITS / f"{request.param}.service").read_text()
    for program in ("syncd-server", "syncd-client", "syncctl"):
        text = text.replace(f"/usr/local/bin/{program}", binary(program))
    path = tmp_path / f"{request.param}.service"
    path.write_text(re.sub(r"(?m)^(User|Group)=.*$", r"\1=root", text))
    return path


def analyze(*arguments):
    command = [tool("systemd-analyze"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_units_are_valid(unit):
    done = analyze("verify", "--man=no", unit)
    ours = [line for line in done.stderr.splitlines() if unit.name in line]
    assert done.returncode == 0 and not ours, done.stderr


def test_a_mistake_is_found(unit):
    unit.write_text(unit.read_text().replace("WatchdogSec=", "WatchdogSecs="))
    done = analyze("verify", "--man=no", unit)
    assert "WatchdogSecs" in done.stderr, done.stderr


def test_units_are_hardened(unit):
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE_MAX}", "--no-pager", unit)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr


@pytest.mark.parametrize("role", ["server", "client"])
def test_the_daemons_have_what_they_need(role):
    """What the programs count on, beside each other: notifications, a reload that reports, descriptors."""
    text = (UNITS / f"syncd-{role}.service").read_text()
    for line in ("Type=notify", "WatchdogSec=30s", "LimitNOFILE=1048576", f"StateDirectory=syncd/{role}"):
        assert line in text.splitlines(), line
    assert re.search(rf"(?m)^ExecReload=.*syncctl reload --storage-dir %S/syncd/{role}$", text)
    assert f"u syncd-{role} " in (UNITS / "sysusers.conf").read_text()
