"""What pushd has set itself to reach, and whether it has."""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.results import Medians
from pushd.chunks import SEND_BYTES

SLOW = ("disconnect", "skip", "latest")


@dataclass(frozen=True, slots=True)
class Target:
    """One figure that was to be reached."""

    what: str
    wanted: str
    measured: str
    verdict: str


def _at_least(what: str, limit: float, value: float | None, unit: str = " x") -> Target:
    if value is None:
        return Target(what, f"at least {limit:,g}{unit}", "", "not measured")
    return Target(
        what, f"at least {limit:,g}{unit}", f"{value:,.2f}{unit}", "yes" if value >= limit else "**no**"
    )


def _at_most(what: str, limit: float, value: float | None, unit: str = " x") -> Target:
    if value is None:
        return Target(what, f"at most {limit:,g}{unit}", "", "not measured")
    return Target(
        what, f"at most {limit:,g}{unit}", f"{value:,.2f}{unit}", "yes" if value <= limit else "**no**"
    )


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def pass_costs(medians: Medians) -> tuple[float, float, float] | None:
    """Fit CPU of a message = constant + slope x clients over 100, 1000 and 10,000 clients.

    Returns milliseconds, microseconds a client, and the largest relative distance from the line.
    """
    counts = {"spread 100": 100, "spread 1000": 1000, "wide": 10_000}
    costs = [medians.get(case, "pushd", "cpu_per_message_ms") for case in counts]
    known = [cost for cost in costs if cost is not None]
    if len(known) < len(counts):
        return None
    # Least squares of the relative distances: each count weighs 1 / cost^2.
    weights = [cost**-2 for cost in known]
    points = list(zip(weights, counts.values(), known, strict=True))
    total = sum(weights)
    middle_count = sum(weight * count for weight, count, _ in points) / total
    middle_cost = sum(weight * cost for weight, _, cost in points) / total
    slope = sum(weight * (count - middle_count) * cost for weight, count, cost in points) / sum(
        weight * (count - middle_count) ** 2 for weight, count, _ in points
    )
    constant = middle_cost - slope * middle_count
    distance = max(abs((constant + slope * count) / cost - 1) for _, count, cost in points)
    return constant, slope * 1000, distance


def targets(medians: Medians) -> Iterator[Target]:
    """Compare what was measured with what was to be reached."""

    def ratio(case: str, figure: str, other: str) -> float | None:
        return _ratio(medians.get(case, "pushd", figure), medians.get(case, other, figure))

    for peer, limit in (("Redis direct", 10), ("NATS", 12), ("naive Twisted", 25)):
        yield _at_least(f"burst, deliveries/s, of {peer}", limit, ratio("burst", "per_second", peer))
    yield _at_most("steady, CPU, of the C floor", 1.10, ratio("steady", "cpu_per_delivery_us", "C floor"))
    for quantile in ("p50", "p99"):
        yield _at_most(
            f"steady, {quantile}, of Redis direct", 1, ratio("steady", f"{quantile}_ms", "Redis direct")
        )
    yield _at_most("wide, p99, of NATS", 0.8, ratio("wide", "p99_ms", "NATS"))
    yield _at_most("wide, memory, of NATS", 0.25, ratio("wide", "rss_bytes", "NATS"))
    for case in ("burst", "steady", *(f"stalled, {slow}" for slow in SLOW)):
        ours, lines = (medians.get(case, peer, "cpu_per_delivery_us") for peer in ("pushd control", "pushd"))
        yield _at_most(f"{case}, CPU of the control protocol, of the line protocol", 1.3, _ratio(ours, lines))
    for what, figure, judge in (("deliveries/s", "per_second", _at_least), ("p99", "p99_ms", _at_most)):
        ours, redis = (
            medians.get("many channels", peer, figure) for peer in ("pushd control", "Redis direct")
        )
        yield judge(f"many channels, {what}, of Redis direct", 1, _ratio(ours, redis))
    for case in ("ingest", "ingest, fed"):
        yield _at_least(case, 1_000_000, medians.get(case, "pushd", "per_second"), "/s")
    quiet = medians.get("all read", "pushd", "p99_ms")
    for slow in SLOW:
        stalled = medians.get(f"stalled, {slow}", "pushd", "p99_ms")
        yield _at_most(f"stalled, {slow}: p99, of all read", 1.2, _ratio(stalled, quiet))
        growth = medians.get(f"stalled, {slow}", "pushd", "rss_growth_bytes")
        bound = (1024**2 + 100 * SEND_BYTES) / 1e6
        yield _at_most(f"stalled, {slow}: memory grown", bound, growth and growth / 1e6, " MB")
    yield _at_most("storm, until all return, of NATS", 1, ratio("storm", "returned_s", "NATS"))
    # The slowest, not p99: between passes an echo waits for nothing.
    beside = medians.get("echo beside passes", "pushd", "echo_max_ms")
    yield _at_most("echo beside passes, the slowest", 20, beside, " ms")
    idle = medians.get("idle", "pushd", "bytes_per_client")
    yield _at_most("idle, memory of a client", 2048, idle, " B")
    fit = pass_costs(medians)
    what = "a pass: distance from a constant plus a line"
    if fit:
        what += f" ({fit[0]:.2f} ms + {fit[1]:.1f} us a client)"
    yield _at_most(what, 15, fit and 100 * fit[2], " %")
