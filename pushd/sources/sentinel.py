"""The route to what Sentinels call the master.

It follows "Guidelines for Redis clients with support for Redis Sentinel" in Redis's documents, and asks all
Sentinels all the time, so that a master that is frozen, or cut off with us, is left when it is replaced.
"""

from collections import Counter
from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from pushd.errors import one_line
from pushd.metrics import Reason
from pushd.redis_urls import Address, Sentinel, read_address
from pushd.sources.connection import Connector, Node, RedisConnection, SourceError
from pushd.sources.routes import Route

POLL_SECONDS = 0.5
"""How often each Sentinel is asked."""


class SentinelRoute(Route):
    """Leads to the master of the newest configuration that any Sentinel knows.

    With Sentinels that disagree that is the one of the latest epoch, which is how they agree themselves. It
    is kept when those who named it are silent; an older one is believed only if all Sentinels say so.
    """

    def __init__(
        self,
        settings: Sentinel,
        connect_sentinel: Connector,
        connect: Connector,
        clock: IReactorTime,
        timeout: float,
    ) -> None:
        self._master_name = settings.master
        self._connect = connect
        self._watches = [
            SentinelWatch(
                settings, Node(str(address), connect_sentinel(address)), clock, timeout, self._decide
            )
            for address in settings.addresses
        ]
        self._master: Address | None = None
        self._epoch = 0  # of the configuration that names it
        self._finding: list[Deferred[None]] = []
        self._leaving: list[tuple[Address | None, Deferred[None]]] = []

    def start(self) -> None:
        """Begin to ask."""
        for watch in self._watches:
            watch.start()

    def stop(self) -> None:
        """Ask no more."""
        for watch in self._watches:
            watch.stop()

    async def find(self) -> Node:
        """Return the master; raises SourceError once all Sentinels have failed to name one."""
        if self._master is None:
            known: Deferred[None] = Deferred(self._finding.remove)
            self._finding.append(known)
            await known
        assert self._master is not None
        return Node(
            f'{self._master} (master "{self._master_name}")', self._connect(self._master), self._master
        )

    async def check(self, connection: RedisConnection, node: Node) -> None:  # noqa: ARG002
        """Refuse a server that is not, or not yet, a master."""
        try:
            role = await connection.ask("ROLE", b"ROLE")
        except SourceError as failure:
            if failure.is_forbidden:
                return  # then Sentinel's word must do
            raise
        if not isinstance(role, list) or role[:1] != [b"master"]:
            raise SourceError(Reason.REFUSED, "it is a replica, not a master")

    def left(self, node: Node) -> Deferred[None]:
        """Return what fires when Sentinels name another master."""
        leaving: Deferred[None] = Deferred(lambda _: self._leaving.remove(entry))
        entry = (node.address, leaving)
        self._leaving.append(entry)
        return leaving

    def redirect(self, node: Node, failure: SourceError) -> bool:
        """Go on at once where the server was left for another."""
        return failure.reason is Reason.MOVED and node.address != self._master

    def _decide(self) -> None:
        """Take note of an answer, or of a failure, of one Sentinel."""
        votes = Counter(watch.answer for watch in self._watches if watch.answer is not None)
        if votes:
            epoch, master = max(votes, key=lambda answer: (answer[0], votes[answer]))
            if epoch < self._epoch and len(list(votes.elements())) < len(self._watches):
                return  # whoever knew better may only be silent
            self._epoch, self._master = epoch, master
            finding, self._finding = self._finding, []
            for known in finding:
                known.callback(None)
            for entry in [entry for entry in self._leaving if entry[0] != self._master]:
                self._leaving.remove(entry)
                entry[1].callback(None)
        elif all(watch.failure for watch in self._watches):
            finding, self._finding = self._finding, []
            why = "; ".join(f"{watch.node.name}: {watch.failure}" for watch in self._watches)
            for known in finding:
                known.errback(SourceError(Reason.CONNECT, f"no Sentinel names a master: {why}"))


class SentinelWatch:
    """Asks one Sentinel again and again who the master is, and calls noted after each answer and failure."""

    _log = Logger()

    def __init__(
        self, settings: Sentinel, node: Node, clock: IReactorTime, timeout: float, noted: Callable[[], None]
    ) -> None:
        self.node = node
        self.answer: tuple[int, Address] | None = None  # the epoch of a configuration, and its master
        self.failure: SourceError | None = None
        self._settings = settings
        self._clock = clock
        self._timeout = timeout
        self._noted = noted
        self._running: Deferred[None] | None = None

    def start(self) -> None:
        """Begin to ask."""
        self._running = Deferred.fromCoroutine(self._watch())
        self._running.addErrback(lambda failure: failure.trap(CancelledError))

    def stop(self) -> None:
        """Ask no more."""
        if self._running is not None:
            self._running.cancel()

    async def _watch(self) -> None:
        while True:
            connection = RedisConnection(self._clock, self._timeout)
            try:
                await connection.open(self.node, self._settings.sentinel_access)
                while True:
                    self.answer, self.failure = await self._ask(connection), None
                    self._noted()
                    await deferLater(self._clock, POLL_SECONDS)
            except CancelledError:
                raise
            except Exception as error:
                if not isinstance(error, SourceError):  # a mistake of our own must not end it in silence
                    self._log.failure("Asking {node} failed", node=self.node.name)
                    error = SourceError(Reason.PROTOCOL, one_line(error))
                self.answer, self.failure = None, error
                self._noted()
            finally:
                connection.give_up(Reason.CLOSED, "done")
            await deferLater(self._clock, POLL_SECONDS)

    async def _ask(self, connection: RedisConnection) -> tuple[int, Address]:
        name = self._settings.master.encode()
        # Its address is up to date already while a failover is still under way; the rest is not.
        state = await connection.ask("SENTINEL", b"SENTINEL", b"MASTER", name)
        told = await connection.ask("SENTINEL", b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", name)
        try:
            host, port = told
            epoch = dict(zip(state[::2], state[1::2], strict=True))[b"config-epoch"]
            return int(epoch), read_address(host.decode(), port.decode())
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SourceError(Reason.PROTOCOL, "that is not what a Sentinel answers") from error
