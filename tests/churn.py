"""Churn: many clients of the control protocol that come and go at random while numbered messages pass.

All that is chosen follows from a seed; how the machine plays it does not.
"""

import contextlib
import heapq
import json
import math
import re
import select
import socket
import struct
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from fnmatch import fnmatchcase
from functools import partial
from itertools import accumulate, count
from random import Random

from pushd.settings import SlowPolicy
from tests.control_clients import Account, Accounts, Event, Key, key_of, seconds

LOOPBACK = "127.0.0.1"
CHANNELS = [f"{group}.{number}" for group in "abcd" for number in range(3)]
"""The first has the most messages, the second half as many, and so on."""
PATTERNS = ["b.*", "c.?", "*.2"]
KEYS: list[Key] = [
    *(("channel", name) for name in CHANNELS),
    *(("pattern", name) for name in PATTERNS),
]
BYTES = 25_000_000
"""What is published in all, about: so that logs of 1 MiB lose their tails."""
SETTLE_SECONDS = 120.0
"""What clients are granted at the end to get everything; never what they take on a machine that works."""
RECEIVE_BUFFER = 4096


@dataclass(frozen=True)
class Plan:
    """How much there is of what."""

    seed: int
    clients: int
    messages: int
    seconds: float


class Publications:
    """What is published, in its order, and when each message was."""

    def __init__(self, plan: Plan, random: Random) -> None:
        weights = [1 / (place + 1) for place in range(len(CHANNELS))]
        chosen = random.choices(CHANNELS, weights, k=plan.messages)
        self.channels = chosen + CHANNELS  # the last of each come when all harm is over
        self.first_of_last = plan.messages
        most = 2 * BYTES // plan.messages
        self.texts = [
            f"{number} {channel} {'.' * random.randrange(most)}"
            for number, channel in enumerate(self.channels)
        ]
        self.order: dict[Key, list[int]] = {
            (kind, name): [
                number
                for number, channel in enumerate(self.channels)
                if channel == name or (kind == "pattern" and fnmatchcase(channel, name))
            ]
            for kind, name in KEYS
        }
        self.sent = 0
        self.before = [math.inf] * len(self.texts)  # wall times between which Redis took each, if it did
        self.after = [math.inf] * len(self.texts)

    def sent_to(self, key: Key) -> int:
        """Return how many have been sent to Redis of those that a subscription is to get."""
        return bisect_left(self.order[key], self.sent)


class Publisher:
    """Sends messages to Redis in their order, none twice, over connections that may end at any time."""

    def __init__(self, publications: Publications, port: int) -> None:
        self._publications = publications
        self._port = port
        self._socket: socket.socket | None = None
        self._due = 0
        self._unsent = b""
        self._answers = b""
        self.answered = 0
        self.losses = 0

    def send(self, number: int) -> None:
        """Send all messages below a number that have not been sent, as soon as there is a Redis."""
        self._due = max(self._due, number)
        self.go_on()

    def _write_due(self) -> None:
        publications = self._publications
        if self._socket is None:
            with contextlib.suppress(ConnectionError):
                self._socket = socket.create_connection((LOOPBACK, self._port))
                self._socket.setblocking(False)
        if self._socket is None:
            return
        now = time.time()
        for each in range(publications.sent, self._due):
            publications.before[each] = now
            channel, text = publications.channels[each], publications.texts[each]
            words = f"*3\r\n$7\r\nPUBLISH\r\n${len(channel)}\r\n{channel}\r\n${len(text)}\r\n{text}\r\n"
            self._unsent += words.encode()
        publications.sent = self._due

    def go_on(self) -> None:
        """Write what can be written, and take note of the answers."""
        if self._publications.sent < self._due:
            self._write_due()
        if self._socket is None:
            return
        try:
            with contextlib.suppress(BlockingIOError):
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
            with contextlib.suppress(BlockingIOError):
                while data := self._socket.recv(65536):
                    self._answers += data
                raise ConnectionResetError
        except (ConnectionResetError, BrokenPipeError):
            # What has not been answered may have been published, or not: until now.
            self._socket.close()
            self._socket, self._unsent, self._answers = None, b"", b""
            self.losses += 1
            self._answer(self._publications.sent - self.answered)
            return
        *answers, self._answers = self._answers.split(b"\r\n")
        assert all(re.fullmatch(rb":\d+", answer) for answer in answers), answers
        self._answer(len(answers))

    def _answer(self, messages: int) -> None:
        now = time.time()
        for each in range(self.answered, self.answered + messages):
            self._publications.after[each] = now
        self.answered += messages

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()


