"""The command-line client: carries lines between the user and a pushd server."""

# A program of its own: it imports nothing of the server, nor, in a pipe, anything that is slow to start.

import asyncio
import os
import random
import selectors
import signal
import socket
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any

from pushd.client_io import (
    CHUNK,
    ERRORS,
    INPUT,
    OUTPUT,
    LineSplitter,
    connect,
    delays,
    reason,
    visible,
    write,
)
from pushd.client_options import parse

LINES_AHEAD = 100


class Pipes:
    """Plain lines in and out: not both standard input and output are a terminal."""

    interactive = False
    pause = 0.0

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield the lines of the input, also an unfinished one at its end."""
        splitter = LineSplitter(b"\n")
        while data := await self._read():
            for line in splitter.feed(data):
                yield line.removesuffix(b"\r")
        if splitter.rest:
            yield bytes(splitter.rest)

    def write(self, descriptor: int, data: bytes) -> None:
        """Write all of it at once."""
        write(descriptor, data)

    async def _read(self) -> bytes:
        # asyncio's pipes take no regular files, and unblock the descriptor for whoever shares it.
        ready = asyncio.Event()
        asyncio.get_running_loop().add_reader(INPUT, ready.set)
        try:
            await ready.wait()
        finally:
            asyncio.get_running_loop().remove_reader(INPUT)
        return os.read(INPUT, CHUNK)


class Terminal(Pipes):
    """A prompt with line editing; whatever else is printed appears above it."""

    interactive = True
    pause = 0.05
    """Seconds for which the prompt stays to be seen, however fast messages come."""

    def __init__(self) -> None:
        # A cursor position reported before a message moved the cursor would misplace the prompt.
        os.environ["PROMPT_TOOLKIT_NO_CPR"] = "1"
        from prompt_toolkit import PromptSession  # noqa: PLC0415 - slow, and a pipe does not need it

        # Out of a task, asyncio would print the traceback of a KeyboardInterrupt.
        self._session: PromptSession[str] = PromptSession(
            "> ", enable_suspend=True, interrupt_exception=InterruptedError
        )

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield what is entered, until Ctrl-D; Ctrl-C raises InterruptedError."""
        # Between two prompts, too, the terminal must not echo keys by itself.
        with self._session.input.raw_mode(), suppress(EOFError):
            while True:
                entered = await self._session.prompt_async(set_exception_handler=False)
                for line in entered.split("\n"):  # a paste may hold several
                    yield line.encode("utf-8", "surrogateescape")

    def write(self, descriptor: int, data: bytes) -> None:
        """Write above the prompt."""
        # Not patch_stdout: under it the terminal echoes what is typed just then, amid the messages.
        self._session.app.renderer.erase()
        super().write(descriptor, data)
        self._session.app.invalidate()


