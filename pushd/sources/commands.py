"""The commands of one client of the embedded broker. What they answer follows Redis 7.0, in its words."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pushd import __version__
from pushd.message import Kind, Topic
from pushd.sources import resp
from pushd.sources.broker import Broker

MAX_SUBSCRIPTIONS = 1024
"""Channels and patterns of one client."""

MAX_NAME = 1024
"""Bytes in the name of a channel or pattern: matching takes up to their product in time."""

_MAX_QUOTED = 128
_DATABASES = frozenset(b"%d" % number for number in range(16))


class CommandError(Exception):
    """The answer to a command that is refused: bytes that begin with an error code."""

    def __init__(self, reply: bytes) -> None:
        super().__init__(reply)
        self.reply = reply


class Session:
    """One client of the broker: commands in, answers and messages out through `send`."""

    def __init__(self, broker: Broker, send: Callable[[bytes], None], identity: int) -> None:
        self.has_quit = False
        """The client wants no more than what it was sent."""
        self._broker = broker
        self._send = send
        self._identity = identity
        self._subscriptions: dict[Topic, None] = {}
        self._reset()

    def execute(self, words: list[bytes]) -> None:
        """Do one command and send its answer."""
        try:
            reply = self._run(words)
        except CommandError as refusal:
            reply = resp.error(refusal.reply)
        self._send(reply)

    def push(self, message: list[bytes]) -> None:
        """Send a message, its parts encoded."""
        self._send(resp.array(message, self._dialect.push))

    def end(self) -> None:
        """End all subscriptions."""
        for topic in self._subscriptions:
            self._broker.unsubscribe(topic, self)
        self._subscriptions.clear()

    def _run(self, words: list[bytes]) -> bytes:
        name, command = _look_up(words)
        if not command.least <= len(words) <= command.most:
            raise CommandError(b"ERR wrong number of arguments for '%b' command" % name)
        if not self._authenticated and not command.before_auth:
            raise CommandError(b"NOAUTH Authentication required.")
        if self._is_subscriber and not command.while_subscribed:
            raise CommandError(
                b"ERR Can't execute '%b': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET"
                b" are allowed in this context" % name
            )
        return command.run(self, words)

    @property
    def _is_subscriber(self) -> bool:
        """Whether anything but messages and their subscriptions would confuse the client."""
        return bool(self._subscriptions) and self._dialect is resp.RESP2

    def _reset(self) -> None:
        self.end()
        self._dialect = resp.RESP2
        self._authenticated = self._broker.password is None

    def _publish(self, words: list[bytes]) -> bytes:
        _, channel, payload = words
        return resp.integer(self._broker.publish(_checked(channel), payload))

    def _subscribe(self, words: list[bytes]) -> bytes:
        command = words[0].lower()
        kind = Kind.PATTERN if command == b"psubscribe" else Kind.CHANNEL
        topics = [Topic(_checked(name), kind) for name in words[1:]]
        if len(self._subscriptions.keys() | topics) > MAX_SUBSCRIPTIONS:
            raise CommandError(b"ERR more than %d subscriptions" % MAX_SUBSCRIPTIONS)
        replies = []
        for topic in topics:
            self._broker.subscribe(topic, self)
            self._subscriptions[topic] = None
            replies.append(self._confirm(command, resp.bulk(topic.name)))
        return b"".join(replies)

    def _unsubscribe(self, words: list[bytes]) -> bytes:
        command = words[0].lower()
        kind = Kind.PATTERN if command == b"punsubscribe" else Kind.CHANNEL
        current = [topic.name for topic in self._subscriptions if topic.kind is kind]
        replies = []
        for name in words[1:] or current:
            topic = Topic(name, kind)
            if topic in self._subscriptions:
                del self._subscriptions[topic]
                self._broker.unsubscribe(topic, self)
            replies.append(self._confirm(command, resp.bulk(name)))
        return b"".join(replies) or self._confirm(command, self._dialect.null)

    def _confirm(self, command: bytes, name: bytes) -> bytes:
        items = (resp.bulk(command), name, resp.integer(len(self._subscriptions)))
        return resp.array(items, self._dialect.push)

    def _ping(self, words: list[bytes]) -> bytes:
        if self._is_subscriber:
            return resp.array([resp.bulk(b"pong"), resp.bulk(b"".join(words[1:]))])
        return resp.bulk(words[1]) if len(words) > 1 else b"+PONG\r\n"

    def _echo(self, words: list[bytes]) -> bytes:
        return resp.bulk(words[1])

    def _hello(self, words: list[bytes]) -> bytes:
        dialect = _dialect(words[1]) if len(words) > 1 else self._dialect
        credentials = None
        options = words[2:]
        while options:
            match [options[0].lower(), *options[1:]]:
                case [b"auth", user, password, *options]:
                    credentials = user, password
                case [b"setname", _, *options]:
                    pass
                case _:
                    option = options[0][:_MAX_QUOTED]
                    raise CommandError(b"ERR Syntax error in HELLO option '%b'" % option)
        if credentials:
            self._authenticate(*credentials)
        if not self._authenticated:
            raise CommandError(
                b"NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO"
                b" AUTH <user> <pass> option can be used to authenticate the client and select the"
                b" RESP protocol version at the same time"
            )
        self._dialect = dialect
        return dialect.mapping(
            {
                b"server": resp.bulk(b"pushd"),
                b"version": resp.bulk(__version__.encode()),
                b"proto": resp.integer(dialect.version),
                b"id": resp.integer(self._identity),
                b"mode": resp.bulk(b"standalone"),
                b"role": resp.bulk(b"master"),
                b"modules": resp.array([]),
            }
        )

    def _auth(self, words: list[bytes]) -> bytes:
        *user, password = words[1:]
        if not user and self._broker.password is None:
            raise CommandError(
                b"ERR AUTH <password> called without any password configured for the default user."
                b" Are you sure your configuration is correct?"
            )
        self._authenticate(user[0] if user else b"default", password)
        return resp.OK

    def _authenticate(self, user: bytes, password: bytes) -> None:
        if not self._broker.admits(user, password):
            raise CommandError(b"WRONGPASS invalid username-password pair or user is disabled.")
        self._authenticated = True

    def _select(self, words: list[bytes]) -> bytes:
        """Accept any database that Redis has by default: Pub/Sub does not care."""
        if not words[1].removeprefix(b"-").isdigit():
            raise CommandError(b"ERR value is not an integer or out of range")
        if words[1] not in _DATABASES:
            raise CommandError(b"ERR DB index is out of range")
        return resp.OK

    def _client_id(self, _words: list[bytes]) -> bytes:
        return resp.integer(self._identity)

    def _accept(self, _words: list[bytes]) -> bytes:
        """Take what a client says about itself; nothing depends on it."""
        return resp.OK

    def _command(self, _words: list[bytes]) -> bytes:
        return resp.array([])

    def _command_count(self, _words: list[bytes]) -> bytes:
        return resp.integer(0)

    def _command_docs(self, _words: list[bytes]) -> bytes:
        return self._dialect.mapping({})

    def _info(self, _words: list[bytes]) -> bytes:
        return resp.bulk(self._broker.describe())

    def _reset_command(self, _words: list[bytes]) -> bytes:
        self._reset()
        return b"+RESET\r\n"

    def _quit(self, _words: list[bytes]) -> bytes:
        self.has_quit = True
        return resp.OK


def _checked(name: bytes) -> bytes:
    if len(name) > MAX_NAME:
        raise CommandError(b"ERR name of more than %d bytes" % MAX_NAME)
    return name


def _dialect(version: bytes) -> resp.Dialect:
    if not version.isdigit():
        raise CommandError(b"ERR Protocol version is not an integer or out of range")
    for dialect in (resp.RESP2, resp.RESP3):
        if version == b"%d" % dialect.version:
            return dialect
    raise CommandError(b"NOPROTO unsupported protocol version")


@dataclass(frozen=True, slots=True)
class _Command:
    run: Callable[[Session, list[bytes]], bytes]
    least: int
    """Words, with the command's own."""
    most: int
    before_auth: bool = False
    while_subscribed: bool = False


