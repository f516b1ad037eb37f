"""Stand-ins for what clients are reached through: outlets for the hub, transports for outlets."""

import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.internet.task import Clock
from twisted.protocols.policies import WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOFactory

from pushd.message import Topic


class RecordingOutlet:
    """What the hub sees of a client; the test decides whether it lags."""

    def __init__(self) -> None:
        self.lagging = False
        self.sent: list[bytes] = []
        self.overruns: list[tuple[Topic, int, int]] = []
        self.failures = 0
        self.on_send: Callable[[], object] = lambda: None

    @property
    def received(self) -> bytes:
        return b"".join(self.sent)

    def send(self, data: bytes) -> None:
        assert not self.lagging
        assert data
        self.sent.append(data)
        self.on_send()

    def overrun(self, topic: Topic, messages: int, size: int) -> None:
        self.overruns.append((topic, messages, size))

    def failed(self) -> None:
        self.failures += 1


class CountingReactor:
    """Counts registrations, each of which would be a system call of a real reactor."""

    def __init__(self) -> None:
        self.registrations = 0

    def addWriter(self, descriptor: object) -> None:
        self.registrations += 1

    def removeWriter(self, descriptor: object) -> None:
        self.registrations += 1

    addReader = removeReader = addWriter

    def callLater(self, delay: float, call: Callable[..., object], *args: object) -> None:
        call(*args)


class Kernel(FileDescriptor):
    """Twisted's transport over a kernel buffer of so many bytes, which the test reads from."""

    def __init__(self, room: int = 10**9) -> None:
        self.counting = CountingReactor()
        super().__init__(self.counting)  # type: ignore[arg-type]
        self.connected = 1
        self.room = room
        self.sends: list[bytes] = []  # what each took: the very object, where it took it whole
        self.error: BaseException | None = None
        self.aborted = False
        self.closed = False
        self.protocol: Any = None

    @property
    def received(self) -> bytes:
        return b"".join(self.sends)

    def writeSomeData(self, data: bytes) -> int | BaseException:
        if self.error is not None:
            return self.error
        taken = min(self.room, len(data))
        self.room -= taken
        self.sends.append(data if taken == len(data) else data[:taken])
        return taken

    def make_room(self, room: int) -> None:
        """Let the client read, and the reactor notice as often as there is something to write."""
        self.room += room
        while self.room and (self.dataBuffer or self._tempDataBuffer):
            self.doWrite()

    def buffered(self) -> int:
        """Return how many bytes Twisted holds for this client."""
        return len(self.dataBuffer) - self.offset + self._tempDataLen

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.1", 4242)

    def loseConnection(self) -> None:
        self.closed = True
        self.disconnecting = 1

    def abortConnection(self) -> None:
        self.aborted = True


class TlsClient:
    """A client by TLS, and the transport that Twisted puts over a kernel for it; they have shaken hands.

    Wrapped means that one more transport is above that of TLS, as the endpoint "haproxy:ssl:" makes it.
    """

    def __init__(self, kernel: Kernel, certificate: Path, clock: Clock, *, wrapped: bool = False) -> None:
        factory = Factory.forProtocol(Protocol)
        context_factory = DefaultOpenSSLContextFactory(str(certificate), str(certificate))
        self._server = TLSMemoryBIOFactory(
            context_factory, False, WrappingFactory(factory) if wrapped else factory, clock
        ).buildProtocol(kernel.getPeer())
        self._server.makeConnection(kernel)
        self.transport: Any = self._server.wrappedProtocol if wrapped else self._server
        self._kernel = kernel
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=str(certificate))
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")
        self._taken = 0
        self._until_it_must_wait(self._tls.do_handshake)  # says hello
        self._until_it_must_wait(self._tls.do_handshake)  # hears the answer, and is done

    def read(self) -> bytes:
        """Return all that the kernel has taken for the client since the last time."""
        received: list[bytes] = []

        def read() -> None:
            while data := self._tls.read(1024**2):
                received.append(data)

        self._until_it_must_wait(read)
        return b"".join(received)

    def say_goodbye(self) -> None:
        """End TLS, but not the connection."""
        self._until_it_must_wait(self._tls.unwrap)

    def _until_it_must_wait(self, step: Callable[[], object]) -> None:
        self._kernel.make_room(0)
        received = self._kernel.received
        self._incoming.write(received[self._taken :])
        self._taken = len(received)
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            step()
        if self._outgoing.pending:
            self._server.dataReceived(self._outgoing.read())
