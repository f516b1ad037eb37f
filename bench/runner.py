"""Measures one case on one peer: starts the system, connects clients, publishes, and collects the figures."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench import peers, procfs
from bench.cases import Case, Echo, Fanout, Idle, Ingest, Storm
from bench.peers import PUSHD, PUSHD_CONTROL, ROOT, BenchError, Peer, System, fed_pushd, free_port
from bench.wires import CHANNEL, LINES, STAMP_MASK, Wire, filler

Figures = dict[str, float]
"""What a run measured, by name; the unit is the end of the name where it has one."""

CONNECT_SECONDS = 120.0
FINISH_SECONDS = 60.0
"""How long publishing may take, and how long the last deliveries may take after it."""

GRACE_SECONDS = 10.0
"""How long a process of the load may take to end when its input has ended."""

SETTLE_SECONDS = 3.0
"""What a system gets to calm down in, between connecting its clients and the first message.

NATS pings each client two seconds after it has connected.
"""

STORM_BYTES = 100
STORM_RATE = 5
"""Messages per second in a storm: a client has returned when one of them has reached it."""


class Child:
    """A process of the load, which prints what it has to say line by line, and ends when its input does."""

    def __init__(self, command: Sequence[object]) -> None:
        words = [str(word) for word in command]
        self._name = " ".join([Path(words[0]).name, *words[1:3]])
        self._process = subprocess.Popen(
            words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.end_input()
                self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired as late:
            raise BenchError(f"{self._name} does not end") from late
        finally:
            self._process.kill()
            self.end_input()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()

    def close(self) -> None:
        """End it, whatever it does."""
        self._process.kill()

    def say(self, line: str) -> None:
        """Give it a line of input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def end_input(self) -> None:
        """Have it end."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def line(self, seconds: float) -> str:
        """Return the next line that it prints.

        After so many seconds its input ends, so that it reports; if it does not, it is killed.
        """
        assert self._process.stdout is not None
        timers = [
            threading.Timer(seconds, self.end_input),
            threading.Timer(seconds + GRACE_SECONDS, self.close),
        ]
        for timer in timers:
            timer.start()
        try:
            return self._process.stdout.readline().strip()
        finally:
            for timer in timers:
                timer.cancel()

    def ready(self) -> None:
        """Return once it says that it is ready."""
        if (line := self.line(CONNECT_SECONDS)) != "ready":
            raise BenchError(f"{self._name}: not ready within {CONNECT_SECONDS:g} s; it says {line!r}")

    def report(self, seconds: float) -> Any:
        """Return what it reports as JSON."""
        line = self.line(seconds)
        if not line.startswith("{"):
            raise BenchError(f"{self._name}: no report within {seconds:g} s; it says {line!r}")
        return json.loads(line)


def _load(mode: str, port: int, wire: Wire, clients: int, size: int, *options: object) -> Child:
    words: list[object] = [peers.BUILD / "load", mode, "--port", port, "--clients", clients, *options]
    for name, value in (
        ("--hello", wire.hello),
        ("--ready", wire.ready),
        ("--before", wire.before(size)),
        ("--lead", wire.lead),
        ("--after", wire.after),
        ("--noise", wire.noise),
        ("--filler", filler(size)),
        ("--request", wire.request),
        ("--reply", wire.reply),
    ):
        words += [name, value.hex()]
    return Child(words)


def _publisher(peer: Peer, system: System, messages: int, size: int, *options: object) -> Child:
    words = [sys.executable, "-m", "bench.publisher", peer.publish_wire, system.publish_port]
    return Child([*words, "--messages", messages, "--size", size, *options])


class Usage:
    """What the processes of a system use, from when this is made on."""

    def __init__(self, system: System) -> None:
        self._system = system
        procfs.forget_peak(system.server)
        self._resident = procfs.resident_bytes(system.server)
        self._server = procfs.cpu_seconds(system.server)
        self._broker = procfs.cpu_seconds(system.broker)

    def figures(self) -> Figures:
        """Return processor time and memory up to now."""
        peak = procfs.peak_bytes(self._system.server)
        return {
            "server_cpu_s": procfs.cpu_seconds(self._system.server) - self._server,
            "broker_cpu_s": procfs.cpu_seconds(self._system.broker) - self._broker,
            "rss_bytes": peak,
            "rss_growth_bytes": peak - self._resident,
        }


def _received(report: dict[str, float], start_us: float) -> Figures:
    """Return the figures of a generator's report."""
    if not report["received"]:
        raise BenchError("nothing was received")
    if wrong := report["disordered"] + report["damaged"]:
        raise BenchError(f"{wrong:.0f} messages came damaged, twice or out of order")
    seconds = ((int(report["last_us"]) - int(start_us)) & STAMP_MASK) / 1e6
    return {
        "deliveries": report["received"],
        "lost": report["missing"],
        "closed": report["closed"],
        "seconds": seconds,
        "per_second": report["received"] / seconds,
        "p50_ms": report["p50_us"] / 1000,
        "p99_ms": report["p99_us"] / 1000,
        "max_ms": report["max_us"] / 1000,
        "generator_cpu_s": report["cpu"],
        "generator_busy": report["cpu"] / seconds,
    }


