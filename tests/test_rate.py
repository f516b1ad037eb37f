"""Rate limits: a burst after a quiet time, the rate in the long run, and never more in any time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.rate import BURST_SECONDS, RateLimit
from pushd.settings import LEAST_RATE


def allowed(limit: RateLimit, now: float, times: int) -> int:
    """Return how many of some at one time are allowed."""
    return sum(limit.allows(now) for _ in range(times))


def test_a_burst_is_what_was_allowed_meanwhile() -> None:
    limit = RateLimit(20, now=100)
    assert allowed(limit, 100, 1000) == 20 * BURST_SECONDS


def test_a_quiet_time_refills() -> None:
    limit = RateLimit(20, now=0)
    assert allowed(limit, 0, 200) == 200
    assert allowed(limit, 1, 20) == 20
    assert allowed(limit, 1.5, 11) == 10


def test_a_long_quiet_time_allows_no_more_than_a_burst() -> None:
    limit = RateLimit(20, now=0)
    assert allowed(limit, 10**6, 1000) == 200


def test_who_keeps_to_the_rate_is_never_refused() -> None:
    limit = RateLimit(20, now=0)
    assert allowed(limit, 0, 199) == 199  # one is left, for times that are not exact
    assert all(limit.allows(step / 20) for step in range(1, 10_000))


def test_the_least_rate_lets_a_client_say_one_thing() -> None:
    limit = RateLimit(LEAST_RATE, now=0)
    assert [limit.allows(now) for now in (0, 0.01, 25, 25)] == [True, False, True, False]


def test_says_how_much_that_is() -> None:
    assert RateLimit(0.5, now=0).per_second == 0.5


waits = st.lists(st.sampled_from([0, 0, 0, 0, 0.001, 0.25, 0.5, 1, 5, 30]), max_size=120)


@given(st.sampled_from([LEAST_RATE, 0.5, 1, 3, 20]), waits)
def test_no_time_has_more_than_a_burst_and_its_share(rate: float, waits: list[float]) -> None:
    limit = RateLimit(rate, now=0)
    now, times = 0.0, []
    for wait in waits:
        now += wait
        if limit.allows(now):
            times.append(now)
    for first, since in enumerate(times):
        for count, until in enumerate(times[first:], 1):
            assert count <= rate * (BURST_SECONDS + until - since) + 1e-6


@given(st.sampled_from([LEAST_RATE, 1, 20]), st.floats(0, 1000), st.integers(0, 300))
def test_whoever_was_refused_is_heard_again_in_time(rate: float, quiet: float, refused: int) -> None:
    """What is refused counts, too: it takes the time of as many to be heard again."""
    limit = RateLimit(rate, now=0)
    burst = int(rate * BURST_SECONDS)
    assert allowed(limit, 0, burst + refused) == burst
    assert limit.allows(quiet) == (quiet * rate >= refused + 1) or abs(quiet * rate - refused - 1) < 1e-6


@pytest.mark.parametrize("rate", [0.5, 7, 20])
def test_who_says_twice_as_much_is_heard_for_two_bursts(rate: float) -> None:
    limit = RateLimit(rate, now=0)
    heard = [limit.allows(step / rate / 2) for step in range(1000)]
    first = heard.index(False)
    assert first == pytest.approx(2 * rate * BURST_SECONDS, abs=2)
    assert not any(heard[first:])
