"""Measures what each layer of a large deployment costs; docs/scaling.md shows the tables that it prints.

    python -m bench.scaling [--runs N] [--only TABLE]

It needs redis-server 7 or newer, redis-cli, ss, and the load generator that ``make bench`` builds.
"""

import argparse
import contextlib
import re
import select
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from bench import procfs
from bench.cases import Fanout, Idle
from bench.peers import (
    BUILD,
    MOST_CLIENTS,
    PUSHD,
    START_SECONDS,
    BenchError,
    answers,
    free_port,
    redis_server,
    running,
    temporary,
)
from bench.publisher import Publisher, publish_within
from bench.runner import SETTLE_SECONDS, Child, run_fanout, run_idle
from bench.wires import PublishWire, micros
from pushd.sockets import raise_descriptor_limit
from pushd.sources.cluster import SLOTS, channel_in

HOST = "127.0.0.1"
BUS = 10000
"""What Redis adds to a port for that of a cluster's bus."""

NODES = 3
SIZE = 200
CHANNEL = channel_in(0, b"bench:")
"""As a shard channel it belongs to the first node of a cluster."""

SUBSCRIBERS = (0, 1, 10, 50, 100)
PAUSE_SECONDS = 0.002
"""One by one, messages are so far apart: each finds Redis asleep, and costs most."""

IN_FLIGHT = 50
"""As fast as Redis acknowledges, so many at a time: one turn of Redis takes several together."""

PACES = {"one by one": 2000, "50 in flight": 20_000}
"""How many messages are published at each pace."""

DELAYED = 500
GAP_SECONDS = 0.01
"""So many messages, so far apart, are timed."""

LOOK_AWAY_SECONDS = 0.0002
"""Over loopback a sender pays for waking the reader; so readers look by the clock, as bench/load.c does."""

SLOTS_IN_USE = (0, 1, 100, 1000)
WINDOW_SECONDS = 30.0
"""Three PINGs, and one probe, for each slot."""

Row = dict[str, float]
Rows = Iterator[tuple[str, Row]]


class Subscribers:
    """Connections that are subscribed to the channel, one for each of the ports, and read all that comes."""

    def __init__(self, command: bytes, ports: Sequence[int]) -> None:
        self.received = 0  # bytes
        self._selector = selectors.DefaultSelector()
        self._running = True
        self._thread = threading.Thread(target=self._read)
        for port in ports:
            connection = socket.create_connection((HOST, port))
            connection.sendall(b"%b %b\r\n" % (command, CHANNEL))
            answer = b""
            while not answer.endswith(b":1\r\n"):
                answer += connection.recv(1024)
            self._selector.register(connection, selectors.EVENT_READ)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running = False
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _read(self) -> None:
        buffer = bytearray(1 << 18)
        while self._running:
            for key, _ in self._selector.select(0):
                self.received += key.fileobj.recv_into(buffer)  # type: ignore[union-attr]
            time.sleep(LOOK_AWAY_SECONDS)


def _publisher(command: bytes, port: int) -> Publisher:
    head = b"*3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(command), command, len(CHANNEL), CHANNEL)
    wire = PublishWire(
        hello=b"PING\r\n",
        ready=b"+PONG\r\n",
        command=lambda payload: b"%b$%d\r\n%b\r\n" % (head, len(payload), payload),
        mark=b"\n",
    )
    return Publisher(wire, port, SIZE)


def _before(kind: bytes) -> bytes:
    """Return what comes before a payload on a subscribed connection; CR LF comes after it."""
    return b"*3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n" % (len(kind), kind, len(CHANNEL), CHANNEL, SIZE)


