"""Commands: what clients of the control protocol say, as values. Their grammar is in docs/protocol.md."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pushd.events import named, told
from pushd.message import Kind, Topic
from pushd.settings import SlowPolicy

MAX_NAME_BYTES = 1024
"""The longest channel."""

MAX_PATTERN_BYTES = 128
"""The longest pattern. To match a name may take as many steps, in Redis too, as both are long, multiplied."""

USAGE: Final = {
    "AUTH": "AUTH token",
    "SUBSCRIBE": "SUBSCRIBE channel [FROM id | LAST n] [SLOW disconnect|skip|latest]",
    "PSUBSCRIBE": "PSUBSCRIBE pattern [FROM id | LAST n] [SLOW disconnect|skip|latest]",
    "UNSUBSCRIBE": "UNSUBSCRIBE channel",
    "PUNSUBSCRIBE": "PUNSUBSCRIBE pattern",
    "PUBLISH": "PUBLISH channel payload",
    "PING": "PING [text]",
    "STATUS": "STATUS",
    "HELP": "HELP",
    "QUIT": "QUIT",
}
"""How each command goes."""


class CommandError(Exception):
    """Why a line is no command, or one that cannot be done: a code, and a text for people.

    Where they are known, the command's name, and as members of an event which topic it is about.
    """

    def __init__(
        self, code: str, message: str, command: str | None = None, about: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.command = command
        self.about = about or {}


@dataclass(frozen=True, slots=True)
class Auth:
    """Say who one is."""

    token: str


@dataclass(frozen=True, slots=True)
class From:
    """Begin after the place that an id names."""

    id: str


@dataclass(frozen=True, slots=True)
class Last:
    """Begin with so many of the newest messages."""

    messages: int


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Get a topic's messages: from now on, where there is no start."""

    topic: Topic
    start: From | Last | None = None
    slow: SlowPolicy | None = None


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Get a topic's messages no more."""

    topic: Topic


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish to Redis."""

    channel: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class Ping:
    """Prove that the connection works."""

    text: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """Ask what pushd knows of one."""


@dataclass(frozen=True, slots=True)
class Help:
    """Ask for all commands."""


@dataclass(frozen=True, slots=True)
class Quit:
    """Close the connection."""


Command = Auth | Subscribe | Unsubscribe | Publish | Ping | Status | Help | Quit


def name_of(command: Command) -> str:
    """Return a command's name."""
    of_pattern = isinstance(command, Subscribe | Unsubscribe) and command.topic.kind is Kind.PATTERN
    return "P" * of_pattern + type(command).__name__.upper()


def failed(command: Command, code: str, message: str) -> CommandError:
    """Return why a command cannot be done."""
    about: dict[str, str] = {}
    match command:
        case Subscribe(topic) | Unsubscribe(topic):
            about = named(topic)
        case Publish(channel):
            about = told("channel", channel)
    return CommandError(code, message, name_of(command), about)


def parse(line: bytes) -> Command | None:
    """Read a line without its terminator; None for one without words. Raises CommandError, in linear time."""
    try:
        words = _Words(line.decode())
    except UnicodeDecodeError:
        raise CommandError("bad-encoding", "the line is not UTF-8") from None
    if words.ended:
        return None
    name = _upper(words.word() or "")
    read = _COMMANDS.get(name)
    if read is None:
        raise CommandError("unknown-command", f"there is no such command; allowed: {', '.join(USAGE)}")
    try:
        command = read(words)
        if not words.ended:
            raise _WrongError("there is more than that, or a control character")
    except _WrongError as error:
        raise CommandError("bad-arguments", f"{error}; allowed: {USAGE[name]}", name) from None
    return command


class _WrongError(Exception):
    """What is wrong with the words of a command."""


