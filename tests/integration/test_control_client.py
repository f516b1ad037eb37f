"""The command-line client with --control as its users have it."""

import json
import os
import pty
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jwt
import pytest
import redis

from tests.control_clients import CONTROL, control_ports
from tests.control_server import ControlServer
from tests.harness import TIMEOUT, Pushd, free_port
from tests.programs import Piped, Stream

SCORES = ("--subscribe", "scores")
SECRET = "a secret of thirty-two bytes and more"

Start = Callable[..., tuple[Pushd, int]]


class Following(Piped):
    """The client as it follows a channel."""

    def __init__(self, port: int, *options: str, stdout: Stream = -1) -> None:
        command = [sys.executable, "-m", "pushd.client", "--control", "127.0.0.1", str(port)]
        super().__init__([*command, *(options or SCORES)], stdin=-3, stdout=stdout)


@pytest.fixture
def server() -> Iterator[ControlServer]:
    with ControlServer() as running:
        yield running


def lines(*texts: str) -> bytes:
    """Return what standard error holds then."""
    return "".join(f"pushd-client: {text}\n" for text in texts).encode()


def token(expires: float) -> str:
    claims = {"exp": int(expires), "pushd": {"subscribe": ["scores"]}}
    return jwt.encode(claims, SECRET, "HS256")


def publisher(pushd: Pushd) -> redis.Redis:
    return redis.Redis(port=pushd.broker_port(), socket_timeout=TIMEOUT)


def publish(pushd: Pushd, *payloads: object) -> None:
    """Publish to the channel scores."""
    with publisher(pushd) as broker:
        for payload in payloads:
            broker.publish("scores", str(payload))


def publish_until(pushd: Pushd, program: Following) -> None:
    """Publish again and again until the client prints it: it is subscribed then."""
    while not program.output.now():
        publish(pushd, "ready")


class TestOutput:
    def test_payloads_are_exact(self, server: ControlServer) -> None:
        with Following(server.port) as program:
            client = server.welcome()
            client.hear("SUBSCRIBE scores")
            client.subscribed(0)
            client.message(1, "2:0")
            client.message(2, "ä\x1b[2J\u2028\r\nx")
            client.message(3, "")
            client.say("message", channel="scores", offset=4, id="e.1-4", data_base64="//4A")
            wanted = "2:0\nä\x1b[2J\u2028\r\nx\n\n".encode() + b"\xff\xfe\x00\n"
            assert program.output.wait(lambda got: len(got) >= len(wanted)) == wanted

    def test_a_terminal_is_not_controlled(self, server: ControlServer) -> None:
        master, slave = pty.openpty()
        with Following(server.port, stdout=slave) as program:
            client = server.welcome()
            client.subscribed(0)
            client.message(1, "\x1b[2J\u009b")
            client.say("gap", channel="scores", reason="\x1b[2J", missed=None, id="e.1-1")
            assert program.errors.wait(lambda got: got.endswith(b"\n")) == lines(
                "gap on scores: unknown how many messages missed (\\x1b[2J)"
            )
        assert os.read(master, 100) == b"\\x1b[2J\\x9b\r\n"
        os.close(slave)
        os.close(master)

    def test_whole_events(self, server: ControlServer) -> None:
        with Following(server.port, *SCORES, "--json") as program:
            client = server.welcome()
            client.subscribed(0)
            client.message(1, "a\nb")
            client.say("gap", channel="scores", reason="slow", missed=1, id="e.1-2", **{"from": 2, "to": 2})
            printed = program.output.wait(lambda got: got.count(b"\n") == 3)
            events = [json.loads(line) for line in printed.splitlines()]
            assert [event["type"] for event in events] == ["subscribed", "message", "gap"]
            assert [event["id"] for event in events] == ["e.1-0", "e.1-1", "e.1-2"]

    def test_an_output_that_nobody_reads_ends_it(self, server: ControlServer) -> None:
        with Following(server.port) as program:
            client = server.welcome()
            client.subscribed(0)
            assert program.stdout
            program.stdout.close()
            client.message(1, "x")
            assert (program.wait(TIMEOUT), program.errors.end()) == (0, b"")

    def test_an_output_that_cannot_be_written(self, server: ControlServer) -> None:
        with open("/dev/full", "wb") as full, Following(server.port, stdout=full) as program:
            client = server.welcome()
            client.subscribed(0)
            client.message(1, "x")
            said = lines("standard input or output: No space left on device")
            assert (program.wait(TIMEOUT), program.errors.end()) == (1, said)

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
    def test_signals(self, server: ControlServer, number: signal.Signals, status: int) -> None:
        with Following(server.port) as program:
            client = server.welcome()
            client.subscribed(0)
            client.message(1, "ready")
            program.output.wait(lambda got: got == b"ready\n")
            program.send_signal(number)
            assert program.end() == (status, b"ready\n", b"")


