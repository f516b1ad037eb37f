"""One client of 200 never reads: the others miss nothing, nobody waits, memory is bounded, counts add up."""

import re
import threading
from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.harness import Client, Following, Pushd, RedisServer, clients, raise_own_descriptor_limit

MESSAGES = 10_000
HISTORY = 1024**2

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


def test_a_burst_above_the_history_cuts_nobody_off_who_reads(
    redis_server: RedisServer, start_pushd: Callable[..., Pushd]
) -> None:
    """Redis is read no faster than pushd itself can send: clients that take everything get everything."""
    if not raise_own_descriptor_limit(1100):
        pytest.skip("this machine allows fewer than 1,100 open files")
    pushd = start_pushd(
        *("--redis", redis_server.url, "--channel", "updates", "--history", "1M", "--send-buffer", "1M")
    )
    pushd.wait_subscribed()
    # Four times the history, where a message counts 64 bytes more; yet the kernel's buffers hold them all.
    messages = [b"%06d" % number for number in range(60_000)]
    with clients(pushd.port, 1000) as readers, Following(readers) as following:
        publish = threading.Thread(target=publish_at_once, args=(redis_server, messages))
        publish.start()
        following.expect(b"".join(message + b"\r\n" for message in messages), timeout=60)
        publish.join()
    pushd.terminate()
    assert "0 cut off with something left to send; 60000 messages, 0 missed" in pushd.output


def publish_at_once(server: RedisServer, messages: list[bytes]) -> None:
    with server.client() as publisher:
        pipeline = publisher.pipeline(transaction=False)
        for message in messages:
            pipeline.publish("updates", message)
        pipeline.execute()
