"""Redis Pub/Sub as the source: one connection, subscribed to every topic, replaced when it is lost."""

import socket
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from twisted.application.service import Service
from twisted.internet import ssl
from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from txredisapi import RedisError, SubscriberProtocol

from pushd.errors import SettingsError, one_line
from pushd.message import Batch, Kind, Topic
from pushd.settings import Redis
from pushd.sockets import watch_peer

CONNECT_SECONDS = 5.0
"""How long one attempt to connect may take."""

ANSWER_SECONDS = 5.0
"""How long Redis may take to answer AUTH, and to confirm all subscriptions."""

Deliver = Callable[[Batch], None]
"""Takes over what one read brought for one topic."""


def redis_endpoint(redis: Redis, reactor: Any) -> IStreamClientEndpoint:
    """Return how to connect; by TLS only to a server whose certificate is good for its host.

    Raises SettingsError where there is no certificate in what should hold authorities.
    """
    if redis.path is not None:
        return UNIXClientEndpoint(reactor, redis.path, timeout=CONNECT_SECONDS)
    endpoint = HostnameEndpoint(reactor, redis.host, redis.port, timeout=CONNECT_SECONDS)
    if not redis.tls:
        return endpoint
    return wrapClientTLS(ssl.optionsForClientTLS(redis.host, trustRoot=_trust_root(redis.ca)), endpoint)


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


class RedisSubscriber(SubscriberProtocol):
    """One connection to Redis: what one read brings is delivered as one batch for each topic, bytes exact.

    It drives hiredis itself: txredisapi looks at each reply on its own, which takes most of the time. What is
    not a message goes to txredisapi, as the answer to a command.
    """

    def __init__(self, deliver: Deliver) -> None:
        super().__init__(charset=None, convertNumbers=False)
        self.lost: Deferred[str] = Deferred()
        self._deliver = deliver
        self._parser = hiredis.Reader()
        self.why_lost: str | None = None

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:  # noqa: ARG002 - txredisapi's signature
        """Take in one read; on what is not the Redis protocol, give the connection up."""
        channels: defaultdict[bytes, list[bytes]] = defaultdict(list)
        patterns: defaultdict[bytes, list[bytes]] = defaultdict(list)
        try:
            self._parser.feed(data)
            while (reply := self._parser.gets()) is not False:
                match reply:
                    # Guards, not class patterns: each bytes() in a pattern costs CPython a failed search.
                    case [b"message", name, payload] if isinstance(name, bytes) and isinstance(
                        payload, bytes
                    ):
                        channels[name].append(payload)
                    case [b"pmessage", name, _, payload] if isinstance(name, bytes) and isinstance(
                        payload, bytes
                    ):
                        patterns[name].append(payload)
                    case [b"message" | b"pmessage", *_] if len(reply) > 2:
                        raise hiredis.ProtocolError("a message that is none")
                    case _:
                        self.replyReceived(reply)
        except (hiredis.HiredisError, MemoryError) as error:
            # MemoryError: hiredis makes room for whatever length an array announces.
            self.why_lost = f"protocol error: {one_line(error)}"
            self.transport.abortConnection()
        for name, payloads in channels.items():
            self._deliver(Batch(Topic(name), payloads))
        for name, payloads in patterns.items():
            self._deliver(Batch(Topic(name, Kind.PATTERN), payloads))

    def connectionMade(self) -> None:
        """Notice, in time, a server that is gone without a word."""
        super().connectionMade()
        if isinstance(handle := self.transport.getHandle(), socket.socket):
            watch_peer(handle)

    def connectionLost(self, why: Failure) -> None:
        """Say why, before txredisapi fails the commands that wait for an answer."""
        self.why_lost = self.why_lost or _describe(why.value)
        super().connectionLost(why)
        self.lost.callback(self.why_lost)


