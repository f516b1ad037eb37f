"""The command-line client as its users have it: in pipes and on a terminal, with servers that come and go."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pyte
import pytest

from tests.harness import TIMEOUT, Client, Pushd, free_port
from tests.programs import Child, Output, Piped, Server, Stream, reset

COMMAND = [sys.executable, "-m", "pushd.client"]
LOST = b"pushd-client: connection lost: Connection reset by peer\n"


class InPipes(Piped):
    """The client as a part of a pipeline."""

    def __init__(self, port: int, *options: str, stdin: Stream = PIPE, stdout: Stream = PIPE) -> None:
        super().__init__([*COMMAND, "127.0.0.1", str(port), *options], stdin=stdin, stdout=stdout)


class OnTerminal(Child):
    """The client on a pseudo-terminal of its own, as its controlling terminal."""

    def __init__(self, port: int) -> None:
        self._master, self._slave = pty.openpty()
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._modes = termios.tcgetattr(self._slave)
        self.output = Output(self._master)
        # The first terminal that the leader of a session opens becomes its controlling terminal.
        attach = ["sh", "-c", 'exec "$@" <>"$0" >&0 2>&0', os.ttyname(self._slave)]
        environment = {**os.environ, "TERM": "xterm"}
        super().__init__([*attach, *COMMAND, "127.0.0.1", str(port)], start_new_session=True, env=environment)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        os.close(self._slave)
        os.close(self._master)

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def wait_rows(self, *rows: str, cursor: int | None = None) -> None:
        """Return once these are the last rows down to the cursor's, trailing spaces aside."""
        screen = pyte.Screen(80, 24)

        def shown(written: bytes) -> bool:
            screen.reset()
            pyte.ByteStream(screen).feed(written)
            last = [row.rstrip() for row in screen.display[: screen.cursor.y + 1]][-len(rows) :]
            return last == list(rows) and cursor in (None, screen.cursor.x)

        self.output.wait(shown)

    def end(self) -> int:
        """Return the exit status; by then the terminal must be as it was."""
        status = self.wait(TIMEOUT)
        assert termios.tcgetattr(self._slave) == self._modes
        return status


@pytest.fixture
def server() -> Iterator[Server]:
    with contextlib.closing(Server()) as running:
        yield running


def receive(connection: socket.socket, expected: bytes) -> None:
    """Take exactly these bytes from the client."""
    got = bytearray()
    while len(got) < len(expected) and (data := connection.recv(len(expected) - len(got))):
        got += data
    assert got == expected


def finish(connection: socket.socket, answer: bytes = b"") -> None:
    """Do as a server does once the client has closed its sending side."""
    assert connection.recv(1) == b""
    connection.sendall(answer)
    connection.close()


