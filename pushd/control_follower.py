"""What a client of the control protocol does with each line of the server; it touches no connection.

A follower is fed lines, and returns actions. It knows how far each subscription has come, so that another
connection goes on there, and checks that nothing is missing that the server did not tell of.
"""

import json
from base64 import b64decode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pushd.client_io import CONNECT_TIMEOUT, visible

VERSION = 1
GRACE = 1.0
"""Seconds by which a heartbeat may be late."""
MAY_PASS = {
    "auth-timeout",
    "rate-limited",
    "token-expired",
    "token-not-yet-valid",
    "too-many-channels",
    "too-many-clients",
    "unavailable",
}
"""Errors after which it may help to try again, as after any that says when."""

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Send:
    """Say this to the server."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Print:
    """Give the user this line."""

    line: bytes


@dataclass(frozen=True, slots=True)
class Missed:
    """Tell the user what will never come."""

    text: str


@dataclass(frozen=True, slots=True)
class Lost:
    """Leave this connection for another, after so many seconds if the server has said how many."""

    text: str
    wait: float | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """Give up: it would go no better in another connection."""

    text: str


Action = Send | Print | Missed | Lost | Stop


class Subscription:
    """How far a channel or a pattern has come; it outlives connections."""

    def __init__(self, kind: str, name: str, *, start: str = "", slow: str | None = None) -> None:
        self.kind, self.name = kind, name
        self.confirmed = False
        """Whether the server has confirmed it in this connection."""
        self._start = start
        self._slow = f"SLOW {slow}" if slow else ""
        self._offset: int | None = None

    def begin(self) -> bytes:
        """Return the command that subscribes in a new connection."""
        self.confirmed = False
        verb = {"channel": "SUBSCRIBE", "pattern": "PSUBSCRIBE"}[self.kind]
        words = (verb, json.dumps(self.name, ensure_ascii=False), self._start, self._slow)
        return " ".join(filter(None, words)).encode() + b"\n"

    def subscribed(self, event: Event) -> Iterator[Missed]:
        """Take the place behind which messages come."""
        if event.get("recovered"):
            yield from self._expect(event["offset"] + 1)
        self._take(event, event["offset"])
        self.confirmed = True

    def message(self, event: Event) -> Iterator[Missed]:
        """Take the place of a message."""
        yield from self._expect(event["offset"])
        self._take(event, event["offset"])

    def gap(self, event: Event) -> Iterator[Missed]:
        """Take the place behind a gap."""
        if "to" in event:
            yield from self._expect(event["from"])
        self._take(event, event.get("to", self._offset))
        yield self._missed(extent(event))

    def heartbeat(self, sent: int) -> Iterator[Missed]:
        """Compare with the offset up to which everything has been sent."""
        if self._offset is not None and self._offset < sent:
            yield from self._expect(sent + 1)
            self._offset = sent

    def _take(self, event: Event, offset: int | None) -> None:
        self._offset = offset
        self._start = f"FROM {event['id']}"

    def _expect(self, offset: int) -> Iterator[Missed]:
        """Yield what is missing, or wrong, if this offset does not follow on the last one."""
        if self._offset is None or offset == self._offset + 1:
            return
        missed = offset - self._offset - 1
        what = messages(missed) if missed > 0 else f"message {offset} came after {self._offset}"
        yield self._missed(f"{what} (the server told of no gap)")

    def _missed(self, text: str) -> Missed:
        return Missed(f"gap on {self.name}: {text}")


class Follower:
    """Says what each line of the server asks for, in one connection after another."""

    def __init__(self, subscriptions: Iterable[Subscription], *, whole: bool = False) -> None:
        self._subscriptions = {(each.kind, each.name): each for each in subscriptions}
        self._whole = whole
        self._commands = self._token = b""
        self.patience: float | None = CONNECT_TIMEOUT
        """For how many seconds the server may say nothing."""

    def begin(self, token: bytes) -> None:
        """Expect the lines of a new connection, the welcome first."""
        self._token = token
        self._commands = b"".join([each.begin() for each in self._subscriptions.values()])
        self.patience = CONNECT_TIMEOUT

    @property
    def settled(self) -> bool:
        """Whether the server has confirmed all subscriptions, in this connection."""
        return all(each.confirmed for each in self._subscriptions.values())

    def receive(self, line: bytes) -> Iterator[Action]:
        """Yield what is to be done about a line."""
        try:
            yield from self._handle(json.loads(line), line)
        except (KeyError, TypeError, ValueError):
            yield Stop(f"this is not the control protocol: {visible(line[:100])}")

    def _handle(self, event: Event, line: bytes) -> Iterator[Action]:
        match event["type"]:
            case "message":
                yield from self._of(event).message(event)
                yield Print(line if self._whole else payload(event))
            case "subscribed":
                yield from self._of(event).subscribed(event)
                yield from self._print(line)
            case "gap":
                yield from self._of(event).gap(event)
                yield from self._print(line)
            case "heartbeat":
                yield from self._heartbeat(event)
            case "welcome":
                yield from self._welcome(event)
            case "authenticated":
                yield Send(self._commands)
            case "unsubscribed":
                yield Stop(f"the server has ended the subscription to {self._of(event).name}")
            case "error":
                yield failure(event)
            case "bye":
                yield Lost(f"the server said goodbye ({event['reason']})", wait(event))

    def _print(self, line: bytes) -> Iterator[Print]:
        if self._whole:
            yield Print(line)

    def _heartbeat(self, event: Event) -> Iterator[Missed]:
        for each in self._subscriptions.values():
            prefix = "pattern_" if each.kind == "pattern" else ""
            newest = event.get(f"{prefix}offsets", {}).get(each.name)
            if newest is not None:
                yield from each.heartbeat(newest - event.get(f"{prefix}behind", {}).get(each.name, 0))

    def _welcome(self, event: Event) -> Iterator[Action]:
        self.patience = 2 * event["heartbeat"] + GRACE if event["heartbeat"] else None
        if event["version"] != VERSION:
            yield Stop(f"this client speaks version {VERSION} of the protocol, the server {event['version']}")
        elif event["auth"] != "required":
            yield Send(self._commands)
        elif self._token:
            yield Send(b"AUTH " + self._token + b"\n")
        else:
            yield Stop("the server asks for a token: say where it is with --token-file")

    def _of(self, event: Event) -> Subscription:
        kind = "pattern" if "pattern" in event else "channel"
        return self._subscriptions[kind, event[kind]]


def payload(event: Event) -> bytes:
    """Return the bytes that were published."""
    if "data" in event:
        return str(event["data"]).encode("utf-8", "surrogatepass")
    return b64decode(event["data_base64"])


def messages(number: int) -> str:
    """Return so many messages, in words."""
    return "1 message missed" if number == 1 else f"{number} messages missed"


def extent(gap: Event) -> str:
    """Return how much a gap leaves out, and why."""
    much = "unknown how many messages missed" if gap["missed"] is None else messages(gap["missed"])
    why = gap["reason"]
    if "since" in gap:
        why += f", {gap['since']} to {gap['until']}"
    if number := gap.get("source_gaps"):
        why += f", and {number} source gap{'s' * (number > 1)}"
    return f"{much} ({why})"


def failure(error: Event) -> Lost | Stop:
    """Return what is to be done about an error."""
    text = f"{error['message']} ({error['code']})"
    may_pass = "retry_ms" in error or error["code"] in MAY_PASS
    return Lost(text, wait(error)) if may_pass else Stop(text)


def wait(event: Event) -> float | None:
    """Return after how many seconds the server wants its client back, if it says so."""
    return event["retry_ms"] / 1000 if "retry_ms" in event else None