class NumberedAccount(Account):
    """The account of a subscription whose messages are known, each by its number."""

    def __init__(self, key: Key, publications: Publications) -> None:
        super().__init__()
        self._key = key
        self._publications = publications
        self._order = publications.order[key]
        self.next = 0  # the index, among all that are published for it, of what is to come
        self._may_begin_before = True
        self._gaps: list[tuple[float, float]] = []  # since the last message, from when until when
        self._is_loose = False  # more may be missing than can be told: source gaps were left out
        self.counts: Counter[str] = Counter()

    @property
    def has_all(self) -> bool:
        """Whether the last message of all has come."""
        return self.next == len(self._order)

    def subscribed(self, event: Event) -> None:
        """Begin with what is published from now on, or earlier; or go on."""
        if "recovered" in event:
            assert (event["offset"], event["id"]) == (self.offset, self.id), f"{event} after {self.offset}"
            self.counts["recovered" if event["recovered"] else "not recovered"] += 1
        else:
            self.next = self._publications.sent_to(self._key)
            self._may_begin_before = True
        super().subscribed(event)

    def message(self, event: Event) -> None:
        """Take a message: after the one before comes what was published next, or what a gap allows."""
        super().message(event)
        text = event["data"]
        if self._may_begin_before or self._gaps or self._is_loose:
            self._jump(int(text.split(" ", 1)[0]))
        number = self._order[self.next]
        assert text == self._publications.texts[number], f"{text[:20]}, and not {number}, on {self._key}"
        assert event["channel"] == self._publications.channels[number]
        self.next += 1
        self.counts["messages"] += 1

    def _jump(self, number: int) -> None:
        index = bisect_left(self._order, number)
        assert self._order[index] == number
        assert index >= self.next or self._may_begin_before, f"{number} again, or out of order"
        if not self._is_loose:
            self._excuse(self.next, index)
        self.next, self._may_begin_before, self._is_loose = index, False, False
        self._gaps.clear()

    def _excuse(self, first: int, end: int) -> None:
        """Check that all that is lacking was published in the time of a source gap."""
        before, after = self._publications.before, self._publications.after
        for number in self._order[first:end]:
            assert any(since <= after[number] and before[number] <= until for since, until in self._gaps), (
                f"{number} is lacking on {self._key}: {before[number]}, {after[number]}, {self._gaps}"
            )
        self.counts["lost with Redis"] += max(0, end - first)

    def gap(self, event: Event) -> None:
        """Take a gap."""
        super().gap(event)
        reason, missed = event["reason"], event["missed"]
        self.counts[f"{reason} gaps"] += 1
        if reason == "source":
            # They are told in milliseconds, and cut.
            self._gaps.append((seconds(event["since"]), seconds(event["until"]) + 0.001))
            return
        assert reason != "unknown", event
        self.counts[f"missed, {reason}"] += missed
        self._is_loose |= "source_gaps" in event or bool(self._gaps)
        self.next += missed


class Manner(Enum):
    """How a client reads."""

    AT_ONCE = auto()
    SLOWLY = auto()
    NOT = auto()


class Leave(Enum):
    """How a client goes."""

    UNSUBSCRIBE = auto()
    QUIT = auto()
    CLOSE = auto()
    RESET = auto()