class TestInPipes:
    def test_lines_go_out_with_cr_lf_and_come_in_exactly(self, server: Server) -> None:
        with InPipes(server.port) as client:
            connection = server.accept()
            client.type(b"one\ntwo\r\n\xff\x1b[2J\n\n")
            receive(connection, b"one\r\ntwo\r\n\xff\x1b[2J\r\n\r\n")
            connection.sendall(b"\xff\x1b[2J\r\na\nb\rc\r\n\r\nhalf")
            client.output.wait(lambda got: got == b"\xff\x1b[2J\na\nb\rc\n\n")
            connection.sendall(b" a line\r\n")
            client.output.wait(lambda got: got.endswith(b"\nhalf a line\n"))

    def test_a_terminal_at_the_end_of_the_pipe_is_not_controlled(self, server: Server) -> None:
        master, slave = pty.openpty()
        with InPipes(server.port, stdin=DEVNULL, stdout=slave) as client:
            finish(server.accept(), b"\x1b[2J\xff\r\n")
            assert client.wait(TIMEOUT) == 0
        assert os.read(master, 100) == b"\\x1b[2J\\xff\r\n"
        os.close(slave)
        os.close(master)

    @pytest.mark.parametrize(
        ("given", "lines"),
        [(b"one\ntwo", b"one\r\ntwo\r\n"), (b"one\nexit\nnever\n", b"one\r\n"), (b"", b"")],
    )
    def test_leaves_once_the_server_has_answered(self, server: Server, given: bytes, lines: bytes) -> None:
        with InPipes(server.port) as client:
            client.type(given)
            if b"exit" not in given:
                client.end_input()
            connection = server.accept()
            receive(connection, lines)
            finish(connection, b"answer\r\n")
            assert client.end() == (0, b"answer\n", b"")

    def test_a_large_file_while_the_server_answers_each_line(self, server: Server, tmp_path: Path) -> None:
        # More than the kernel buffers of both directions hold: whoever reads only after it has written hangs.
        given, printed = tmp_path / "given", tmp_path / "printed"
        given.write_bytes((b"follow the white rabbit " * 40 + b"\n") * 20_000)
        with (
            given.open("rb") as stdin,
            printed.open("wb") as stdout,
            InPipes(server.port, stdin=stdin, stdout=stdout) as client,
        ):
            connection = server.accept()
            while data := connection.recv(65536):
                connection.sendall(data)
            connection.close()
            assert client.wait(TIMEOUT) == 0
        assert printed.read_bytes() == given.read_bytes()

    def test_an_output_that_nobody_reads_ends_it(self, server: Server) -> None:
        with InPipes(server.port) as client:
            connection = server.accept()
            connection.sendall(b"one\r\n")
            client.output.wait(lambda got: got == b"one\n")
            assert client.stdout
            client.stdout.close()
            connection.sendall(b"two\r\n")
            assert (client.wait(TIMEOUT), client.errors.end()) == (0, b"")

    def test_an_output_that_cannot_be_written(self, server: Server) -> None:
        with open("/dev/full", "wb") as full, InPipes(server.port, stdout=full) as client:
            server.accept().sendall(b"one\r\n")
            said = b"pushd-client: standard input or output: No space left on device\n"
            assert (client.wait(TIMEOUT), client.errors.end()) == (1, said)

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
    def test_signals(self, server: Server, number: signal.Signals, status: int) -> None:
        with InPipes(server.port) as client:
            server.accept().sendall(b"ready\r\n")
            client.output.wait(lambda got: got == b"ready\n")
            client.send_signal(number)
            assert client.end() == (status, b"ready\n", b"")


class TestConnection:
    @pytest.mark.parametrize(
        ("host", "problem"),
        [
            ("localhost", rb"Connection refused"),
            ("host.invalid", rb"[^\n]+"),
            ("x" * 70 + ".invalid", rb"not a valid host name"),
        ],
    )
    def test_cannot_connect(self, host: str, problem: bytes) -> None:
        command = [*COMMAND, host, str(free_port()), "--no-reconnect"]
        ended = subprocess.run(command, stdin=DEVNULL, capture_output=True, timeout=TIMEOUT, check=False)
        assert (ended.returncode, ended.stdout) == (1, b"")
        said = rb"pushd-client: cannot connect to \S+ port \d+: " + problem + rb"\n"
        assert re.fullmatch(said, ended.stderr)

    def test_the_server_closes(self, server: Server) -> None:
        with InPipes(server.port, "--no-reconnect") as client:
            connection = server.accept()
            connection.sendall(b"goodbye\r\ntorn")
            connection.close()
            status, output, errors = client.end()
            assert (status, output) == (1, b"goodbye\n")
            assert errors.splitlines() == [
                b"pushd-client: 4 bytes of an unfinished line dropped",
                b"pushd-client: the server closed the connection",
            ]

    def test_a_goodbye_is_read_although_sending_fails(self, server: Server, tmp_path: Path) -> None:
        path = tmp_path / "lines"
        path.write_bytes(b"follow the white rabbit\n" * 1_000_000)
        with path.open("rb") as lines, InPipes(server.port, "--no-reconnect", stdin=lines) as client:
            connection = server.accept()
            connection.recv(10)
            connection.sendall(b"goodbye\r\n")
            connection.close()
            status, output, errors = client.end()
            assert (status, output, errors.count(b"\n")) == (1, b"goodbye\n", 1)

    def test_reconnects_after_a_loss(self, server: Server) -> None:
        with InPipes(server.port) as client:
            server.accept().close()
            server.accept().sendall(b"two\r\n")
            client.output.wait(lambda got: got == b"two\n")
            assert re.fullmatch(
                rb"pushd-client: the server closed the connection; trying again in 0\.\d s\n"
                rb"pushd-client: connected\n",
                client.errors.wait(lambda got: got.count(b"\n") == 2),
            )

    def test_tries_less_and_less_often_and_loses_no_input(self) -> None:
        with InPipes(port := free_port()) as client:
            client.type(b"typed while nobody listened\n")
            said = client.errors.wait(lambda got: got.count(b"\n") == 3).decode()
            waits = [float(wait) for wait in re.findall(r"refused; trying again in ([\d.]+) s\n", said)]
            assert len(waits) == 3
            assert all(most / 2 - 0.05 <= wait <= most for wait, most in zip(waits, (0.5, 1, 2), strict=True))
            with contextlib.closing(Server(port)) as server:
                receive(server.accept(), b"typed while nobody listened\r\n")

    def test_a_torn_line_is_sent_again(self, server: Server, tmp_path: Path) -> None:
        path = tmp_path / "lines"
        line = b"x" * 30_000_000
        path.write_bytes(line + b"\nlast\n")
        with path.open("rb") as lines, InPipes(server.port, stdin=lines) as client:
            connection = server.accept()
            receive(connection, line[:1000])
            reset(connection)
            connection = server.accept()
            receive(connection, line + b"\r\nlast\r\n")
            finish(connection)
            assert client.wait(TIMEOUT) == 0

    def test_a_loss_after_all_input_was_sent_is_final(self, server: Server) -> None:
        with InPipes(server.port, stdin=DEVNULL) as client:
            connection = server.accept()
            assert connection.recv(1) == b""
            reset(connection)
            assert client.end() == (1, b"", LOST)