def publish(command: bytes, port: int, ports: Sequence[int], pace: str, nodes: Sequence[int]) -> list[float]:
    """Publish to subscribers at some ports; return the microseconds that each message takes of each node."""
    messages = PACES[pace]
    kind, subscribe = (b"smessage", b"SSUBSCRIBE") if command == b"SPUBLISH" else (b"message", b"SUBSCRIBE")
    expected = len(ports) * messages * (len(_before(kind)) + SIZE + 2)
    with Subscribers(subscribe, ports) as subscribers:
        publisher = _publisher(command, port)
        began, before = time.monotonic(), [procfs.cpu_seconds([node]) for node in nodes]
        if pace == "50 in flight":
            publish_within(publisher, messages, IN_FLIGHT)
        else:
            for _ in range(messages):
                publisher.publish(1)
                publisher.wait(1)
                time.sleep(PAUSE_SECONDS)
        publisher.wait(1)
        deadline = time.monotonic() + START_SECONDS
        while subscribers.received < expected and time.monotonic() < deadline:
            time.sleep(0.01)
        used = [procfs.cpu_seconds([node]) - cpu for node, cpu in zip(nodes, before, strict=True)]
        seconds = time.monotonic() - began
        if subscribers.received != expected:
            raise BenchError(f"{subscribers.received} of {expected} bytes arrived")
    # What a node uses without messages, for the bus among other things, is not theirs.
    idle = [procfs.cpu_seconds([node]) for node in nodes]
    time.sleep(1)
    idle = [procfs.cpu_seconds([node]) - cpu for node, cpu in zip(nodes, idle, strict=True)]
    return [1e6 * (cpu - rest * seconds) / messages for cpu, rest in zip(used, idle, strict=True)]


def one_redis() -> Rows:
    """One Redis: what a message costs it, by the number of subscribed connections."""
    for pace in PACES:
        alone = 0.0
        for subscribers in SUBSCRIBERS:
            with temporary() as directory, redis_server(directory) as (port, pid):
                (cost,) = publish(b"PUBLISH", port, [port] * subscribers, pace, [pid])
            row = {"us a message": cost}
            if subscribers:
                row["us more for each"] = (cost - alone) / subscribers
            else:
                alone = cost
            yield f"{pace}, {subscribers} subscribed", row


@dataclass(frozen=True, slots=True)
class Cluster:
    """Masters without replicas, in the order of their slots."""

    ports: tuple[int, ...]
    pids: tuple[int, ...]

    def ask(self, *words: str) -> list[Any]:
        """Return what each node answers."""
        found = []
        for port in self.ports:
            with redis.Redis(HOST, port, decode_responses=True) as client:
                found.append(client.execute_command(*words))
        return found

    def total(self, section: str, name: str) -> float:
        """Return the sum of one number that each node tells by INFO."""
        return float(sum(info[name] for info in self.ask("INFO", section)))

    def agrees(self) -> bool:
        """Tell whether all nodes know of all."""
        return all(
            {"cluster_state:ok", f"cluster_known_nodes:{NODES}"} <= set(info.split())
            for info in self.ask("CLUSTER", "INFO")
        )


def _free_node_port() -> int:
    """Return a port that is free, and whose bus has one too, below those that the kernel gives to clients."""
    while True:
        port = free_port()
        with socket.socket() as probe, contextlib.suppress(OSError, OverflowError):
            probe.bind((HOST, port + BUS))
            if port + BUS < 32768:
                return port


@contextlib.contextmanager
def redis_cluster() -> Iterator[Cluster]:
    """Run a cluster with Redis's own timeouts, which cuts off no slow client."""
    with temporary() as directory, contextlib.ExitStack() as stack:
        ports = tuple(_free_node_port() for _ in range(NODES))
        pids = []
        for port in ports:
            settings = directory / f"{port}.conf"
            settings.write_text(
                f'bind {HOST}\nport {port}\nsave ""\ndir {directory}\ncluster-enabled yes\n'
                f"cluster-config-file nodes-{port}.conf\nclient-output-buffer-limit pubsub 0 0 0\n"
            )
            pids.append(
                stack.enter_context(running(["redis-server", str(settings)], answers(port), directory))
            )
        hosts = [f"{HOST}:{port}" for port in ports]
        command = ["redis-cli", "--cluster", "create", *hosts, "--cluster-yes"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
        cluster = Cluster(ports, tuple(pids))
        _until(cluster.agrees, "the nodes agree")
        time.sleep(SETTLE_SECONDS)
        yield cluster


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 6 * START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"not within {6 * START_SECONDS:g} s: {what}")
        time.sleep(0.05)


def bus_bytes(cluster: Cluster) -> int:
    """Return what the nodes have sent to each other so far, as the kernel counts it."""
    ends = " or ".join(f"dport = :{port + BUS}" for port in cluster.ports)
    said = subprocess.run(["ss", "-Htin", ends], check=True, capture_output=True, text=True).stdout
    return sum(int(count) for count in re.findall(r"bytes_sent:(\d+)", said))


