"""The parts of the command-line client that touch neither a socket nor a terminal."""

import errno
import socket
import subprocess
import sys
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.client import HARMLESS, LineSplitter, delays, parse, reason, visible


def test_imports_neither_the_server_nor_what_is_slow() -> None:
    code = "import sys, pushd.client; print(*sys.modules, sep='\\n')"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    names = imported.splitlines()
    assert [name for name in names if name.startswith("pushd")] == ["pushd", "pushd.client"]
    assert not {"twisted", "txredisapi", "prompt_toolkit"}.intersection(names)


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


class TestCommandLine:
    def test_defaults(self) -> None:
        options = parse(["localhost", "8888"])
        assert (options.host, options.port, options.no_reconnect) == ("localhost", 8888, False)

    def test_without_reconnection(self) -> None:
        options = parse(["--no-reconnect", "::1", "65535"])
        assert (options.host, options.port, options.no_reconnect) == ("::1", 65535, True)

    @pytest.mark.parametrize(
        "words",
        [
            [],
            ["localhost"],
            *(["localhost", port] for port in ("0", "65536", "-1", "8888x", "", "1e3", "echo")),
            ["localhost", "8888", "more"],
        ],
    )
    def test_wrong_usage(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            parse(words)
        assert ended.value.code == 2
        assert "usage: pushd-client" in capsys.readouterr().err

    def test_help_says_how_to_leave_and_what_the_exit_statuses_mean(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            parse(["--help"])
        assert ended.value.code == 0
        said = capsys.readouterr().out
        assert "EXIT" in said
        assert all(f"\n  {status} " in said for status in (0, 1, 2, 130, 143))
