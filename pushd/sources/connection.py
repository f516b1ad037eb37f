"""One connection to a Redis server or a Sentinel: how it is made, what may be asked, and why it ended."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hiredis
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import ssl
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from txredisapi import RedisError, SubscriberProtocol

from pushd.errors import SettingsError, one_line
from pushd.metrics import Reason
from pushd.redis_urls import Access, Address

MAX_REPLY_BYTES = 32 * 1024**2
"""What Redis may send without ending a reply: what it buffers, by default, for a subscriber."""


class SourceError(Exception):
    """Why there is no subscription, or no answer: a reason to count, and a text for the log."""

    def __init__(self, reason: Reason, why: str) -> None:
        super().__init__(why)
        self.reason = reason

    @property
    def is_forbidden(self) -> bool:
        """Whether the command that was asked is not to be had here: an ACL forbids it, or it was renamed."""
        return self.reason is Reason.REFUSED and str(self).startswith(("NOPERM", "ERR unknown command"))


@dataclass(frozen=True, slots=True)
class Node:
    """One server: what the log calls it, how to connect to it, and where it is, if that is of interest."""

    name: str
    endpoint: IStreamClientEndpoint
    address: Address | None = None


Connector = Callable[[Address], IStreamClientEndpoint]
"""Says how to connect to an address. A name is resolved anew at each attempt."""


def connector(access: Access, timeout: float, reactor: Any) -> Connector:
    """Return how to connect by TCP; by TLS only to a server whose certificate is good for its host.

    Raises SettingsError where there is no certificate in what should hold authorities. What it returns raises
    SourceError where a host is no name by which a certificate can be checked.
    """
    trust_root = _trust_root(access.ca) if access.tls else None

    def connect(address: Address) -> IStreamClientEndpoint:
        plain = HostnameEndpoint(reactor, address.host, address.port, timeout=timeout)
        if not access.tls:
            return plain
        try:
            options = ssl.optionsForClientTLS(address.host, trustRoot=trust_root)
        except ValueError as error:
            raise SourceError(Reason.TLS, f"no certificate can be for {address.host!r}") from error
        return wrapClientTLS(options, plain)

    return connect


def unix_endpoint(path: str, timeout: float, reactor: Any) -> IStreamClientEndpoint:
    """Return how to connect to a Unix socket."""
    return UNIXClientEndpoint(reactor, path, timeout=timeout)


def _trust_root(pem: bytes | None) -> Any:
    if pem is None:
        return ssl.platformTrust()
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise SettingsError(
            "--redis-ca: the file holds no certificate; allowed: certificates in PEM"
        ) from error
    return ssl.trustRootFromCertificates(
        [ssl.Certificate.load(certificate.public_bytes(Encoding.DER)) for certificate in certificates]
    )


class RedisConnection(SubscriberProtocol):
    """One connection. Each command is answered within timeout seconds, or the connection is given up.

    It drives hiredis itself: txredisapi looks at each reply on its own, which takes most of the time.
    """

    def __init__(self, clock: IReactorTime, timeout: float) -> None:
        super().__init__(charset=None, convertNumbers=False)
        self.lost: Deferred[SourceError] = Deferred()
        self.heard_at = clock.seconds()  # when a reply was last complete
        self._clock = clock
        self._timeout = timeout
        self._why: SourceError | None = None
        self._gone = False
        self._parser = hiredis.Reader()
        self._unread = 0  # bytes that came since the last read that completed a reply

    async def open(self, node: Node, access: Access) -> None:
        """Connect and log in; raises SourceError."""
        factory = Factory.forProtocol(lambda: self)
        factory.noisy = False
        try:
            connecting = _cancellable(node.endpoint.connect(factory))
            # The endpoint's own timeout does not count the time in which a name is looked up.
            connecting.addTimeout(self._timeout, self._clock, lambda *_: self._no_connection())
            await connecting
        except (CancelledError, SourceError):
            raise
        except Exception as error:
            raise self._why or SourceError(_reason(error), _describe(error)) from error
        if access.password is not None:
            user = () if access.username is None else (access.username,)
            await self.ask("AUTH", b"AUTH", *user, access.password)

    @property
    def has_ended(self) -> bool:
        """Whether it is lost, or has been given up."""
        return self._why is not None

    def _no_connection(self) -> None:
        raise SourceError(Reason.CONNECT, f"no connection within {self._timeout:g} s")

    def ask(self, shown: str, *words: bytes) -> Deferred[Any]:
        """Send a command, which is called shown where it must be named; fails with SourceError."""
        answer = self._send(*words)
        answer.addTimeout(self._timeout, self._clock, onTimeoutCancel=lambda *_: self._late(shown))
        return answer.addErrback(self._failed)

    def wait_for(self, *words: bytes) -> Deferred[Any]:
        """Send a command whose answer may take any time; fails with SourceError."""
        return self._send(*words).addErrback(self._failed)

    def _send(self, *words: bytes) -> Deferred[Any]:
        try:
            answer: Deferred[Any] = self.execute_command(*words)
        except RedisError as error:  # it is lost already
            return fail(error)
        return answer

    def _late(self, shown: str) -> None:
        raise self.give_up(Reason.TIMEOUT, f"no answer to {shown} within {self._timeout:g} s")

    def _failed(self, failure: Failure) -> None:
        if failure.check(SourceError, CancelledError):
            failure.raiseException()
        if failure.check(hiredis.ReplyError):
            text = one_line(failure.value)
            raise SourceError(Reason.MOVED if text.startswith("MOVED ") else Reason.REFUSED, text)
        raise self._why or SourceError(Reason.CLOSED, _describe(failure.value))

    def give_up(self, reason: Reason, why: str) -> SourceError:
        """End the connection at once, for a reason of our own; return why it has ended."""
        self._why = self._why or SourceError(reason, why)
        if self.transport is not None and not self._gone:
            self.transport.abortConnection()
        return self._why

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:  # noqa: ARG002 - txredisapi's signature
        """Take in one read; on what is not the Redis protocol, give the connection up."""
        self._unread += len(data)
        try:
            self._parser.feed(data)
            if self._read_replies():
                self._unread = 0
                self.heard_at = self._clock.seconds()
            elif self._unread > MAX_REPLY_BYTES:
                raise hiredis.ProtocolError(f"a reply of more than {MAX_REPLY_BYTES} bytes")
        except (hiredis.HiredisError, MemoryError, TypeError, ValueError) as error:
            # hiredis makes room for whatever length an array announces, and dictionaries with any key.
            self.give_up(Reason.PROTOCOL, f"protocol error: {one_line(error)}")

    def _read_replies(self) -> bool:
        """Take in all replies that are complete; return whether there was one."""
        some = False
        while (reply := self._parser.gets()) is not False:
            some = True
            if not self._answered(reply):
                break
        return some

    def _answered(self, reply: Any) -> bool:
        """Take a reply as the answer to the oldest command that waits; return whether to read another.

        Not when the connection has been given up for it: what it confirms later is confirmed of a dead one.
        """
        if self.replyQueue.waiting:
            self.replyQueue.put(reply)
        elif isinstance(reply, hiredis.ReplyError):
            self.give_up(Reason.REFUSED, one_line(reply))  # such as that there are too many clients
        else:
            raise hiredis.ProtocolError("an answer to nothing")
        return self._why is None

    def connectionLost(self, why: Failure) -> None:
        """Say why, before txredisapi fails the commands that wait for an answer."""
        self._gone = True
        self._parser = hiredis.Reader()  # what the old one holds may be much, and wait long to be collected
        self._why = self._why or SourceError(_reason(why.value), _describe(why.value))
        super().connectionLost(why)
        self.lost.callback(self._why)


def _cancellable(attempt: Deferred[Any]) -> Deferred[Any]:
    """Return what fails with CancelledError if it is cancelled.

    Endpoints make other errors of that: that a name was not found, where it was still being looked up.
    """

    def cancel(outcome: Deferred[Any]) -> None:
        outcome.errback(CancelledError())
        attempt.cancel()

    def pass_on(result: Any) -> None:
        if not outcome.called:
            outcome.callback(result)

    outcome: Deferred[Any] = Deferred(cancel)
    attempt.addBoth(pass_on)
    return outcome


def _reason(error: BaseException | None) -> Reason:
    if isinstance(error, SSL.Error | VerificationError):
        return Reason.TLS
    return Reason.CLOSED if isinstance(error, ConnectionClosed) else Reason.CONNECT


def _describe(error: BaseException | None) -> str:
    if isinstance(error, VerificationError):
        return "TLS: the certificate is good, but for another host"
    if isinstance(error, SSL.Error) and error.args and error.args[0]:
        text = ", ".join(str(entry[-1]) for entry in error.args[0])
        hint = " (it has expired, or no trusted authority has issued it)" if "verify failed" in text else ""
        return f"TLS: {text}{hint}"
    return one_line(error)
