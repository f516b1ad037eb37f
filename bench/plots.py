"""The plots: one for each question."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bench.results import Medians

COLOURS = {
    "pushd": "#c0392b",
    "pushd control": "#e8998d",
    "C floor": "#7f8c8d",
    "Redis direct": "#e67e22",
    "NATS": "#2980b9",
    "Mosquitto": "#8e44ad",
    "naive Twisted": "#16a085",
    "naive Tornado": "#2c3e50",
}


def _save(axes: Axes, path: Path) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    plt.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close()


def _bars(medians: Medians, case: str, figure: str, factor: float, form: str, title: str, path: Path) -> None:
    peers = {peer: figures[figure] * factor for peer, figures in medians.peers(case).items()}
    _, axes = plt.subplots(figsize=(7, 0.42 * len(peers) + 1))
    names = list(reversed(peers))
    bars = axes.barh(names, [peers[name] for name in names], color=[COLOURS[name] for name in names])
    axes.bar_label(bars, labels=[format(peers[name], form) for name in names], padding=4)
    axes.margins(x=0.15)
    axes.set_title(title, loc="left")
    _save(axes, path)


def _latency(medians: Medians, path: Path) -> None:
    _, axes = plt.subplots(figsize=(7, 4))
    counts = {"spread 100": 100, "spread 1000": 1000, "wide": 10_000}
    for peer in medians.peers("wide"):
        points = [(count, medians.get(case, peer, "p99_ms")) for case, count in counts.items()]
        known = [(count, value) for count, value in points if value is not None]
        axes.plot(*zip(*known, strict=True), marker="o", label=peer, color=COLOURS[peer])
    axes.set(xscale="log", yscale="log", xlabel="clients", ylabel="p99, ms")
    axes.set_title("Until 99 % of deliveries are made: 5 messages/s of 100 B", loc="left")
    axes.legend(frameon=False)
    _save(axes, path)


def save_plots(medians: Medians, directory: Path) -> None:
    """Draw those plots for which there are figures."""
    bars = (
        (
            "burst",
            "per_second",
            1e-6,
            ".2f",
            "Million deliveries/s: 1000 clients, a burst of 100 B",
            "deliveries.png",
        ),
        (
            "steady",
            "cpu_per_delivery_us",
            1.0,
            ".1f",
            "Server CPU per delivery, us: 1000 clients, 50/s",
            "cpu.png",
        ),
        (
            "idle",
            "bytes_per_client",
            1 / 1024,
            ".1f",
            "Memory per client, KiB: 15,000 quiet clients",
            "memory.png",
        ),
    )
    for case, figure, factor, form, title, name in bars:
        if medians.peers(case):
            _bars(medians, case, figure, factor, form, title, directory / name)
    if medians.peers("wide"):
        _latency(medians, directory / "latency.png")
