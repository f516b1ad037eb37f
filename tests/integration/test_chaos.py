"""Whatever happens between pushd and Redis: nothing is lost in silence, and pushd comes back."""

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults

from pushd.message import SourceGap
from tests.chaos import Entry, Published, check, read, survive, told
from tests.control_clients import Event
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


def test_the_check_sees_what_a_control_client_is_not_told() -> None:
    name: Event = {"channel": "scores"}
    start: Event = {"type": "subscribed", **name, "offset": 0, "id": "e-0", "upstream": "up"}
    one: Event = {"type": "message", **name, "offset": 1, "id": "e-1", "data": "0 f4dbdf21"}
    down: Event = {"type": "heartbeat", "upstream": "down", "offsets": {"scores": 0}}
    times = {"since": "1970-01-01T00:00:01.500Z", "until": "1970-01-01T00:00:02.500Z"}
    gap = {"type": "gap", **name, "reason": "source", "missed": None, "id": "e-0+1", **times}
    assert read(told([start, down, gap, one])) == [SourceGap(1.5, 2.5), 0]
    beyond: Event = {"offsets": {"scores": 2}}
    wrongs = ([start, one, one], [start, down, one], [start, one, down], [start, one, down | beyond])
    for wrong in wrongs:
        with pytest.raises(AssertionError):
            told(wrong)
