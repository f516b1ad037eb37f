"""The report: tables of medians, as ratios to pushd and to the floor in C, and what was to be reached."""

import os
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from bench.results import Medians
from bench.targets import targets

HOW_TO_READ = """\
All systems run on one machine, one after the other, and so does the load: publisher and generator compete
with the server for the cores, alike for all. Each figure is the median of {runs} runs; a round measures every
case and peer once before the next begins.

- Every delivery is counted, its number and all its bytes are checked, and its latency runs from the time in
  its payload to when the generator has read it. *Lost* is what did not arrive.
- *pushd* is its line protocol. *pushd control* is its control protocol: a payload of 100 B, which is 102 B on
  the wire in the one, is some 185 B in the other. Their `offset` and `id` are not checked.
- *CPU* is what the server used for one delivery, without its Redis (*broker CPU*). *Memory* is the server's
  peak RSS while messages came, *grown* how far that is above what it had before.
- *Generator* is how busy the load generator was. Near 100 %, it was the limit.
- In a burst at most 50 messages are published that Redis, NATS or Mosquitto has not acknowledged. Redis
  acknowledges before pushd has sent: pushd then sends more at once, and latency is mostly waiting. Peers that
  need milliseconds for each message get 250 messages instead of 5000.
- The generator looks at its sockets every 0.2 ms, not at once: loopback makes a sender pay for waking it.
- The floor sends what one read from Redis brought, up to 64 KiB of it; pushd sends up to 96 KiB.
- Limits are lifted where they would end the comparison: the number of clients, the output that Redis keeps
  for a subscriber, the messages that Mosquitto queues. Redis and Mosquitto keep nothing on disk; Mosquitto
  sets TCP_NODELAY. All but NATS and Mosquitto, which have no option for it, let 4096 connections wait.
"""

FANOUT = (
    ("deliveries/s", "per_second", 1.0, ",.0f"),
    ("p50 ms", "p50_ms", 1.0, ".1f"),
    ("p99 ms", "p99_ms", 1.0, ".1f"),
    ("max ms", "max_ms", 1.0, ".1f"),
    ("CPU us", "cpu_per_delivery_us", 1.0, ".3f"),
    ("broker CPU s", "broker_cpu_s", 1.0, ".2f"),
    ("memory MB", "rss_bytes", 1e-6, ".1f"),
    ("grown MB", "rss_growth_bytes", 1e-6, ".1f"),
    ("lost", "lost", 1.0, ",.0f"),
    ("cut off", "closed", 1.0, ".0f"),
    ("generator", "generator_busy", 1.0, ".0%"),
)
BROKER_CPU = ("broker CPU us", "broker_cpu_per_delivery_us", 1.0, ".3f")
MANY = tuple(BROKER_CPU if column[1] == "broker_cpu_s" else column for column in FANOUT)
INGEST = (
    ("messages/s", "per_second", 1.0, ",.0f"),
    ("published/s", "published_per_second", 1.0, ",.0f"),
    ("server CPU s", "server_cpu_s", 1.0, ".2f"),
    ("broker CPU s", "broker_cpu_s", 1.0, ".2f"),
    ("memory MB", "rss_bytes", 1e-6, ".1f"),
    ("lost", "lost", 1.0, ",.0f"),
)
STORM = (
    ("all joined s", "joined_s", 1.0, ".2f"),
    ("all returned s", "returned_s", 1.0, ".2f"),
    ("echo p50 ms", "echo_p50_ms", 1.0, ".1f"),
    ("echo p99 ms", "echo_p99_ms", 1.0, ".1f"),
    ("echo max ms", "echo_max_ms", 1.0, ".1f"),
    ("server CPU s", "server_cpu_s", 1.0, ".2f"),
    ("memory MB", "rss_bytes", 1e-6, ".1f"),
    ("connected again", "refused", 1.0, ",.0f"),
)
ECHO = (
    ("requests/s", "per_second", 1.0, ",.0f"),
    ("p50 ms", "p50_ms", 1.0, ".3f"),
    ("p99 ms", "p99_ms", 1.0, ".3f"),
    ("max ms", "max_ms", 1.0, ".1f"),
    ("CPU us", "cpu_per_request_us", 1.0, ".2f"),
    ("memory MB", "rss_bytes", 1e-6, ".1f"),
    ("generator", "generator_busy", 1.0, ".0%"),
)
IDLE = (
    ("bytes a client", "bytes_per_client", 1.0, ",.0f"),
    ("kernel bytes a client, both ends", "kernel_bytes_per_client", 1.0, ",.0f"),
    ("memory MB", "rss_bytes", 1e-6, ".1f"),
)
PROBED = (*FANOUT, *STORM[2:5])

