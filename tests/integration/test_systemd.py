"""The unit for systemd, as systemd-analyze judges it, and its example of an environment file."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from pushd.tap import Options
from tests.harness import TIMEOUT

UNITS = Path(__file__).parents[2] / "systemd"
TARGETS = ("sysinit.target", "basic.target", "shutdown.target")
"""What systemd orders every service after or before."""

needs_analyzer = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze, a part of systemd, is not installed"
)


def analyze(*words: str | Path) -> str:
    """Return all that systemd-analyze said; it must have ended well."""
    done = subprocess.run(
        ["systemd-analyze", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def setting(name: str) -> str:
    """Return the only value of a setting of the unit."""
    (value,) = re.findall(rf"^{name}=(.*)$", (UNITS / "pushd.service").read_text(), re.MULTILINE)
    return str(value)


@needs_analyzer
def test_the_unit_is_valid_where_pushd_is_installed(tmp_path: Path) -> None:
    # The root of a machine in small, so that the unit is checked as it is, with the path of its command.
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    (tmp_path / "usr/lib/systemd/system").mkdir(parents=True)
    shutil.copy(UNITS / "pushd.service", tmp_path / "etc/systemd/system")
    for target in TARGETS:
        (tmp_path / "usr/lib/systemd/system" / target).write_text("[Unit]\nDefaultDependencies=no\n")
    twistd = tmp_path / setting("ExecStart").split()[0].removeprefix("/")
    twistd.parent.mkdir(parents=True)
    twistd.write_text("#!/bin/sh\n")
    twistd.chmod(0o755)
    assert analyze("verify", f"--root={tmp_path}", "pushd.service") == ""


@needs_analyzer
def test_the_service_is_exposed_little() -> None:
    # What is left is mostly the network, which it is there for.
    said = analyze("security", "--no-pager", "--offline=true", UNITS / "pushd.service")
    level = re.search(r"Overall exposure level for pushd\.service: ([\d.]+)", said)
    assert level
    assert float(level[1]) < 1.5


def test_systemd_waits_longer_than_the_drain() -> None:
    options = Options()
    options.parseOptions([])
    assert float(setting("TimeoutStopSec")) > options.settings.drain


def test_the_example_of_an_environment_file() -> None:
    # systemd splits the value into words much as a shell does.
    assignments = dict(
        shlex.split(line)[0].split("=", 1)
        for line in (UNITS / "pushd.env").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert list(assignments) == ["PUSHD_OPTIONS"]
    assert "$PUSHD_OPTIONS" in setting("ExecStart").split()
    options = Options()
    options.parseOptions(shlex.split(assignments["PUSHD_OPTIONS"]))
    assert [topic.name for topic in options.settings.topics] == [b"updates"]
