"""Commands: each can be written in many ways and is read again; every other line is refused with a code."""

import ast
import json
import re
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pushd.commands import (
    MAX_NAME_BYTES,
    MAX_PATTERN_BYTES,
    USAGE,
    Auth,
    Command,
    CommandError,
    From,
    Help,
    Last,
    Ping,
    Publish,
    Quit,
    Status,
    Subscribe,
    Unsubscribe,
    failed,
    name_of,
    parse,
)
from pushd.message import Kind, Topic
from pushd.settings import SlowPolicy
from tests.grammar import Grammar, Regexes, Strategies, rules_of

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "protocol.md").read_text()

STRINGS = """
unescaped = %x20-21 / %x23-5B / %x5D-10FFFF     ; RFC 8259, section 7
escape    = %x5C ( %x22 / %x5C / %x2F / %x62 / %x66 / %x6E / %x72 / %x74 / ( %x75 4HEXDIG ) )
"""


def section(title: str) -> str:
    """Return a part of the document."""
    return DOCUMENT.partition(f"\n{title}\n")[2].partition("\n#")[0]


def documented_codes() -> set[str]:
    rows = re.findall(r"^\| (`.+?) \|", section("### error"), re.MULTILINE)
    return {code for row in rows for code in re.findall(r"`([a-z-]+)`", row)}


CODES = documented_codes()
RULES = rules_of(section("## Commands").partition("```abnf\n")[2].partition("```")[0], STRINGS)
LINE = re.compile(Grammar(RULES, Regexes()).rule("line"))
NEWS = Topic(b"news")


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("AUTH a.b.c", Auth("a.b.c")),
        ("SUBSCRIBE news", Subscribe(NEWS)),
        ("subscribe\tnews \t FROM k3f9ab.1-7", Subscribe(NEWS, From("k3f9ab.1-7"))),
        ("SUBSCRIBE news LAST 10", Subscribe(NEWS, Last(10))),
        ("SUBSCRIBE news LAST 0", Subscribe(NEWS, Last(0))),
        ("SUBSCRIBE news LAST 999999999", Subscribe(NEWS, Last(999_999_999))),
        ("SUBSCRIBE news SLOW skip", Subscribe(NEWS, slow=SlowPolicy.SKIP)),
        ("Subscribe news last 1 slow Latest", Subscribe(NEWS, Last(1), SlowPolicy.LATEST)),
        ("SUBSCRIBE FROM FROM LAST", Subscribe(Topic(b"FROM"), From("LAST"))),
        ("SUBSCRIBE SLOW SLOW skip", Subscribe(Topic(b"SLOW"), slow=SlowPolicy.SKIP)),
        ('SUBSCRIBE "late news" FROM x', Subscribe(Topic(b"late news"), From("x"))),
        (r'SUBSCRIBE "\u0000\ud83d\ude00"', Subscribe(Topic(b"\0\xf0\x9f\x98\x80"))),
        ('SUBSCRIBE a"b', Subscribe(Topic(b'a"b'))),
        ("SUBSCRIBE snö\u2028x", Subscribe(Topic("snö\u2028x".encode()))),
        ("PSUBSCRIBE news.*", Subscribe(Topic(b"news.*", Kind.PATTERN))),
        ("UNSUBSCRIBE news", Unsubscribe(NEWS)),
        ("PUNSUBSCRIBE news.*", Unsubscribe(Topic(b"news.*", Kind.PATTERN))),
        ("PUBLISH news  1  \t 0 \t ", Publish(b"news", b"1  \t 0")),
        ('PUBLISH news "two\\nlines"', Publish(b"news", b"two\nlines")),
        ('PUBLISH news " "', Publish(b"news", b" ")),
        ('PUBLISH news ""', Publish(b"news", b"")),
        ('PUBLISH news say "hi"', Publish(b"news", b'say "hi"')),
        ('PUBLISH "late news" {"a": 1}', Publish(b"late news", b'{"a": 1}')),
        ("PING", Ping("")),
        ("PING are you there?", Ping("are you there?")),
        ('PING ""', Ping("")),
        ("  status\t", Status()),
        ("HELP", Help()),
        ("qUiT", Quit()),
        ("", None),
        (" \t ", None),
    ],
)
def test_what_is_a_command(line: str, command: Command | None) -> None:
    assert parse(line.encode()) == command
    assert LINE.fullmatch(f"{line}\n")