class Client:
    """Keeps a connection to the server, and carries lines between it and the user."""

    def __init__(self, options: Namespace, face: Pipes) -> None:
        self._host, self._port = options.host, options.port
        self._reconnect = not options.no_reconnect
        self._face = face
        self._exact = not os.isatty(OUTPUT)
        self._connected = False
        self._outgoing: bytes | None = b""
        """What is not wholly sent; None once the user has left, and all is."""
        # A pipe is hardly read ahead of the server; a prompt does not wait for it at all.
        self._entered: asyncio.Queue[bytes | None] = asyncio.Queue(0 if face.interactive else LINES_AHEAD)

    async def run(self) -> int:
        """Return the exit status, once the user has left or the connection is given up."""
        talking, typing = asyncio.create_task(self._talk()), asyncio.create_task(self._type())
        if self._face.interactive:  # else nothing is to be restored
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, talking.cancel)
        await asyncio.wait({talking, typing}, return_when=asyncio.FIRST_COMPLETED)
        if typing.done():
            typing.result()
            if self._face.interactive and not self._connected:
                return 0
        return await talking

    async def _type(self) -> None:
        """Hand on what the user enters, until the user leaves."""
        async for line in self._face.lines():
            if line.upper() == b"EXIT":
                break
            if self._connected or not self._face.interactive:
                await self._entered.put(line + b"\r\n")
            else:
                self._note(f"not connected, not sent: {visible(line)}")
        await self._entered.put(None)

    async def _talk(self) -> int:
        """Connect, and connect again, until the user has left; return the exit status."""
        waits, problem = delays(random.random), ""
        while True:
            try:
                connection = await connect(self._host, self._port)
            except (OSError, UnicodeError) as error:
                problem = f"cannot connect to {self._host} port {self._port}: {reason(error)}"
            else:
                if problem:
                    self._note("connected")
                waits = delays(random.random)
                with connection:
                    problem = await self._exchange(connection)
            if not problem:
                return 0
            if self._outgoing is None or not self._reconnect:
                self._note(problem)
                return 1
            wait = next(waits)
            self._note(f"{problem}; trying again in {wait:.1f} s")
            await asyncio.sleep(wait)

    async def _exchange(self, connection: socket.socket) -> str:
        """Carry lines both ways until the connection ends; return what went wrong, if anything."""
        sending = asyncio.create_task(self._send(connection))
        self._connected = True
        try:
            return await self._receive(connection)
        finally:
            self._connected = False
            sending.cancel()
            await asyncio.wait([sending])

    async def _send(self, connection: socket.socket) -> None:
        """Send lines until the user leaves; one that is not taken whole is kept for the next connection."""
        with suppress(OSError):  # receiving tells why, once it has shown what the server still said
            while self._outgoing is not None:
                await asyncio.get_running_loop().sock_sendall(connection, self._outgoing)
                self._outgoing = b""
                self._outgoing = await self._entered.get()
            connection.shutdown(socket.SHUT_WR)

    async def _receive(self, connection: socket.socket) -> str:
        """Print lines until the connection ends; return what went wrong, if anything."""
        splitter = LineSplitter(b"\r\n")
        while True:
            try:
                data = await asyncio.get_running_loop().sock_recv(connection, CHUNK)
            except OSError as error:
                return f"connection lost: {reason(error)}"
            if not data:
                break
            if lines := splitter.feed(data):
                shown = lines if self._exact else [visible(line).encode() for line in lines]
                self._face.write(OUTPUT, b"".join(line + b"\n" for line in shown))
            await asyncio.sleep(self._face.pause)  # input has its turn
        if splitter.rest:
            self._note(f"{len(splitter.rest)} bytes of an unfinished line dropped")
        return "" if self._outgoing is None else "the server closed the connection"

    def _note(self, text: str) -> None:
        with suppress(OSError):
            self._face.write(ERRORS, f"pushd-client: {text}\n".encode("utf-8", "backslashreplace"))


def chosen(options: Namespace) -> Coroutine[Any, Any, int]:
    """Return what the command line asks for; it returns the exit status."""
    if options.control:
        from pushd.control_client import ControlClient  # noqa: PLC0415 - the line protocol does not need it

        return ControlClient(options).run()
    terminal = os.isatty(INPUT) and os.isatty(OUTPUT) and os.environ.get("TERM") != "dumb"
    return Client(options, Terminal() if terminal else Pipes()).run()


def main() -> int:
    """Run the client that the command line asks for, and return its exit status."""
    running = chosen(parse())
    # poll, unlike epoll, takes regular files.
    loop = asyncio.SelectorEventLoop(selectors.PollSelector())
    # With any handler of its own it also wakes for Ctrl-C that comes just before it waits.
    loop.add_signal_handler(signal.SIGCONT, lambda: None)
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            return runner.run(running)
    except (KeyboardInterrupt, InterruptedError):
        return 130
    except asyncio.CancelledError:
        return 143
    except BrokenPipeError:
        return 0
    except OSError as error:
        print(f"pushd-client: standard input or output: {reason(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