def run_fanout(peer: Peer, case: Fanout) -> Figures:
    """Publish to all clients; see ``_received`` and ``Usage`` for the figures."""
    messages = case.few if case.few and peer.slow else case.messages
    publisher_options: tuple[object, ...] = ("--rate", case.rate) if case.rate else ("--window", case.window)
    load_options: tuple[object, ...] = ("--messages", messages, "--stalled", case.stalled)
    if case.own:
        publisher_options += ("--channels", case.clients)
        load_options += ("--own", CHANNEL.hex())
    wire, options = _chosen(peer, case)
    with (
        peer.start(options) as system,
        _load("receive", system.port, wire, case.clients, case.size, *load_options) as load,
        contextlib.ExitStack() as stack,
    ):
        load.ready()
        prober = stack.enter_context(_prober(peer, system)) if case.probed else None
        time.sleep(SETTLE_SECONDS)
        usage = Usage(system)
        with _publisher(peer, system, messages, case.size, *publisher_options) as publisher:
            published = publisher.report(FINISH_SECONDS)
        report = load.report(FINISH_SECONDS)
        figures = usage.figures() | _received(report, published["start_us"])
        figures["publisher_busy"] = published["cpu"] / published["seconds"]
        figures["late_ms"] = published["late_ms"]
        figures["cpu_per_delivery_us"] = 1e6 * figures["server_cpu_s"] / figures["deliveries"]
        if case.own:
            figures["broker_cpu_per_delivery_us"] = 1e6 * figures["broker_cpu_s"] / figures["deliveries"]
        else:
            figures["cpu_per_message_ms"] = 1e3 * figures["server_cpu_s"] / messages
        return figures | (_probed(prober) if prober else {})


def _chosen(peer: Peer, case: Fanout) -> tuple[Wire, Sequence[str]]:
    """Return how clients speak to a peer in a case, and its options.

    The slow policy is pushd's, or in its control protocol each client's.
    """
    if peer is PUSHD:
        return peer.wire, (*case.options, *(("--slow", case.slow) if case.slow else ()))
    if peer is not PUSHD_CONTROL:
        return peer.wire, ()
    hello = peer.wire.hello
    if case.slow:
        hello = hello.replace(b"\n", f" SLOW {case.slow}\n".encode())
    return replace(peer.wire, hello=hello), case.options


