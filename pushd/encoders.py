"""Messages and source gaps to bytes, one encoder for each wire format."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pushd.message import SourceGap


@dataclass(frozen=True, slots=True)
class Encoder:
    """A wire format: both functions return whole frames, or nothing where the format has none."""

    messages: Callable[[Sequence[bytes]], bytes]  # payloads, oldest first
    source_gap: Callable[[SourceGap], bytes]


def encode_lines(payloads: Sequence[bytes]) -> bytes:
    """Encode for the line protocol: each payload exactly as it is, and CR LF."""
    return b"\r\n".join([*payloads, b""])


LINES: Final = Encoder(messages=encode_lines, source_gap=lambda _: b"")
"""The line protocol, in which nothing can be said but messages."""
