"""The settings: what can be chosen at start, typed, checked, and fixed from then on."""

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from pushd.errors import SettingsError
from pushd.message import Topic
from pushd.redis_urls import Redis, Source

BACKLOG = 65535
"""Connections that may wait to be accepted, where a port is given as a number: see listen(2).

The kernel caps it at net.core.somaxconn, which so is the only limit that has to be raised.
"""

LEAST_RATE = 0.1
"""Below, a client could not even say who it is."""


class SlowPolicy(Enum):
    """What happens to a slow consumer when its cursor falls off the log's tail."""

    DISCONNECT = "disconnect"  # it is cut off, and can come back
    SKIP = "skip"  # it goes on with the oldest message kept
    LATEST = "latest"  # it goes on with the newest, already as soon as it lags


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """Settings of the control protocol. Times are in seconds."""

    endpoints: tuple[str, ...] = ()
    allow: tuple[bytes, ...] | None = None  # None: what is named at start; with tokens, what they say
    allow_publish: tuple[bytes, ...] | None = None  # None: nothing; with tokens, what they say
    jwt_key: bytes | None = None
    jwt_audience: str | None = None
    jwt_issuer: str | None = None
    auth_timeout: float = 5.0
    max_subscriptions: int = 128
    command_rate: float = 20.0
    heartbeat: float = 30.0
    linger: float = 60.0
    max_channels: int = 10_000
    max_patterns: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of one pushd. Sizes are in bytes, times in seconds, None means no limit."""

    endpoints: tuple[str, ...] = (
        f"tcp:8888:backlog={BACKLOG}",
    )  # as in twisted.internet.endpoints.serverFromString
    control: Control = field(default_factory=Control)
    topics: tuple[Topic, ...] = ()
    source: Source = field(default_factory=Redis)
    redis_ping: float = 10.0
    redis_timeout: float = 5.0
    redis_probe: float = 30.0  # 0: no probes
    slow: SlowPolicy = SlowPolicy.DISCONNECT
    history: int = 8 * 1024**2
    replay: int = 0
    send_buffer: int = 256 * 1024
    max_line: int = 16 * 1024
    max_clients: int | None = None
    max_clients_per_ip: int | None = None
    idle_timeout: float | None = None
    drain: float = 5.0
    debug: bool = False


def parse_slow(text: str) -> SlowPolicy:
    """Read a slow policy."""
    try:
        return SlowPolicy(text)
    except ValueError:
        allowed = ", ".join(policy.value for policy in SlowPolicy)
        raise SettingsError(f"{text!r} is not a slow policy; allowed: {allowed}") from None


def parse_count(text: str) -> int:
    """Read a whole number that may be 0."""
    return _whole(text, 0, 10**9)


def parse_limit(text: str) -> int:
    """Read the most that is allowed of something: at least one."""
    return _whole(text, 1, 10**9)


def parse_seconds(text: str) -> float:
    """Read a time in seconds that may be 0."""
    return _seconds(text, 0)


def parse_timeout(text: str) -> float:
    """Read a time after which something is given up: not 0."""
    return _seconds(text, 0.1)


def parse_rate(text: str) -> float:
    """Read how many of something are allowed a second."""
    if not _NUMBER.fullmatch(text) or not float(text) >= LEAST_RATE:
        raise SettingsError(f"{text!r} is wrong; allowed: a number from {LEAST_RATE} on, such as 20 or 0.5")
    return float(text)


def parse_interval(text: str) -> float:
    """Read how often something is done, in seconds; 0 is never."""
    return 0.0 if text == "0" else _seconds(text, 0.1, " or 0 for never,")


def parse_history(text: str) -> int:
    """Read how much one log keeps: not less than what may come while one pass sends its share to all."""
    return _size(text, "1M", "64G")


def parse_send_buffer(text: str) -> int:
    """Read the size of the kernel's buffer for what is sent to one client."""
    return _size(text, "4K", "1G")


def parse_max_line(text: str) -> int:
    """Read the longest line that a client may send: above 1M, putting it together would cost too much."""
    return _size(text, "1", "1M")


def parse_endpoint(text: str) -> str:
    """Read a port number, or pass on what looks like an endpoint string of Twisted."""
    if re.match("[a-zA-Z0-9]+:", text):
        return text
    try:
        return f"tcp:{_whole(text, 0, 65535)}:backlog={BACKLOG}"
    except SettingsError as error:
        raise SettingsError(f"{error}, or an endpoint such as unix:/run/pushd/socket") from None


def _whole(text: str, least: int, most: int) -> int:
    if not re.fullmatch("[0-9]{1,18}", text) or not least <= int(text) <= most:
        raise SettingsError(f"{text!r} is wrong; allowed: a whole number from {least} to {most}")
    return int(text)


def _seconds(text: str, least: float, other: str = "") -> float:
    if not _NUMBER.fullmatch(text) or float(text) < least:
        raise SettingsError(f"{text!r} is wrong; allowed: seconds, {least} and more,{other} such as 2.5")
    return float(text)


def _size(text: str, least: str, most: str) -> int:
    if not _SIZE.fullmatch(text) or not _bytes(least) <= _bytes(text) <= _bytes(most):
        raise SettingsError(f"{text!r} is wrong; allowed: bytes, {least} to {most}, such as 2000000 or 8M")
    return _bytes(text)


def _bytes(text: str) -> int:
    number, unit = text.rstrip("KMGkmg"), text.lstrip("0123456789").upper()
    return int(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit]


_NUMBER: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")

_SIZE: Final = re.compile("[0-9]{1,18}[KMGkmg]?")
