"""The command-line client with --control: it subscribes, prints, and goes on where it was."""

import asyncio
import random
import socket
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from os import isatty
from pathlib import Path

from pushd.client_io import (
    CHUNK,
    ERRORS,
    OUTPUT,
    LineSplitter,
    connect,
    delays,
    reason,
    visible,
    write,
)
from pushd.control_follower import Action, Follower, Lost, Missed, Print, Send, Stop, Subscription

End = Lost | Missed | Stop
"""What a connection ends with; a gap only with --strict."""


class ControlClient:
    """Does what a follower says, in one connection after another."""

    def __init__(self, options: Namespace) -> None:
        self._host, self._port = options.host, options.port
        self._token_file: str | None = options.token_file
        self._reconnect, self._strict = not options.no_reconnect, options.strict
        self._lost = False
        """Whether the user was told of trouble, and has not been told that it is over."""
        self._exact = not isatty(OUTPUT)
        self._follower = Follower(subscriptions(options), whole=options.json)

    async def run(self) -> int:
        """Return the exit status, once it goes on no more."""
        waits = delays(random.random)
        while True:
            end = await self._attempt()
            if isinstance(end, Missed):
                return 3
            if isinstance(end, Stop) or not self._reconnect:
                note(end.text)
                return 1
            if self._follower.settled:
                waits = delays(random.random)
            wait = next(waits) if end.wait is None else end.wait
            self._lost = True
            note(f"{end.text}; trying again in {wait:.1f} s")
            await asyncio.sleep(wait)

    async def _attempt(self) -> End:
        """Connect, and follow for as long as the connection lasts."""
        try:
            self._follower.begin(read_token(self._token_file))
        except OSError as error:
            return Stop(f"cannot read {self._token_file}: {reason(error)}")
        try:
            connection = await connect(self._host, self._port)
        except (OSError, UnicodeError) as error:
            return Lost(f"cannot connect to {self._host} port {self._port}: {reason(error)}")
        with connection:
            return await self._follow(connection)

    async def _follow(self, connection: socket.socket) -> End:
        splitter = LineSplitter(b"\n")
        while True:
            try:
                async with asyncio.timeout(self._follower.patience):
                    data = await asyncio.get_running_loop().sock_recv(connection, CHUNK)
            except OSError as error:
                return Lost(f"connection lost: {reason(error)}")
            if not data:
                return Lost("the server closed the connection")
            actions = chain.from_iterable(map(self._follower.receive, splitter.feed(data)))
            if end := await self._act(actions, connection):
                return end

    async def _act(self, actions: Iterator[Action], connection: socket.socket) -> End | None:
        """Act until an action ends the connection; return that."""
        printed: list[bytes] = []
        for action in actions:
            match action:
                case Print(line):
                    printed.append(line if self._exact else visible(line).encode())
                case Send(data):
                    with suppress(OSError):  # receiving tells why
                        await asyncio.get_running_loop().sock_sendall(connection, data)
                case Missed(text):
                    flush(printed)
                    note(text)
                    if self._strict:
                        return action
                case Lost() | Stop():
                    flush(printed)
                    return action
        flush(printed)
        if self._lost and self._follower.settled:
            self._lost = False
            note("subscribed")
        return None


def subscriptions(options: Namespace) -> Iterator[Subscription]:
    """Yield what the command line asks for."""
    start = ""
    if options.from_id is not None:
        start = f"FROM {options.from_id}"
    elif options.last is not None:
        start = f"LAST {options.last}"
    for kind, names in (("channel", options.subscribe), ("pattern", options.psubscribe)):
        for name in dict.fromkeys(names):
            yield Subscription(kind, name, start=start, slow=options.slow)


def read_token(path: str | None) -> bytes:
    """Return the first line of a file; nothing where there is no file to read."""
    return Path(path).read_bytes().partition(b"\n")[0].strip() if path else b""


def flush(lines: list[bytes]) -> None:
    """Write lines to the output, and forget them."""
    write(OUTPUT, b"".join([line + b"\n" for line in lines]))
    lines.clear()


def note(text: str) -> None:
    """Tell the user something that is not output."""
    with suppress(OSError):
        write(ERRORS, f"pushd-client: {visible(text.encode('utf-8', 'backslashreplace'))}\n".encode())