def _look_up(words: list[bytes]) -> tuple[bytes, _Command]:
    """Return a command and its full name."""
    name = words[0].lower()
    if name in _CONTAINERS and len(words) > 1:
        name = b"%b|%b" % (name, words[1].lower())
        if name not in _COMMANDS:
            raise CommandError(
                b"ERR unknown subcommand '%b'. Try %b HELP." % (words[1][:_MAX_QUOTED], words[0].upper())
            )
    if name not in _COMMANDS:
        raise CommandError(_unknown(words))
    return name, _COMMANDS[name]


def _unknown(words: list[bytes]) -> bytes:
    arguments = b""
    for word in words[1:]:
        if len(arguments) >= _MAX_QUOTED:
            break
        arguments += b"'%b' " % word[: _MAX_QUOTED - len(arguments)]
    return b"ERR unknown command '%b', with args beginning with: %b" % (words[0][:_MAX_QUOTED], arguments)


_CONTAINERS = frozenset({b"client", b"command"})
_MANY = sys.maxsize
_COMMANDS: Mapping[bytes, _Command] = MappingProxyType(
    {
        b"publish": _Command(Session._publish, 3, 3),
        b"subscribe": _Command(Session._subscribe, 2, _MANY, while_subscribed=True),
        b"psubscribe": _Command(Session._subscribe, 2, _MANY, while_subscribed=True),
        b"unsubscribe": _Command(Session._unsubscribe, 1, _MANY, while_subscribed=True),
        b"punsubscribe": _Command(Session._unsubscribe, 1, _MANY, while_subscribed=True),
        b"ping": _Command(Session._ping, 1, 2, while_subscribed=True),
        b"echo": _Command(Session._echo, 2, 2),
        b"hello": _Command(Session._hello, 1, _MANY, before_auth=True),
        b"auth": _Command(Session._auth, 2, 3, before_auth=True),
        b"select": _Command(Session._select, 2, 2),
        b"client": _Command(Session._accept, 2, _MANY),
        b"client|id": _Command(Session._client_id, 2, 2),
        b"client|setinfo": _Command(Session._accept, 4, 4),
        b"client|setname": _Command(Session._accept, 3, 3),
        b"command": _Command(Session._command, 1, 1),
        b"command|count": _Command(Session._command_count, 2, 2),
        b"command|docs": _Command(Session._command_docs, 2, _MANY),
        b"info": _Command(Session._info, 1, _MANY),
        b"reset": _Command(Session._reset_command, 1, 1, before_auth=True, while_subscribed=True),
        b"quit": _Command(Session._quit, 1, _MANY, before_auth=True, while_subscribed=True),
    }
)
