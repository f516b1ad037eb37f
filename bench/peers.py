"""The systems that are compared, and how each is started."""

import contextlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.wires import CHANNEL, CONTROL, GREETED_LINES, LINES, MQTT, NATS, RESP, Wire

START_SECONDS = 20.0
STOP_SECONDS = 20.0
BACKLOG = 4096
MOST_CLIENTS = 16000

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "bench"
"""Where ``make bench`` puts the programs in C."""


class BenchError(Exception):
    """Something that the benchmark needs is not there, or did not do what it should."""


@dataclass(frozen=True, slots=True)
class System:
    """A peer that runs: server is what clients connect to, broker what it takes messages from, if any."""

    port: int
    publish_port: int
    server: tuple[int, ...]
    broker: tuple[int, ...]


Start = Callable[[Sequence[str]], contextlib.AbstractContextManager[System]]
"""Starts a system with more options, if it takes any."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A system that can be compared: program is what must be installed, from the Debian package.

    A slow one is given fewer messages where it would take minutes.
    """

    name: str
    wire: Wire
    publish_wire: str
    start: Start
    program: str = "redis-server"
    package: str = "redis-server"
    echoes: bool = True
    slow: bool = False

    def missing(self) -> str | None:
        """Return what to do before this peer can be measured; None if it can be."""
        if shutil.which(self.program):
            return None
        return f"{self.name} is left out: no {self.program} here; apt-get install {self.package}"


def free_port() -> int:
    """Return a free port on loopback, below those that the kernel gives to clients."""
    while True:
        port = random.randrange(10000, 30000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def running(command: Sequence[str], ready: Callable[[], bool], directory: Path) -> Iterator[int]:
    """Run a server until the block ends, which begins when the server is ready; give its pid."""
    output = directory / f"{Path(command[0]).name}.{len(list(directory.iterdir()))}.log"
    with output.open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{' '.join(command)} did not start:\n{output.read_text()}")
            time.sleep(0.02)
        yield process.pid
        if process.poll() is not None:
            raise BenchError(f"{command[0]} ended with status {process.returncode}:\n{output.read_text()}")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(port: int) -> Callable[[], bool]:
    """Return a check whether something accepts connections at a port."""

    def check() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    return check


def redis_channel_has(port: int, subscribers: int) -> Callable[[], bool]:
    """Return a check whether so many clients have subscribed at a Redis."""

    def check() -> bool:
        with socket.create_connection(("127.0.0.1", port)) as redis:
            redis.sendall(b"PUBSUB NUMSUB %b\r\n" % CHANNEL)
            answer = b""
            while answer.count(b"\n") < 4:
                answer += redis.recv(1024)
            return answer.endswith(b":%d\r\n" % subscribers)

    return check


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    """Give a directory for the files of one run."""
    with tempfile.TemporaryDirectory(prefix="pushd-bench-") as name:
        yield Path(name)


@contextlib.contextmanager
def redis_server(directory: Path) -> Iterator[tuple[int, int]]:
    """Run a Redis without persistence; give its port and pid. It cuts off no slow client."""
    port = free_port()
    settings = directory / "redis.conf"
    settings.write_text(
        f"bind 127.0.0.1\nport {port}\ntcp-backlog {BACKLOG}\nmaxclients {MOST_CLIENTS}\n"
        'save ""\nclient-output-buffer-limit pubsub 0 0 0\n'
    )
    with running(["redis-server", str(settings)], answers(port), directory) as pid:
        yield port, pid


@contextlib.contextmanager
def _redis(_: Sequence[str]) -> Iterator[System]:
    with temporary() as directory, redis_server(directory) as (port, pid):
        yield System(port, port, (pid,), ())


@contextlib.contextmanager
def _nats(_: Sequence[str]) -> Iterator[System]:
    port = free_port()
    with temporary() as directory:
        settings = directory / "nats.conf"
        settings.write_text(f'listen: "127.0.0.1:{port}"\nmax_connections: {MOST_CLIENTS}\n')
        with running(["nats-server", "--config", str(settings)], answers(port), directory) as pid:
            yield System(port, port, (pid,), ())


@contextlib.contextmanager
def _mosquitto(_: Sequence[str]) -> Iterator[System]:
    port = free_port()
    with temporary() as directory:
        settings = directory / "mosquitto.conf"
        settings.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\n"
            "max_queued_messages 0\nmax_connections -1\nuser root\n"
        )
        with running(["mosquitto", "-c", str(settings)], answers(port), directory) as pid:
            yield System(port, port, (pid,), ())


def _beside_redis(command: Callable[[int, int], Sequence[str]]) -> Start:
    """Return how to start a gateway: command is given its port and that of its Redis."""

    @contextlib.contextmanager
    def start(options: Sequence[str]) -> Iterator[System]:
        with temporary() as directory, redis_server(directory) as (redis_port, redis_pid):
            port = free_port()
            words = [*command(port, redis_port), *options]
            with running(words, redis_channel_has(redis_port, 1), directory) as pid:
                yield System(port, redis_port, (pid,), (redis_pid,))

    return start


def _pushd(port: int, redis_port: int, listener: str = "--port") -> Sequence[str]:
    twistd = str(Path(sys.executable).with_name("twistd"))
    options = f"{listener} tcp:{port}:interface=127.0.0.1:backlog={BACKLOG} --channel {CHANNEL.decode()}"
    return [
        twistd,
        "-n",
        "--pidfile=",
        "pushd",
        *options.split(),
        "--redis",
        f"redis://127.0.0.1:{redis_port}",
    ]


def _pushd_control(port: int, redis_port: int) -> Sequence[str]:
    return [*_pushd(port, redis_port, "--control"), "--allow", f"{CHANNEL[:-4].decode()}*"]


def _script(name: str) -> Callable[[int, int], Sequence[str]]:
    return lambda port, redis: [
        sys.executable,
        "-m",
        f"bench.{name}",
        str(port),
        str(redis),
        CHANNEL.decode(),
    ]


def _floor(port: int, redis_port: int) -> Sequence[str]:
    return [str(BUILD / "floor"), str(port), str(redis_port), CHANNEL.decode()]


@contextlib.contextmanager
def fed_pushd(feeder_port: int) -> Iterator[System]:
    """Run pushd beside something else than a real Redis, which knows of no probes."""
    port = free_port()
    words = (*_pushd(port, feeder_port), "--redis-probe", "0")
    with temporary() as directory, running(words, answers(port), directory) as pid:
        yield System(port, feeder_port, (pid,), ())


PUSHD = Peer("pushd", LINES, "redis", _beside_redis(_pushd))
PUSHD_CONTROL = Peer("pushd control", CONTROL, "redis", _beside_redis(_pushd_control), echoes=False)
FLOOR = Peer("C floor", GREETED_LINES, "redis", _beside_redis(_floor), echoes=False)
REDIS = Peer("Redis direct", RESP, "redis", _redis)
NATS_SERVER = Peer("NATS", NATS, "nats", _nats, "nats-server", "nats-server")
MOSQUITTO = Peer("Mosquitto", MQTT, "mqtt", _mosquitto, "mosquitto", "mosquitto", slow=True)
NAIVE_TWISTED = Peer("naive Twisted", LINES, "redis", _beside_redis(_script("naive_twisted")))
NAIVE_TORNADO = Peer("naive Tornado", LINES, "redis", _beside_redis(_script("naive_tornado")), slow=True)

PEERS = (PUSHD, PUSHD_CONTROL, FLOOR, REDIS, NATS_SERVER, MOSQUITTO, NAIVE_TWISTED, NAIVE_TORNADO)
