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
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

import pytest
import redis

from tests.harness import TIMEOUT, Pushd, free_port

COMMAND = [sys.executable, "-m", "pushd.client"]


class Output:
    """What comes out of a descriptor, kept by a thread, so that it can be waited for."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._data = b""
        self._changed = threading.Condition()
        self._ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._descriptor, 65536)
            except OSError:  # the other end of a pseudo-terminal is closed
                data = b""
            with self._changed:
                self._data += data
                self._ended = not data
                self._changed.notify_all()
            if not data:
                return

    def wait(self, ready: Callable[[bytes], object]) -> bytes:
        """Return all that came, as soon as that is what the caller waits for."""
        deadline = time.monotonic() + TIMEOUT
        with self._changed:
            while not ready(self._data):
                left = deadline - time.monotonic()
                assert not self._ended, f"ended after {self._data[-2000:]!r}"
                assert left > 0, f"{TIMEOUT} s passed; got {self._data[-2000:]!r}"
                self._changed.wait(left)
            return self._data

    def wait_end(self) -> bytes:
        with self._changed:
            assert self._changed.wait_for(lambda: self._ended, TIMEOUT)
            return self._data


class Server:
    """A server whose test says its part."""

    def __init__(self, port: int = 0) -> None:
        self._listening = socket.create_server(("127.0.0.1", port))
        self._listening.settimeout(TIMEOUT)
        self.port: int = self._listening.getsockname()[1]
        self._accepted: list[socket.socket] = []

    def accept(self) -> socket.socket:
        connection, _ = self._listening.accept()
        connection.settimeout(TIMEOUT)
        self._accepted.append(connection)
        return connection

    def close(self) -> None:
        for connection in (self._listening, *self._accepted):
            connection.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with contextlib.closing(Server()) as running:
        yield running


def receive(connection: socket.socket, expected: bytes) -> None:
    """Take exactly these bytes from the client."""
    got = b""
    while len(got) < len(expected) and (data := connection.recv(len(expected) - len(got))):
        got += data
    assert got == expected


def reset(connection: socket.socket) -> None:
    """Close a connection the hard way."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class InPipes:
    """The client as a part of a pipeline."""

    def __init__(
        self, port: int, *options: str, host: str = "127.0.0.1", stdin: int | IO[bytes] | None = None
    ):
        self.child = subprocess.Popen(
            [*COMMAND, host, str(port), *options],
            stdin=subprocess.PIPE if stdin is None else stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.child.stdout
        assert self.child.stderr
        self.output = Output(self.child.stdout.fileno())
        self.errors = Output(self.child.stderr.fileno())

    def __enter__(self) -> "InPipes":
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.wait()
        for stream in (self.child.stdin, self.child.stdout, self.child.stderr):
            if stream:
                stream.close()

    def type(self, data: bytes) -> None:
        assert self.child.stdin
        self.child.stdin.write(data)
        self.child.stdin.flush()

    def end_input(self) -> None:
        assert self.child.stdin
        self.child.stdin.close()

    def wait(self) -> int:
        """Return the exit status; by then all output has been read."""
        status = self.child.wait(TIMEOUT)
        self.output.wait_end()
        self.errors.wait_end()
        return status


class Screen:
    """As much of a terminal as the client may use; anything else it writes is an error."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._rows = [""]
        self._column = 0

    def show(self, text: str) -> None:
        for control, count, char in re.findall(
            r"(\x1b\[K|\r|\n|\x1b\[(\d+)C)|([^\x00-\x1f\x7f])|(?s:.)", text
        ):
            if control == "\x1b[K":
                self._rows[-1] = self._rows[-1][: self._column]
            elif control == "\r":
                self._column = 0
            elif control == "\n":
                self._rows.append("")
            elif control:
                self._column = min(self._column + int(count), self._columns - 1)
            else:
                assert char, f"neither text nor a known sequence in {text!r}"
                self._put(char)

    def _put(self, char: str) -> None:
        if self._column == self._columns:
            self._rows.append("")
            self._column = 0
        row = self._rows[-1].ljust(self._column)
        self._rows[-1] = row[: self._column] + char + row[self._column + 1 :]
        self._column += 1

    @property
    def rows(self) -> list[str]:
        return self._rows

    @property
    def cursor(self) -> int:
        return self._column


class OnTerminal:
    """The client on a pseudo-terminal of its own, as its controlling terminal."""

    def __init__(
        self, port: int, *options: str, columns: int = 80, env: Mapping[str, str] | None = None
    ) -> None:
        self.columns = columns
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.modes = termios.tcgetattr(self.slave)
        # The first terminal that the leader of a session opens becomes its controlling terminal.
        attach = 'exec "$@" <>"$0" >&0 2>&0'
        self.child = subprocess.Popen(
            ["sh", "-c", attach, os.ttyname(self.slave), *COMMAND, "127.0.0.1", str(port), *options],
            start_new_session=True,
            env=env,
        )
        self.output = Output(self.master)

    def __enter__(self) -> "OnTerminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.wait(TIMEOUT)
        os.close(self.slave)
        self.output.wait_end()
        os.close(self.master)

    def type(self, keys: bytes) -> None:
        while keys:
            keys = keys[os.write(self.master, keys) :]

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def wait_rows(self, *rows: str, cursor: int | None = None) -> None:
        """Return once these are, or were, the last rows of the screen, with the cursor in the last one."""

        def shown(written: bytes) -> bool:
            screen = Screen(self.columns)
            # Whatever the client writes ends with placing the cursor, but for the last things that it says.
            for update in re.findall(r"(?s).*?\x1b\[\d+C|.+", written.decode(errors="ignore")):
                screen.show(update)
                if screen.rows[-len(rows) :] == list(rows) and cursor in (None, screen.cursor):
                    return True
            return False

        try:
            self.output.wait(shown)
        except AssertionError as error:
            raise AssertionError(f"expected {rows!r}, cursor {cursor}; {error}") from None

    def wait(self) -> int:
        return self.child.wait(TIMEOUT)

    def restored(self) -> bool:
        return termios.tcgetattr(self.slave) == self.modes


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
        with subprocess.Popen(
            [*COMMAND, "127.0.0.1", str(server.port)], stdin=subprocess.DEVNULL, stdout=slave
        ) as child:
            connection = server.accept()
            connection.sendall(b"\x1b[2J\xff\r\n")
            connection.close()
            assert child.wait(TIMEOUT) == 0
        assert os.read(master, 100) == b"\\x1b[2J\\xff\r\n"
        os.close(slave)
        os.close(master)

    def test_end_of_input_waits_for_the_answers(self, server: Server) -> None:
        with InPipes(server.port) as client:
            connection = server.accept()
            client.type(b"one\nunfinished")
            client.end_input()
            receive(connection, b"one\r\nunfinished\r\n")
            assert connection.recv(1) == b""
            connection.sendall(b"one\r\nunfinished\r\n")
            connection.close()
            assert client.wait() == 0
            assert client.output.wait_end() == b"one\nunfinished\n"
            assert client.errors.wait_end() == b""

    def test_exit_leaves_although_input_goes_on(self, server: Server) -> None:
        with InPipes(server.port) as client:
            connection = server.accept()
            client.type(b"one\nexit\nnever\n")
            receive(connection, b"one\r\n")
            assert connection.recv(1) == b""
            connection.sendall(b"one\r\n")
            connection.close()
            assert client.wait() == 0
            assert client.output.wait_end() == b"one\n"

    def test_no_input(self, server: Server) -> None:
        with InPipes(server.port, stdin=subprocess.DEVNULL) as client:
            connection = server.accept()
            assert connection.recv(1) == b""
            connection.sendall(b"late\r\n")
            connection.close()
            assert client.wait() == 0
            assert client.output.wait_end() == b"late\n"

    def test_closed_standard_descriptors(self, server: Server) -> None:
        command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *COMMAND, "127.0.0.1", str(server.port)]
        with subprocess.Popen(command) as child:
            connection = server.accept()
            assert connection.recv(1) == b""
            connection.sendall(b"late\r\n")
            connection.close()
            assert child.wait(TIMEOUT) == 0

    def test_a_large_file_while_the_server_answers_each_line(self, server: Server, tmp_path: Path) -> None:
        # More than the kernel buffers of both directions hold: whoever reads only after it has written hangs.
        text = b"".join(b"%d follow the white rabbit\n" % number for number in range(500_000))
        path = tmp_path / "lines"
        path.write_bytes(text)
        with path.open("rb") as lines, InPipes(server.port, stdin=lines) as client:
            connection = server.accept()
            while data := connection.recv(65536):
                connection.sendall(data)
            connection.close()
            assert client.wait() == 0
            assert client.output.wait_end() == text

    def test_a_long_message(self, server: Server) -> None:
        message = b"x" * 20_000_000
        with InPipes(server.port) as client:
            connection = server.accept()
            connection.sendall(message + b"\r\n")
            assert len(client.output.wait(lambda got: len(got) > len(message))) == len(message) + 1

    def test_an_output_that_nobody_reads_ends_it_at_once(self, server: Server) -> None:
        reading, writing = os.pipe()
        with subprocess.Popen(
            [*COMMAND, "127.0.0.1", str(server.port)],
            stdin=subprocess.PIPE,
            stdout=writing,
            stderr=subprocess.PIPE,
        ) as child:
            os.close(writing)
            connection = server.accept()
            connection.sendall(b"one\r\n")
            assert os.read(reading, 100) == b"one\n"
            os.close(reading)
            assert child.wait(TIMEOUT) == 0
            assert child.stderr
            assert child.stderr.read() == b""

    def test_an_output_that_cannot_be_written(self, server: Server) -> None:
        with (
            open("/dev/full", "wb") as full,
            subprocess.Popen(
                [*COMMAND, "127.0.0.1", str(server.port)],
                stdin=subprocess.PIPE,
                stdout=full,
                stderr=subprocess.PIPE,
            ) as child,
        ):
            server.accept().sendall(b"one\r\n")
            assert child.wait(TIMEOUT) == 1
            assert child.stderr
            assert child.stderr.read() == b"pushd-client: cannot write: No space left on device\n"

    def test_sigterm_and_sigint(self, server: Server) -> None:
        for number, status in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
            with InPipes(server.port) as client:
                connection = server.accept()
                connection.sendall(b"ready\r\n")
                client.output.wait(lambda got: got == b"ready\n")
                client.child.send_signal(number)
                assert client.wait() == status
                assert client.errors.wait_end() == b""

    def test_ipv6(self) -> None:
        try:
            listening = socket.create_server(("::1", 0), family=socket.AF_INET6)
        except OSError:
            pytest.skip("no IPv6 on this machine")
        with listening, InPipes(listening.getsockname()[1], host="::1") as client:
            connection, _ = listening.accept()
            connection.sendall(b"hello\r\n")
            client.output.wait(lambda got: got == b"hello\n")
            connection.close()


class TestWithoutReconnection:
    @pytest.mark.parametrize(
        ("host", "problem"),
        [
            ("127.0.0.1", rb"cannot connect to 127\.0\.0\.1 port \d+: Connection refused"),
            ("host.invalid", rb"cannot connect to host\.invalid port \d+: [^\n]+"),
            ("x" * 70 + ".invalid", rb"cannot connect to x+\.invalid port \d+: not a valid host name"),
        ],
    )
    def test_cannot_connect(self, host: str, problem: bytes) -> None:
        with InPipes(free_port(), "--no-reconnect", host=host) as client:
            assert client.wait() == 1
            assert re.fullmatch(rb"pushd-client: " + problem + rb"\n", client.errors.wait_end())
            assert client.output.wait_end() == b""

    def test_the_server_closes(self, server: Server) -> None:
        with InPipes(server.port, "--no-reconnect") as client:
            connection = server.accept()
            connection.sendall(b"goodbye\r\ntorn")
            connection.close()
            assert client.wait() == 1
            assert client.output.wait_end() == b"goodbye\n"
            assert client.errors.wait_end().decode().splitlines() == [
                "pushd-client: 4 bytes of an unfinished line dropped",
                f"pushd-client: 127.0.0.1 port {server.port} closed the connection",
            ]

    def test_the_connection_breaks(self, server: Server) -> None:
        with InPipes(server.port, "--no-reconnect") as client:
            connection = server.accept()
            connection.sendall(b"ready\r\n")
            client.output.wait(lambda got: got == b"ready\n")
            reset(connection)
            assert client.wait() == 1
            assert b"lost: Connection reset by peer\n" in client.errors.wait_end()

    def test_a_goodbye_is_read_although_sending_fails(self, server: Server, tmp_path: Path) -> None:
        path = tmp_path / "lines"
        path.write_bytes(b"follow the white rabbit\n" * 1_000_000)
        with path.open("rb") as lines, InPipes(server.port, "--no-reconnect", stdin=lines) as client:
            connection = server.accept()
            connection.recv(10)
            connection.sendall(b"goodbye\r\n")
            client.output.wait(lambda got: got == b"goodbye\n")
            connection.close()
            assert client.wait() == 1
            assert len(client.errors.wait_end().splitlines()) == 1


class TestReconnection:
    def test_after_a_loss(self, server: Server) -> None:
        with InPipes(server.port) as client:
            connection = server.accept()
            connection.sendall(b"one\r\ntor")
            client.output.wait(lambda got: got == b"one\n")
            connection.close()
            connection = server.accept()
            connection.sendall(b"two\r\n")
            client.output.wait(lambda got: got == b"one\ntwo\n")
            said = client.errors.wait(lambda got: b"connected to" in got).decode()
            assert re.search(
                rf"127\.0\.0\.1 port {server.port} closed the connection; trying again in 0\.\d s\n", said
            )
            client.end_input()
            assert connection.recv(1) == b""
            connection.close()
            assert client.wait() == 0

    def test_from_the_first_connection_on_and_less_and_less_often(self) -> None:
        port = free_port()
        with InPipes(port) as client:
            client.type(b"typed while nobody listened\n")
            said = client.errors.wait(lambda got: got.count(b"\n") == 3).decode()
            waits = [float(wait) for wait in re.findall(r"refused; trying again in ([\d.]+) s\n", said)]
            assert len(waits) == 3
            assert all(most / 2 - 0.05 <= wait <= most for wait, most in zip(waits, (0.5, 1, 2), strict=True))
            with contextlib.closing(Server(port)) as server:
                receive(server.accept(), b"typed while nobody listened\r\n")

    def test_input_waits_meanwhile_and_a_torn_line_is_sent_again(
        self, server: Server, tmp_path: Path
    ) -> None:
        path = tmp_path / "lines"
        line = b"x" * 30_000_000
        path.write_bytes(line + b"\nlast\n")
        with path.open("rb") as lines, InPipes(server.port, stdin=lines) as client:
            connection = server.accept()
            receive(connection, line[:1000])
            reset(connection)
            connection = server.accept()
            receive(connection, line + b"\r\nlast\r\n")
            assert connection.recv(1) == b""
            connection.close()
            assert client.wait() == 0

    def test_a_loss_after_all_input_was_sent_is_final(self, server: Server) -> None:
        with InPipes(server.port, stdin=subprocess.DEVNULL) as client:
            connection = server.accept()
            assert connection.recv(1) == b""
            reset(connection)
            assert client.wait() == 1
            assert b"trying again" not in client.errors.wait_end()

    def test_ends_by_sigterm_while_it_waits(self) -> None:
        with InPipes(free_port()) as client:
            client.errors.wait(lambda got: b"trying again" in got)
            client.child.send_signal(signal.SIGTERM)
            assert client.wait() == 0


class TestOnTerminal:
    def test_a_message_appears_above_what_is_being_typed(self, server: Server) -> None:
        with OnTerminal(server.port) as client:
            connection = server.accept()
            client.wait_rows("> ", cursor=2)
            client.type(b"follow the wh")
            client.wait_rows("> follow the wh", cursor=15)
            connection.sendall(b"an update\r\nanother\r\n")
            client.wait_rows("an update", "another", "> follow the wh", cursor=15)
            client.type(b"ite rabbit\r")
            receive(connection, b"follow the white rabbit\r\n")
            connection.sendall(b"follow the white rabbit\r\n")
            client.wait_rows(
                "another", "> follow the white rabbit", "follow the white rabbit", "> ", cursor=2
            )

    def test_editing(self, server: Server) -> None:
        with OnTerminal(server.port) as client:
            connection = server.accept()
            euro = "€".encode()
            client.type(b"naixve ")
            client.wait_rows("> naixve ", cursor=9)
            client.type(euro[:1])
            client.type(euro[1:])
            client.wait_rows("> naixve €", cursor=10)
            client.type(b"\x1b[D" * 4)
            client.wait_rows("> naixve €", cursor=6)
            client.type(b"\x7f")
            client.wait_rows("> naive €", cursor=5)
            connection.sendall(b"an update\r\n")
            client.wait_rows("an update", "> naive €", cursor=5)
            client.type(b"\r")
            receive(connection, b"naive \xe2\x82\xac\r\n")
            client.type(b"\x1b[A")
            client.wait_rows("> naive €", "> naive €", cursor=9)

    def test_a_line_wider_than_the_terminal(self, server: Server) -> None:
        with OnTerminal(server.port, columns=20) as client:
            connection = server.accept()
            client.type(b"0123456789" * 5)
            client.wait_rows("> 34567890123456789", cursor=19)
            connection.sendall(b"y" * 20 + b"\r\n" + b"z" * 50 + b"\r\n")
            client.wait_rows("y" * 20, "z" * 20, "z" * 20, "z" * 10, "> 34567890123456789", cursor=19)
            client.columns = 12
            client.resize(12)
            client.output.wait(lambda got: got.endswith(b"> 123456789\r\x1b[11C"))
            client.type(b"\r")
            receive(connection, b"0123456789" * 5 + b"\r\n")

    def test_a_paste(self, server: Server) -> None:
        with OnTerminal(server.port) as client:
            connection = server.accept()
            client.wait_rows("> ")
            client.type(b"one\rtwo\rthr")
            receive(connection, b"one\r\ntwo\r\n")
            client.wait_rows("> one", "> two", "> thr", cursor=5)

    def test_a_server_cannot_control_the_terminal(self, server: Server) -> None:
        with OnTerminal(server.port) as client:
            server.accept().sendall(b"\x1b[2J\x1b]0;title\x07\r\n\xc2\x9b2J\rfake\n\xff\r\n")
            client.wait_rows("\\x1b[2J\\x1b]0;title\\x07", "\\x9b2J\\rfake\\n\\xff", "> ")

    @pytest.mark.parametrize("keys", [b"exit\r", b"\x04"])
    def test_leaving(self, server: Server, keys: bytes) -> None:
        with OnTerminal(server.port) as client:
            connection = server.accept()
            client.wait_rows("> ")
            assert not client.restored()
            client.type(b"one\r" + keys)
            receive(connection, b"one\r\n")
            assert connection.recv(1) == b""
            connection.sendall(b"one\r\n")
            connection.close()
            assert client.wait() == 0
            assert client.restored()
            client.wait_rows("one", "", cursor=0)

    @pytest.mark.parametrize(
        ("keys", "number", "status"),
        [
            (b"\x03", None, 130),
            (b"\x1c", None, 130),
            (b"", signal.SIGTERM, 0),
            (b"", signal.SIGINT, 130),
        ],
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
                client.child.send_signal(number)
            assert client.wait() == status
            assert client.restored()
            client.wait_rows("", cursor=0)

    def test_suspended_and_continued(self, server: Server) -> None:
        with OnTerminal(server.port) as client:
            server.accept()
            client.type(b"half")
            client.wait_rows("> half")
            client.type(b"\x1a")
            client.wait_rows("", cursor=0)
            _, status = os.waitpid(client.child.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            assert client.restored()
            client.child.send_signal(signal.SIGCONT)
            client.type(b"way")
            client.wait_rows("> halfway")

    def test_lines_are_refused_while_disconnected(self) -> None:
        with OnTerminal(port := free_port()) as client:
            client.output.wait(lambda got: b"trying again" in got)
            client.type(b"hello\r")
            note = "pushd-client: not connected, not sent (the up key brings it back): hello"
            client.wait_rows("> hello", note, "> ")
            client.type(b"\x1b[A")
            client.wait_rows("> hello", cursor=7)
            with contextlib.closing(Server(port)) as server:
                connection = server.accept()
                client.wait_rows(f"pushd-client: connected to 127.0.0.1 port {port}", "> hello", cursor=7)
                client.type(b"\r")
                receive(connection, b"hello\r\n")

    def test_leaving_while_disconnected(self) -> None:
        with OnTerminal(free_port()) as client:
            client.output.wait(lambda got: b"trying again" in got)
            client.type(b"\x04")
            assert client.wait() == 0
            assert client.restored()


class TestWithPushd:
    def test_a_message_is_published_while_a_line_is_being_typed(self, tmp_path: Path) -> None:
        with (
            Pushd("--channel", "updates", "--redis", "embedded:0", cwd=tmp_path) as pushd,
            OnTerminal(pushd.port) as client,
        ):
            client.type(b"ready\r")
            client.wait_rows("> ready", "ready", "> ")
            client.type(b"half a li")
            client.wait_rows("ready", "> half a li", cursor=11)
            with contextlib.closing(redis.Redis(port=pushd.broker_port())) as broker:
                broker.publish("updates", b"follow the white rabbit")
            client.wait_rows("ready", "follow the white rabbit", "> half a li", cursor=11)
            client.type(b"ne\r")
            client.wait_rows("follow the white rabbit", "> half a line", "half a line", "> ", cursor=2)
            client.type(b"EXIT\r")
            assert client.wait() == 0

    def test_every_line_of_a_file_is_echoed_before_it_leaves(self, tmp_path: Path) -> None:
        path = tmp_path / "lines"
        path.write_bytes(b"".join(b"%d\n" % number for number in range(20_000)))
        with (
            Pushd("--channel", "updates", "--redis", "embedded:0", cwd=tmp_path) as pushd,
            path.open("rb") as lines,
            InPipes(pushd.port, stdin=lines) as client,
        ):
            assert client.wait() == 0
            assert client.output.wait_end() == path.read_bytes()