def run_ingest(peer: Peer, case: Ingest) -> Figures:
    """Have one client receive what was sent all at once."""
    with contextlib.ExitStack() as stack:
        if case.fed:
            port = free_port()
            words = [sys.executable, "-m", "bench.feeder", port, "--messages", case.messages]
            feeder = stack.enter_context(Child([*words, "--size", case.size]))
            feeder.ready()
            system = stack.enter_context(fed_pushd(port))
        else:
            system = stack.enter_context(peer.start(()))
        options = ("--messages", case.messages)
        load = stack.enter_context(_load("receive", system.port, peer.wire, 1, case.size, *options))
        load.ready()
        time.sleep(SETTLE_SECONDS)
        usage = Usage(system)
        if case.fed:
            feeder.say("go")
        else:
            feeder = stack.enter_context(_publisher(peer, system, case.messages, case.size))
        published = feeder.report(FINISH_SECONDS)
        report = load.report(FINISH_SECONDS)
        figures = usage.figures() | _received(report, published["start_us"])
        figures["published_per_second"] = case.messages / published["seconds"]
        return figures


def _prober(peer: Peer, system: System) -> Child:
    name = "lines" if peer.wire is LINES else peer.publish_wire
    prober = Child([sys.executable, "-m", "bench.prober", name, system.port])
    prober.ready()
    return prober


def _probed(prober: Child) -> Figures:
    prober.end_input()
    return {f"echo_{name}": value for name, value in prober.report(FINISH_SECONDS).items()}


def run_storm(peer: Peer, case: Storm) -> Figures:
    """Time how long until all have joined, and until all have returned; and what an echo takes meanwhile."""
    endless = int(STORM_RATE * 4 * FINISH_SECONDS)
    with (
        peer.start(()) as system,
        _publisher(peer, system, endless, STORM_BYTES, "--rate", STORM_RATE) as publisher,
        contextlib.closing(publisher),
        _prober(peer, system) as prober,
    ):
        time.sleep(SETTLE_SECONDS)
        usage = Usage(system)
        with _load("storm", system.port, peer.wire, case.clients, STORM_BYTES) as load:
            joined = load.report(FINISH_SECONDS)
            load.say("again")
            returned = load.report(FINISH_SECONDS)
            used = usage.figures()
        return (
            used
            | _probed(prober)
            | {
                "joined_s": joined["all_us"] / 1e6,
                "returned_s": returned["all_us"] / 1e6,
                "refused": returned["refused"],
            }
        )


def run_echo(peer: Peer, case: Echo) -> Figures:
    """Count round trips."""
    with peer.start(()) as system:
        options = ("--pipeline", case.pipeline, "--seconds", case.seconds)
        with _load("echo", system.port, peer.wire, case.clients, 100, *options) as load:
            load.ready()
            usage = Usage(system)
            report = load.report(FINISH_SECONDS)
            figures = usage.figures() | _received(report, report["first_us"])
    figures["cpu_per_request_us"] = 1e6 * figures["server_cpu_s"] / figures["deliveries"]
    return figures


def run_idle(peer: Peer, case: Idle) -> Figures:
    """Weigh clients that do nothing."""
    with peer.start(()) as system:
        time.sleep(SETTLE_SECONDS)
        resident, kernel = procfs.resident_bytes(system.server), procfs.kernel_bytes()
        with _load("receive", system.port, peer.wire, case.clients, 100, "--messages", 1) as load:
            load.ready()
            time.sleep(SETTLE_SECONDS)
            grown = procfs.resident_bytes(system.server) - resident
            kernel = procfs.kernel_bytes() - kernel
            return {
                "rss_bytes": procfs.resident_bytes(system.server),
                "bytes_per_client": grown / case.clients,
                "kernel_bytes_per_client": kernel / case.clients,
            }


RUNNERS: dict[type[Case], Callable[[Peer, Any], Figures]] = {
    Fanout: run_fanout,
    Ingest: run_ingest,
    Storm: run_storm,
    Echo: run_echo,
    Idle: run_idle,
}


def run(peer: Peer, case: Case) -> Figures:
    """Measure a case once; whatever goes wrong with a process is a BenchError."""
    try:
        return RUNNERS[type(case)](peer, case)
    except OSError as error:
        raise BenchError(f"a process ended early: {error}") from error
