"""The README's first screen, word for word; only ports that are taken on this machine are changed."""

import contextlib
import os
import pty
import re
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import SCRIPTS, TIMEOUT, Process, free_port, redis_program

ROOT = Path(__file__).parents[2]


def commands(section: str) -> list[str]:
    """Return the lines of all shell blocks of a section of the README."""
    text = (ROOT / "README.md").read_text()
    body = re.split(r"^## ", text.split(f"## {section}\n", 1)[1], flags=re.MULTILINE)[0]
    return [line for block in re.findall(r"```sh\n(.*?)```", body, re.DOTALL) for line in block.splitlines()]


def free(port: int) -> int:
    """Return a port, or another where somebody else has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return free_port()
    return port


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, command: list[str]) -> None:
        self._master, slave = pty.openpty()
        self._child = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self._shown = b""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, pattern: str) -> None:
        """Return once a regular expression matches what has been shown since the last match."""
        deadline = time.monotonic() + TIMEOUT
        while not (found := re.search(pattern.encode(), self._shown, re.DOTALL)):
            ready, _, _ = select.select([self._master], [], [], deadline - time.monotonic())
            assert ready, f"{pattern!r} not in {self._shown!r}"
            self._shown += os.read(self._master, 65536)
        self._shown = self._shown[found.end() :]

    def close(self) -> None:
        self._child.kill()
        self._child.wait()
        os.close(self._master)


@contextlib.contextmanager
def running_as_in_the_first_screen(port: int, broker: int) -> Iterator[Process]:
    """Run what ``make run`` runs, once everything is installed."""
    plan = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "run"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    command = plan.stdout.splitlines()[-1]
    assert command == ".venv/bin/twistd -n pushd --port 8888 --channel updates --redis embedded"
    words = command.replace("8888", str(port)).replace("embedded", f"embedded:{broker}").split()
    with Process([SCRIPTS / "twistd", *words[1:]]) as pushd:
        pushd.wait_for("Listening on")
        yield pushd


@pytest.fixture(name="in_tmp", autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where twistd leaves its pid file


def test_the_first_screen() -> None:
    make, telnet, publish, _ = commands("First screen")
    assert make == "make run"
    port, broker = free(8888), free(6379)
    client = telnet if shutil.which("telnet") else f"{SCRIPTS / 'pushd-client'} localhost 8888"
    with running_as_in_the_first_screen(port, broker):
        terminal = Terminal(client.replace("8888", str(port)).split())
        with contextlib.closing(terminal):
            if client == telnet:
                terminal.wait_for("Escape character is")
            terminal.type("hello\n")
            terminal.wait_for("hello.*hello\r\n")
            published = subprocess.run(
                [
                    "bash",
                    "-c",
                    publish.replace("redis-cli", redis_program("redis-cli")).replace("6379", str(broker)),
                ],
                check=True,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
            assert published.stdout == "1\n"
            terminal.wait_for("follow the white rabbit\r\n")


def test_without_telnet_and_redis_cli() -> None:
    text = (ROOT / "README.md").read_text()
    listen, publish = re.findall(r"`\.venv/bin/(pushd-client localhost \d+)`", text)
    assert (listen, publish) == ("pushd-client localhost 8888", "pushd-client localhost 6379")
    port, broker = free(8888), free(6379)
    with running_as_in_the_first_screen(port, broker), contextlib.ExitStack() as stack:
        reader, publisher = (
            stack.enter_context(
                contextlib.closing(Terminal([str(SCRIPTS / "pushd-client"), "localhost", str(number)]))
            )
            for number in (port, broker)
        )
        reader.type("hello\n")
        reader.wait_for("hello.*hello")
        publisher.type('PUBLISH updates "follow the white rabbit"\n')
        publisher.wait_for(":1")
        reader.wait_for("follow the white rabbit")


@pytest.mark.skipif(not shutil.which("telnet"), reason="telnet is not installed here")
def test_telnet() -> None:
    port, broker = free(8888), free(6379)
    with running_as_in_the_first_screen(port, broker):
        terminal = Terminal(["telnet", "localhost", str(port)])
        with contextlib.closing(terminal):
            terminal.wait_for("Escape character is")
            for line in ("one", "two words", "", "ä"):
                terminal.type(f"{line}\n")
                terminal.wait_for(f"{line}\r\n.*{line}\r\n")
