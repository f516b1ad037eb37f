"""Stand-ins for what clients are reached through: outlets for the hub, transports for outlets."""

from collections.abc import Callable
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address

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

    def abortConnection(self) -> None:
        self.aborted = True