class TestComingBack:
    def test_after_a_goodbye_when_the_server_wants_it(self, server: ControlServer) -> None:
        with Following(server.port) as program:
            client = server.welcome()
            client.hear("SUBSCRIBE scores")
            client.subscribed(5)
            client.message(6, "six")
            client.say("bye", reason="drain", retry_ms=20)
            client.hear_end()
            client = server.welcome()
            client.hear("SUBSCRIBE scores FROM e.1-6")
            client.subscribed(6, recovered=True)
            client.message(7, "seven")
            assert program.output.wait(lambda got: b"seven" in got) == b"six\nseven\n"
            assert program.errors.wait(lambda got: got.endswith(b"subscribed\n")) == lines(
                "the server said goodbye (drain); trying again in 0.0 s", "subscribed"
            )

    def test_after_a_loss(self, server: ControlServer) -> None:
        with Following(server.port, "--psubscribe", "*", "--slow", "skip", *SCORES) as program:
            client = server.welcome()
            client.hear("SUBSCRIBE scores SLOW skip")
            client.hear("PSUBSCRIBE * SLOW skip")
            client.subscribed(5)
            client.say("subscribed", pattern="*", offset=8, id="e.2-8", upstream="up")
            client.message(6, "six")
            client.close()
            client = server.welcome()
            client.hear("SUBSCRIBE scores FROM e.1-6 SLOW skip")
            client.hear("PSUBSCRIBE * FROM e.2-8 SLOW skip")
            assert re.fullmatch(
                rb"pushd-client: the server closed the connection; trying again in 0\.\d s\n",
                program.errors.wait(lambda got: got.endswith(b"\n")),
            )

    def test_from_a_server_that_says_nothing(self, server: ControlServer) -> None:
        with Following(server.port) as program:
            client = server.welcome(heartbeat=0.1)
            client.hear("SUBSCRIBE scores")
            client.hear_end()
            server.welcome().hear("SUBSCRIBE scores")
            said = program.errors.wait(lambda got: got.endswith(b"\n"))
            assert said.startswith(b"pushd-client: connection lost: timed out; trying again in 0.")

    def test_to_where_nobody_listens_yet(self) -> None:
        with Following(port := free_port()) as program:
            program.errors.wait(lambda got: b"Connection refused; trying again in 0." in got)
            with ControlServer(port) as server:
                server.welcome().hear("SUBSCRIBE scores")

    def test_less_and_less_often_until_it_is_subscribed(self, server: ControlServer) -> None:
        with Following(server.port) as program:
            for _ in range(3):
                client = server.connected()
                client.say("error", code="too-many-clients", message="no more", command=None)
                client.hear_end()
            client = server.welcome()
            client.subscribed(0)
            client.close()
            said = program.errors.wait(lambda got: got.count(b"\n") == 5).decode()
            waits = [float(wait) for wait in re.findall(r"trying again in ([\d.]+) s\n", said)]
            assert said.count("no more (too-many-clients); trying") == 3
            assert len(waits) == 4
            assert all(m / 2 - 0.05 <= wait <= m for wait, m in zip(waits, (0.5, 1, 2, 0.5), strict=True))

    def test_not_if_it_must_not(self, server: ControlServer) -> None:
        with Following(server.port, *SCORES, "--no-reconnect") as program:
            client = server.welcome()
            client.subscribed(0)
            client.message(1, "x")
            client.say("bye", reason="drain", retry_ms=20)
            assert program.end() == (1, b"x\n", lines("the server said goodbye (drain)"))