@pytest.mark.parametrize(
    ("line", "code", "command"),
    [
        (b"\xff", "bad-encoding", None),
        (b"PUBLISH news \xc3", "bad-encoding", None),
        (b"PUBLISH news \xed\xa0\x80", "bad-encoding", None),
        (b"HELLO", "unknown-command", None),
        (b'"PING"', "unknown-command", None),
        (b"PING.", "unknown-command", None),
        (b"\x00", "unknown-command", None),
        (b"\xef\xbb\xbfPING", "unknown-command", None),
        ("\u017ftatus".encode(), "unknown-command", None),  # in upper case, the s of long ago is an S
        ("p\u0131ng".encode(), "unknown-command", None),  # and the i without a dot is an I
        ("\uff30ING".encode(), "unknown-command", None),
        (b"AUTH", "bad-arguments", "AUTH"),
        (b"auth a b", "bad-arguments", "AUTH"),
        (b'AUTH "a"', "bad-arguments", "AUTH"),
        (b"SUBSCRIBE", "bad-arguments", "SUBSCRIBE"),
        (b"SUBSCRIBE a b", "bad-arguments", "SUBSCRIBE"),
        (b"SUBSCRIBE a FROM", "bad-arguments", "SUBSCRIBE"),
        (b'SUBSCRIBE a FROM "b"', "bad-arguments", "SUBSCRIBE"),
        (b"SUBSCRIBE a LAST", "bad-arguments", "SUBSCRIBE"),
        (b"SUBSCRIBE a LAST -1", "bad-arguments", "SUBSCRIBE"),
        (b"SUBSCRIBE a LAST 1000000000", "bad-arguments", "SUBSCRIBE"),
        ("SUBSCRIBE a LAST \u0663".encode(), "bad-arguments", "SUBSCRIBE"),
        (b"SUBSCRIBE a LAST 1 FROM b", "bad-arguments", "SUBSCRIBE"),
        (b"SUBSCRIBE a SLOW skip LAST 1", "bad-arguments", "SUBSCRIBE"),
        (b"SUBSCRIBE a SLOW", "bad-arguments", "SUBSCRIBE"),
        (b"SUBSCRIBE a SLOW fast", "bad-arguments", "SUBSCRIBE"),
        ("SUBSCRIBE a \u017flow skip".encode(), "bad-arguments", "SUBSCRIBE"),
        ("SUBSCRIBE a SLOW s\u212aip".encode(), "bad-arguments", "SUBSCRIBE"),  # the sign of kelvins
        (b'SUBSCRIBE ""', "bad-arguments", "SUBSCRIBE"),
        (b'SUBSCRIBE "a', "bad-arguments", "SUBSCRIBE"),
        (b'SUBSCRIBE "a"b', "bad-arguments", "SUBSCRIBE"),
        (b'SUBSCRIBE "a"FROM b', "bad-arguments", "SUBSCRIBE"),
        (b'SUBSCRIBE "a\tb"', "bad-arguments", "SUBSCRIBE"),
        (rb'SUBSCRIBE "\x41"', "bad-arguments", "SUBSCRIBE"),
        (rb'SUBSCRIBE "\u 41"', "bad-arguments", "SUBSCRIBE"),
        (rb'SUBSCRIBE "\ud800"', "bad-arguments", "SUBSCRIBE"),
        (b"SUBSCRIBE a\x01", "bad-arguments", "SUBSCRIBE"),
        (b"SUBSCRIBE a\x7fb", "bad-arguments", "SUBSCRIBE"),
        (b"psubscribe", "bad-arguments", "PSUBSCRIBE"),
        (b"UNSUBSCRIBE a b", "bad-arguments", "UNSUBSCRIBE"),
        (b"PUNSUBSCRIBE", "bad-arguments", "PUNSUBSCRIBE"),
        (b"PUBLISH", "bad-arguments", "PUBLISH"),
        (b"PUBLISH a", "bad-arguments", "PUBLISH"),
        (b"PUBLISH a\x01b", "bad-arguments", "PUBLISH"),
        (b"PUBLISH a b\x01", "bad-arguments", "PUBLISH"),
        (b'PUBLISH a "b" c', "bad-arguments", "PUBLISH"),
        (rb'PUBLISH a "\udc00"', "bad-arguments", "PUBLISH"),
        (b"PING \x01", "bad-arguments", "PING"),
        (b"PING a\r", "bad-arguments", "PING"),
        (b"PING a \x7f", "bad-arguments", "PING"),
        (rb'PING "\ud800"', "bad-arguments", "PING"),
        (b"STATUS now", "bad-arguments", "STATUS"),
        (b"HELP PING", "bad-arguments", "HELP"),
        (b"QUIT\x00", "bad-arguments", "QUIT"),
    ],
)
def test_what_is_not_has_a_code(line: bytes, code: str, command: str | None) -> None:
    with pytest.raises(CommandError) as caught:
        parse(line)
    assert (caught.value.code, caught.value.command, caught.value.about) == (code, command, {})
    if command:
        assert str(caught.value).endswith(f"; allowed: {USAGE[command]}")


