"""RESP, the protocol of Redis, as its server speaks it: requests from bytes, and replies to bytes.

Source: the Redis serialization protocol specification, versions 2 and 3; where it is silent, Redis 7.0.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

MAX_LINE = 64 * 1024
"""Bytes of one inline request."""

MAX_WORDS = 1024
"""Words of one array."""

MAX_REQUEST = 64 * 1024 * 1024
"""Bytes of all words of one array."""

OK = b"+OK\r\n"


class ProtocolError(Exception):
    """The client does not speak RESP: nothing that it sends from here on has a meaning."""


class RequestParser:
    r"""Cuts what a client sends into requests: arrays of bulk strings, or lines to type (inline requests).

    It holds at most about MAX_REQUEST bytes, whatever lengths a client announces, and a long word costs no
    more when it comes in small pieces. hiredis would not do: it is made for replies, allocates what a header
    announces, nests, and does not tell where a request ends, which changing between arrays and lines needs.
    """

    _ARRAY = re.compile(rb"\*(-?\d{1,10})\r\n")
    _BULK = re.compile(rb"\$(\d{1,10})\r\n")
    _MAX_HEADER = 16

    def __init__(self) -> None:
        self._rest = bytearray()
        # Below this size the rest holds no further word.
        self._needed = 0
        # Of the array that has begun; no word is missing at the border between two requests.
        self._words: list[bytes] = []
        self._missing = 0
        self._room = MAX_REQUEST

    def feed(self, data: bytes) -> Iterator[list[bytes]]:
        """Yield each request that is now complete, as its words: at least one; empty requests are left out.

        Raise ProtocolError behind the last good request. The parser is of no use after that, nor after a
        caller who did not exhaust the iterator.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data = bytes(self._rest)
            self._rest.clear()
        self._needed = 0
        begin, end = -1, 0
        while begin < end < len(data):
            begin = end
            end = (
                self._read_array(data, begin) if self._in_array(data, begin) else self._read_line(data, begin)
            )
            if self._words and not self._missing:
                words, self._words, self._room = self._words, [], MAX_REQUEST
                yield words
        self._rest += data[end:]

    def _in_array(self, data: bytes, position: int) -> bool:
        return self._missing > 0 or data.startswith(b"*", position)

    def _read_array(self, data: bytes, position: int) -> int:
        """Take what is there of an array, and return the position behind it."""
        if not self._missing:
            header = self._ARRAY.match(data, position)
            if header is None:
                self._check_header(data, position, b"*", "invalid multibulk length")
                return position
            self._missing = max(0, int(header[1]))
            if self._missing > MAX_WORDS:
                raise ProtocolError("invalid multibulk length")
            position = header.end()
        while self._missing:
            header = self._BULK.match(data, position)
            if header is None:
                self._check_header(data, position, b"$", "invalid bulk length")
                break
            begin = header.end()
            end = begin + int(header[1])
            if end - begin > self._room:
                raise ProtocolError("invalid bulk length")
            if end + 2 > len(data):
                self._needed = end + 2 - position
                break
            if not data.startswith(b"\r\n", end):
                raise ProtocolError("expected CRLF behind a bulk string")
            self._words.append(data[begin:end])
            self._room -= end - begin
            self._missing -= 1
            position = end + 2
        return position

    def _check_header(self, data: bytes, position: int, mark: bytes, fault: str) -> None:
        """Raise what is wrong with a header that did not match, unless more bytes can make it good."""
        header = data[position : position + self._MAX_HEADER]
        if header and not header.startswith(mark):
            raise ProtocolError(f"expected '{mark.decode()}', got '{chr(header[0])}'")
        if b"\r\n" in header or len(header) == self._MAX_HEADER:
            raise ProtocolError(fault)

    def _read_line(self, data: bytes, position: int) -> int:
        """Take a line, and return the position behind it."""
        end = data.find(b"\n", position, position + MAX_LINE)
        if end < 0:
            if len(data) - position >= MAX_LINE:
                raise ProtocolError("too big inline request")
            return position
        self._words = split_words(data[position:end])
        return end + 1


_WORD = re.compile(
    rb"""
    \s*+ ([^\s"']*+)                # plain, and after it possibly
    (?: " ((?: [^"\\] | \\. )*+) "  # a part in double quotes,
      | ' ((?: \\' | [^'] )*+) '    # or in single quotes,
    )?+ (?= \s | \Z)                # which ends the word
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}


def split_words(line: bytes) -> list[bytes]:
    r"""Split a line as Redis does: at white space, with ``"a b\n\xff"`` and ``'a b'`` as quotes.

    Raise ProtocolError for a quote without its end, or with something else than white space behind it.
    """
    line = line.strip()
    words = []
    position = 0
    while position < len(line):
        word = _WORD.match(line, position)
        if word is None:
            raise ProtocolError("unbalanced quotes in request")
        plain, double, single = word.groups(b"")
        words.append(plain + _ESCAPE.sub(_unescape, double) + single.replace(b"\\'", b"'"))
        position = word.end()
    return words


def _unescape(match: re.Match[bytes]) -> bytes:
    what = match[1]
    return bytes.fromhex(what[1:].decode()) if len(what) == 3 else _ESCAPED.get(what, what)


@dataclass(frozen=True, slots=True)
class Dialect:
    """What the versions of RESP write differently."""

    version: int
    null: bytes
    push: bytes
    """The type byte of an array that answers no request."""

    def mapping(self, pairs: Mapping[bytes, bytes]) -> bytes:
        """Encode a map of encoded values; before version 3 an array of keys and values."""
        body = b"".join(bulk(key) + value for key, value in pairs.items())
        return (
            b"%%%d\r\n%b" % (len(pairs), body) if self.version == 3 else b"*%d\r\n%b" % (2 * len(pairs), body)
        )


RESP2 = Dialect(2, null=b"$-1\r\n", push=b"*")
RESP3 = Dialect(3, null=b"_\r\n", push=b">")


def error(message: bytes) -> bytes:
    """Encode an error, its code first; it cannot break the line."""
    return b"-%b\r\n" % message.replace(b"\r", b" ").replace(b"\n", b" ")


def integer(value: int) -> bytes:
    """Encode an integer."""
    return b":%d\r\n" % value


def bulk(value: bytes) -> bytes:
    """Encode a bulk string: any bytes."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def array(items: Iterable[bytes], mark: bytes = b"*") -> bytes:
    """Encode an array of encoded values; its type byte may be that of a push."""
    items = tuple(items)
    return b"%b%d\r\n%b" % (mark, len(items), b"".join(items))