class TestEnds:
    def test_a_subscription_that_is_refused(self, server: ControlServer) -> None:
        with Following(server.port) as program:
            text = "this client may not subscribe to scores"
            server.welcome().say("error", code="forbidden", message=text, command="SUBSCRIBE")
            assert program.end() == (1, b"", lines(f"{text} (forbidden)"))

    def test_another_protocol(self, server: ControlServer) -> None:
        with Following(server.port) as program:
            server.connected().say_line(b"SSH-2.0-x\r")
            said = lines("this is not the control protocol: SSH-2.0-x\\r")
            assert program.end() == (1, b"", said)

    def test_all_before_the_end_is_printed(self, server: ControlServer) -> None:
        with Following(server.port) as program:
            client = server.welcome()
            client.subscribed(0)
            client.say_line(
                b'{"type":"message","channel":"scores","offset":1,"id":"i","data":"x"}\n'
                b'{"type":"error","code":"whim","message":"no","command":null}'
            )
            assert program.end() == (1, b"x\n", lines("no (whim)"))

    @pytest.mark.parametrize("offset", [2, 3])
    def test_strict(self, server: ControlServer, offset: int) -> None:
        with Following(server.port, *SCORES, "--strict") as program:
            client = server.welcome()
            client.subscribed(0)
            client.message(1, "one")
            if offset == 2:
                gap = {"from": 2, "to": 2, "missed": 1, "reason": "slow"}
                client.say("gap", channel="scores", id="e.1-2", **gap)
                why = "slow"
            else:
                client.message(3, "three")
                why = "the server told of no gap"
            said = lines(f"gap on scores: 1 message missed ({why})")
            assert program.end() == (3, b"one\n", said)


class TestTokens:
    def test_are_read_again(self, server: ControlServer, tmp_path: Path) -> None:
        path = tmp_path / "token"
        path.write_text("first\n")
        with Following(server.port, *SCORES, "--token-file", str(path)):
            client = server.welcome(auth="required")
            client.hear("AUTH first")
            client.say("authenticated", name=None, expires="2030-01-01T00:00:00Z")
            client.hear("SUBSCRIBE scores")
            client.subscribed(0)
            path.write_text("second\n")
            client.say("bye", reason="token-expired")
            client = server.welcome(auth="required")
            client.hear("AUTH second")

    def test_are_not_there(self, server: ControlServer, tmp_path: Path) -> None:
        path = tmp_path / "token"
        with Following(server.port, *SCORES, "--token-file", str(path)) as program:
            assert program.end() == (1, b"", lines(f"cannot read {path}: No such file or directory"))

    def test_are_asked_for(self, server: ControlServer) -> None:
        with Following(server.port) as program:
            client = server.welcome(auth="required")
            said = lines("the server asks for a token: say where it is with --token-file")
            assert program.end() == (1, b"", said)
            client.hear_end()