class RedisSource(Service):
    """Keeps a subscription to all topics at one Redis, and tries again for ever after whatever ends it.

    The delays between attempts come from retry_delay, which is given the number of failures since the last
    success, from 0.
    """

    _log = Logger()

    def __init__(
        self,
        redis: Redis,
        topics: Sequence[Topic],
        deliver: Deliver,
        *,
        endpoint: IStreamClientEndpoint,
        clock: IReactorTime,
        retry_delay: Callable[[int], float],
    ) -> None:
        self._redis = redis
        self._topics = topics
        self._deliver = deliver
        self._endpoint = endpoint
        self._clock = clock
        self._retry_delay = retry_delay
        self._failures = 0
        self._protocol: RedisSubscriber | None = None
        self._running: Deferred[None] | None = None

    def startService(self) -> None:
        """Begin to connect."""
        super().startService()
        self._running = Deferred.fromCoroutine(self._follow())
        self._running.addErrback(lambda failure: failure.trap(CancelledError))

    def stopService(self) -> None:
        """Drop the connection, or the attempt, without waiting for Redis."""
        super().stopService()
        if self._running is not None:
            self._running.cancel()

    def pauseProducing(self) -> None:
        """Read no more from Redis for now; until it has subscribed, the source reads on."""
        if self._protocol is not None:
            self._protocol.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read on."""
        if self._protocol is not None:
            self._protocol.transport.resumeProducing()

    async def _follow(self) -> None:
        while True:
            why = await self._subscription()
            if not self.running:
                return
            delay = self._retry_delay(self._failures)
            self._failures += 1
            self._log.warn(
                "No subscription at {redis}: {why}; trying again in {delay:.1f} s",
                redis=self._redis,
                why=why,
                delay=delay,
            )
            await deferLater(self._clock, delay)

    async def _subscription(self) -> str:
        """Connect, subscribe, and return why that failed or ended."""
        protocol = RedisSubscriber(self._guarded)
        factory = Factory.forProtocol(lambda: protocol)
        factory.noisy = False
        try:
            await self._endpoint.connect(factory)
            await self._subscribe(protocol)
            self._failures = 0
            self._protocol = protocol
            return await protocol.lost
        except Exception as error:
            return protocol.why_lost or _describe(error)
        finally:
            self._protocol = None
            if protocol.transport is not None:
                protocol.transport.abortConnection()

    async def _subscribe(self, protocol: RedisSubscriber) -> None:
        if self._redis.password is not None:
            await self._in_time(protocol.auth(self._redis.password, self._redis.username))
        # One command for each topic: an answer then belongs to exactly one of them.
        confirmed = [self._confirm(protocol, topic) for topic in self._topics]
        await self._in_time(gatherResults(confirmed, consumeErrors=True))

    def _confirm(self, protocol: RedisSubscriber, topic: Topic) -> Deferred[None]:
        subscribe = protocol.psubscribe if topic.kind is Kind.PATTERN else protocol.subscribe
        done: Deferred[None] = subscribe([topic.name])
        return done.addCallback(
            lambda _: self._log.info("Subscribed to {t} at {redis}", t=topic, redis=self._redis)
        )

    def _in_time(self, answer: Deferred[Any]) -> Deferred[Any]:
        def late(_: object, seconds: float) -> None:
            raise RedisError(f"no answer within {seconds:g} s")

        return answer.addTimeout(ANSWER_SECONDS, self._clock, onTimeoutCancel=late)

    def _guarded(self, batch: Batch) -> None:
        """Deliver; an exception must not end the connection and lose what else the read brought."""
        try:
            self._deliver(batch)
        except Exception:
            self._log.failure(
                "Lost {count} messages of {topic}", count=len(batch.payloads), topic=batch.topic
            )


def _describe(error: BaseException | None) -> str:
    if isinstance(error, FirstError):
        return _describe(error.subFailure.value)
    if isinstance(error, SSL.Error) and error.args and error.args[0]:
        return "TLS: " + ", ".join(str(entry[-1]) for entry in error.args[0])
    return one_line(error)