class TestOnTerminal:
    def test_a_message_appears_above_what_is_being_typed(self, server: Server) -> None:
        with OnTerminal(server.port) as client:
            connection = server.accept()
            client.wait_rows(">", cursor=2)
            client.type("naixve €".encode() + b"\x1b[D" * 4 + b"\x7f")
            client.wait_rows("> naive €", cursor=5)
            connection.sendall(b"an update\r\n" + b"y" * 100 + b"\r\n")
            client.wait_rows("an update", "y" * 80, "y" * 20, "> naive €", cursor=5)
            client.type(b"\r")
            receive(connection, "naive €\r\n".encode())
            connection.sendall("naive €\r\n".encode())
            client.wait_rows("> naive €", "naive €", ">", cursor=2)

    def test_keys_are_never_echoed_among_many_messages(self, server: Server) -> None:
        with OnTerminal(server.port) as client:
            connection = server.accept()
            client.wait_rows(">")
            for count, key in enumerate(b"white rabbit\r"):
                connection.sendall(b"an update\r\n" * 5000)
                # A terminal holds less than this batch: the client is writing it when the key comes.
                wanted = 5000 * count + 1000
                client.output.wait(lambda got: got.count(b"update") > wanted)  # noqa: B023 - called at once
                client.type(bytes([key]))
            connection.sendall(b"the end\r\n")
            written = client.output.wait(lambda got: b"the end\r\n" in got)
            receive(connection, b"white rabbit\r\n")
            rows = [row for row in written.split(b"\n") if b"update" in row]
            assert len(rows) == 65_000
            # Before a message, on its row, there may be the erasure of a prompt, and no more.
            assert {re.split(rb"\x1b\[[?\d;]*[a-zA-Z]", row)[-1] for row in rows} == {b"an update\r"}

    def test_a_paste_of_lines_leaves_the_unfinished_one(self, server: Server) -> None:
        with OnTerminal(server.port) as client:
            connection = server.accept()
            client.wait_rows(">")
            client.type(b"one\rtwo\rthr")
            receive(connection, b"one\r\ntwo\r\n")
            client.wait_rows("> one", "> two", "> thr", cursor=5)
            client.type(b"\x1b[200~ee\nfour\n\x1b[201~\xff\r")
            receive(connection, b"three\r\nfour\r\n\xff\r\n")

    def test_a_server_cannot_control_the_terminal(self, server: Server) -> None:
        with OnTerminal(server.port) as client:
            server.accept().sendall(b"\x1b[2J\x1b]0;title\x07\r\n\xc2\x9b2J\rfake\n\xff\r\n")
            client.wait_rows("\\x1b[2J\\x1b]0;title\\x07", "\\x9b2J\\rfake\\n\\xff", ">", cursor=2)

    @pytest.mark.parametrize("keys", [b"exit\r", b"\x04"])
    def test_leaving(self, server: Server, keys: bytes) -> None:
        with OnTerminal(server.port) as client:
            connection = server.accept()
            client.wait_rows(">")
            client.type(b"one\r" + keys)
            receive(connection, b"one\r\n")
            finish(connection, b"one\r\n")
            client.wait_rows("one", "")
            assert client.end() == 0

    @pytest.mark.parametrize(
        ("keys", "number", "status"),
        [(b"\x03", None, 130), (b"", signal.SIGINT, 130), (b"", signal.SIGTERM, 143)],
    )
    def test_signals_leave_the_terminal_as_it_was(
        self, server: Server, keys: bytes, number: signal.Signals | None, status: int
    ) -> None:
        with OnTerminal(server.port) as client:
            server.accept()
            client.type(b"half")
            client.wait_rows("> half")
            client.type(keys)
            if number:
                client.send_signal(number)
            client.wait_rows("> half", "")
            assert client.end() == status

    def test_lines_are_refused_while_disconnected(self) -> None:
        with OnTerminal(port := free_port()) as client:
            client.output.wait(lambda got: b"trying again" in got)
            client.type(b"hello\r")
            client.output.wait(lambda got: b"pushd-client: not connected, not sent: hello\r\n" in got)
            client.type(b"\x1b[A")
            with contextlib.closing(Server(port)) as server:
                connection = server.accept()
                client.wait_rows("pushd-client: connected", "> hello", cursor=7)
                client.type(b"\r")
                receive(connection, b"hello\r\n")

    def test_leaving_while_disconnected(self) -> None:
        with OnTerminal(free_port()) as client:
            client.output.wait(lambda got: b"trying again" in got)
            client.type(b"\x04")
            assert client.end() == 0