def cluster_of_three() -> Rows:
    """Three nodes: what a message costs the one where it is published, and each other."""
    with redis_cluster() as cluster:
        first, *others = cluster.ports
        for subscribed, everywhere, shard in (
            ("nobody subscribed", [], []),
            ("30 subscribed", [first, *others] * 10, [first] * 30),
        ):
            for command, ports in ((b"PUBLISH", everywhere), (b"SPUBLISH", shard)):
                for pace, messages in PACES.items():
                    sent = bus_bytes(cluster)
                    here, *there = publish(command, first, ports, pace, cluster.pids)
                    yield (
                        f"{command.decode()}, {subscribed}, {pace}",
                        {
                            "us there": here,
                            "us each other": statistics.mean(there),
                            "us all three": here + sum(there),
                            "bytes on the bus": (bus_bytes(cluster) - sent) / messages,
                        },
                    )


def _delays(command: bytes, subscribe: bytes, kind: bytes, port: int, subscriber_port: int) -> list[float]:
    """Return how many milliseconds each message takes to a subscriber; they are published by the clock."""
    frame = len(_before(kind)) + SIZE + 2
    with socket.create_connection((HOST, subscriber_port)) as subscriber:
        subscriber.sendall(b"%b %b\r\n" % (subscribe, CHANNEL))
        subscriber.recv(1024)
        publisher = _publisher(command, port)
        delays: list[float] = []
        data = b""
        due = time.monotonic()
        for _ in range(DELAYED):
            publisher.publish(1)
            due += GAP_SECONDS
            while select.select([subscriber], [], [], max(0.0, due - time.monotonic()))[0]:
                data += subscriber.recv(1 << 16)
                now = micros()
                while len(data) >= frame:
                    stamp = int(data[len(_before(kind)) + 6 :][:10], 16)
                    delays.append((now - stamp) / 1000)
                    data = data[frame:]
    return delays


def delay_in_a_cluster() -> Rows:
    """Three nodes: how long a message takes to a subscriber, where one comes each 10 ms."""
    with redis_cluster() as cluster:
        here, other, _ = cluster.ports
        for label, words, port in (
            ("SPUBLISH", (b"SPUBLISH", b"SSUBSCRIBE", b"smessage"), here),
            ("PUBLISH, subscribed at the same node", (b"PUBLISH", b"SUBSCRIBE", b"message"), here),
            ("PUBLISH, subscribed at another node", (b"PUBLISH", b"SUBSCRIBE", b"message"), other),
        ):
            hundredths = statistics.quantiles(_delays(*words, here, port), n=100, method="inclusive")
            yield label, {"p50 ms": hundredths[49], "p99 ms": hundredths[98]}


def clients_of_one_pushd() -> Rows:
    """One pushd: 10 messages/s of 200 B to so many clients, for 20 s."""
    for clients in (1000, 5000, 8000):
        figures = run_fanout(PUSHD, Fanout("", clients, 200, size=SIZE, rate=10))
        yield (
            f"{clients:,} clients",
            {
                "us a delivery": figures["cpu_per_delivery_us"],
                "% of a core": 100 * figures["server_cpu_s"] / figures["seconds"],
                "p50 ms": figures["p50_ms"],
                "p99 ms": figures["p99_ms"],
                "max ms": figures["max_ms"],
                "lost": figures["lost"],
            },
        )


def idle_clients() -> Rows:
    """One pushd: memory of quiet clients."""
    figures = run_idle(PUSHD, Idle("", 15_000))
    yield (
        "15,000 clients",
        {
            "B of pushd a client": figures["bytes_per_client"],
            "B of the kernel a client": figures["kernel_bytes_per_client"] / 2,
            "MB of pushd": figures["rss_bytes"] / 1e6,
        },
    )


