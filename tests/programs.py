"""Programs that a test runs and speaks with, and the other end of their connections."""

import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from subprocess import PIPE
from typing import IO

from tests.harness import TIMEOUT

Stream = int | IO[bytes]


class Output:
    """What comes out of a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._data = b""

    def wait(self, ready: Callable[[bytes], object]) -> bytes:
        """Return all that came, as soon as that is what the caller waits for."""
        deadline = time.monotonic() + TIMEOUT
        while not ready(self._data):
            assert self._read(deadline), f"ended after {self._data[-2000:]!r}"
        return self._data

    def now(self) -> bytes:
        """Return all that has come."""
        while select.select([self._descriptor], [], [], 0)[0] and self._read(time.monotonic()):
            pass
        return self._data

    def end(self) -> bytes:
        """Return all that comes until the other side closes."""
        deadline = time.monotonic() + TIMEOUT
        while self._read(deadline):
            pass
        return self._data

    def _read(self, deadline: float) -> bool:
        left = max(deadline - time.monotonic(), 0)
        assert select.select([self._descriptor], [], [], left)[0], f"only {self._data[-2000:]!r} came"
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:  # the other end of a pseudo-terminal is closed
            return False
        self._data += data
        return bool(data)


class Child(subprocess.Popen[bytes]):
    """A process that does not outlive its test."""

    def __exit__(self, *_: object) -> None:
        self.kill()
        super().__exit__(None, None, None)


class Piped(Child):
    """A program between pipes."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdin: Stream = PIPE,
        stdout: Stream = PIPE,
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(command, bufsize=0, stdin=stdin, stdout=stdout, stderr=PIPE, env=env)
        assert self.stderr
        self.output, self.errors = Output((self.stdout or self.stderr).fileno()), Output(self.stderr.fileno())

    def type(self, data: bytes) -> None:
        assert self.stdin
        self.stdin.write(data)

    def end_input(self) -> None:
        assert self.stdin
        self.stdin.close()

    def end(self) -> tuple[int, bytes, bytes]:
        """Return the exit status, and all that was written to standard output and to standard error."""
        output, errors = self.output.end(), self.errors.end()
        return self.wait(TIMEOUT), output, errors


class Server:
    """A server whose test says its part."""

    def __init__(self, port: int = 0) -> None:
        self._sockets = [socket.create_server(("127.0.0.1", port))]
        self._sockets[0].settimeout(TIMEOUT)
        self.port: int = self._sockets[0].getsockname()[1]

    def accept(self) -> socket.socket:
        connection, _ = self._sockets[0].accept()
        connection.settimeout(TIMEOUT)
        self._sockets.append(connection)
        return connection

    def close(self) -> None:
        for each in self._sockets:
            each.close()


def reset(connection: socket.socket) -> None:
    """Close a connection the hard way."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
