"""The service: the one place where all parts are put together, and taken apart in order."""

import secrets
import string
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from pushd.channels import Channels, Upstream
from pushd.clients.admission import Admission
from pushd.clients.connection import ClientConnection, show_address
from pushd.clients.control import ControlFactory, terms_of_control
from pushd.clients.line import LineFactory, terms_of_lines
from pushd.commands import CommandError, Publish, failed
from pushd.errors import SettingsError, one_line
from pushd.hub import Hub
from pushd.listeners import Listeners, open_port
from pushd.message import Batch
from pushd.metrics import Metrics
from pushd.redis_urls import Embedded
from pushd.settings import Settings
from pushd.sockets import raise_descriptor_limit
from pushd.sources.connection import SourceError
from pushd.sources.deployments import RedisSources, redis_sources
from pushd.sources.embedded import BrokerFactory

RESERVED_DESCRIPTORS = 64
"""File descriptors that clients never get, beside those for Redis: for listeners, logs, names looked up."""

DRAIN_TICK_SECONDS = 0.02
"""How often a draining pushd looks for clients that have got everything."""

EPOCH_LETTERS = string.ascii_lowercase + string.digits
EPOCH_LENGTH = 6
"""So that ids of another pushd, or of another start, are known for such: all but one in 2,000 millions."""


class _Source(Upstream, Protocol):
    """What follows topics, and publishes to where messages come from."""

    def publish(self, channel: bytes, payload: bytes) -> Deferred[int]:
        """Return how many received it."""


