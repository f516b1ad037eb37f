"""The parts of the command-line client that touch neither a socket nor a terminal."""

import ast
import sys
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd import client
from pushd.client import Editor, LineSplitter, Outgoing, delays, parse, until_exit, visible

LEFT, RIGHT, UP, DOWN, DELETE = b"\x1b[D", b"\x1b[C", b"\x1b[A", b"\x1b[B", b"\x1b[3~"
START, END, RUB_OUT, ENTER = b"\x01", b"\x05", b"\x7f", b"\r"


def test_imports_only_the_standard_library() -> None:
    tree = ast.parse(Path(client.__file__).read_text())
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "."]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= sys.stdlib_module_names


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


class Kernel:
    """Takes a few bytes at a time, as a socket with a full buffer does."""

    def __init__(self, most: int) -> None:
        self.taken = b""
        self._most = most

    def send(self, data: memoryview) -> int:
        self.taken += data[: self._most]
        return min(len(data), self._most)


class TestOutgoing:
    def test_ends_lines_with_cr_lf(self) -> None:
        kernel = Kernel(3)
        outgoing = Outgoing()
        assert not outgoing
        outgoing.put([b"one", b"", b"two"])
        while outgoing:
            outgoing.send(kernel.send)
        assert kernel.taken == b"one\r\n\r\ntwo\r\n"

    @pytest.mark.parametrize(
        ("taken", "again"),
        [(0, b"one\r\ntwo\r\n"), (4, b"one\r\ntwo\r\n"), (5, b"two\r\n"), (9, b"two\r\n"), (10, b"")],
    )
    def test_sends_a_torn_line_again_from_its_start(self, taken: int, again: bytes) -> None:
        outgoing = Outgoing()
        outgoing.put([b"one", b"two"])
        outgoing.send(Kernel(taken).send)
        outgoing.rewind()
        kernel = Kernel(100)
        outgoing.send(kernel.send)
        assert not outgoing
        assert kernel.taken == again


class TestEditor:
    @pytest.mark.parametrize(
        ("keys", "line"),
        [
            (b"hello" + ENTER, b"hello"),
            (b"hello\n", b"hello"),
            (ENTER, b""),
            (b"a\tb" + ENTER, b"a\tb"),
            (b"helli" + RUB_OUT + b"o" + ENTER, b"hello"),
            (b"\x08" + RUB_OUT + b"hello" + ENTER, b"hello"),
            ("naïve €".encode() + RUB_OUT + ENTER, "naïve ".encode()),
            (b"\xff\xfe" + ENTER, b"\xff\xfe"),
            (b"ello" + START + b"h" + ENTER, b"hello"),
            (b"hllo" + LEFT * 3 + b"e" + ENTER, b"hello"),
            (LEFT + b"hlo" + LEFT * 9 + RIGHT + b"el" + END + b"!" + RIGHT + ENTER, b"hello!"),
            (b"helxlo" + LEFT * 3 + DELETE + ENTER, b"hello"),
            (b"helxlo" + LEFT * 3 + b"\x04" + ENTER, b"hello"),
            (b"hello" + DELETE + ENTER, b"hello"),
            (b"one two  " + b"\x17" + ENTER, b"one "),
            (b"\x17one" + b"\x17" + ENTER, b""),
            (b"one two" + LEFT * 3 + b"\x15" + ENTER, b"two"),
            (b"one two" + LEFT * 4 + b"\x0b" + ENTER, b"one"),
            (b"\x1b[11~\x1b[1;5A\x1bOP\x1bx\x07\x00hello" + ENTER, b"hello"),
            (b"ello\x1bOHh\x1bOF!" + ENTER, b"hello!"),
        ],
    )
    def test_keys(self, keys: bytes, line: bytes) -> None:
        assert Editor().feed(keys) == [line]
        editor = Editor()
        assert [entered for key in keys for entered in editor.feed(bytes([key]))] == [line]

    def test_a_paste_of_several_lines_leaves_the_unfinished_one(self) -> None:
        editor = Editor()
        assert editor.feed(b"one\rtwo\rthr") == [b"one", b"two"]
        assert editor.view(80) == ("thr", 3)
        assert editor.feed(b"ee\r") == [b"three"]

    def test_enter_takes_the_whole_line_wherever_the_cursor_is(self) -> None:
        editor = Editor()
        assert editor.feed(b"hello" + LEFT * 3 + ENTER) == [b"hello"]
        assert editor.view(80) == ("", 0)

    def test_ctrl_d_leaves_only_from_an_empty_line(self) -> None:
        editor = Editor()
        editor.feed(b"a\x04")
        assert not editor.ended
        assert editor.feed(b"\r\x04never\r") == [b"a"]
        assert editor.ended

    def test_history(self) -> None:
        editor = Editor()
        editor.feed(UP + DOWN + b"one\rtwo\rtwo\r\rdraft")
        assert editor.view(80) == ("draft", 5)
        editor.feed(UP)
        assert editor.view(80) == ("two", 3)
        editor.feed(UP + UP)
        assert editor.view(80) == ("one", 3)
        editor.feed(DOWN + DOWN + DOWN)
        assert editor.view(80) == ("draft", 5)
        assert editor.feed(UP + UP + b"!\r") == [b"one!"]
        editor.feed(UP)
        assert editor.view(80) == ("one!", 4)

    @pytest.mark.parametrize(
        ("keys", "room", "view"),
        [
            (b"hello", 5, ("hello", 5)),
            (b"0123456789", 4, ("6789", 4)),
            (b"0123456789" + START, 4, ("0123", 0)),
            # A quarter of the room shows what follows the cursor.
            (b"0123456789" + LEFT * 5, 4, ("2345", 3)),
            ("日本語".encode(), 6, ("日本語", 6)),
            ("日本語".encode(), 5, ("本語", 4)),
            ("e\u0301a".encode(), 2, ("e\u0301a", 2)),
            ("👩\u200d🔬".encode(), 4, ("👩\u200d🔬", 4)),
            (b"a\tb", 8, ("a\\tb", 4)),
            (b"a\xffb", 8, ("a\\udcffb", 8)),
            (b"", 1, ("", 0)),
        ],
    )
    def test_view(self, keys: bytes, room: int, view: tuple[str, int]) -> None:
        editor = Editor()
        editor.feed(keys)
        assert editor.view(room) == view

    @given(st.lists(st.sampled_from([b"x", "ü".encode(), "語".encode(), LEFT, RIGHT, START]), max_size=60))
    def test_the_view_always_holds_the_cursor(self, keys: list[bytes]) -> None:
        editor = Editor()
        editor.feed(b"".join(keys))
        text, cursor = editor.view(10)
        assert 0 <= cursor <= 10
        assert len(text) <= 10

    def test_a_huge_paste(self) -> None:
        # Quadratic work would copy a terabyte here.
        editor = Editor()
        assert editor.feed(b"x" * 1_000_000 + START + b"y" * 1_000_000 + b"\r") == [
            b"y" * 1_000_000 + b"x" * 1_000_000
        ]


