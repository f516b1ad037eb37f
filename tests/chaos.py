"""Chaos: a pushd whose Redis is behind a proxy that does harm by seeded schedules; clients that record."""

import base64
import json
import re
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import connectionDone
from twisted.internet.task import deferLater
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from txredisapi import RedisProtocol

from pushd.encoders import Lines
from pushd.message import Position, SourceGap, Topic
from pushd.redis_urls import Address, Redis
from pushd.service import PushService
from pushd.settings import Control, Settings, SlowPolicy
from pushd.sources.deployments import LONGEST_DELAY_SECONDS
from tests.clients import RecordingOutlet
from tests.control_clients import Accounts, Event, seconds
from tests.faults import FaultyProxy, run, schedule

LOOPBACK = "127.0.0.1"
SCHEDULE_SECONDS = 0.6
PUBLISH_SECONDS = 0.01
PING_SECONDS = 0.2
ANSWER_SECONDS = 0.3
DRAIN_SECONDS = 1.0

HEARTBEAT_SECONDS = 0.1
STAY_MESSAGES = 10
"""After so many the client of the control protocol goes for a moment, and comes back with its id."""

RECOVERY_SECONDS = PING_SECONDS + ANSWER_SECONDS + 1.25 * LONGEST_DELAY_SECONDS + 3 * ANSWER_SECONDS
"""So long after harm pushd receives again, at most: it notices, waits, connects, asks, and is confirmed."""

BUSY_SECONDS = 5.0
"""What is granted besides to a machine that does other things too."""


class ShowingGaps(Lines):
    """The line protocol, if it could say source gaps."""

    def source_gap(self, after: Position, gap: SourceGap) -> bytes:
        return b"gap %r %r\r\n" % (gap.since, gap.until)


@dataclass(frozen=True)
class Published:
    """A message, known by its number, and between which times Redis took it."""

    before: float
    after: float


class LineClient(LineReceiver):
    """A client of the line protocol, by TCP."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.closed: Deferred[None] = Deferred()

    def lineReceived(self, line: bytes) -> None:
        self.lines.append(line)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed.callback(None)


class ControlClient(LineReceiver):
    """A client of the control protocol, by TCP, which again and again goes and comes back."""

    delimiter = b"\n"

    def __init__(self, channel: str) -> None:
        self.events: list[Event] = []
        self.closed: Deferred[None] = Deferred()
        self.is_there = False
        self.stays = False
        self._channel = channel
        self._messages = 0

    def connectionMade(self) -> None:
        """Ask for everything from the beginning."""
        self.sendLine(f"SUBSCRIBE {self._channel} LAST 999999999 SLOW skip".encode())

    def lineReceived(self, line: bytes) -> None:
        event = json.loads(line)
        self.events.append(event)
        match event["type"]:
            case "subscribed":
                self.is_there = True
            case "unsubscribed":
                self.sendLine(f"SUBSCRIBE {self._channel} FROM {event['id']} SLOW latest".encode())
            case "message":
                self._messages += 1
                if self._messages % STAY_MESSAGES == 0 and self.is_there and not self.stays:
                    self.is_there = False
                    self.sendLine(f"UNSUBSCRIBE {self._channel}".encode())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed.callback(None)


async def survive(seed: int, redis_port: int, reactor: Any) -> str:
    """Play one schedule to a whole pushd, and check what must hold; return what did not, with the seed."""
    # On every second link something is always on its way, to be lost with it.
    latency = 0.04 if seed % 2 else 0.0
    try:
        async with FaultyProxy(reactor, redis_port, latency) as proxy:
            await _survive(seed, redis_port, proxy, reactor)
    except Exception:
        return f"seed {seed}: {schedule(seed, SCHEDULE_SECONDS)}\n{Failure().getTraceback()}"
    return ""


async def _survive(seed: int, redis_port: int, proxy: FaultyProxy, reactor: Any) -> None:
    topic = Topic(b"chaos-%d" % seed)
    service = PushService(
        Settings(
            endpoints=(f"tcp:0:interface={LOOPBACK}",),
            topics=(topic,),
            source=Redis(address=Address(LOOPBACK, proxy.port)),
            redis_ping=PING_SECONDS,
            redis_timeout=ANSWER_SECONDS,
            redis_probe=PING_SECONDS,
            drain=DRAIN_SECONDS,
            control=Control(endpoints=(f"tcp:0:interface={LOOPBACK}",), heartbeat=HEARTBEAT_SECONDS),
        ),
        reactor,
    )
    port, control_port = [port.getHost() for port in service.listen()]
    assert isinstance(port, IPv4Address)
    assert isinstance(control_port, IPv4Address)
    service.startService()
    recorder = RecordingOutlet()
    service.hub.subscribe(topic, recorder, ShowingGaps, SlowPolicy.DISCONNECT, 0)
    client: LineClient = await connectProtocol(TCP4ClientEndpoint(reactor, LOOPBACK, port.port), LineClient())
    control: ControlClient = await connectProtocol(
        TCP4ClientEndpoint(reactor, LOOPBACK, control_port.port), ControlClient(topic.name.decode())
    )
    publisher = await connectProtocol(
        TCP4ClientEndpoint(reactor, LOOPBACK, redis_port), RedisProtocol(charset=None, convertNumbers=False)
    )
    published: list[Published] = []

    async def publish() -> None:
        """Publish numbers for ever, to pushd's own Redis and not through the proxy."""
        while True:
            number = b"%d" % len(published)
            before = time.time()
            await publisher.publish(topic.name, b"%s %08x" % (number, zlib.crc32(number)))
            published.append(Published(before, time.time()))
            await deferLater(reactor, PUBLISH_SECONDS)

    async def until(condition: Callable[[], object], what: str) -> None:
        deadline = reactor.seconds() + RECOVERY_SECONDS + BUSY_SECONDS
        while not condition():
            assert reactor.seconds() < deadline, f"not in time: {what}"
            await deferLater(reactor, PUBLISH_SECONDS)

    def has(lines: bytes, first: int) -> bool:
        return any(type(entry) is int and entry >= first for entry in read(lines[-200:]))

    harm = Random(seed)
    publishing = None
    try:
        await until(lambda: service.metrics.probes_sent, "it is subscribed")
        publishing = Deferred.fromCoroutine(publish())
        publishing.addErrback(lambda failure: failure.trap(CancelledError))
        await run(proxy, schedule(seed, SCHEDULE_SECONDS), harm)
        healed = len(published)
        await until(lambda: has(recorder.received, healed), "it receives again")
        control.stays = True
        await until(lambda: control.is_there and has(told(control.events), healed), "it tells again")
    finally:
        if publishing:
            publishing.cancel()
        publisher.transport.abortConnection()
        if harm.random() < 0.3:
            proxy.freeze()
        stopping, before_stop = reactor.seconds(), recorder.received
        await service.stopService()
    assert reactor.seconds() - stopping < DRAIN_SECONDS + BUSY_SECONDS, "it did not stop within its budget"
    await client.closed
    await control.closed
    check(read(recorder.received), published)
    # What comes when pushd is stopping may find the client closed.
    messages = messages_in(recorder.received)[: max(len(client.lines), len(messages_in(before_stop)))]
    assert client.lines == messages, f"the line client got {client.lines}, not {messages}"
    assert control.events[-1]["reason"] == "drain"
    entries = read(told(control.events))
    recorded = read(recorder.received)[: max(len(entries), len(read(before_stop)))]
    assert len(entries) == len(recorded), f"the control client got {entries}, not {recorded}"
    assert all(map(_is_same, entries, recorded)), f"the control client got {entries}, not {recorded}"


