"""Clients of the control protocol that keep the account of their subscriptions."""

import json
import socket
from collections.abc import Callable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from tests.harness import TIMEOUT, Pushd

Event = dict[str, Any]
Key = tuple[str, str]
"""Which subscription an event is about: "channel" or "pattern", and its name."""

CONTROL = "tcp:0:interface=127.0.0.1:backlog=4096"
"""An endpoint for --control: a port of pushd's own choice."""


def control_ports(pushd: Pushd, count: int = 1) -> list[int]:
    """Return the ports of the control protocol on loopback; pushd follows its source then."""
    pushd.wait_for(r"Connected to|Subscribed to|Embedded broker on")
    pattern = r"Control protocol on 127\.0\.0\.1:(\d+)"
    return [int(pushd.wait_for(pattern, count=number)[1]) for number in range(1, count + 1)]


def key_of(event: Mapping[str, Any]) -> Key:
    """Return which subscription an event is about."""
    return ("pattern", event["pattern"]) if "pattern" in event else ("channel", event["channel"])


def seconds(time: str) -> float:
    """Return a time of the protocol in seconds since 1970."""
    return datetime.fromisoformat(time).timestamp()


class Account:
    """What one subscription got, and was told that it misses: each event must continue the one before.

    It outlives its connection if the client comes back with its id.
    """

    def __init__(self) -> None:
        self.began = 0  # the offset where it did
        self.offset = 0  # up to here all was got, or told to be missing
        self.id = ""
        self.recovered: bool | None = None
        self.received = 0
        self.missed = 0
        self.unknown = 0  # gaps that nobody can count, since it began or came back

    def subscribed(self, event: Event) -> None:
        """Begin, or begin again."""
        self.recovered = event.get("recovered")
        if self.recovered and event["id"] == self.id:
            assert event["offset"] == self.offset, f"{event} after {self.offset}"
        self.id = event["id"]
        self.began = self.offset = event["offset"]
        self.received = self.missed = self.unknown = 0

    def message(self, event: Event) -> None:
        """Take a message, which must be the next one."""
        assert event["offset"] == self.offset + 1, f"{event} after {self.offset}"
        self.offset += 1
        self.id = event["id"]
        self.received += 1

    def gap(self, event: Event) -> None:
        """Take a gap, which must begin here."""
        missed = event["missed"]
        self.id = event["id"]
        if event["reason"] in {"evicted", "unknown"}:
            assert self.recovered is False
            assert self.received == self.missed == 0, f"{event} is not the first after FROM"
        match event["reason"]:
            case "slow" | "evicted":
                assert missed or event["source_gaps"]
                if missed:
                    assert event["from"] == self.offset + 1, f"{event} after {self.offset}"
                    assert event["to"] == self.offset + missed, event
                else:
                    assert not event.keys() & {"from", "to"}
                self.offset += missed
                self.missed += missed
                self.unknown += event.get("source_gaps", 0)
            case "source":
                assert missed is None
                assert seconds(event["since"]) <= seconds(event["until"])
                self.unknown += 1
            case "unknown":
                assert missed is None
                self.unknown += 1
            case _:
                raise AssertionError(event)

    def stands(self, offset: int) -> None:
        """Check that all up to an offset was got, or told to be missing."""
        assert self.offset == offset, f"{offset} was said, {self.offset} has come"
        assert self.received + self.missed == self.offset - self.began


class Accounts:
    """The accounts of all subscriptions of one connection, which may go on with those that have ended."""

    def __init__(
        self,
        resumed: Mapping[Key, Account] | None = None,
        make: Callable[[Key], Account] = lambda _: Account(),
    ) -> None:
        self.open: dict[Key, Account] = {}
        self.resumed = dict(resumed or {})
        self._make = make

    def take(self, event: Event) -> None:
        """Enter an event of any type."""
        match event["type"]:
            case "message":
                self.open[key_of(event)].message(event)
            case "gap":
                self.open[key_of(event)].gap(event)
            case "subscribed":
                key = key_of(event)
                assert key not in self.open
                account = self.resumed.pop(key, None) if "recovered" in event else None
                self.open[key] = account or self._make(key)
                self.open[key].subscribed(event)
            case "unsubscribed":
                account = self.resumed[key_of(event)] = self.open.pop(key_of(event))
                account.stands(event["offset"])
                assert account.id == event["id"]
            case "heartbeat":
                self._compare(event)
            case "status":
                said = {key_of(each): each for each in event["subscriptions"]}
                assert said.keys() == self.open.keys()
                for key, account in self.open.items():
                    account.stands(said[key]["offset"])

    def _compare(self, heartbeat: Event) -> None:
        """Check the promise of a heartbeat: here is everything up to the offsets, less behind."""
        behind = {
            **{("channel", name): count for name, count in heartbeat.get("behind", {}).items()},
            **{("pattern", name): count for name, count in heartbeat.get("pattern_behind", {}).items()},
        }
        heads = {
            **{("channel", name): head for name, head in heartbeat.get("offsets", {}).items()},
            **{("pattern", name): head for name, head in heartbeat.get("pattern_offsets", {}).items()},
        }
        assert heads.keys() == self.open.keys(), f"{heartbeat} for {list(self.open)}"
        assert behind.keys() <= heads.keys()
        for key, account in self.open.items():
            account.stands(heads[key] - behind.get(key, 0))


class ControlClient:
    """A client of the control protocol, on a plain blocking socket that it makes, or on one that it is given.

    It is welcomed when it has been made.
    """

    def __init__(
        self,
        where: int | socket.socket,
        *,
        receive_buffer: int | None = None,
        resumed: Mapping[Key, Account] | None = None,
    ) -> None:
        self.accounts = Accounts(resumed)
        self._unread = b""
        self.socket = where if isinstance(where, socket.socket) else _connect(where, receive_buffer)
        self.socket.settimeout(TIMEOUT)
        self.welcome = self.hear_only("welcome", version=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def say(self, *lines: str) -> None:
        """Send commands."""
        self.socket.sendall("".join(f"{line}\n" for line in lines).encode())

    def read_line(self) -> bytes:
        """Return the next line without its LF, or nothing where the connection has ended."""
        while b"\n" not in self._unread:
            data = self.socket.recv(65536)
            if not data:
                assert not self._unread
                return b""
            self._unread += data
        line, self._unread = self._unread.split(b"\n", 1)
        return line

    def hear(self) -> Event:
        """Return the next event, entered in the accounts."""
        line = self.read_line()
        assert line, "the connection has ended"
        event: Event = json.loads(line)
        self.accounts.take(event)
        return event

    def hear_only(self, kind: str, **members: object) -> Event:
        """Return the next event, which must be of a type, with these members at least."""
        event = self.hear()
        assert event["type"] == kind, event
        assert event == event | members, event
        return event

    def hear_end(self) -> None:
        """Check that nothing more comes."""
        assert self.read_line() == b""

    def hear_until(self, kind: str) -> Event:
        """Return the first event of a type, whatever comes before."""
        while (event := self.hear())["type"] != kind:
            pass
        return event

    def ask(self, line: str, kind: str, **members: object) -> Event:
        """Send a command, and return what must be the next event."""
        self.say(line)
        return self.hear_only(kind, **members)

    def account(self, name: str) -> Account:
        """Return the account of the subscription to a channel."""
        return self.accounts.open["channel", name]


def _connect(port: int, receive_buffer: int | None) -> socket.socket:
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(TIMEOUT)
    connection.connect(("127.0.0.1", port))
    return connection
