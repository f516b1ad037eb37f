"""Send lines to a pushd server, and print its echoes and every published message.

On a terminal, a line entered while there is no connection is refused; the up key brings it back. In a pipe,
each line of input is sent, and each line received printed, as it is; without a connection, input waits.
EXIT or the end of input (Ctrl-D) leaves, once the server has answered.

exit status:
  0    left by EXIT or the end of input, or because nobody reads the output any more
  1    could not connect, or the connection was lost, with --no-reconnect or when all input had been sent;
       or standard input or output failed
  2    wrong usage
  130  Ctrl-C
  143  SIGTERM
"""

# A program of its own: it imports nothing of the server, nor, in a pipe, anything that is slow to start.

import asyncio
import os
import random
import selectors
import signal
import socket
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress

INPUT, OUTPUT, ERRORS = 0, 1, 2
CHUNK = 1 << 18
LINES_AHEAD = 100
CONNECT_TIMEOUT = 10.0
FIRST_DELAY, LONGEST_DELAY = 0.5, 15.0
# Not printable to Python; but text needs these spaces and joiners.
HARMLESS = "\t\u00a0\u200c\u200d\u3000"


class LineSplitter:
    """Cuts a stream of bytes into lines at a delimiter; its work is linear, however long a line is."""

    def __init__(self, delimiter: bytes) -> None:
        self._delimiter = delimiter
        self.rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes, cut anywhere, and return the lines that they end; `rest` has only begun."""
        # The delimiter may have begun in the bytes that came before.
        unseen = max(len(self.rest) - len(self._delimiter) + 1, 0)
        self.rest += data
        if self.rest.find(self._delimiter, unseen) < 0:
            return []
        *lines, self.rest = self.rest.split(self._delimiter)
        return [bytes(line) for line in lines]


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
        """Write all of it at once: no buffer is left to fail when the program ends."""
        while data:
            data = data[os.write(descriptor, data) :]

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


def delays(jitter: Callable[[], float]) -> Iterator[float]:
    """Yield how long to wait before each try to connect; the jitter, in [0, 1), keeps clients apart."""
    longest = FIRST_DELAY
    while True:
        yield longest * (1 + jitter()) / 2
        longest = min(2 * longest, LONGEST_DELAY)


def visible(line: bytes) -> str:
    """Return a text for these bytes that cannot control a terminal."""
    text = line.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(char if char in HARMLESS or char.isprintable() else ascii(char)[1:-1] for char in text)


async def connect(host: str, port: int) -> socket.socket:
    """Return a connection to the first address of the host that takes one."""
    loop = asyncio.get_running_loop()
    problem = OSError("no address")
    for family, kind, _, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            connection = socket.socket(family, kind)
            connection.setblocking(False)
            # A client that only listens would never notice that the server's machine is gone.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await loop.sock_connect(connection, address)
        except OSError as error:
            problem = error
        else:
            return connection
    raise problem


def reason(error: OSError | UnicodeError) -> str:
    """Return the system's words for an error; asyncio's are about an address that nobody typed."""
    match error:
        case socket.gaierror(strerror=str(words)):
            return words
        case OSError(errno=int(number)):
            return os.strerror(number)
        case TimeoutError():
            return "timed out"
    return "not a valid host name"


def parse(words: Sequence[str] | None = None) -> Namespace:
    """Return the values of the command line, or end the program with what is wrong with it."""
    parser = ArgumentParser("pushd-client", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("host", metavar="HOST", help="a name, or an IPv4 or IPv6 address")
    parser.add_argument("port", metavar="PORT", type=int, help="1 to 65535")
    parser.add_argument("--no-reconnect", action="store_true", help="give up when the connection fails")
    options = parser.parse_args(words)
    if not 1 <= options.port <= 65535:
        parser.error("PORT must be from 1 to 65535")
    return options


def main() -> int:
    """Run the client that the command line asks for, and return its exit status."""
    options = parse()
    terminal = os.isatty(INPUT) and os.isatty(OUTPUT) and os.environ.get("TERM") != "dumb"
    client = Client(options, Terminal() if terminal else Pipes())
    # poll, unlike epoll, takes regular files.
    loop = asyncio.SelectorEventLoop(selectors.PollSelector())
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            return runner.run(client.run())
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
