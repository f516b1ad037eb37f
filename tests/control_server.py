"""A server of the control protocol whose test says its part: for what a real one does not do on demand."""

import json
import socket
from types import TracebackType
from typing import Self

from tests.programs import Server


class Conversation:
    """One client's connection, from the server's side."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")

    def say(self, type_: str, /, **members: object) -> None:
        """Tell an event."""
        self.say_line(json.dumps({"type": type_, **members}).encode())

    def say_line(self, line: bytes) -> None:
        """Tell what may be no event."""
        self._connection.sendall(line + b"\n")

    def hear(self, line: str) -> None:
        """Take exactly this line from the client."""
        heard = self._lines.readline().decode()
        assert heard.replace('"', "") == line + "\n"  # words may be quoted

    def hear_end(self) -> None:
        """Take the end of the connection."""
        assert self._lines.read() == b""

    def tear(self, line: bytes) -> None:
        """Begin a line, and end the connection inside of it."""
        self._connection.sendall(line)
        self.close()

    def close(self) -> None:
        self._lines.close()
        self._connection.close()

    def message(self, offset: int, data: str) -> None:
        """Tell a message of the channel scores."""
        self.say("message", channel="scores", offset=offset, id=f"e.1-{offset}", data=data)

    def subscribed(self, offset: int, **members: object) -> None:
        """Confirm the channel scores."""
        self.say(
            "subscribed", channel="scores", offset=offset, id=f"e.1-{offset}", **{"upstream": "up", **members}
        )


class ControlServer(Server):
    """Takes clients one by one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connected(self) -> Conversation:
        """Return the next client's connection."""
        return Conversation(self.accept())

    def welcome(self, *, heartbeat: float = 30, auth: str = "none") -> Conversation:
        """Return the next client's connection, once it is welcome."""
        client = self.connected()
        client.say("welcome", version=1, epoch="e", heartbeat=heartbeat, auth=auth)
        return client
