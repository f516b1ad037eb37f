"""Whatever happens between pushd and Redis: nothing is lost in silence, and pushd comes back."""

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults

from pushd.message import SourceGap
from tests.chaos import Entry, Published, check, read, survive
from tests.harness import RedisServer

AT_ONCE = 10
"""Schedules that are played at the same time, each with a pushd of its own: they mostly wait."""


@pytest_twisted.ensureDeferred
async def test_every_schedule_of_harm_is_survived(
    request: pytest.FixtureRequest, redis_server: RedisServer, reactor: Any
) -> None:
    first, _, end = request.config.getoption("--chaos-seeds").partition(":")
    free = DeferredSemaphore(AT_ONCE)

    async def play(seed: int) -> str | None:
        async with free:
            return await survive(seed, redis_server.port, reactor)

    seeds = range(int(first), int(end))
    assert seeds
    failures = await gatherResults([Deferred.fromCoroutine(play(seed)) for seed in seeds])
    assert not any(failures), "\n".join(filter(None, failures))


def test_the_check_sees_what_is_wrong() -> None:
    published = [Published(number, number + 0.5) for number in range(10)]
    check([0, 1, 2, SourceGap(2.7, 5.0), 6], published)
    check([0, None, 3], published)
    early, late = SourceGap(0.0, 1.9), SourceGap(2.6, 9.0)
    wrongs: list[list[Entry]] = [[0, 2], [1], [0, 0], [0, 1, 0], [0, late, 3], [0, early, 3]]
    for wrong in wrongs:
        with pytest.raises(AssertionError):
            check(wrong, published)
    assert read(b"0 f4dbdf21\r\n0 f4dbdf22\r\ngap 1.5 2.5\r\n") == [0, None, SourceGap(1.5, 2.5)]
