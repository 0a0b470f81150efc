"""What all tests of the stack share: where the programs are, and what a missing one means.

A tool that is not on this machine skips the tests that need it, by name. Where SYNCD_CI is set, a
skipped test fails: CI has installed everything (tests/stack/install/).
"""

import functools
import json
import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Where tests/stack/install/* put what they install.
TOOLS = pathlib.Path(os.environ.get("SYNCD_STACK_TOOLS", pathlib.Path.home() / ".cache/syncd-stack"))


def tool(name: str) -> str:
    """The path of a program that tests/stack/install/ or the machine has; skips without it."""
    installed = TOOLS / "bin" / name
    found = str(installed) if installed.exists() else shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed (tests/stack/install/)")
    return found


@functools.cache
def target() -> pathlib.Path:
    """Where cargo puts what it builds."""
    command = ["cargo", "metadata", "--format-version", "1", "--no-deps", "--offline"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    return pathlib.Path(json.loads(output)["target_directory"])


def binary(name: str) -> str:
    """The path of one of the product's programs, as cargo built it last."""
    found = target() / os.environ.get("SYNCD_STACK_PROFILE", "debug") / name
    if not found.exists():
        pytest.skip(f"{found} is not built (cargo build)")
    return str(found)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.skipped and os.environ.get("SYNCD_CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {item.name}: {report.longrepr}"
