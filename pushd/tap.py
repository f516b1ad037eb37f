"""The twistd plugin's side: options to settings, settings to a service."""

import gc
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from twisted.python import usage

from pushd import __version__
from pushd.control_options import ControlOptions
from pushd.errors import SettingsError
from pushd.message import Kind, Topic
from pushd.option_values import named, read_file, read_password
from pushd.redis_urls import Access, Cluster, Sentinel, Source, parse_source
from pushd.settings import (
    Settings,
    parse_count,
    parse_endpoint,
    parse_history,
    parse_interval,
    parse_limit,
    parse_max_line,
    parse_seconds,
    parse_send_buffer,
    parse_slow,
    parse_timeout,
)

if TYPE_CHECKING:
    from twisted.internet.base import ReactorBase

    from pushd.service import PushService

PASSWORD_VARIABLE = "PUSHD_REDIS_PASSWORD"
SENTINEL_PASSWORD_VARIABLE = "PUSHD_SENTINEL_PASSWORD"

EXAMPLE = """
For example, each in a terminal of its own:
  twistd -n pushd --port 8888 --channel updates
  telnet localhost 8888
  redis-cli PUBLISH updates "follow the white rabbit"
"""


class Options(ControlOptions):
    """The options of ``twistd pushd``. Parsed, ``settings`` holds them; what is wrong ends the process."""

    synopsis = "[options]"
    longdesc = "Deliver what is published in Redis to every TCP client."
    optFlags = (("debug", None, "Log every published message, too."),)
    optParameters = (
        (
            *("redis", None, "redis://localhost:6379"),
            "Where messages come from: redis://[[USER]:PASSWORD@]HOST[:PORT], rediss://... (TLS),"
            " unix:///PATH, redis+sentinel://HOSTS/MASTER, redis+cluster://HOSTS (HOST[:PORT], with commas"
            " between; user and password as above), or embedded[:PORT], a broker of pushd's own on loopback.",
        ),
        (
            "redis-ca",
            None,
            None,
            "With rediss: a file of certificates (PEM) to trust instead of the system's.",
        ),
        ("redis-ping", None, "10", "Seconds between two signs of life that Redis is asked for."),
        ("redis-timeout", None, "5", "Seconds that Redis may take to connect, and for each answer."),
        (
            *("redis-probe", None, "30"),
            "Seconds between two messages that pushd publishes to itself to prove delivery; 0 for none.",
        ),
        (
            *("redis-password-file", None, None),
            f"A file whose first line is Redis's password. The variable {PASSWORD_VARIABLE} works too; both"
            " come before a password in the URL.",
        ),
        ("sentinel-user", None, None, "The user of Sentinel, where that is not the default one."),
        (
            *("sentinel-password-file", None, None),
            f"A file whose first line is Sentinel's password; or set {SENTINEL_PASSWORD_VARIABLE}.",
        ),
        (
            "slow",
            None,
            "disconnect",
            "What a too slow client gets: disconnect, skip (the oldest), or latest (only).",
        ),
        ("history", None, "8M", "Bytes of messages that each channel's log keeps."),
        ("replay", None, "0", "How many of the last messages a new client gets first."),
        ("send-buffer", None, "256K", "Bytes that the kernel buffers for each client."),
        ("max-line", None, "16K", "The longest line that a client may send, in bytes."),
        (
            "max-clients",
            None,
            None,
            "How many clients may be connected. [default: what file descriptors allow]",
        ),
        ("max-clients-per-ip", None, None, "How many of them from one address. [default: no limit]"),
        (
            "idle-timeout",
            None,
            None,
            "Seconds after which a client that sends nothing is closed. [default: none]",
        ),
        ("drain", None, "5", "Seconds that clients have to take the rest when pushd stops."),
    )

    settings: Settings

    def __init__(self) -> None:
        super().__init__()
        self._ports: list[str] = []
        self._topics: list[Topic] = []

    def opt_port(self, value: str) -> None:
        """Listen on a port, or an endpoint such as unix:/run/pushd/socket. Repeatable. Default: 8888."""
        self._ports.append(value)

    def opt_channel(self, value: str) -> None:
        """Give every client this channel of Redis. Repeatable."""
        self._topics.append(Topic(os.fsencode(value)))

    def opt_pattern(self, value: str) -> None:
        """Give every client the channels that match this pattern, such as news.*. Repeatable."""
        self._topics.append(Topic(os.fsencode(value), Kind.PATTERN))

    def opt_shard_channel(self, value: str) -> None:
        """Give every client this channel of sharded Pub/Sub, in a cluster. Repeatable."""
        self._topics.append(Topic(os.fsencode(value), Kind.SHARD))

    def opt_version(self) -> None:
        """Display the version of pushd and exit."""
        print(f"pushd {__version__}")
        raise SystemExit

    def getUsage(self, width: int | None = None) -> str:
        """Return the help, with an example at its end."""
        return super().getUsage(width) + EXAMPLE

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse and check everything; on an error, exit with one line instead of twistd's page of help."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            raise SystemExit(f"pushd: {error}; allowed: the options that twistd pushd --help shows") from None
        except SettingsError as error:
            raise SystemExit(f"pushd: {error}") from None

    def parseArgs(self, *words: str) -> None:
        """Refuse what is not an option."""
        if words:
            raise usage.UsageError(f"{words[0]!r} is not an option")

    def postOptions(self) -> None:
        """Turn the options into settings."""
        control = self.control()
        # Who chooses the control protocol alone does not want everybody to get everything beside it.
        ports = self._ports or ([] if control.endpoints else ["8888"])
        self.settings = Settings(
            endpoints=tuple(named("port", parse_endpoint, port) for port in ports),
            control=control,
            topics=tuple(dict.fromkeys(self._topics)),
            source=self._source(),
            redis_ping=self.read("redis-ping", parse_timeout),
            redis_timeout=self.read("redis-timeout", parse_timeout),
            redis_probe=self.read("redis-probe", parse_interval),
            slow=self.read("slow", parse_slow),
            history=self.read("history", parse_history),
            replay=self.read("replay", parse_count),
            send_buffer=self.read("send-buffer", parse_send_buffer),
            max_line=self.read("max-line", parse_max_line),
            max_clients=self.read_optional("max-clients", parse_limit),
            max_clients_per_ip=self.read_optional("max-clients-per-ip", parse_limit),
            idle_timeout=self.read_optional("idle-timeout", parse_timeout),
            drain=self.read("drain", parse_seconds),
            debug=bool(self["debug"]),
        )

    def _source(self) -> Source:
        source = self.read("redis", parse_source)
        password = self._password("redis-password-file", PASSWORD_VARIABLE)
        if password is not None:
            source = replace(source, password=password)
        if isinstance(source, Access) and source.username is not None and source.password is None:
            raise SettingsError("--redis: there is a user without a password; allowed: both, or none")
        if not isinstance(source, Cluster) and any(topic.kind is Kind.SHARD for topic in self._topics):
            raise SettingsError(
                "--shard-channel: sharded Pub/Sub is a thing of clusters; allowed: only with --redis"
                " redis+cluster://..."
            )
        return self._with_sentinel_password(self._with_ca(source))

    def _with_ca(self, source: Source) -> Source:
        ca = self.read_optional("redis-ca", read_file)
        if ca is None:
            return source
        if not isinstance(source, Access) or not source.tls:
            raise SettingsError("--redis-ca: has no use here; allowed: only with --redis rediss...://...")
        return replace(source, ca=ca)

    def _with_sentinel_password(self, source: Source) -> Source:
        for option in ("sentinel-user", "sentinel-password-file"):
            if self[option] is not None and not isinstance(source, Sentinel):
                raise SettingsError(
                    f"--{option}: has no use here; allowed: only with --redis redis+sentinel://..."
                )
        if not isinstance(source, Sentinel):
            return source
        user, password = (
            self["sentinel-user"],
            self._password("sentinel-password-file", SENTINEL_PASSWORD_VARIABLE),
        )
        if user is not None and password is None:
            raise SettingsError("--sentinel-user: there is no password; allowed: both, or none")
        return replace(source, sentinel_username=user and os.fsencode(user), sentinel_password=password)

    def _password(self, option: str, variable: str) -> bytes | None:
        if self[option] is not None:
            return self.read(option, read_password)
        return os.environb.get(variable.encode()) or None


def makeService(options: Options) -> "PushService":
    """Build the service, and open its ports: where that fails, exit with one line."""
    # Not before twistd has chosen a reactor.
    from twisted.internet import reactor  # noqa: PLC0415

    from pushd.service import PushService  # noqa: PLC0415

    # Twisted goes by time.time: all timers would stop while a clock that was set back catches up.
    vars(reactor)["seconds"] = time.monotonic
    try:
        service = PushService(options.settings, reactor)
        service.listen()
    except SettingsError as error:
        raise SystemExit(f"pushd: {error}") from None
    # What is there by now stays. To look at it for garbage takes long enough to be felt by clients.
    gc.collect()
    gc.freeze()
    reactor.addSystemEventTrigger("before", "shutdown", _hurry_on_signals, service, reactor)
    return service


def _hurry_on_signals(service: "PushService", reactor: "ReactorBase") -> None:
    """Let a second signal end the drain: the reactor, which is stopping already, would raise an error."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: reactor.callFromThread(service.hurry))
