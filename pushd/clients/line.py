"""The line protocol: lines come back as they were typed, and published messages arrive between them."""

from dataclasses import dataclass

from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.logger import Logger

from pushd.clients.admission import Admission
from pushd.clients.connection import ClientConnection, ClientFactory
from pushd.encoders import Lines
from pushd.hub import Hub
from pushd.message import Topic
from pushd.settings import Settings, SlowPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What every client of the line protocol gets, and may do."""

    topics: tuple[Topic, ...]
    slow: SlowPolicy
    replay: int  # messages of each topic's log
    max_line: int  # bytes, without its terminator
    idle_timeout: float | None  # seconds since the client last sent something


def terms_of_lines(settings: Settings) -> Terms:
    """Return what the settings say."""
    return Terms(
        topics=settings.topics,
        slow=settings.slow,
        replay=settings.replay,
        max_line=settings.max_line,
        idle_timeout=settings.idle_timeout,
    )


class LineProtocol(ClientConnection):
    """One client: echoes each line with CR LF, and is sent each message of its topics as one line.

    The bytes of a line are arbitrary.
    """

    factory: "LineFactory"

    def __init__(self, address: IAddress | None) -> None:
        super().__init__(address)
        self._echoes: list[bytes] = []

    @property
    def max_line(self) -> int:
        """The same for all."""
        return self.factory.terms.max_line

    def begin(self) -> None:
        """Subscribe the client to everything."""
        terms, hub = self.factory.terms, self.factory.hub
        for topic in terms.topics:
            cursor = hub.feed(topic).log.back(terms.replay)
            self.outlet.subscriptions.append(hub.subscribe(topic, self.outlet, Lines, terms.slow, cursor))

    def dataReceived(self, data: bytes) -> None:
        """Echo all lines that one read brought, in order, with one write."""
        super().dataReceived(data)
        self._echo()

    def received(self, line: bytes) -> None:
        """Keep a line for the echo."""
        self._echoes.append(line)

    def received_too_much(self) -> None:
        """Say so behind the echoes of what came before."""
        self._echoes.append(b"ERR line too long")
        self._echo()

    def _echo(self) -> None:
        if self._echoes:
            self.outlet.reply(b"\r\n".join([*self._echoes, b""]))
            self._echoes.clear()


class LineFactory(ClientFactory):
    """Serves clients of the line protocol."""

    _log = Logger()

    def __init__(self, terms: Terms, hub: Hub, admission: Admission, clock: IReactorTime) -> None:
        super().__init__(hub, admission, clock, terms.idle_timeout)
        self.terms = terms

    @property
    def refusal(self) -> bytes:
        """The same for all."""
        return b"ERR too many clients\r\n"

    def connection(self, address: IAddress | None) -> LineProtocol:
        """Return the protocol for a new client."""
        return LineProtocol(address)

    def left(self, client: ClientConnection) -> None:
        """Say what a client missed: in this protocol it cannot be told."""
        super().left(client)
        subscriptions = client.outlet.subscriptions
        missed = sum(subscription.missed for subscription in subscriptions)
        gaps = sum(subscription.source_gaps for subscription in subscriptions)
        if missed or gaps:
            self._log.info(
                "{peer} left; it missed {missed} messages, and what was published in {gaps} source gaps",
                peer=client.outlet.peer,
                missed=missed,
                gaps=gaps,
            )