class Visitor:
    """One client, over all its connections."""

    def __init__(self, world: "World", random: Random) -> None:
        self._world = world
        self._random = random
        self._known: dict[Key, NumberedAccount] = {}  # of what it subscribes to, now or when it comes back
        self._accounts = Accounts()
        self._socket: socket.socket | None = None
        self._visit = 0
        self._unread = b""
        self._manner = Manner.AT_ONCE
        self._is_leaving = False
        self._is_cut = False
        self._swaps: set[Key] = set()
        self.beaten_at = 0.0  # when a heartbeat last said that there is an upstream

    @property
    def open_accounts(self) -> list[NumberedAccount]:
        """The accounts of what this client is subscribed to now."""
        return [account for account in self._accounts.open.values() if isinstance(account, NumberedAccount)]

    @property
    def _steady_keys(self) -> list[Key]:
        return [key for key in self._accounts.open if key not in self._swaps]

    @property
    def has_come(self) -> bool:
        """Whether this client is there, and has all the subscriptions that it wants."""
        return bool(self._known) and self._accounts.open.keys() == self._known.keys()

    @property
    def is_settled(self) -> bool:
        """Whether this client has everything, and has been told that this is everything."""
        return self.has_come and all(account.has_all for account in self.open_accounts)

    def come(self) -> None:
        """Connect, and subscribe to something: to what there was before, from where that ended, or anew."""
        world, random = self._world, self._random
        self._visit += 1
        self._is_leaving = self._is_cut = False
        self._swaps.clear()
        self._unread = b""
        self._manner = random.choices(list(Manner), [8, 1, 1])[0]
        if world.is_settling:
            self._manner = Manner.AT_ONCE
        connection = socket.socket()
        if self._manner is not Manner.AT_ONCE:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        connection.connect((LOOPBACK, world.port))
        connection.setblocking(False)
        self._socket = connection
        world.counts["connections"] += 1
        if not self._known or random.random() < 0.5:
            self._known = {}
            for key in random.sample(KEYS, random.choice([1, 1, 2])):
                last = f" LAST {random.randrange(200)}" if random.random() < 0.3 else ""
                self._subscribe(key, last)
        else:
            for key, account in self._known.items():
                self._subscribe(key, f" FROM {account.id}")
        self._accounts = Accounts(self._known, self._make)
        if self._manner is Manner.AT_ONCE:
            world.watch(connection, self)
        elif self._manner is Manner.SLOWLY:
            self._later(0, self._read_slowly)
        stay = world.stay if self._manner is Manner.AT_ONCE else 4 * world.stay
        self._later(random.expovariate(1 / stay), self.leave)

    def _make(self, key: Key) -> NumberedAccount:
        account = self._known[key] = NumberedAccount(key, self._world.publications)
        account.counts = self._world.counts
        return account

    def _subscribe(self, key: Key, start: str) -> None:
        kind, name = key
        policy = self._random.choice(list(SlowPolicy)).value
        self._say(f"{'P' * (kind == 'pattern')}SUBSCRIBE {name}{start} SLOW {policy}")

    def _unsubscribe(self, key: Key) -> None:
        kind, name = key
        self._say(f"{'P' * (kind == 'pattern')}UNSUBSCRIBE {name}")

    def _say(self, line: str) -> None:
        assert self._socket is not None
        try:
            self._socket.sendall(f"{line}\n".encode())
        except ConnectionError:
            self._is_cut = True  # which is not said twice: reading will find the end of what has come

    def _later(self, delay: float, do: Callable[[], None]) -> None:
        """Do something if this visit still lasts then."""
        visit = self._visit

        def due() -> None:
            if self._visit == visit and self._socket is not None:
                do()

        self._world.later(delay, due)

    def leave(self) -> None:
        """End this visit, or only one subscription for a moment; at the end, stay."""
        if self._world.is_settling or self._is_leaving:
            return
        how = self._random.choice(list(Leave))
        if how in {Leave.CLOSE, Leave.RESET}:
            self._end(reset=how is Leave.RESET)
            return
        if self._random.random() < 0.2:
            for key in self._steady_keys[:1]:
                self._swaps.add(key)
                self._unsubscribe(key)
            self._later(self._random.expovariate(1 / self._world.stay), self.leave)
        else:
            self._is_leaving = True
            if how is Leave.UNSUBSCRIBE:
                for key in self._steady_keys:
                    self._unsubscribe(key)
            self._say("QUIT")
        self.read_all()

    def read_all(self) -> None:
        """Read everything from now on."""
        if self._socket is not None and self._manner is not Manner.AT_ONCE:
            self._manner = Manner.AT_ONCE
            self._world.watch(self._socket, self)

    def _read_slowly(self) -> None:
        if self._manner is Manner.SLOWLY:
            self.read(self._random.randrange(1, 16_384))
            self._later(self._random.uniform(0, 0.1), self._read_slowly)

    def read(self, size: int = 262_144) -> None:
        """Read what there is, and check it."""
        assert self._socket is not None
        try:
            data = self._socket.recv(size)
        except BlockingIOError:
            return
        except ConnectionResetError:
            self._is_cut, data = True, b""
        if not data:
            assert self._is_cut or (self._is_leaving and not self._unread), "closed without a reason"
            self._world.counts["cut off"] += self._is_cut
            self._end()
            return
        *lines, self._unread = (self._unread + data).split(b"\n")
        for event in json.loads(b"[" + b",".join(lines) + b"]"):
            self._take(event)

    def _take(self, event: Event) -> None:
        self._accounts.take(event)
        match event["type"]:
            case "heartbeat":
                self._world.counts["heartbeats"] += 1
                if event["upstream"] == "up":
                    self.beaten_at = time.monotonic()
            case "unsubscribed":
                self._world.counts["unsubscribed"] += 1
                if (key := key_of(event)) in self._swaps:
                    self._swaps.remove(key)
                    self._subscribe(key, f" FROM {event['id']}")
            case "error":
                raise AssertionError(event)
            case "bye":
                assert self._is_leaving
                assert event["reason"] == "quit"

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._socket is not None:
            self._socket.close()

    def _end(self, *, reset: bool = False) -> None:
        assert self._socket is not None
        if self._manner is Manner.AT_ONCE:
            self._world.forget(self._socket)
        if reset:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()
        self._socket = None
        for account in self.open_accounts:
            account.stands(account.offset)
        self._accounts = Accounts()
        away = 0.0 if self._world.is_settling else self._random.expovariate(1 / self._world.away)
        self._world.later(away, self.come)


