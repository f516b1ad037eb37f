"""The publisher: sends Redis what clients publish, as a service would, over a connection of its own."""

from collections import deque
from dataclasses import dataclass, field
from typing import NoReturn

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from pushd.errors import one_line
from pushd.metrics import Reason
from pushd.redis_urls import Access
from pushd.sources.connection import Node, RedisConnection, SourceError
from pushd.sources.routes import Route

MAX_WAITING = 1024
"""So many messages may wait for an answer."""

MAX_WAITING_BYTES = 8 * 1024**2
"""So much payload may wait for an answer."""

UNUSED_SECONDS = 60.0
"""After so long without a message the connection is closed."""

STOPPING = "pushd is stopping"


class PublisherBusy(Exception):  # noqa: N818
    """More waits for Redis than may: this message was not taken."""


@dataclass(frozen=True, slots=True)
class _Message:
    channel: bytes
    payload: bytes
    published: Deferred[int] = field(default_factory=Deferred)


class Publisher:
    """Publishes in order, and nothing twice: what was written when a connection ends has failed.

    It connects at the first message, and again at the next one after the connection has ended.
    """

    _log = Logger()

    def __init__(self, route: Route, access: Access, *, clock: IReactorTime, timeout: float) -> None:
        self._route = route
        self._access = access
        self._clock = clock
        self._timeout = timeout  # for a connection, and for each answer
        self._unwritten: deque[_Message] = deque()
        self._waiting = self._waiting_bytes = 0  # written or not
        self._connection: RedisConnection | None = None  # once it is ready
        self._unused: IDelayedCall | None = None
        self._running: Deferred[None] = succeed(None)
        self._is_running = False
        self._is_stopped = False

    def publish(self, channel: bytes, payload: bytes) -> Deferred[int]:
        """Return what fires with Redis's count of receivers; fails with SourceError, or PublisherBusy."""
        if self._is_stopped:
            return fail(SourceError(Reason.CLOSED, STOPPING))
        if self._waiting == MAX_WAITING or self._waiting_bytes + len(payload) > MAX_WAITING_BYTES:
            return fail(PublisherBusy(f"{self._waiting} messages wait for Redis already"))
        message = _Message(channel, payload)
        self._waiting += 1
        self._waiting_bytes += len(payload)
        self._unwritten.append(message)
        self._write()
        if not self._is_running:
            self._is_running = True
            self._running = Deferred.fromCoroutine(self._run())
            self._running.addBoth(self._ended)
        return message.published

    def stop(self) -> None:
        """Publish no more, and wait for no answer."""
        self._is_stopped = True
        if self._connection is not None:
            self._connection.give_up(Reason.CLOSED, STOPPING)
        self._running.cancel()

    def _write(self) -> None:
        """Write what has not been written, if there is a connection for it."""
        connection = self._connection
        while self._unwritten and connection is not None and not connection.has_ended:
            message = self._unwritten.popleft()
            answer = connection.ask("PUBLISH", b"PUBLISH", message.channel, message.payload)
            answer.addCallback(self._counted, connection).addBoth(self._done, message)

    def _counted(self, answer: object, connection: RedisConnection) -> int:
        if isinstance(answer, int):
            return answer
        raise connection.give_up(Reason.PROTOCOL, "protocol error: that is no answer to PUBLISH")

    def _done(self, outcome: int | Failure, message: _Message) -> None:
        self._waiting -= 1
        self._waiting_bytes -= len(message.payload)
        if self._unused is not None:
            self._unused.reset(UNUSED_SECONDS)
        message.published.callback(outcome)  # fails where that is a Failure

    def _fail(self, failure: SourceError) -> None:
        """Fail what has not been written."""
        unwritten, self._unwritten = self._unwritten, deque()
        for message in unwritten:
            self._done(Failure(failure), message)

    def _ended(self, outcome: object) -> None:
        self._is_running = False
        if isinstance(outcome, Failure):  # it was stopped
            self._fail(SourceError(Reason.CLOSED, STOPPING))

    async def _run(self) -> None:
        """Have a connection, and another one, as long as there is something to write."""
        while self._unwritten:
            connection = RedisConnection(self._clock, self._timeout)
            try:
                await self._serve(connection)
            except CancelledError:
                raise
            except Exception as error:
                if not isinstance(error, SourceError):  # a mistake of our own must not end it in silence
                    self._log.failure("Publishing failed")
                    error = SourceError(Reason.PROTOCOL, one_line(error))
                self._route.advance()
                self._fail(error)
            finally:
                connection.give_up(Reason.CLOSED, "done")

    async def _serve(self, connection: RedisConnection) -> None:
        """Write what comes until the connection ends; raises SourceError where none comes about."""
        opening = Deferred.fromCoroutine(self._open(connection))
        node = await opening.addTimeout(self._timeout, self._clock, lambda *_: self._too_late())
        left = self._route.left(node)
        left.addCallbacks(lambda _: self._leave(connection), lambda failure: failure.trap(CancelledError))
        self._unused = self._clock.callLater(UNUSED_SECONDS, self._close_unused, connection)
        self._connection = connection
        self._write()
        try:
            await connection.lost
        finally:
            self._connection = None
            left.cancel()
            if self._unused.active():
                self._unused.cancel()
            self._unused = None

    async def _open(self, connection: RedisConnection) -> Node:
        node = await self._route.find()
        await connection.open(node, self._access)
        await self._route.check(connection, node)
        return node

    def _too_late(self) -> NoReturn:
        raise SourceError(Reason.CONNECT, f"no connection within {self._timeout:g} s")

    def _leave(self, connection: RedisConnection) -> None:
        connection.give_up(Reason.MOVED, "another server has taken its place")

    def _close_unused(self, connection: RedisConnection) -> None:
        if self._waiting:
            self._unused = self._clock.callLater(UNUSED_SECONDS, self._close_unused, connection)
        else:
            connection.give_up(Reason.CLOSED, "it was not used")