def test_an_unknown_command_is_told_all_that_there_are() -> None:
    with pytest.raises(CommandError, match=r"allowed: AUTH, SUBSCRIBE, .*QUIT$"):
        parse(b"HELLO")


@pytest.mark.parametrize(
    ("size", "is_allowed"), [(1, True), (MAX_NAME_BYTES, True), (MAX_NAME_BYTES + 1, False)]
)
@pytest.mark.parametrize("letter", ["x", "é"])
@pytest.mark.parametrize("form", ["{}", '"{}"'])
def test_names_are_limited_by_their_bytes(size: int, *, is_allowed: bool, letter: str, form: str) -> None:
    name = letter * (size // len(letter.encode())) + "x" * (size % len(letter.encode()))
    line = f"UNSUBSCRIBE {form.format(name)}".encode()
    if is_allowed:
        assert parse(line) == Unsubscribe(Topic(name.encode()))
    else:
        with pytest.raises(CommandError, match=f"1 to {MAX_NAME_BYTES} bytes"):
            parse(line)


@pytest.mark.parametrize("command", [b"PSUBSCRIBE", b"PUNSUBSCRIBE"])
def test_patterns_are_shorter(command: bytes) -> None:
    assert parse(command + b" " + b"*" * MAX_PATTERN_BYTES)
    with pytest.raises(CommandError, match=f"a pattern of 1 to {MAX_PATTERN_BYTES} bytes"):
        parse(command + b" " + b"*" * (MAX_PATTERN_BYTES + 1))


texts = st.text(st.characters(codec="utf-8"), max_size=30)
names = texts.filter(bool).map(str.encode)
plain = st.characters(codec="utf-8", exclude_characters=' "\x7f', min_codepoint=33)
words = st.builds(str.__add__, plain, st.text(plain | st.just('"'), max_size=30))
topics = st.builds(Topic, names, st.sampled_from([Kind.CHANNEL, Kind.PATTERN]))
starts = st.none() | st.builds(From, words) | st.builds(Last, st.integers(0, 10**9 - 1))

commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(Auth, words),
    st.builds(Subscribe, topics, starts, st.none() | st.sampled_from(SlowPolicy)),
    st.builds(Unsubscribe, topics),
    st.builds(Publish, names, texts.map(str.encode)),
    st.builds(Ping, texts),
    st.sampled_from([Status(), Help(), Quit()]),
)