@dataclass
class World:
    """All that happens, in one loop."""

    plan: Plan
    port: int
    redis_port: int
    watching: Callable[[], int]
    """Tells how many bytes of memory pushd holds."""
    harm_is_over: Callable[[], bool] = lambda: True
    notice: float = 0.0
    """Seconds that pushd may take to notice the last harm."""
    counts: Counter[str] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)
    is_settling: bool = False

    def __post_init__(self) -> None:
        random = Random(self.plan.seed)
        self.stay, self.away = self.plan.seconds / 10, self.plan.seconds / 40
        self.publications = Publications(self.plan, random)
        self.publisher = Publisher(self.publications, self.redis_port)
        self._random = random
        self._poll = select.epoll()
        self._watched: dict[int, Visitor] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._began = time.monotonic()
        self.visitors = [Visitor(self, Random(random.random())) for _ in range(self.plan.clients)]

    def later(self, delay: float, do: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._number), do))

    def watch(self, connection: socket.socket, visitor: Visitor) -> None:
        """Read from a connection whenever something comes."""
        self._watched[connection.fileno()] = visitor
        self._poll.register(connection.fileno(), select.EPOLLIN)

    def forget(self, connection: socket.socket) -> None:
        """Read no more from it."""
        del self._watched[connection.fileno()]
        self._poll.unregister(connection.fileno())

    def run(self) -> None:
        """Let everything happen, and check it; raises AssertionError where something is not as it must be."""
        for visitor in self.visitors:
            self.later(self._random.uniform(0, self.away), visitor.come)
        self.later(0, self._sample)
        for at, number in self._batches():
            self.later(at, partial(self.publisher.send, number))
        end = self.publications.first_of_last
        self._turn_until(lambda: self.publications.sent == end, self.plan.seconds + SETTLE_SECONDS)
        self._turn_until(self.harm_is_over, SETTLE_SECONDS)
        self._settle()

    def _batches(self) -> Iterator[tuple[float, int]]:
        """Return up to which number messages are to be sent at which time: sometimes many at once."""
        sizes = [self._random.choice([1, 1, 5, 20, 100, 300]) for _ in range(self.plan.messages)]
        for number in accumulate(sizes):
            sent = min(number, self.plan.messages)
            yield self.plan.seconds * sent / self.plan.messages, sent
            if sent == self.plan.messages:
                return

    def _settle(self) -> None:
        """Let all come back and read; they must get the last message of each channel, too."""
        self.is_settling = True
        for visitor in self.visitors:
            visitor.read_all()
        began = time.monotonic()
        self._turn_until(
            lambda: all(
                visitor.has_come and visitor.beaten_at > began + self.notice for visitor in self.visitors
            ),
            SETTLE_SECONDS,
        )
        last = len(self.publications.texts)
        self.later(0, lambda: self.publisher.send(last))
        self._turn_until(lambda: all(visitor.is_settled for visitor in self.visitors), SETTLE_SECONDS)
        ended = time.monotonic()
        # Their next heartbeat says that this is all.
        self._turn_until(lambda: all(visitor.beaten_at > ended for visitor in self.visitors), SETTLE_SECONDS)
        for visitor in self.visitors:
            for account in visitor.open_accounts:
                assert account.recovered is not False or account.missed or account.unknown
        assert self.publisher.answered == last

    def _sample(self) -> None:
        self.memory.append(self.watching())
        self.later(0.5, self._sample)

    def _turn_until(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        looked = 0.0
        while True:
            now = time.monotonic()
            if now - looked > 0.05:
                looked = now
                if condition():
                    return
                assert now < deadline, f"not in time: {self.counts}"
            while self._timers and self._timers[0][0] <= time.monotonic():
                heapq.heappop(self._timers)[2]()
            self.publisher.go_on()
            wait = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else 0.05
            for descriptor, _ in self._poll.poll(min(wait, 0.05)):
                if visitor := self._watched.get(descriptor):
                    visitor.read()

    def close(self) -> None:
        """Close what is open."""
        self._poll.close()
        self.publisher.close()
        for visitor in self.visitors:
            visitor.close()
