"""The control protocol: commands in words, answers and messages as JSON lines; see docs/protocol.md."""

import random
from collections.abc import Callable, Iterable

from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from pushd.channels import Channels
from pushd.clients.admission import Admission
from pushd.clients.connection import ClientConnection, ClientFactory
from pushd.errors import SettingsError
from pushd.events import event
from pushd.hub import Hub
from pushd.patterns import Pattern
from pushd.permissions import Permissions
from pushd.session import Publisher, Session, Terms
from pushd.settings import Control, Settings
from pushd.tokens import Tokens

STRANGER_LINE_BYTES = 8 * 1024
"""The longest line of a client that has still to say who it is: tokens are shorter."""

RETURN_SECONDS = 10.0
"""Over so much time clients are spread who are told to come back."""


def terms_of_control(settings: Settings) -> Terms:
    """Return what the settings say; raises SettingsError where the key is of no use for tokens."""
    control = settings.control
    return Terms(
        slow=settings.slow,
        max_line=settings.max_line,
        idle_timeout=settings.idle_timeout,
        heartbeat=control.heartbeat,
        bounds=_bounds(settings),
        tokens=_tokens(control),
        auth_timeout=control.auth_timeout,
        max_subscriptions=control.max_subscriptions,
        command_rate=control.command_rate,
    )


def _tokens(control: Control) -> Tokens | None:
    if control.jwt_key is None:
        return None
    try:
        return Tokens(control.jwt_key, audience=control.jwt_audience, issuer=control.jwt_issuer)
    except SettingsError as error:
        raise SettingsError(f"--jwt-key: {error}") from None


def _bounds(settings: Settings) -> Permissions:
    """Return what nobody may exceed: where tokens say what is allowed, only what was said at start."""
    control = settings.control
    anything = (b"*",) if control.jwt_key is not None else ()
    return Permissions(
        topics=frozenset(settings.topics) if control.allow is None else frozenset(),
        subscribe=_patterns(anything if control.allow is None else control.allow),
        publish=_patterns(anything if control.allow_publish is None else control.allow_publish),
    )


def _patterns(sources: Iterable[bytes]) -> tuple[Pattern, ...]:
    return tuple(map(Pattern, sources))


def _some_time() -> int:
    return int(random.uniform(0, 1000 * RETURN_SECONDS))


class ControlProtocol(ClientConnection):
    """One client, and its session."""

    factory: "ControlFactory"
    _session: Session

    @property
    def max_line(self) -> int:
        """Less for a stranger."""
        most = self.factory.terms.max_line
        return min(most, STRANGER_LINE_BYTES) if self._session.is_stranger else most

    def begin(self) -> None:
        """Open the session."""
        factory = self.factory
        self._session = Session(
            factory.terms,
            self.outlet,
            hub=factory.hub,
            channels=factory.channels,
            publish=factory.publish,
            clock=factory.clock,
            wall=factory.wall,
            close=self.close,
        )
        self._session.begin()

    def received(self, line: bytes) -> None:
        """Hand on a line."""
        self._session.received(line)

    def received_too_much(self) -> None:
        """Say so."""
        self._session.say_error("line-too-long", f"allowed: {self.max_line} bytes")

    def say_idle(self) -> None:
        """Say goodbye."""
        self._session.say_goodbye("idle")

    def say_stopping(self) -> None:
        """Say goodbye, and when to come back."""
        self._session.say_goodbye("drain", retry_ms=_some_time())

    def readConnectionLost(self) -> None:
        """Close when the client will send no more and has been answered."""
        self._session.finish()

    def close(self) -> None:
        """End the session with the connection: nothing more is to come."""
        super().close()
        self._session.end()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget the client."""
        super().connectionLost(reason)
        self._session.end()


class ControlFactory(ClientFactory):
    """Serves clients of the control protocol."""

    @property
    def refusal(self) -> bytes:
        """The line for those who are not admitted, and when to come back: not all at once."""
        return event(
            "error",
            code="too-many-clients",
            message="there is no room for more",
            command=None,
            retry_ms=_some_time(),
        )

    def __init__(
        self,
        terms: Terms,
        hub: Hub,
        channels: Channels,
        publish: Publisher,
        admission: Admission,
        clock: IReactorTime,
        wall: Callable[[], float],
    ) -> None:
        super().__init__(hub, admission, clock, terms.idle_timeout)
        self.wall = wall  # the seconds since 1970, by which tokens expire
        self.terms = terms
        self.channels = channels
        self.publish = publish

    def connection(self, address: IAddress | None) -> ControlProtocol:
        """Return the protocol for a new client."""
        return ControlProtocol(address)