class Writer:
    """Writes commands in any way that the document allows."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self._draw = draw

    def line(self, command: Command) -> str:
        """Return a line for a command."""
        parts = [self._any_case(name_of(command)), *self._arguments(command)]
        edges = st.text(" \t", max_size=2)
        return f"{self._draw(edges)}{self._joined(parts)}{self._draw(edges)}"

    def _arguments(self, command: Command) -> list[str]:
        match command:
            case Auth(token):
                return [token]
            case Subscribe(topic, start, slow):
                return [self._name(topic.name), *self._start(start), *self._slow(slow)]
            case Unsubscribe(topic):
                return [self._name(topic.name)]
            case Publish(channel, payload):
                return [self._name(channel), self._text(payload.decode())]
            case Ping(text):
                return [self._text(text)] if text or self._draw(st.booleans()) else []
        return []

    def _start(self, start: From | Last | None) -> list[str]:
        match start:
            case From(text):
                return [self._any_case("FROM"), text]
            case Last(messages):
                zeros = self._draw(st.integers(0, 9 - len(str(messages))))
                return [self._any_case("LAST"), "0" * zeros + str(messages)]
        return []

    def _slow(self, slow: SlowPolicy | None) -> list[str]:
        return [self._any_case("SLOW"), self._any_case(slow.value)] if slow else []

    def _joined(self, parts: list[str]) -> str:
        first, *more = parts
        return first + "".join(self._draw(st.text(" \t", min_size=1, max_size=3)) + part for part in more)

    def _any_case(self, word: str) -> str:
        return "".join(letter.upper() if self._draw(st.booleans()) else letter.lower() for letter in word)

    def _name(self, name: bytes) -> str:
        text = name.decode()
        return text if is_word(text) and self._draw(st.booleans()) else self._string(text)

    def _text(self, text: str) -> str:
        return text if is_text(text) and self._draw(st.booleans()) else self._string(text)

    def _string(self, text: str) -> str:
        return f'"{"".join(map(self._letter, text))}"'

    def _letter(self, letter: str) -> str:
        codes = letter.encode("utf-16-be").hex()
        ways = ["".join(f"\\u{self._any_case(codes[at : at + 4])}" for at in range(0, len(codes), 4))]
        ways += ["\\" + short for short, meant in SHORT.items() if meant == letter]
        if letter >= " " and letter not in '"\\':
            ways.append(letter)
        way: str = self._draw(st.sampled_from(ways))
        return way


SHORT = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


def is_word(text: str) -> bool:
    """Tell whether a text can be written as one word."""
    return text[:1] not in ("", '"') and all(letter > " " and letter != "\x7f" for letter in text)


def is_text(text: str) -> bool:
    """Tell whether a text can be written as the rest of a line."""
    return is_word(re.sub("[ \t]", "_", text)) and text == text.strip(" \t")


@st.composite
def written(draw: Any) -> tuple[Command, str]:
    """Return a command, and a line that says it."""
    command: Command = draw(commands)
    return command, Writer(draw).line(command)


@given(written())
def test_a_command_is_read_however_it_is_written(both: tuple[Command, str]) -> None:
    command, line = both
    assert parse(line.encode()) == command
    assert LINE.fullmatch(f"{line}\r\n")


def outcome(line: bytes) -> Command | CommandError | None:
    """Return what becomes of a line."""
    try:
        return parse(line)
    except CommandError as error:
        return error


def check(line: bytes) -> None:
    """Check that a line is a command, or an error that the document has."""
    read = outcome(line)
    if isinstance(read, CommandError):
        assert read.code in CODES
        assert len(str(read)) < 200
        assert str(read).isprintable()
    else:
        assert read is None or name_of(read) in USAGE


@given(st.binary(max_size=100))
def test_any_bytes_are_a_command_or_an_error(line: bytes) -> None:
    check(line)


# What lines are made of, and what is nearly that.
PIECES = [
    *USAGE,
    *("subscribe", "ping", "FROM", "LAST", "SLOW", "skip", "\u017flow", "s\u212aip", "12", "-1", "a", "é"),
    *('"', '""', '"a b"', '"a', "\\", "\\u0041", "\\ud800", "\\", '"\\n"', "\x01", "\x7f", "\x85"),
    *("\u2028", "\xa0", " ", "  ", "\t", "\r", "\v", "\0"),
]
pieces = st.lists(st.sampled_from(PIECES) | st.just(" "), max_size=10).map("".join)


@given(pieces, st.binary(max_size=3))
def test_so_are_those_that_look_like_commands(start: str, end: bytes) -> None:
    check(start.encode() + end)


BEYOND_THE_GRAMMAR = r"(a (channel|pattern) of 1 to \d+ bytes|half of a surrogate pair)"


def check_agreement(line: str, *, is_in_grammar: bool) -> None:
    """Check that the parser takes what the grammar does, but for what is said beside it.

    A line comes to it without its terminator.
    """
    read = outcome(line.removesuffix("\n").removesuffix("\r").encode())
    if isinstance(read, CommandError):
        assert not is_in_grammar or re.match(BEYOND_THE_GRAMMAR, str(read))
    else:
        assert is_in_grammar


@given(pieces | words)
@example('PING say "hi"')
@example(" ")
@example("\u017ftatus")
@example("\r")
@example("PING\r\r")
def test_the_parser_agrees_with_the_grammar(line: str) -> None:
    check_agreement(f"{line}\n", is_in_grammar=LINE.fullmatch(f"{line}\n") is not None)


@given(Grammar(RULES, Strategies()).rule("line"))
def test_the_parser_takes_what_the_grammar_makes(line: str) -> None:
    assert LINE.fullmatch(line)
    check_agreement(line, is_in_grammar=True)


def test_help_and_the_document_list_the_same_commands() -> None:
    listed = re.findall(r"^\| (`.+?) \|", section("## Commands"), re.MULTILINE)
    assert {word for row in listed for word in re.findall("`([A-Z]+)", row)} == set(USAGE)
    assert all(usage.split()[0] == name for name, usage in USAGE.items())


def strings_in(node: ast.AST | None) -> set[str]:
    constants = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)] if node else []
    return {constant for constant in constants if isinstance(constant, str)}


class Codes(ast.NodeVisitor):
    """Collects all codes that a module may give."""

    ARGUMENT = {"CommandError": 0, "failed": 1, "say_error": 0, "TokenError": 1}  # noqa: RUF012

    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for argument in node.args[self.ARGUMENT.get(name, 99) :][:1]:
            self.found |= strings_in(argument)
        for keyword in node.keywords:
            if keyword.arg == "code":
                self.found |= strings_in(keyword.value)
        self.generic_visit(node)

    def visit_arguments(self, node: ast.arguments) -> None:
        for argument, default in zip(reversed(node.args), reversed(node.defaults), strict=False):
            if argument.arg == "code":
                self.found |= strings_in(default)


def test_the_document_lists_all_codes_and_no_others() -> None:
    codes = Codes()
    for file in sorted((ROOT / "pushd").rglob("*.py")):
        codes.visit(ast.parse(file.read_text()))
    assert codes.found == CODES


@pytest.mark.parametrize("line", [b"a", b"SUBSCRIBE", b"\xff"])
def test_an_error_without_a_topic_is_about_none(line: bytes) -> None:
    with pytest.raises(CommandError) as caught:
        parse(line)
    assert caught.value.about == {}


@pytest.mark.parametrize(
    ("command", "name", "about"),
    [
        (Subscribe(NEWS), "SUBSCRIBE", {"channel": "news"}),
        (Subscribe(Topic(b"n*", Kind.PATTERN)), "PSUBSCRIBE", {"pattern": "n*"}),
        (Unsubscribe(NEWS), "UNSUBSCRIBE", {"channel": "news"}),
        (Unsubscribe(Topic(b"n*", Kind.PATTERN)), "PUNSUBSCRIBE", {"pattern": "n*"}),
        (Publish(b"news", b"1"), "PUBLISH", {"channel": "news"}),
        (Auth("token"), "AUTH", {}),
        (Ping(), "PING", {}),
        (Status(), "STATUS", {}),
        (Help(), "HELP", {}),
        (Quit(), "QUIT", {}),
    ],
)
def test_what_cannot_be_done_names_the_command_and_its_topic(
    command: Command, name: str, about: dict[str, str]
) -> None:
    error = failed(command, "forbidden", "this client may not do that")
    assert (error.code, str(error)) == ("forbidden", "this client may not do that")
    assert (error.command, error.about) == (name, about)


# What a parser might take long for: each begins, repeats something, and ends.
NASTY = {
    "spaces": (b"", b" ", b""),
    "spaces and tabs behind a word": (b"PING a", b" \t", b""),
    "spaces before what is too much": (b"STATUS", b" ", b"x"),
    "one word": (b"", b"a", b""),
    "a name": (b"SUBSCRIBE ", b"a", b""),
    "a letter that is longer in upper case": (b"", "\ufb03".encode(), b""),
    "quotes": (b"", b'"', b""),
    "a text of quotes": (b"PING a", b' "', b""),
    "words": (b"PING ", b"a ", b""),
    "words, and a control character": (b"PING ", b"a ", b"\x01"),
    "keywords": (b"SUBSCRIBE a ", b"SLOW ", b""),
    "digits": (b"SUBSCRIBE a LAST ", b"9", b""),
    "a token": (b"AUTH ", b"a.", b""),
    "an open string": (b'PING "', b"a", b""),
    "an open string of escapes": (b'PING "', rb"\\", b""),
    "escapes": (b'PING "', rb"\u0041", b'"'),
    "halves of pairs": (b'PING "', rb"\ud800", b'"'),
    "no escape": (b'PING "', b"\\", b""),
    "brackets": (b"PUBLISH a ", b"[", b""),
    "not UTF-8 at the end": (b"PING ", b"a", b"\xff"),
    "control characters": (b"", b"\x00", b""),
    "letters of four bytes": (b"PING ", "\U0001f600".encode(), b""),
}
MEBI = 1024**2


def calls(line: bytes) -> int:
    """Return how many functions are called for a line, those in C too."""
    count = 0

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    check(line)
    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        check(line)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("kind", NASTY)
def test_no_line_takes_more_calls_for_being_long(kind: str) -> None:
    """What is called is linear: it goes over the line once, and no regular expression goes back.

    What goes back over 1 MiB would not end before the time of the whole test suite is over.
    """
    start, repeated, end = NASTY[kind]
    short, long = (start + repeated * (size // len(repeated)) + end for size in (2048, MEBI))
    assert calls(long) <= calls(short) + 2 < 100


@pytest.mark.parametrize("kind", NASTY)
def test_no_line_takes_much_memory(kind: str) -> None:
    """Letters beyond the basic plane make Python keep four bytes of each, and copies are made of that."""
    start, repeated, end = NASTY[kind]
    line = start + repeated * (MEBI // len(repeated)) + end
    tracemalloc.start()
    try:
        check(line)
        assert tracemalloc.get_traced_memory()[1] < 16 * MEBI
    finally:
        tracemalloc.stop()


def test_a_string_is_one_of_json() -> None:
    """The document sends to RFC 8259: what Python writes is read."""
    text = "".join(map(chr, range(0x20, 0x800))) + "\x00\n\u2028\U0001f600"
    assert parse(f"PING {json.dumps(text)}".encode()) == Ping(text)
    assert parse(f"PING {json.dumps(text, ensure_ascii=False)}".encode()) == Ping(text)
