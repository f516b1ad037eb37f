"""The arithmetic of the benchmark's report."""

import pytest

from bench.report import MANY, render
from bench.results import Medians, Result
from bench.targets import Target, pass_costs, targets


def costs(*milliseconds: float) -> Medians:
    cases = ("spread 100", "spread 1000", "wide")
    return Medians(
        Result(case, "pushd", {"cpu_per_message_ms": cost})
        for case, cost in zip(cases, milliseconds, strict=True)
    )


def found(medians: Medians, what: str) -> Target:
    return next(target for target in targets(medians) if target.what.startswith(what))


def test_the_median_of_the_runs_that_did_not_fail_counts() -> None:
    runs = [Result("burst", "pushd", {"per_second": value}) for value in (5.0, 1.0, 2.0)]
    medians = Medians([*runs, Result("burst", "pushd", {}, "it ended")])
    assert medians.get("burst", "pushd", "per_second") == 2.0
    assert medians.problems == ["burst, pushd: it ended"]
    assert medians.runs == "3"
    assert medians.get("burst", "NATS", "per_second") is None


def test_a_cost_that_is_a_constant_and_a_line_fits() -> None:
    fit = pass_costs(costs(1.5 + 0.6, 1.5 + 6, 1.5 + 60))
    assert fit is not None
    assert list(fit) == pytest.approx([1.5, 6, 0])


def test_a_cost_that_grows_faster_does_not_fit() -> None:
    medians = costs(1, 10, 1000)
    fit = pass_costs(medians)
    assert fit is not None
    assert fit[2] > 0.15
    assert found(medians, "a pass").verdict == "**no**"


@pytest.mark.parametrize(("redis", "verdict"), [(1.0, "yes"), (1.1, "**no**")])
def test_a_target_is_reached_or_not(redis: float, verdict: str) -> None:
    medians = Medians(
        [
            Result("burst", "pushd", {"per_second": 10.0}),
            Result("burst", "Redis direct", {"per_second": redis}),
        ]
    )
    assert found(medians, "burst, deliveries/s, of Redis").verdict == verdict
    assert found(medians, "burst, deliveries/s, of NATS").verdict == "not measured"


@pytest.mark.parametrize(("cost", "verdict"), [(1.3, "yes"), (1.31, "**no**")])
def test_the_control_protocol_is_compared_with_the_line_protocol(cost: float, verdict: str) -> None:
    costs = {"pushd": 1.0, "pushd control": cost}
    medians = Medians(Result("steady", peer, {"cpu_per_delivery_us": value}) for peer, value in costs.items())
    assert found(medians, "steady, CPU of the control").verdict == verdict
    assert found(medians, "burst, CPU of the control").verdict == "not measured"


def test_many_channels_are_compared_with_redis() -> None:
    names = [name for _, name, *_ in MANY]
    peers = {"pushd control": 2.0, "Redis direct": 4.0}
    medians = Medians(
        Result("many channels", peer, dict.fromkeys(names, value)) for peer, value in peers.items()
    )
    assert found(medians, "many channels, p99, of Redis").verdict == "yes"
    assert found(medians, "many channels, deliveries/s, of Redis").verdict == "**no**"
    report = render(medians, [])
    assert "| broker CPU us |" in report
    assert "| p99 ms: of pushd control |" in report
    assert "| 2.00 x |\n" in report


def test_the_report_shows_ratios_and_what_is_missing() -> None:
    figures = {"bytes_per_client": 2000.0, "kernel_bytes_per_client": 8000.0, "rss_bytes": 80e6}
    report = render(
        Medians(
            [
                Result("idle", "pushd", figures),
                Result("idle", "NATS", figures | {"bytes_per_client": 20_000.0}),
                Result("idle", "Mosquitto", {}, "it ended"),
            ]
        ),
        ["Redis direct is left out"],
    )
    assert "| NATS | 20,000 | 8,000 | 80.0 | 10.00 x |" in report
    assert "**Redis direct is left out**" in report
    assert "- idle, Mosquitto: it ended" in report
