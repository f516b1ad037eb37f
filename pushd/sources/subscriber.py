"""A subscribed connection to Redis: confirms topic by topic, hands on messages, and notices a dead peer."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import hiredis
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from pushd.message import PROBE_PREFIX, Batch, Kind, Topic
from pushd.metrics import Reason
from pushd.sources.connection import RedisConnection, SourceError

SUBSCRIBE: Final = {Kind.CHANNEL: b"SUBSCRIBE", Kind.PATTERN: b"PSUBSCRIBE", Kind.SHARD: b"SSUBSCRIBE"}
UNSUBSCRIBE: Final = {Kind.CHANNEL: b"UNSUBSCRIBE", Kind.PATTERN: b"PUNSUBSCRIBE"}

Deliver = Callable[[Batch], None]
"""Takes over what one read brought for one topic; raises nothing."""


class ProbeListener(Protocol):
    """What a subscriber needs of a probe."""

    topic: Topic

    def heard(self, payload: bytes) -> None:
        """Take note of what came back."""


class _Brought(dict[bytes, list[bytes]]):
    """The payloads that one read brings, by name, and of patterns the channels beside them.

    A name that was not asked for is a protocol error at that very place.
    """

    __slots__ = ("channels", "topics")

    def __init__(self, topics: Mapping[bytes, Topic | None]) -> None:
        self.topics = topics
        self.channels: defaultdict[bytes, list[bytes]] = defaultdict(list)

    def __missing__(self, name: bytes) -> list[bytes]:
        if name not in self.topics:
            raise hiredis.ProtocolError("a message that was not asked for")
        payloads: list[bytes] = []
        self[name] = payloads
        return payloads


class RedisSubscriber(RedisConnection):
    """What one read brings is delivered as one batch for each topic, bytes exact, in order.

    A message of a topic that was not asked for is a protocol error, and ends the connection. Probes go to
    where they are waited for.
    """

    def __init__(
        self,
        clock: IReactorTime,
        timeout: float,
        *,
        deliver: Deliver,
        probe: ProbeListener | None,
    ) -> None:
        super().__init__(clock, timeout)
        self._deliver = deliver
        # Up to then nothing is missing, as an answer proves; None before there is a subscription.
        self.proven_at: float | None = None
        self._probe = probe
        # What has been confirmed, so that messages may come; None for what has been left before it was.
        self._topics: dict[Kind, dict[bytes, Topic | None]] = {kind: {} for kind in Kind}
        self._leaving: dict[Topic, list[float]] = {}  # when each UNSUBSCRIBE was asked that is not answered
        self._pings: LoopingCall | None = None
        self._deadline: IDelayedCall | None = None  # of the ping that waits for its answer
        self._held_back = False

    async def subscribe_to(self, topic: Topic) -> None:
        """Return once Redis has confirmed one topic; raises SourceError."""
        await self._change(SUBSCRIBE[topic.kind], topic)
        self._topics[topic.kind][topic.name] = topic

    def ignore(self, topic: Topic) -> None:
        """Take the messages of a topic that has been confirmed for nothing."""
        self._topics[topic.kind][topic.name] = None

    async def unsubscribe_from(self, topic: Topic) -> None:
        """Return once Redis has confirmed that a topic has been left; raises SourceError.

        Until then its messages come.
        """
        leaving = self._leaving.setdefault(topic, [])
        leaving.append(self._clock.seconds())
        try:
            await self._change(UNSUBSCRIBE[topic.kind], topic)
        finally:
            del leaving[0]
            if not leaving:
                del self._leaving[topic]
        self._topics[topic.kind].pop(topic.name, None)

    def leaving_since(self, topic: Topic) -> float | None:
        """Return when it was asked to leave a topic whose messages may still come; None where none may."""
        return self._leaving[topic][0] if topic in self._leaving else None

    async def _change(self, command: bytes, topic: Topic) -> None:
        """Ask for a change that Redis confirms by repeating it; that it comes is watched over all such."""
        asked_at = self._clock.seconds()
        if self._pings is None and self._deadline is None:
            self._expect_life(f"{command.decode()} {topic}", asked_at)
        answer = await self.wait_for(command, topic.name)
        if not isinstance(answer, list) or answer[:2] != [command.lower(), topic.name]:
            raise SourceError(Reason.PROTOCOL, f"protocol error: {topic} is not what was confirmed")
        self.proven_at = asked_at

    def keep_alive(self, seconds: float) -> None:
        """Ask for a sign of life every so often, from when all that is subscribed to has been confirmed."""
        self._expect_nothing()
        if self.proven_at is None:  # nothing is subscribed to of which something could be missing
            self.proven_at = self._clock.seconds()
        self._pings = LoopingCall(self._ping)
        self._pings.clock = self._clock
        self._pings.start(seconds, now=False)

    def hold_back(self, holding: bool) -> None:
        """Read nothing, or read on. What is not read is no sign of death."""
        self._held_back = holding
        if holding:
            self.transport.pauseProducing()
        else:
            self.transport.resumeProducing()

    def _ping(self) -> None:
        if self._deadline is None:
            asked_at = self._clock.seconds()
            self.execute_command("PING").addCallbacks(
                self._ponged, self._no_pong, (asked_at,), None, (asked_at,)
            )
            self._expect_life("PING", asked_at)

    def _ponged(self, answer: object, asked_at: float) -> None:
        self._expect_nothing()
        if answer in ([b"pong", b""], b"PONG"):  # PONG while all topics are refused
            self.proven_at = asked_at
        else:
            self.give_up(Reason.PROTOCOL, "protocol error: that is no answer to PING")

    def _no_pong(self, failure: Failure, asked_at: float) -> None:
        if failure.check(hiredis.ReplyError):  # that PING is forbidden is a sign of life as good as any
            self._expect_nothing()
            self.proven_at = asked_at

    def _expect_life(self, asked: str, since: float) -> None:
        self._deadline = self._clock.callLater(self._timeout, self._overdue, asked, since)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _overdue(self, asked: str, since: float) -> None:
        # What has come while this process itself did not run is read in the next turn.
        self._deadline = self._clock.callLater(0, self._truly_overdue, asked, since)

    def _truly_overdue(self, asked: str, since: float) -> None:
        if self._held_back or self.heard_at > since:
            # The answer is behind messages, or other answers, that have still to be read.
            self._expect_life(asked, self._clock.seconds())
            return
        self._deadline = None
        self.give_up(Reason.TIMEOUT, f"no answer to {asked} within {self._timeout:g} s")

    def _read_replies(self) -> bool:
        brought = [_Brought(self._topics[kind]) for kind in (Kind.CHANNEL, Kind.PATTERN, Kind.SHARD)]
        channels, patterns, shards = brought
        names: dict[bytes, bytes] = {}  # so that equal ones are kept once
        some = False
        try:
            while (reply := self._parser.gets()) is not False:
                some = True
                match reply:
                    # Guards, not class patterns: each bytes() in a pattern costs CPython a failed search.
                    case [b"message", name, payload] if type(name) is bytes and type(payload) is bytes:
                        channels[name].append(payload)
                    case [b"pmessage", name, channel, payload] if (
                        type(name) is bytes and type(channel) is bytes and type(payload) is bytes
                    ):
                        if not channel.startswith(PROBE_PREFIX):
                            patterns[name].append(payload)
                            patterns.channels[name].append(names.setdefault(channel, channel))
                    case [b"smessage", name, payload] if type(name) is bytes and type(payload) is bytes:
                        shards[name].append(payload)
                    case [b"message" | b"pmessage" | b"smessage", *_]:
                        raise hiredis.ProtocolError("a message that is none")
                    case [b"sunsubscribe", _, int()]:
                        self.give_up(Reason.MOVED, "its slot has moved to another node")
                    case _:
                        # What is told of a topic is told behind the messages that came before.
                        self._hand_on(brought)
                        if not self._answered(reply):
                            break
        finally:
            self._hand_on(brought)
        return some

    def _hand_on(self, brought: Sequence[_Brought]) -> None:
        """Deliver what has come since the last time."""
        for payloads in filter(None, brought):
            for name, messages in payloads.items():
                if (topic := payloads.topics[name]) is None:
                    continue
                if self._probe and topic == self._probe.topic:
                    for payload in messages:
                        self._probe.heard(payload)
                else:
                    self._deliver(Batch(topic, messages, payloads.channels.get(name, ())))
            payloads.clear()
            payloads.channels.clear()

    def connectionLost(self, why: Failure) -> None:
        """End with the connection what belongs to it."""
        if self._pings is not None and self._pings.running:
            self._pings.stop()
        self._expect_nothing()
        super().connectionLost(why)