TITLES = {
    "burst": "1000 clients, 5000 messages of 100 B as fast as they are acknowledged, 50 in flight",
    "burst 16 B": "the same with 16 B",
    "burst 4 KiB": "the same with 4 KiB",
    "steady": "1000 clients, 50 messages/s of 100 B for 10 s",
    "spread 100": "100 clients, 5 messages/s for 4 s",
    "spread 1000": "1000 clients, 5 messages/s for 4 s",
    "wide": "10,000 clients, 5 messages/s for 10 s",
    "sparse": "10,000 clients, one message: *max* is when the last client has it",
    "echo beside passes": "10,000 clients, 5 messages/s for 10 s, and one client whose echoes are timed",
    "all read": "1000 clients, 500 messages/s of 1 KiB for 10 s, `--history 1M`, to compare with",
    "stalled, disconnect": "the same, 100 of the clients never read, `--slow disconnect`; figures of the 900",
    "stalled, skip": "the same, `--slow skip`",
    "stalled, latest": "the same, `--slow latest`",
    "many channels": "1000 clients on 1000 channels of their own, 20,000 messages/s of 100 B over all, 10 s",
    "ingest": "one client, 1,000,000 messages of 100 B pipelined into a real Redis",
    "ingest, fed": "the same, from a process that plays Redis and has everything prepared",
    "storm": "10,000 clients connect at once, are cut, and return; 5 messages/s (steps of 0.2 s), an echo",
    "echo 1 x 1": "1 client, round trips (Redis, NATS, Mosquitto: their pings)",
    "echo 1 x 100": "1 client, 100 requests pipelined",
    "echo 100 x 1": "100 clients, round trips",
    "echo 100 x 100": "100 clients, 100 requests pipelined each",
    "idle": "15,000 clients that are connected and quiet",
}

Columns = Sequence[tuple[str, str, float, str]]


def _columns(figures: dict[str, float]) -> tuple[Columns, str]:
    """Return the columns for a case, and the figure that its ratios are made of."""
    shapes = {
        "returned_s": (STORM, "returned_s"),
        "published_per_second": (INGEST, "per_second"),
        "bytes_per_client": (IDLE, "bytes_per_client"),
        "cpu_per_request_us": (ECHO, "per_second"),
        "echo_p99_ms": (PROBED, "echo_p99_ms"),
        "broker_cpu_per_delivery_us": (MANY, "p99_ms"),
    }
    for mark, shape in shapes.items():
        if mark in figures:
            return shape
    return FANOUT, "cpu_per_delivery_us"


RATIOS = {
    "burst": "per_second",
    "burst 16 B": "per_second",
    "burst 4 KiB": "per_second",
    "wide": "p99_ms",
    "sparse": "max_ms",
    "all read": "p99_ms",
}
"""What the ratios of a case compare where it is not CPU per delivery."""


def _table(medians: Medians, case: str) -> Iterator[str]:
    peers = medians.peers(case)
    columns, compared = _columns(next(iter(peers.values())))
    compared = RATIOS.get(case, compared)
    name = next((title for title, figure, *_ in columns if figure == compared), compared)
    floor = "C floor" in peers
    ours = "pushd" if "pushd" in peers else "pushd control"
    head = [
        "peer",
        *(title for title, *_ in columns),
        f"{name}: of {ours}",
        *(["of the floor"] if floor else []),
    ]
    yield f"### {case}\n"
    yield f"{TITLES.get(case, case)}.\n"
    yield "| " + " | ".join(head) + " |"
    yield "|---" + "|--:" * (len(head) - 1) + "|"
    for peer, figures in peers.items():
        cells = [format(figures[figure] * factor, form) for _, figure, factor, form in columns]
        for other in (ours, "C floor") if floor else (ours,):
            base = peers.get(other, {}).get(compared)
            cells.append(f"{figures[compared] / base:.2f} x" if base else "")
        yield f"| {peer} | " + " | ".join(cells) + " |"
    yield ""


def _first_line(command: Sequence[str]) -> str:
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return f"{command[0]}: not here"
    return ((output.stdout or output.stderr).splitlines() or [command[0]])[0].strip()


def _processor() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def _machine() -> Iterator[str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield f"- {os.cpu_count()} cores ({_processor()}), {memory:.0f} GiB, Linux {platform.release()}"
    packages = ("twisted", "txredisapi", "hiredis", "tornado", "redis")
    yield f"- Python {platform.python_version()}, " + ", ".join(
        f"{name} {version(name)}" for name in packages
    )
    for command in (
        ["redis-server", "--version"],
        ["nats-server", "--version"],
        ["mosquitto", "-h"],
        ["cc", "--version"],
    ):
        yield f"- {_first_line(command)}"


def render(medians: Medians, notes: Sequence[str]) -> str:
    """Return the report, in Markdown; notes say which peers are missing."""
    return "\n".join(_lines(medians, notes)).rstrip() + "\n"


def _lines(medians: Medians, notes: Sequence[str]) -> Iterator[str]:
    yield "# What was measured\n"
    yield "[docs/performance.md](../docs/performance.md) says how these figures came about.\n"
    yield from _machine()
    yield ""
    yield HOW_TO_READ.format(runs=medians.runs)
    for note in notes:
        yield f"**{note}**\n"
    if medians.problems:
        yield "Runs that failed, and are not in the medians:\n"
        yield from (f"- {problem}" for problem in medians.problems)
        yield ""
    yield "## What was to be reached\n"
    yield "| figure | to be reached | measured | |"
    yield "|---|---|--:|---|"
    for target in targets(medians):
        yield f"| {target.what} | {target.wanted} | {target.measured} | {target.verdict} |"
    yield ""
    yield "## The cases\n"
    for case in medians.cases():
        yield from _table(medians, case)
