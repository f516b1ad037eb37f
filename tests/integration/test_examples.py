"""The clients in examples/: each must come back and go on where it was."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from tests.control_clients import CONTROL, control_ports
from tests.control_server import ControlServer
from tests.harness import TIMEOUT, Pushd, free_port
from tests.programs import Piped

EXAMPLES = Path(__file__).parents[2] / "examples"
COMMANDS = {
    "python": [sys.executable, "client.py"],
    "node": ["node", "client.mjs"],
    "shell": ["bash", "client.sh"],
}
NEEDED = {"python": (), "node": ("node",), "shell": ("bash", "jq", "nc")}

Follow = Callable[..., Piped]


def needing(name: str) -> "pytest.MarkDecorator":
    """Skip an example whose programs are not all here."""
    missing = [program for program in NEEDED[name] if not shutil.which(program)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed here: {', '.join(missing)}")


EXAMPLE_PARAMETERS = [pytest.param(name, marks=needing(name)) for name in COMMANDS]


@pytest.fixture(params=EXAMPLE_PARAMETERS, name="example")
def _example(request: pytest.FixtureRequest) -> str:
    """Return the name of an example."""
    name: str = request.param
    return name


@pytest.fixture
def follow(example: str) -> Iterator[Follow]:
    """Return what starts an example that follows the channel scores."""
    started: list[Piped] = []

    def start(port: int, token: str | None = None) -> Piped:
        program, script = COMMANDS[example]
        environment = {**os.environ, **({"PUSHD_TOKEN": token} if token else {})}
        command = [program, str(EXAMPLES / script), "127.0.0.1", str(port), "scores"]
        started.append(Piped(command, stdin=-3, env=environment))
        return started[-1]

    yield start
    for program in started:
        with program:
            pass


@pytest.fixture
def server() -> Iterator[ControlServer]:
    with ControlServer() as running:
        yield running


def test_prints_payloads(server: ControlServer, follow: Follow, example: str) -> None:
    program = follow(server.port)
    client = server.welcome()
    client.hear("SUBSCRIBE scores")
    client.subscribed(0)
    payloads = ["1:0", "", " a  b ", "ä\u2028\r\n\t\\n\\\\c%s", "the end"]
    for offset, payload in enumerate(payloads, 1):
        client.message(offset, payload)
    wanted = "".join(f"{payload}\n" for payload in payloads).encode()
    assert program.output.wait(lambda got: got.endswith(b"the end\n")) == wanted
    client.say("message", channel="scores", offset=6, id="e.1-6", data_base64="//4A")
    program.output.wait(
        lambda got: got == wanted + (b"//4A" if example == "shell" else b"\xff\xfe\x00") + b"\n"
    )


def test_goes_on_after_a_loss(server: ControlServer, follow: Follow) -> None:
    program = follow(server.port)
    client = server.welcome()
    client.hear("SUBSCRIBE scores")
    client.subscribed(5)
    client.message(6, "six")
    client.say_line(json.dumps({"type": "heartbeat", "upstream": "up", "offsets": {"scores": 6}}).encode())
    program.output.wait(lambda got: got == b"six\n")
    client.tear(b'{"type":"message","channel":"scores","offset":7,"id":"e.1-7"')
    client = server.welcome()
    client.hear("SUBSCRIBE scores FROM e.1-6")
    client.subscribed(6, recovered=True)
    client.message(7, "seven")
    program.output.wait(lambda got: got == b"six\nseven\n")


def test_goes_on_behind_a_gap_which_it_tells_of(server: ControlServer, follow: Follow) -> None:
    program = follow(server.port)
    client = server.welcome()
    client.subscribed(5)
    client.say("gap", channel="scores", reason="slow", missed=3, id="e.1-8", **{"from": 6, "to": 8})
    client.say("gap", channel="scores", reason="source", missed=None, id="e.1-8+1", since="a", until="b")
    told = b"gap: 3 messages missed (slow)\ngap: unknown how many messages missed (source)\n"
    program.errors.wait(lambda got: got == told)
    client.close()
    server.welcome().hear("SUBSCRIBE scores FROM e.1-8+1")


def test_comes_back_when_the_server_wants_it(server: ControlServer, follow: Follow) -> None:
    follow(server.port)
    client = server.welcome()
    client.hear("SUBSCRIBE scores")
    client.say("bye", reason="drain", retry_ms=2000)
    client.close()
    closed = time.monotonic()
    client = server.connected()
    assert 1.9 < time.monotonic() - closed < 2 + TIMEOUT / 2
    client.say("error", code="too-many-clients", message="no more", command=None, retry_ms=10)
    client.close()
    server.welcome().hear("SUBSCRIBE scores")


def test_waits_for_a_server_that_is_not_there_yet(follow: Follow, example: str) -> None:
    program = follow(port := free_port())
    if example != "shell":  # nc says nothing
        program.errors.wait(lambda got: got.startswith(b"connection lost: "))
    with ControlServer(port) as server:
        server.welcome().hear("SUBSCRIBE scores")


# The one in shell waits for two heartbeats of 30 seconds, whatever the server says.
@pytest.mark.parametrize("example", EXAMPLE_PARAMETERS[:2], indirect=True)
def test_notices_a_server_that_says_nothing(server: ControlServer, follow: Follow) -> None:
    program = follow(server.port)
    client = server.welcome(heartbeat=0.1)
    client.hear("SUBSCRIBE scores")
    client.hear_end()
    server.welcome()
    assert b"timed out" in program.errors.wait(lambda got: got.endswith(b"\n"))


def test_ends_if_it_is_refused(server: ControlServer, follow: Follow) -> None:
    program = follow(server.port)
    client = server.welcome()
    client.hear("SUBSCRIBE scores")
    client.say("error", code="forbidden", message="you may not", command="SUBSCRIBE", channel="scores")
    assert program.wait(TIMEOUT) == 1
    assert program.errors.wait(lambda got: got.endswith(b"\n")) == b"error: you may not\n"


def test_says_who_it_is(server: ControlServer, follow: Follow) -> None:
    follow(server.port, token="a.b.c")
    client = server.welcome(auth="required")
    client.hear("AUTH a.b.c")
    client.hear("SUBSCRIBE scores")


def test_misses_nothing_of_a_pushd_that_cuts_it_off(
    start_pushd: Callable[..., Pushd], follow: Follow
) -> None:
    # Whoever says nothing for so long is closed: these clients are, and come back a second later.
    pushd = start_pushd(
        *("--control", CONTROL, "--channel", "scores", "--redis", "embedded:0", "--idle-timeout", "0.3")
    )
    (port,) = control_ports(pushd)
    program = follow(port)
    printed, number = program.output, 0
    with redis.Redis(port=pushd.broker_port(), socket_timeout=TIMEOUT) as publisher:
        deadline = time.monotonic() + TIMEOUT
        # That takes more than three seconds, of which one connection sees a tenth: there are losses.
        while printed.now().count(b"\n") < 60:
            assert time.monotonic() < deadline
            number += 1
            publisher.publish("scores", number)
            time.sleep(0.05)
    got = [int(line) for line in printed.now().split(b"\n")[:-1]]
    assert got == list(range(got[0], got[0] + len(got)))
    assert b"gap" not in program.errors.now()