class PushService(MultiService):
    """A whole pushd: what clients connect to, the hub, and the source.

    Raises SettingsError where the settings do not fit each other or the machine; nothing is open then.
    """

    _log = Logger()

    def __init__(self, settings: Settings, reactor: Any) -> None:
        super().__init__()
        self._settings = settings
        self._reactor = reactor
        self.metrics = Metrics()
        self._descriptors = raise_descriptor_limit()
        self.hub = Hub(reactor, settings.history, self.metrics, _new_epoch())
        control = settings.control
        self._channels = Channels(
            self.hub,
            reactor,
            time.time,
            linger=control.linger,
            max_channels=control.max_channels,
            max_patterns=control.max_patterns,
        )
        for topic in settings.topics:
            self._channels.pin(topic)
        self._source: _Source
        self._redis: RedisSources | None = None
        self._broker: BrokerFactory | None = None
        self._broker_port: IListeningPort | None = None
        reserved = RESERVED_DESCRIPTORS + self._follow()
        self._admission = Admission(self._most_clients(reserved), settings.max_clients_per_ip, self.metrics)
        lines = LineFactory(terms_of_lines(settings), self.hub, self._admission, reactor)
        sessions = ControlFactory(
            terms_of_control(settings),
            self.hub,
            self._channels,
            self._publish,
            self._admission,
            reactor,
            time.time,
        )
        self._factories = (lines, sessions)
        self._listeners = (
            Listeners("--port", "Listening on", settings.endpoints, lines, settings.send_buffer, reactor),
            Listeners(
                *("--control", "Control protocol on", control.endpoints, sessions, settings.send_buffer),
                reactor,
            ),
        )
        self._in_a_hurry = False

    def _follow(self) -> int:
        """Prepare to follow the source; return how many file descriptors that takes."""
        settings, wants_control = self._settings, bool(self._settings.control.endpoints)
        deliver = self._log_and_publish if settings.debug else self.hub.publish
        if isinstance(settings.source, Embedded):
            self._broker = BrokerFactory(
                settings.topics,
                deliver,
                self._channels,
                clock=self._reactor,
                wall=time.time,
                password=settings.source.password,
            )
            self._channels.upstream = self._source = self._broker
            return 0
        if not settings.topics and not wants_control:
            return 0
        self._redis = redis_sources(
            settings,
            deliver,
            self._channels,
            control=wants_control,
            reactor=self._reactor,
            metrics=self.metrics,
        )
        self._channels.upstream = self._source = self.hub.source = self._redis
        self._redis.setServiceParent(self)
        return self._redis.descriptors

    def _most_clients(self, reserved: int) -> int:
        room, wanted = self._descriptors - reserved, self._settings.max_clients
        if room < 1:
            raise SettingsError(
                f"the limit of {self._descriptors} file descriptors leaves none for clients; allowed:"
                f" more than {reserved} (LimitNOFILE=, ulimit -Hn)"
            )
        if wanted is not None and wanted > room:
            raise SettingsError(
                f"--max-clients: {wanted} is above what the limit of {self._descriptors} file"
                f" descriptors allows; allowed: 1 to {room}, or a higher limit (LimitNOFILE=, ulimit -Hn)"
            )
        return room if wanted is None else wanted

    def _log_and_publish(self, batch: Batch) -> None:
        for payload in batch.payloads:
            self._log.debug("Message on {topic}: {payload!r}", topic=batch.topic, payload=payload)
        self.hub.publish(batch)

    def _publish(self, command: Publish, answer: Callable[[int | CommandError], None]) -> None:
        def not_published(failure: Failure) -> None:
            # The text of Redis may name users, hosts and addresses: it is for the log alone.
            self._log.debug("Not published: {why}", why=one_line(failure.value))
            if isinstance(failure.value, SourceError) and failure.value.is_forbidden:
                answer(failed(command, "refused", "Redis does not allow it"))
            else:
                answer(failed(command, "unavailable", "Redis cannot be reached, or has too much to do"))

        self._source.publish(command.channel, command.payload).addCallbacks(answer, not_published)

    def listen(self) -> Sequence[IListeningPort]:
        """Open all ports, and return those for clients; raises SettingsError where one cannot be had.

        For makeService to call: twistd is still in the foreground then, and can tell the user.
        """
        if self._broker is not None:
            assert isinstance(self._settings.source, Embedded)
            endpoint = TCP4ServerEndpoint(self._reactor, self._settings.source.port, interface="127.0.0.1")
            other = "such as --redis embedded:6380"
            self._broker_port = open_port("--redis embedded", endpoint, self._broker, other)
        for listeners in self._listeners:
            listeners.open()
        return [port for listeners in self._listeners for port in listeners.ports]

    def startService(self) -> None:
        """Say what is open, and begin to follow the source."""
        super().startService()
        if self._broker_port is not None:
            self._log.info("Embedded broker on {address}", address=show_address(self._broker_port.getHost()))
        for listeners in self._listeners:
            listeners.announce()
        self._log.info(
            "Room for {room} clients (file descriptor limit {limit})",
            room=self._admission.max_clients,
            limit=self._descriptors,
        )
        if self._settings.endpoints and not self._settings.topics:
            self._log.warn("No channel and no pattern: clients get nothing but the echo of what they type")
        control = self._settings.control
        if control.endpoints and not (self._settings.topics or control.allow or control.jwt_key):
            self._log.warn("Clients of --control may subscribe to nothing: say --allow, or name channels")

    def stopService(self) -> "Deferred[None]":
        """Stop accepting, flush, close, leave the source: within the drain budget."""
        return Deferred.fromCoroutine(self._stop())

    def hurry(self) -> None:
        """Wait for no client any longer while stopping."""
        self._in_a_hurry = True

    async def _stop(self) -> None:
        await gatherResults([listeners.close() for listeners in self._listeners])
        cut_off = await self._drain()
        self._channels.stop()
        if self._broker_port is not None:
            await maybeDeferred(self._broker_port.stopListening)
        await maybeDeferred(super().stopService)
        if self._redis is not None:
            self._log.info(
                "From Redis: {metrics.messages} messages in {metrics.batches} batches; {metrics.source_gaps}"
                " source gaps, {metrics.unsubscribed_seconds:.1f} s without a subscription; failures:"
                " {failures}; probes: {metrics.probes_sent} sent, {metrics.probes_missed} missed",
                metrics=self.metrics,
                failures=", ".join(f"{n} {reason}" for reason, n in self.metrics.reconnects.items())
                or "none",
            )
        self._log.info(
            "Stopped, and left {source}: {metrics.clients} clients served, {metrics.refused} refused,"
            " {cut_off} cut off with something left to send; {metrics.messages} messages,"
            " {metrics.missed} missed",
            source=self._settings.source,
            metrics=self.metrics,
            cut_off=cut_off,
        )

    @property
    def _clients(self) -> list[ClientConnection]:
        return [client for factory in self._factories for client in factory.clients]

    async def _drain(self) -> int:
        """Close each client once it has got everything; return how many had not when the time was over."""
        deadline = self._reactor.seconds() + self._settings.drain
        self._log.info("Stopping: {count} clients to flush", count=len(self._clients))
        while clients := self._clients:
            for client in clients:
                if client.outlet.flushed:
                    client.stop()
            await deferLater(self._reactor, DRAIN_TICK_SECONDS)
            if self._in_a_hurry or self._reactor.seconds() >= deadline:
                break
        left = self._clients
        cut_off = sum(not client.outlet.flushed for client in left)
        for client in left:
            client.outlet.abort()
        return cut_off


def _new_epoch() -> str:
    return "".join(secrets.choice(EPOCH_LETTERS) for _ in range(EPOCH_LENGTH))
