"""The cases: what is asked of every system, and how often."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fanout:
    """Every client gets every message; or of a channel of its own so many, at a rate over all.

    They are published at a rate per second, or as fast as the window of messages in flight is acknowledged.

    The first stalled clients never read; slow is the policy for them. few is what is published to a peer that
    would take minutes for all. Where it is probed, the latency of an echo is measured meanwhile.
    """

    name: str
    clients: int
    messages: int
    size: int = 100
    rate: float | None = None
    window: int | None = None
    stalled: int = 0
    slow: str | None = None
    own: bool = False
    options: tuple[str, ...] = ()
    few: int | None = None
    probed: bool = False


@dataclass(frozen=True, slots=True)
class Ingest:
    """One client gets messages that are pipelined: by Redis, or by a feeder that plays its part."""

    name: str
    messages: int
    size: int = 100
    fed: bool = False


@dataclass(frozen=True, slots=True)
class Storm:
    """All clients connect at once; when each has received something, all are cut, and come back at once."""

    name: str
    clients: int


@dataclass(frozen=True, slots=True)
class Echo:
    """Clients send requests and wait for the answers: pipeline is how many each has under way."""

    name: str
    clients: int
    pipeline: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Idle:
    """So many clients are connected, and nothing happens."""

    name: str
    clients: int


Case = Fanout | Ingest | Storm | Echo | Idle
