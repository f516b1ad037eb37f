"""Messages to bytes, one function for each wire format."""

from collections.abc import Callable, Sequence

Encoder = Callable[[Sequence[bytes]], bytes]
"""Turns payloads, oldest first, into whole frames in the same order."""


def encode_lines(payloads: Sequence[bytes]) -> bytes:
    r"""Encode for the line protocol: each payload exactly as it is, and CR LF.

    >>> encode_lines([b"follow the", b"white rabbit", b""])
    b'follow the\r\nwhite rabbit\r\n\r\n'
    """
    return b"\r\n".join([*payloads, b""])
