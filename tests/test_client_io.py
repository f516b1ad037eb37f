"""What both sides of the command-line client share."""

import errno
import socket
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.client_io import HARMLESS, LineSplitter, delays, reason, visible


def in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


class TestLineSplitter:
    @given(st.lists(st.binary()), st.binary(), st.lists(st.integers(0)))
    def test_cuts_at_the_delimiter_wherever_the_stream_was_cut(
        self, payloads: list[bytes], rest: bytes, cuts: list[int]
    ) -> None:
        stream = b"".join(payload + b"\r\n" for payload in payloads) + rest
        splitter = LineSplitter(b"\r\n")
        lines = [line for piece in in_pieces(stream, cuts) for line in splitter.feed(piece)]
        assert [*lines, splitter.rest] == stream.split(b"\r\n")

    @pytest.mark.parametrize("payload", [b"", b"\r", b"a\nb", b"a\rb", b"a\r", b"\nb", b"\xff\x00"])
    def test_only_cr_lf_ends_a_line(self, payload: bytes) -> None:
        splitter = LineSplitter(b"\r\n")
        stream = payload + b"\r\n" + payload + b"\r\n"
        assert [line for byte in stream for line in splitter.feed(bytes([byte]))] == [payload, payload]
        assert splitter.rest == b""

    def test_a_long_line_in_many_pieces(self) -> None:
        # Quadratic work would copy or search 400 GB here.
        splitter = LineSplitter(b"\r\n")
        piece = b"x" * 1000
        for _ in range(30_000):
            assert splitter.feed(piece) == []
        (line,) = splitter.feed(b"\r\n")
        assert len(line) == 30_000_000


class TestVisible:
    @pytest.mark.parametrize(
        ("line", "text"),
        [
            (b"", ""),
            (b"follow the white rabbit", "follow the white rabbit"),
            ("日本語 naïve 👩\u200d🔬".encode(), "日本語 naïve 👩\u200d🔬"),
            (b"a\tb\\c'd\"", "a\tb\\c'd\""),
            (b"a\nb\rc", "a\\nb\\rc"),
            (b"\x1b[2J\x07\x00\x7f", "\\x1b[2J\\x07\\x00\\x7f"),
            # CSI as one character, and an override of the direction of writing.
            (b"\xc2\x9b2J", "\\x9b2J"),
            ("\u202egpj.exe".encode(), "\\u202egpj.exe"),
            (b"\xff\xfe\x9b", "\\xff\\xfe\\x9b"),
        ],
    )
    def test_shows(self, line: bytes, text: str) -> None:
        assert visible(line) == text

    @given(st.binary() | st.text().map(str.encode))
    def test_controls_nothing(self, line: bytes) -> None:
        shown = visible(line)
        shown.encode()
        assert all(char.isprintable() or char in HARMLESS for char in shown)


class TestDelays:
    def test_double_up_to_the_longest(self) -> None:
        almost_one = 1 - 2**-53
        assert list(islice(delays(lambda: almost_one), 7)) == pytest.approx([0.5, 1, 2, 4, 8, 15, 15])

    def test_jitter_takes_away_at_most_half(self) -> None:
        assert list(islice(delays(lambda: 0.0), 7)) == [0.25, 0.5, 1, 2, 4, 7.5, 7.5]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 8888)"), "Connection refused"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (TimeoutError(), "timed out"),
        (UnicodeError("label empty or too long"), "not a valid host name"),
    ],
)
def test_reasons(error: OSError | UnicodeError, words: str) -> None:
    assert reason(error) == words