def messages_in(lines: bytes) -> list[bytes]:
    """Return what a client of the line protocol is sent of this."""
    return [line for line in lines.split(b"\r\n")[:-1] if not line.startswith(b"gap ")]


def told(events: Sequence[Event]) -> bytes:
    """Return what a client of the line protocol with gaps would have got; check what makes the account."""
    accounts, lines = Accounts(), []
    last_before_loss: int | None = None
    for event in events:
        accounts.take(event)
        match event["type"]:
            case "message":
                lost = last_before_loss is not None and event["offset"] > last_before_loss
                assert not lost, f"{event} without a gap after there was no Redis"
                binary = event.get("data_base64")
                payload = event["data"].encode() if binary is None else base64.b64decode(binary)
                lines.append(payload + b"\r\n")
            case "gap":
                last_before_loss = None
                lines.append(b"gap %r %r\r\n" % (seconds(event["since"]), seconds(event["until"])))
            case "heartbeat" if event["upstream"] == "down" and event["offsets"]:
                last_before_loss = max(event["offsets"].values())
    return b"".join(lines)


def _is_same(told: "Entry", recorded: "Entry") -> bool:
    """Compare what two clients were sent, of whom the first is told times in milliseconds."""
    if isinstance(told, SourceGap) and isinstance(recorded, SourceGap):
        return abs(told.since - recorded.since) <= 0.001 and abs(told.until - recorded.until) <= 0.001
    return told == recorded


Entry = int | SourceGap | None
"""What a client was sent: a number, a source gap, or a message that was damaged on its way to pushd."""


def read(lines: bytes) -> list[Entry]:
    """Return what the lines say; what was cut off in front is damaged."""
    return [_read(line) for line in lines.split(b"\r\n")[:-1]]


def _read(line: bytes) -> Entry:
    if gap := re.fullmatch(rb"gap (\S+) (\S+)", line):
        return SourceGap(float(gap[1]), float(gap[2]))
    message = re.fullmatch(rb"(\d+) ([0-9a-f]{8})", line)
    return int(message[1]) if message and zlib.crc32(message[1]) == int(message[2], 16) else None


def check(entries: Sequence[Entry], published: Sequence[Published]) -> None:
    """Check that numbers rise, and that what is lacking between two was published within a gap between them.

    What a damaged message has swallowed is excused: nobody behind a damaged link can know of it.
    """
    last = -1
    between: list[Entry] = []
    for entry in entries:
        if not isinstance(entry, int):
            between.append(entry)
            continue
        assert entry > last, f"{entry} after {last}: twice, or out of order"
        for number in range(last + 1, entry):
            assert any(map(_covers(published[number]), between)), (
                f"{number}, {published[number]}, is lacking without a gap in {between}"
            )
        last, between = entry, []


def _covers(message: Published) -> Callable[[Entry], bool]:
    return lambda entry: (
        not isinstance(entry, SourceGap) or (entry.since <= message.after and message.before <= entry.until)
    )