class TestWithPushd:
    @pytest.fixture
    def pushd(self, tmp_path: Path) -> Iterator[Pushd]:
        with Pushd("--channel", "updates", "--redis", "embedded:0", cwd=tmp_path) as running:
            yield running

    def test_a_message_is_published_while_a_line_is_being_typed(self, pushd: Pushd) -> None:
        with OnTerminal(pushd.port) as client, OnTerminal(pushd.broker_port()) as publisher:
            client.wait_rows(">")
            publisher.wait_rows(">")
            client.type(b"ready\r")
            client.wait_rows("> ready", "ready", ">")
            client.type(b"half a li")
            client.wait_rows("ready", "> half a li", cursor=11)
            publisher.type(b'PUBLISH updates "follow the white rabbit"\r')
            publisher.wait_rows(":1", ">")
            client.wait_rows("ready", "follow the white rabbit", "> half a li", cursor=11)
            client.type(b"ne\r")
            client.wait_rows("follow the white rabbit", "> half a line", "half a line", ">", cursor=2)
            client.type(b"EXIT\r")
            assert client.end() == 0

    def test_publishes_from_a_pipe(self, pushd: Pushd) -> None:
        with Client(pushd.port) as subscriber, InPipes(pushd.broker_port()) as publisher:
            subscriber.echo()
            publisher.type(b'PUBLISH updates "follow the white rabbit"\n')
            publisher.output.wait(lambda got: got == b":1\n")
            assert subscriber.read_line() == b"follow the white rabbit"
            publisher.type(b"EXIT\n")
            assert publisher.end() == (0, b":1\n", b"")

    def test_every_line_of_a_file_is_echoed_before_it_leaves(self, pushd: Pushd, tmp_path: Path) -> None:
        path = tmp_path / "lines"
        path.write_bytes(b"".join(b"%d\n" % number for number in range(20_000)))
        with path.open("rb") as lines, InPipes(pushd.port, stdin=lines) as client:
            assert client.end() == (0, path.read_bytes(), b"")