class _Words:
    """Takes a line apart, from left to right."""

    _word = re.compile(r'[^\x00-\x20\x7f"][^\x00-\x20\x7f]*')
    _text = re.compile(r'[^\x00-\x20\x7f"][^\x00-\x08\x0a-\x1f\x7f]*')
    _strings = json.JSONDecoder()

    def __init__(self, text: str) -> None:
        self._line = text.strip(" \t")
        self._at = 0

    @property
    def ended(self) -> bool:
        """Whether nothing is left."""
        return self._at == len(self._line)

    def word(self) -> str | None:
        """Take one word; None where there is none."""
        return self._take(self._word)

    def keyword(self, *allowed: str) -> str | None:
        """Take one of some words, in any case, and return it as it is given here; None for any other."""
        found = self._word.match(self._line, self._at)
        if found is None or (keyword := _upper(found[0])) not in allowed:
            return None
        self.word()
        return keyword

    def name(self, kind: Kind = Kind.CHANNEL) -> bytes:
        """Take a channel or a pattern."""
        name = (self._string() if self._starts_string() else self.word()) or ""
        encoded = _encoded(name)
        most = MAX_PATTERN_BYTES if kind is Kind.PATTERN else MAX_NAME_BYTES
        if not 1 <= len(encoded) <= most:
            raise _WrongError(f"a {kind.value} of 1 to {most} bytes is wanted")
        return encoded

    def text(self) -> str | None:
        """Take all that is left; None where that is nothing, or holds control characters."""
        return self._string() if self._starts_string() else self._take(self._text)

    def _starts_string(self) -> bool:
        return self._line.startswith('"', self._at)

    def _string(self) -> str:
        try:
            value, end = self._strings.raw_decode(self._line, self._at)
        except ValueError:
            raise _WrongError("that is no string of JSON") from None
        if self._line[end : end + 1] not in ("", " ", "\t"):
            raise _WrongError("there is no space behind a string of JSON")
        self._go_to(end)
        return str(value)

    def _take(self, what: re.Pattern[str]) -> str | None:
        found = what.match(self._line, self._at)
        if found is None:
            return None
        self._go_to(found.end())
        return found[0]

    def _go_to(self, end: int) -> None:
        """Go on behind what has been taken, and the space there."""
        self._at = len(self._line) - len(self._line[end:].lstrip(" \t"))


def _upper(word: str) -> str:
    """Return a word in upper case; one that is not ASCII as it is, since such letters may have ASCII's."""
    return word.upper() if word.isascii() else word


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise _WrongError("half of a surrogate pair is no character") from None


def _auth(words: _Words) -> Auth:
    return Auth(_required(words.word(), "a token"))


def _subscribe(words: _Words, kind: Kind) -> Subscribe:
    topic = Topic(words.name(kind), kind)
    start: From | Last | None = None
    match words.keyword("FROM", "LAST"):
        case "FROM":
            start = From(_required(words.word(), "an id"))
        case "LAST":
            start = Last(_count(words.word()))
    slow = _slow(words.word()) if words.keyword("SLOW") else None
    return Subscribe(topic, start, slow)


def _required(word: str | None, what: str) -> str:
    if word is None:
        raise _WrongError(f"{what} is wanted")
    return word


def _count(word: str | None) -> int:
    if word is None or not re.fullmatch("[0-9]{1,9}", word):
        raise _WrongError("a number of messages is wanted")
    return int(word)


def _slow(word: str | None) -> SlowPolicy:
    try:
        return SlowPolicy[_upper(word or "")]
    except KeyError:
        raise _WrongError("that is not a slow policy") from None


def _publish(words: _Words) -> Publish:
    channel = words.name()
    return Publish(channel, _encoded(_required(words.text(), "a payload")))


def _ping(words: _Words) -> Ping:
    text = words.text() or ""
    _encoded(text)
    return Ping(text)


_COMMANDS: Final[dict[str, Callable[[_Words], Command]]] = {
    "AUTH": _auth,
    "SUBSCRIBE": lambda words: _subscribe(words, Kind.CHANNEL),
    "PSUBSCRIBE": lambda words: _subscribe(words, Kind.PATTERN),
    "UNSUBSCRIBE": lambda words: Unsubscribe(Topic(words.name())),
    "PUNSUBSCRIBE": lambda words: Unsubscribe(Topic(words.name(Kind.PATTERN), Kind.PATTERN)),
    "PUBLISH": _publish,
    "PING": _ping,
    "STATUS": lambda _: Status(),
    "HELP": lambda _: Help(),
    "QUIT": lambda _: Quit(),
}