class TestVisible:
    @pytest.mark.parametrize(
        ("line", "text"),
        [
            (b"", ""),
            (b"follow the white rabbit", "follow the white rabbit"),
            ("日本語 naïve 👩\u200d🔬".encode(), "日本語 naïve 👩\u200d🔬"),
            (b"a\tb", "a\tb"),
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

    @given(st.binary())
    def test_controls_nothing(self, line: bytes) -> None:
        shown = visible(line)
        shown.encode()
        assert all(char.isprintable() or char in "\t\u200c\u200d" for char in shown)


class TestDelays:
    def test_double_up_to_the_longest(self) -> None:
        almost_one = 1 - 2**-53
        assert list(islice(delays(lambda: almost_one), 7)) == pytest.approx([0.5, 1, 2, 4, 8, 15, 15])

    def test_jitter_takes_away_at_most_half(self) -> None:
        assert list(islice(delays(lambda: 0.0), 7)) == [0.25, 0.5, 1, 2, 4, 7.5, 7.5]


@pytest.mark.parametrize(
    ("lines", "before"),
    [
        ([], ([], False)),
        ([b"a", b"EXITS", b" EXIT", b"b"], ([b"a", b"EXITS", b" EXIT", b"b"], False)),
        ([b"a", b"EXIT", b"b"], ([b"a"], True)),
        ([b"exit"], ([], True)),
    ],
)
def test_exit(lines: list[bytes], before: tuple[list[bytes], bool]) -> None:
    assert until_exit(lines) == before


class TestCommandLine:
    def test_defaults(self) -> None:
        options = parse(["localhost", "8888"])
        assert (options.host, options.port, options.reconnect) == ("localhost", 8888, True)

    def test_without_reconnection(self) -> None:
        options = parse(["--no-reconnect", "::1", "65535"])
        assert (options.host, options.port, options.reconnect) == ("::1", 65535, False)

    @pytest.mark.parametrize(
        "words",
        [
            [],
            ["localhost"],
            ["", "8888"],
            *(["localhost", port] for port in ("0", "65536", "-1", "8888x", "", "1e3", "\u0661", "echo")),
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
        assert all(f"\n  {status} " in said for status in (0, 1, 2, 130))
