"""Messages to bytes, one function for each wire format."""

from collections.abc import Callable, Sequence

Encoder = Callable[[Sequence[bytes]], bytes]
"""Turns payloads, oldest first, into whole frames in the same order."""


def encode_lines(payloads: Sequence[bytes]) -> bytes:
    """Encode for the line protocol: each payload exactly as it is, and CR LF."""
    return b"\r\n".join([*payloads, b""])
