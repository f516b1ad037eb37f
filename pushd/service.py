"""The service: the one place where all parts are put together, and taken apart in order."""

import secrets
import string
import time
from collections.abc import Sequence
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint, serverFromString
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from pushd.clients.line import LineFactory, Terms, show_address
from pushd.errors import SettingsError, one_line
from pushd.hub import Hub
from pushd.message import Batch, Topic
from pushd.metrics import Metrics
from pushd.redis_urls import Embedded
from pushd.settings import Settings
from pushd.sockets import raise_descriptor_limit, tune_listener
from pushd.sources.deployments import redis_sources
from pushd.sources.embedded import BrokerFactory

RESERVED_DESCRIPTORS = 64
"""File descriptors that clients never get, beside those for Redis: for listeners, logs, names looked up."""

DRAIN_TICK_SECONDS = 0.02
"""How often a draining pushd looks for clients that have got everything."""

EPOCH_LETTERS = string.ascii_lowercase + string.digits
EPOCH_LENGTH = 6
"""So that ids of another pushd, or of another start, are known for such: all but one in 2,000 millions."""


class _Interruptions:
    """Tells the hub of source gaps; of what else a source says, nothing depends."""

    def __init__(self, hub: Hub) -> None:
        self.interrupt = hub.interrupt

    def confirmed(self, topic: Topic) -> None:
        """Nothing to do."""

    def lost(self, topic: Topic) -> None:
        """Nothing to do."""

    def refused(self, topic: Topic, why: str) -> None:
        """Nothing to do."""


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
        for topic in settings.topics:
            self.hub.open(topic)
        reserved = RESERVED_DESCRIPTORS + self._follow()
        self._clients = LineFactory(self._terms(reserved), self.hub, reactor, self.metrics)
        self._endpoints = [self._endpoint(text) for text in settings.endpoints]
        self._ports: list[IListeningPort] = []
        self._broker: IListeningPort | None = None
        self._in_a_hurry = False

    def _follow(self) -> int:
        """Prepare to follow Redis; return how many file descriptors that takes."""
        if not self._settings.topics or isinstance(self._settings.source, Embedded):
            return 0
        sources = redis_sources(
            self._settings,
            self._deliver,
            _Interruptions(self.hub),
            control=False,
            reactor=self._reactor,
            metrics=self.metrics,
        )
        self.hub.source = sources
        sources.setServiceParent(self)
        return sources.descriptors

    def _terms(self, reserved: int) -> Terms:
        settings = self._settings
        room = self._descriptors - reserved
        if room < 1:
            raise SettingsError(
                f"the limit of {self._descriptors} file descriptors leaves none for clients; allowed:"
                f" more than {reserved} (LimitNOFILE=, ulimit -Hn)"
            )
        if settings.max_clients is not None and settings.max_clients > room:
            raise SettingsError(
                f"--max-clients: {settings.max_clients} is above what the limit of {self._descriptors} file"
                f" descriptors allows; allowed: 1 to {room}, or a higher limit (LimitNOFILE=, ulimit -Hn)"
            )
        return Terms(
            topics=settings.topics,
            slow=settings.slow,
            replay=settings.replay,
            max_line=settings.max_line,
            max_clients=room if settings.max_clients is None else settings.max_clients,
            max_clients_per_ip=settings.max_clients_per_ip,
            idle_timeout=settings.idle_timeout,
        )

    def _endpoint(self, text: str) -> IStreamServerEndpoint:
        try:
            endpoint: IStreamServerEndpoint = serverFromString(self._reactor, text)
        except Exception as error:
            raise SettingsError(
                f"--port: {text!r} is not an endpoint of Twisted ({one_line(error)}); allowed: a port number,"
                " or such as tcp:8888:interface=127.0.0.1 or unix:/run/pushd/socket"
            ) from error
        return endpoint

    def _deliver(self, batch: Batch) -> None:
        if self._settings.debug:
            for payload in batch.payloads:
                self._log.debug("Message on {topic}: {payload!r}", topic=batch.topic, payload=payload)
        self.hub.publish(batch)

    def listen(self) -> Sequence[IListeningPort]:
        """Open all ports, and return those for clients; raises SettingsError where one cannot be had.

        For makeService to call: twistd is still in the foreground then, and can tell the user.
        """
        if isinstance(self._settings.source, Embedded):
            self._broker = self._open_broker(self._settings.source)
        for endpoint in self._endpoints:
            port = _open("--port", endpoint, self._clients, "such as --port 8889")
            if isinstance(port, FileDescriptor):
                tune_listener(port.fileno(), self._settings.send_buffer)
            self._ports.append(port)
        return self._ports

    def _open_broker(self, embedded: Embedded) -> IListeningPort:
        factory = BrokerFactory(
            self._settings.topics,
            self._deliver,
            _Interruptions(self.hub),
            clock=self._reactor,
            wall=time.time,
            password=embedded.password,
        )
        endpoint = TCP4ServerEndpoint(self._reactor, embedded.port, interface="127.0.0.1")
        return _open("--redis embedded", endpoint, factory, "such as --redis embedded:6380")

    def startService(self) -> None:
        """Say what is open, and begin to follow the source."""
        super().startService()
        if self._broker is not None:
            self._log.info("Embedded broker on {address}", address=show_address(self._broker.getHost()))
        for port in self._ports:
            self._log.info("Listening on {address}", address=show_address(port.getHost()))
        self._log.info(
            "Room for {room} clients (file descriptor limit {limit})",
            room=self._clients.terms.max_clients,
            limit=self._descriptors,
        )
        if not self._settings.topics:
            self._log.warn("No channel and no pattern: clients get nothing but the echo of what they type")

    def stopService(self) -> "Deferred[None]":
        """Stop accepting, flush, close, leave the source: within the drain budget."""
        return Deferred.fromCoroutine(self._stop())

    def hurry(self) -> None:
        """Wait for no client any longer while stopping."""
        self._in_a_hurry = True

    async def _stop(self) -> None:
        await gatherResults([maybeDeferred(port.stopListening) for port in self._ports])
        cut_off = await self._drain()
        if self._broker is not None:
            await maybeDeferred(self._broker.stopListening)
        await maybeDeferred(super().stopService)
        if self.hub.source is not None:
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

    async def _drain(self) -> int:
        """Close each client once it has got everything; return how many had not when the time was over."""
        clients = self._clients.clients
        deadline = self._reactor.seconds() + self._settings.drain
        self._log.info("Stopping: {count} clients to flush", count=len(clients))
        while clients:
            for client in [client for client in clients if client.outlet.flushed]:
                client.close()
            await deferLater(self._reactor, DRAIN_TICK_SECONDS)
            if self._in_a_hurry or self._reactor.seconds() >= deadline:
                break
        cut_off = sum(not client.outlet.flushed for client in clients)
        for client in list(clients):
            client.outlet.abort()
        return cut_off


def _new_epoch() -> str:
    return "".join(secrets.choice(EPOCH_LETTERS) for _ in range(EPOCH_LENGTH))


def _open(option: str, endpoint: IStreamServerEndpoint, factory: Factory, other: str) -> IListeningPort:
    opened: list[IListeningPort] = []
    failed: list[Failure] = []
    endpoint.listen(factory).addCallbacks(opened.append, failed.append)
    if opened:
        return opened[0]
    why = one_line(failed[0].value) if failed else "it does not open at once"
    raise SettingsError(f"{option}: {why}; allowed: one that is free, {other}")
