"""The conversation of docs/protocol.md, word for word, with a real pushd and a real Redis."""

import contextlib
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.control_clients import CONTROL, control_ports
from tests.harness import Client, Pushd, RedisServer
from tests.integration.test_readme import Terminal

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"


def transcript() -> list[tuple[str, str]]:
    """Return the document's conversation: who says what."""
    (block,) = re.findall(r"```transcript\n(.*?)```", PROTOCOL.read_text(), re.DOTALL)
    lines = [line.partition(" ") for line in block.splitlines()]
    assert {who for who, _, _ in lines} == {"<", ">", "$"}
    return [(who, text) for who, _, text in lines]


def documented_options() -> list[str]:
    """Return what the document starts pushd with, on a port of its own choice."""
    (command,) = re.findall(r"^twistd -n pushd --control 8889 (.*)$", PROTOCOL.read_text(), re.MULTILINE)
    return ["--control", CONTROL, *shlex.split(command)]


def epoch_in(welcome: str) -> str:
    found = re.search('"epoch":"([a-z0-9]{6})"', welcome)
    assert found
    return found[1]


def test_the_first_conversation(redis_server: RedisServer, start_pushd: Callable[..., Pushd]) -> None:
    pushd = start_pushd("--redis", redis_server.url, *documented_options())
    (port,) = control_ports(pushd)
    said = transcript()
    documented = epoch_in(said[0][1])
    with Client(port) as client:
        epoch = ""
        for who, text in said:
            line = text.replace(documented, epoch or documented)
            match who:
                case ">":
                    client.send(line.encode() + b"\n")
                case "$":
                    program, *words = shlex.split(line)
                    assert program == "redis-cli"
                    assert re.fullmatch(r"\d+\n", redis_server.cli(*words))
                case "<":
                    heard = read_line(client)
                    if not epoch:
                        epoch = epoch_in(heard)
                        line = line.replace(documented, epoch)
                    assert heard == line
        assert client.read_to_end() == b""
    pushd.terminate()
    assert "Traceback" not in pushd.output


def read_line(client: Client) -> str:
    """Return a line as it comes, without its LF."""
    line = b""
    while not line.endswith(b"\n"):
        byte = client.read(1)
        assert byte, f"closed after {line!r}"
        line += byte
    return line[:-1].decode()


@pytest.mark.skipif(not shutil.which("telnet"), reason="telnet is not installed here")
def test_the_first_conversation_typed_into_telnet(
    redis_server: RedisServer, start_pushd: Callable[..., Pushd]
) -> None:
    pushd = start_pushd("--redis", redis_server.url, *documented_options())
    (port,) = control_ports(pushd)
    terminal = Terminal(["telnet", "localhost", str(port)])
    with contextlib.closing(terminal):
        terminal.wait_for(r"Escape character is '\^\]'\.\r\n")
        for who, text in transcript():
            line = re.escape(text).replace("k3f9ab", "[a-z0-9]{6}")
            if "FROM" in text:
                break  # an id is copied, not typed
            if who == ">":
                terminal.type(f"{text}\n")
                terminal.wait_for(f"^{line}\r\n")
            elif who == "<":
                terminal.wait_for(f"^{line}\r\n")
            else:
                redis_server.cli(*shlex.split(text)[1:])
        terminal.type("quit\n")
        terminal.wait_for('^quit\r\n{"type":"bye","reason":"quit"}\r\nConnection closed by foreign host')
