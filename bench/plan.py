"""Which cases are run on which peers."""

from dataclasses import replace

from bench.cases import Case, Echo, Fanout, Idle, Ingest, Storm
from bench.peers import (
    FLOOR,
    MOSQUITTO,
    NAIVE_TWISTED,
    NATS_SERVER,
    PEERS,
    PUSHD,
    PUSHD_CONTROL,
    REDIS,
    Peer,
)

BURST = Fanout("burst", 1000, 5000, window=50, few=250)
BURST_16 = replace(BURST, name="burst 16 B", size=16)
BURST_4K = replace(BURST, name="burst 4 KiB", size=4096)
STEADY = Fanout("steady", 1000, 500, rate=50)
SPREAD_100 = Fanout("spread 100", 100, 20, rate=5)
SPREAD_1000 = Fanout("spread 1000", 1000, 20, rate=5)
WIDE = Fanout("wide", 10_000, 50, rate=5)
SPARSE = Fanout("sparse", 10_000, 1, rate=1)
BESIDE = Fanout("echo beside passes", 10_000, 50, rate=5, probed=True)
READING = Fanout("all read", 1000, 5000, size=1024, rate=500, options=("--history", "1M"))
STALLED = tuple(
    replace(READING, name=f"stalled, {slow}", stalled=100, slow=slow)
    for slow in ("disconnect", "skip", "latest")
)
MANY = Fanout("many channels", 1000, 200, rate=20_000, own=True)
INGEST = Ingest("ingest", 1_000_000)
INGEST_FED = Ingest("ingest, fed", 1_000_000, fed=True)
STORM = Storm("storm", 10_000)
ECHOES = tuple(
    Echo(f"echo {clients} x {pipeline}", clients, pipeline, 1.0)
    for clients in (1, 100)
    for pipeline in (1, 100)
)
IDLE = Idle("idle", 15_000)

_BOTH = (PUSHD, PUSHD_CONTROL)
_LINES = tuple(peer for peer in PEERS if peer is not PUSHD_CONTROL)
"""All, with pushd's line protocol alone: where what a protocol costs is not the question."""

_ECHOING = tuple(peer for peer in PEERS if peer.echoes)
_SERVERS = (PUSHD, REDIS, NATS_SERVER, MOSQUITTO)

FULL: tuple[tuple[Case, tuple[Peer, ...]], ...] = (
    (BURST, PEERS),
    (BURST_16, PEERS),
    (BURST_4K, PEERS),
    (STEADY, PEERS),
    (SPREAD_100, _LINES),
    (SPREAD_1000, _LINES),
    (WIDE, _LINES),
    (SPARSE, _LINES),
    (BESIDE, (PUSHD, NAIVE_TWISTED)),
    (READING, (*_BOTH, REDIS, NATS_SERVER)),
    (STALLED[0], (*_BOTH, REDIS, NATS_SERVER)),
    *((case, _BOTH) for case in STALLED[1:]),
    (MANY, (PUSHD_CONTROL, REDIS, NATS_SERVER)),
    (INGEST, (PUSHD,)),
    (INGEST_FED, (PUSHD,)),
    (STORM, _SERVERS),
    *((case, _ECHOING) for case in ECHOES),
    (IDLE, PEERS),
)
"""Every case that the project measures, and the peers for which it makes sense."""

_QUICK_PEERS = (PUSHD, FLOOR, REDIS, NATS_SERVER)

QUICK: tuple[tuple[Case, tuple[Peer, ...]], ...] = (
    (BURST, (*_BOTH, *_QUICK_PEERS[1:], NAIVE_TWISTED)),
    (replace(STEADY, messages=150), (*_BOTH, *_QUICK_PEERS[1:])),
    (replace(MANY, messages=40), (PUSHD_CONTROL, REDIS)),
    (replace(WIDE, messages=20), _QUICK_PEERS),
    (INGEST_FED, (PUSHD,)),
    (ECHOES[1], (PUSHD, NAIVE_TWISTED)),
    (IDLE, (PUSHD, REDIS, NATS_SERVER)),
)
"""What two minutes allow."""
