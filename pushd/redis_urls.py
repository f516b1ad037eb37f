"""Where messages come from: one Redis, what Sentinels call the master, a cluster, or the embedded broker."""

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

from pushd.errors import SettingsError

DEFAULT_REDIS_PORT = 6379
DEFAULT_SENTINEL_PORT = 26379
"""The ports that Redis's documents call the default."""


@dataclass(frozen=True, slots=True)
class Address:
    """A server's host, which may be a name, and its port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Embedded:
    """The broker in this process, on loopback. Shown, it never tells the password."""

    port: int = DEFAULT_REDIS_PORT  # 0: any that is free
    password: bytes | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return "the embedded broker"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How servers are spoken to. Shown, it never tells the password."""

    tls: bool = False
    ca: bytes | None = field(default=None, repr=False)  # PEM; None: those that the system trusts
    username: bytes | None = None
    password: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Redis(Access):
    """A Redis server, by TCP or by a Unix socket."""

    address: Address = Address("localhost", DEFAULT_REDIS_PORT)
    path: str | None = None  # of the Unix socket, instead of the address

    def __str__(self) -> str:
        return f"unix://{self.path}" if self.path else f"{_scheme(self)}://{self.address}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentinel(Access):
    """Whatever Sentinels say is the master of a name. TLS and the CA are for Sentinels and masters alike."""

    addresses: tuple[Address, ...]  # of the Sentinels
    master: str
    sentinel_username: bytes | None = None
    sentinel_password: bytes | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{_scheme(self)}+sentinel://{_joined(self.addresses)}/{self.master}"

    @property
    def sentinel_access(self) -> Access:
        """How the Sentinels themselves are spoken to."""
        return Access(
            tls=self.tls, ca=self.ca, username=self.sentinel_username, password=self.sentinel_password
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster(Access):
    """A Redis Cluster, by some of its nodes."""

    addresses: tuple[Address, ...]

    def __str__(self) -> str:
        return f"{_scheme(self)}+cluster://{_joined(self.addresses)}"


RedisServers = Redis | Sentinel | Cluster


def read_address(host: str, port: str) -> Address:
    """Return an address; raises ValueError, which says what is wrong, where there is none like that."""
    try:
        host = str(ip_address(host.strip("[]")))
    except ValueError:
        if len(host) > 253 or not all(map(_LABEL.fullmatch, host.removesuffix(".").split("."))):
            raise ValueError(
                "one of its hosts is no address, and no name of letters, digits, '-' and '.'"
            ) from None
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError("one of its ports is not from 1 to 65535")
    return Address(host, int(port))


_LABEL: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")

Source = RedisServers | Embedded


def parse_source(url: str) -> Source:
    """Read where messages come from: embedded[:PORT], or a URL of Redis.

    Raises SettingsError, which never shows the URL, since it may hold a password.
    """
    if url == "embedded":
        return Embedded()
    if url.startswith("embedded:"):
        return Embedded(_embedded_port(url.removeprefix("embedded:")))
    if not url.isprintable():
        raise _wrong_url("it holds what cannot be shown in a line")
    if several := _SEVERAL.fullmatch(url):
        return _several(*several.groups())
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _wrong_url("its host or port is malformed") from None
    match parts.scheme:
        case "unix":
            return _unix(parts)
        case "redis" | "rediss":
            return _tcp(parts)
        case _:
            raise _wrong_url("its scheme is unknown")


def _embedded_port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > 65535:
        raise SettingsError(
            f"the embedded broker is on loopback, and takes only a port, not {text!r}; allowed: 0 to 65535"
        )
    return int(text)


_SEVERAL: Final = re.compile(
    r"(?i:(rediss?)\+(sentinel|cluster))://(?:([^/?#]*)@)?([^/?#@]*)((?:/[^?#]*)?)((?:[?#].*)?)"
)


def _several(scheme: str, kind: str, user: str | None, hosts: str, path: str, rest: str) -> Source:
    if rest:
        raise _wrong_url("nothing may follow its path")
    name, _, secret = (user or "").partition(":")
    tls = scheme.lower() == "rediss"
    username, password = _unquote(name), _unquote(secret)
    default = DEFAULT_SENTINEL_PORT if kind.lower() == "sentinel" else DEFAULT_REDIS_PORT
    addresses = tuple(dict.fromkeys(_address(host, default) for host in hosts.split(",")))
    if kind.lower() == "cluster":
        if path not in ("", "/"):
            raise _wrong_url("a cluster has no databases, and nothing may follow its hosts")
        return Cluster(addresses=addresses, tls=tls, username=username, password=password)
    if not re.fullmatch(r"/[A-Za-z0-9._-]+", path):
        raise _wrong_url("the name of the master (letters, digits, '.', '-', '_') must follow its hosts")
    return Sentinel(addresses=addresses, master=path[1:], tls=tls, username=username, password=password)


def _address(text: str, default_port: int) -> Address:
    host_and_port = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(?::(.*))?", text)
    if not host_and_port or not host_and_port[1]:
        raise _wrong_url("one of its hosts is missing, or no host")
    try:
        return read_address(host_and_port[1].lower(), host_and_port[2] or str(default_port))
    except ValueError as error:
        raise _wrong_url(str(error)) from None


def _tcp(parts: SplitResult) -> Redis:
    address = _address(parts.netloc.rpartition("@")[2], DEFAULT_REDIS_PORT)
    if not re.fullmatch(r"/?|/[0-9]+", parts.path) or parts.query or parts.fragment:
        raise _wrong_url("only /DATABASE may follow the port, and has no meaning for Pub/Sub")
    return Redis(
        address=address,
        tls=parts.scheme == "rediss",
        username=_unquote(parts.username),
        password=_unquote(parts.password),
    )


def _unix(parts: SplitResult) -> Redis:
    if parts.hostname or not parts.path.startswith("/") or parts.query or parts.fragment:
        raise _wrong_url("a Unix socket needs an absolute path")
    return Redis(path=parts.path, username=_unquote(parts.username), password=_unquote(parts.password))


def _unquote(text: str | None) -> bytes | None:
    return unquote_to_bytes(text) if text else None


def _scheme(access: Access) -> str:
    return "rediss" if access.tls else "redis"


def _joined(addresses: tuple[Address, ...]) -> str:
    return ",".join(map(str, addresses))


def _wrong_url(why: str) -> SettingsError:
    return SettingsError(
        f"{why}; allowed: redis://[[USER]:PASSWORD@]HOST[:PORT], redis+sentinel://...HOST[:PORT],.../MASTER,"
        " redis+cluster://...HOST[:PORT],..., each as rediss... for TLS, unix:///PATH, embedded[:PORT]"
    )
