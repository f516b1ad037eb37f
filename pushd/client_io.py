"""What both sides of the command-line client share: lines, connections and the way to the user."""

import asyncio
import os
import socket
from collections.abc import Callable, Iterator

INPUT, OUTPUT, ERRORS = 0, 1, 2
CHUNK = 1 << 18
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


def write(descriptor: int, data: bytes) -> None:
    """Write all of it at once: no buffer is left to fail when the program ends."""
    while data:
        data = data[os.write(descriptor, data) :]


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
