"""Messages and gaps to bytes: one encoder for each log and wire format."""

from collections.abc import Callable, Sequence
from itertools import count, repeat
from typing import Protocol

from pushd.events import event, named, quoted, show_time, told
from pushd.message import Gap, Position, SourceGap, Topic
from pushd.positions import id_parts, show_id


class Encoder(Protocol):
    """One log in one wire format. All return whole frames, or nothing where the format has none."""

    framing: int
    """What a frame adds to a payload, about: so that one send holds what it should."""

    def messages(self, after: Position, payloads: Sequence[bytes], channels: Sequence[bytes]) -> bytes:
        """Encode the messages that come after a place; in a pattern's log they have channels."""

    def source_gap(self, after: Position, gap: SourceGap) -> bytes:
        """Encode a source gap that comes after a place."""

    def gap(self, gap: Gap) -> bytes:
        """Encode what a slow consumer will not get."""


WireFormat = Callable[[Topic, str], Encoder]
"""Makes an encoder for the log of a topic, which has a label."""


class Lines:
    """The line protocol: each payload exactly as it is, and CR LF. Nothing else can be said in it."""

    framing = 8

    def __init__(self, topic: Topic, label: str) -> None:
        pass

    def messages(self, after: Position, payloads: Sequence[bytes], channels: Sequence[bytes]) -> bytes:  # noqa: ARG002
        """Encode messages."""
        return b"\r\n".join([*payloads, b""])

    def source_gap(self, after: Position, gap: SourceGap) -> bytes:  # noqa: ARG002
        """Return nothing."""
        return b""

    def gap(self, gap: Gap) -> bytes:  # noqa: ARG002
        """Return nothing."""
        return b""


class Events:
    """The control protocol: one JSON object a line."""

    def __init__(self, topic: Topic, label: str) -> None:
        self._named = named(topic)
        self._label = label
        self._start = f'{{"type":"message",{_members(self._named)},'
        frame = f'{self._start}"channel":"","offset":1000000,"id":"{label}-1000000","data":""}}\n'
        self.framing = len(frame.encode())

    def messages(self, after: Position, payloads: Sequence[bytes], channels: Sequence[bytes]) -> bytes:
        """Encode messages."""
        before, behind = id_parts(self._label, after.gaps)
        middle, end = f',"id":"{before}', f'{behind}",'
        starts = self._starts(channels) if channels else repeat(f'{self._start}"offset":')
        frames = [
            f"{start}{offset}{middle}{offset}{end}{_data(payload)}}}\n"
            for offset, payload, start in zip(count(after.offset + 1), payloads, starts, strict=False)
        ]
        return "".join(frames).encode()

    def _starts(self, channels: Sequence[bytes]) -> list[str]:
        starts = {
            channel: f'{self._start}{_members(told("channel", channel))},"offset":'
            for channel in set(channels)
        }
        return [starts[channel] for channel in channels]

    def source_gap(self, after: Position, gap: SourceGap) -> bytes:
        """Encode a source gap; its id is the place behind it."""
        place = Position(after.offset, after.gaps + 1)
        return event(
            "gap",
            **self._named,
            missed=None,
            reason="source",
            since=show_time(gap.since),
            until=show_time(gap.until),
            id=show_id(self._label, place),
        )

    def gap(self, gap: Gap) -> bytes:
        """Encode what a slow consumer will not get."""
        return encode_gap(self._named, self._label, gap, "slow")


def encode_gap(name: dict[str, str], label: str, gap: Gap, reason: str) -> bytes:
    """Return the event for counted messages, and source gaps among them, that a subscription will not get."""
    offsets = {"from": gap.since.offset + 1, "to": gap.until.offset} if gap.messages else {}
    source_gaps = {"source_gaps": gap.source_gaps} if gap.source_gaps else {}
    return event(
        "gap",
        **name,
        **offsets,
        missed=gap.messages,
        **source_gaps,
        reason=reason,
        id=show_id(label, gap.until),
    )


def _members(names: dict[str, str]) -> str:
    return ",".join(f'"{key}":{quoted(value)}' for key, value in names.items())


def _data(payload: bytes) -> str:
    try:
        return f'"data":{quoted(payload.decode())}'
    except UnicodeDecodeError:
        return _members(told("data", payload))
