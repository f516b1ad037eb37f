"""One client of 200 never reads: the others miss nothing, nobody waits, memory is bounded, counts add up."""

import re
from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.harness import Client, Following, Pushd, RedisServer, clients

MESSAGES = 10_000
HISTORY = 256 * 1024

MEMORY_BOUND = 6 * 1024**2
"""One log and one remainder are well below; what is published in total is nearly twice as much."""


@pytest.mark.parametrize("policy", ["disconnect", "skip", "latest"])
def test_one_client_of_200_never_reads(
    policy: str, redis_server: RedisServer, start_pushd: Callable[..., Pushd]
) -> None:
    pushd = start_pushd(
        *("--redis", redis_server.url, "--channel", "updates", "--slow", policy),
        *("--history", str(HISTORY), "--send-buffer", "64K"),
    )
    pushd.wait_subscribed()
    with (
        Client(pushd.port, receive_buffer=4096) as stalled,
        clients(pushd.port, 199) as readers,
        Following(readers) as following,
        redis_server.client() as publisher,
    ):
        stalled.echo()
        before = pushd.resident_bytes()
        for start in range(0, MESSAGES, 50):
            batch = [b"%06d" % number + b"." * 994 for number in range(start, start + 50)]
            pipeline = publisher.pipeline(transaction=False)
            for message in batch:
                pipeline.publish("updates", message)
            pipeline.execute()
            # All 199 have got this batch before the next is published: they wait for nobody.
            following.expect(b"".join(message + b"\r\n" for message in batch))
        assert pushd.resident_bytes() - before < MEMORY_BOUND
        if policy == "disconnect":
            check_disconnected(pushd)
        else:
            check_gap(pushd, stalled, policy)
    pushd.terminate()
    (published, missed) = re.findall(r"; (\d+) messages, (\d+) missed", pushd.output)[-1]
    assert int(published) == MESSAGES
    assert int(missed) == int(re.findall(r"(?:missed|:) (\d+) messages", pushd.output)[0])


def check_disconnected(pushd: Pushd) -> None:
    line = pushd.wait_for(
        r"Disconnected slow consumer 127\.0\.0\.1:\d+: (\d+) messages \((\d+) bytes\) behind on \"updates\""
    )
    behind, size = int(line[1]), int(line[2])
    assert behind * 1000 == size
    assert size > HISTORY / 2


def check_gap(pushd: Pushd, stalled: Client, policy: str) -> None:
    """Let the stalled client read: what it has got and what it was counted to have missed is everything."""
    numbers = [int(stalled.read_line()[:6])]
    while numbers[-1] != MESSAGES - 1:
        numbers.append(int(stalled.read_line()[:6]))
    assert numbers == sorted(set(numbers))
    stalled.close()
    missed = int(pushd.wait_for(r"127\.0\.0\.1:\d+ left; it missed (\d+) messages")[1])
    assert missed > 0
    assert len(numbers) + missed == MESSAGES
    gaps = [after - before for before, after in pairwise(numbers) if after > before + 1]
    assert len(gaps) == 1
    if policy == "latest":
        assert numbers[-1] - numbers[-2] == gaps[0]