def _channels(count: int) -> list[str]:
    """Return so many channels, each in a slot of its own, spread over all nodes."""
    return [channel_in(SLOTS * index // count, b"").decode() for index in range(count)]


def connections_by_slot() -> Rows:
    """Shard channels in so many slots (none: an ordinary channel), no messages, no clients, for 30 s."""
    twistd = str(Path(sys.executable).with_name("twistd"))
    for slots in SLOTS_IN_USE:
        channels = ["--channel", "bench"]
        if slots:
            channels = [f"--shard-channel={name}" for name in _channels(slots)]
        with redis_cluster() as cluster, temporary() as directory:
            memory = cluster.total("memory", "used_memory")
            connected = cluster.total("clients", "connected_clients")
            port, began = free_port(), time.monotonic()
            command = [twistd, "-n", "--pidfile=", "pushd", "--port", f"tcp:{port}:interface={HOST}"]
            command += ["--redis", f"redis+cluster://{HOST}:{cluster.ports[0]}", *channels]
            with running(command, lambda: True, directory) as pid:
                listing = "SHARDCHANNELS" if slots else "CHANNELS"
                wanted = 2 * max(slots, 1)  # a probe's channel for each connection
                _until(
                    lambda cluster=cluster, listing=listing, wanted=wanted: (  # type: ignore[misc]
                        sum(map(len, cluster.ask("PUBSUB", listing))) == wanted
                    ),
                    "pushd is subscribed",
                )
                subscribed = time.monotonic()
                time.sleep(SETTLE_SECONDS)
                with Child([sys.executable, "-m", "bench.prober", "lines", port]) as prober:
                    prober.ready()
                    connections = cluster.total("clients", "connected_clients") - connected
                    accepted = cluster.total("stats", "total_connections_received")
                    pushd_cpu, redis_cpu = procfs.cpu_seconds([pid]), procfs.cpu_seconds(cluster.pids)
                    time.sleep(WINDOW_SECONDS)
                    pushd_cpu = procfs.cpu_seconds([pid]) - pushd_cpu
                    redis_cpu = procfs.cpu_seconds(cluster.pids) - redis_cpu
                    # Our own questions: each goes to each node by a connection of its own.
                    accepted = cluster.total("stats", "total_connections_received") - accepted - NODES
                    prober.end_input()
                    slowest = prober.report(START_SECONDS)["max_ms"]
                row = {
                    "connections": connections,
                    "s to subscribe": subscribed - began,
                    "MB of pushd": procfs.resident_bytes([pid]) / 1e6,
                    "MB of Redis": (cluster.total("memory", "used_memory") - memory) / 1e6,
                    "pushd, % of a core": 100 * pushd_cpu / WINDOW_SECONDS,
                    "all Redis, % of a core": 100 * redis_cpu / WINDOW_SECONDS,
                    "new connections/s": accepted / WINDOW_SECONDS,
                    "slowest echo ms": slowest,
                }
        yield f"{slots:,} slots", row


TABLES: dict[str, Callable[[], Rows]] = {
    "redis": one_redis,
    "cluster": cluster_of_three,
    "delay": delay_in_a_cluster,
    "clients": clients_of_one_pushd,
    "idle": idle_clients,
    "slots": connections_by_slot,
}


def _number(value: float) -> str:
    """Return two digits of a number."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 or rounded == 0 else f"{rounded:g}"


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    least, middle, most = map(_number, (min(values), statistics.median(values), max(values)))
    return middle if least == most else f"{middle} ({least} to {most})"


def show(title: str, rows: dict[str, list[Row]]) -> None:
    """Print medians as a table, with the least and the most of all runs."""
    columns = list(dict.fromkeys(name for runs in rows.values() for run in runs for name in run))
    print(f"\n{title}\n\n| | {' | '.join(columns)} |\n|---|{'--:|' * len(columns)}")
    for label, runs in rows.items():
        cells = [_cell([run[name] for run in runs if name in run]) for name in columns]
        print(f"| {label} | {' | '.join(cells)} |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, one round after the other, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description="What each layer costs.")
    parser.add_argument("--runs", type=int, default=3, help="rounds, of which the median counts")
    parser.add_argument("--only", action="append", choices=TABLES, help="only this table; repeatable")
    options = parser.parse_args(arguments)
    for program in ("redis-server", "redis-cli", "ss", str(BUILD / "load")):
        if not shutil.which(program):
            sys.exit(f"bench: there is no {program}")
    if (limit := raise_descriptor_limit()) < MOST_CLIENTS + 100:
        sys.exit(f"bench: at most {limit} open files are allowed here; {MOST_CLIENTS + 100} are needed")
    results: dict[str, dict[str, list[Row]]] = {name: defaultdict(list) for name in options.only or TABLES}
    for number in range(1, options.runs + 1):
        for name, rows in results.items():
            try:
                for label, row in TABLES[name]():
                    rows[label].append(row)
                    figures = ", ".join(f"{column} {_number(value)}" for column, value in row.items())
                    print(f"round {number}, {name}, {label}: {figures}", file=sys.stderr, flush=True)
            except (BenchError, OSError, subprocess.SubprocessError) as error:
                print(f"round {number}, {name}: {error!s:.500}", file=sys.stderr, flush=True)
    for name, rows in results.items():
        show((TABLES[name].__doc__ or name).strip(), rows)


if __name__ == "__main__":
    main()