class TestWithPushd:
    """What a real pushd does on demand."""

    @pytest.fixture
    def start(self, start_pushd: Callable[..., Pushd]) -> Start:
        def start(*options: str, control: str = CONTROL) -> tuple[Pushd, int]:
            pushd = start_pushd(
                "--control", control, "--channel", "scores", "--redis", "embedded:0", *options
            )
            (port,) = control_ports(pushd)
            return pushd, port

        return start

    def test_begins_with_the_last_messages(self, start: Start) -> None:
        pushd, port = start()
        publish(pushd, *range(1, 6))
        with Following(port, *SCORES, "--last", "2") as program:
            program.output.wait(lambda got: got == b"4\n5\n")
            publish(pushd, 6)
            program.output.wait(lambda got: got == b"4\n5\n6\n")

    def test_begins_behind_an_id(self, start: Start) -> None:
        pushd, port = start()
        publish(pushd, *range(1, 4))
        with Following(port, *SCORES, "--last", "3", "--json") as program:
            printed = program.output.wait(lambda got: got.count(b"\n") == 4)
        second = json.loads(printed.splitlines()[2])
        assert second["data"] == "2"
        with Following(port, *SCORES, "--from", second["id"]) as program:
            program.output.wait(lambda got: got == b"3\n")

    def test_misses_nothing_when_it_is_cut_off_again_and_again(self, start: Start) -> None:
        pushd, port = start("--idle-timeout", "0.2")
        with Following(port, *SCORES, "--strict") as program, publisher(pushd) as broker:
            publish_until(pushd, program)
            number, printed = 0, b""
            while program.errors.now().count(b"said goodbye (idle)") < 5:
                for _ in range(100):
                    broker.publish("scores", number := number + 1)
                # Not more than is kept for a client that is away.
                printed = program.output.wait(lambda got: got.endswith(b"\n%d\n" % number))
        got = [int(line) for line in printed.splitlines() if line != b"ready"]
        assert got == list(range(1, number + 1))

    def test_a_pushd_that_was_started_again_has_forgotten(self, start: Start) -> None:
        port = free_port()
        endpoint = f"tcp:{port}:interface=127.0.0.1"
        pushd, _ = start(control=endpoint)
        with Following(port) as program, Following(port, *SCORES, "--strict") as strict:
            for each in (program, strict):
                publish_until(pushd, each)
            pushd.terminate()
            start(control=endpoint)
            said = b"pushd-client: gap on scores: unknown how many messages missed (unknown)\n"
            program.errors.wait(lambda got: got.endswith(said + b"pushd-client: subscribed\n"))
            assert b"said goodbye (drain); trying again in " in program.errors.now()
            assert strict.wait(TIMEOUT) == 3
            assert strict.errors.end().endswith(said)

    def test_a_reader_that_stops_for_many_heartbeats(self, start: Start) -> None:
        pushd, port = start("--heartbeat", "0.2", "--history", "1M", "--send-buffer", "16K")
        payload = "x" * 10_000
        with Following(port, *SCORES, "--slow", "skip") as program, publisher(pushd) as broker:
            publish_until(pushd, program)
            for number in range(3000):
                broker.publish("scores", f"{number} {payload}")
                time.sleep(0.001)
            broker.publish("scores", "the end")
            output = program.output.wait(lambda got: got.endswith(b"the end\n"))
            errors = program.errors.wait(lambda got: got.endswith(b"(slow)\n"))
        told = re.findall(rb"gap on scores: (\d+) messages missed \(slow\)\n", errors)
        assert len(told) == errors.count(b"\n")
        assert output.count(payload.encode()) + sum(map(int, told)) == 3000

    def test_what_is_not_allowed(self, start: Start) -> None:
        _, port = start()
        with Following(port, "--subscribe", "secrets") as program:
            said = lines("this client may not subscribe to secrets (forbidden)")
            assert program.end() == (1, b"", said)

    def test_a_token_that_is_renewed(self, start: Start, tmp_path: Path) -> None:
        key, path = tmp_path / "key", tmp_path / "token"
        key.write_text(SECRET)
        pushd, port = start("--jwt-key", str(key))
        path.write_text(token(time.time() + 1))
        with Following(port, *SCORES, "--token-file", str(path)) as program:
            program.errors.wait(lambda got: b"token-expired)" in got)
            path.write_text(token(time.time() + 1000))
            program.errors.wait(lambda got: got.endswith(b"pushd-client: subscribed\n"))
            publish(pushd, "x")
            program.output.wait(lambda got: got == b"x\n")
