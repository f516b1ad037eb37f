"""Outages of a deployment with several sources: a line at the start, one when all are back, and gaps."""

import pytest
from twisted.internet.task import Clock

from pushd.message import SourceGap, Topic
from pushd.metrics import Metrics, Reason
from pushd.sources.account import Account
from pushd.sources.connection import SourceError
from pushd.sources.outages import SUMMARY_SECONDS, Outages
from tests.upstream import Told

A, B = Topic(b"a"), Topic(b"b")
LOST = SourceError(Reason.CLOSED, "closed")
REFUSED = SourceError(Reason.REFUSED, "NOAUTH no")
NOON = 1_800_000_000.0
"""What the clock on the wall shows when the other one shows 0."""


class World:
    """The accounts of two sources."""

    def __init__(self, *, debug: bool = False) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.told = Told()
        self.gaps = self.told.gaps
        self.outages = Outages(
            self.told,
            clock=self.clock,
            wall=lambda: NOON + self.clock.seconds(),
            metrics=self.metrics,
            debug=debug,
        )
        self.a, self.b = self.account(A), self.account(B)

    def account(self, *topics: Topic) -> Account:
        return Account(topics, self.outages, self.told, self.clock)

    def come_back(self, account: Account, topic: Topic, where: str = "h") -> None:
        account.confirmed(topic)
        account.subscribed(where)


def test_an_outage_of_all_sources_is_one_outage(logged: list[str]) -> None:
    world = World()
    world.come_back(world.a, A)
    world.come_back(world.b, B)
    world.clock.advance(10)
    world.a.failed("h1", LOST, since=8)
    world.b.failed("h2", LOST, since=9)
    world.clock.advance(2)
    world.come_back(world.a, A)
    assert logged[2:] == ["No subscription at h1: closed; trying again until there is one"]
    world.clock.advance(2)
    world.come_back(world.b, B)
    assert logged[3:] == [
        'Subscribed to "a", "b" at h again, after 6.0 s: what was published from 2027-01-15T08:00:08Z to'
        " 2027-01-15T08:00:14Z is missing, unknown how much"
    ]
    assert world.gaps == [(A, SourceGap(NOON + 8, NOON + 12)), (B, SourceGap(NOON + 9, NOON + 14))]
    assert world.metrics.unsubscribed_seconds == 6
    assert world.metrics.reconnects == {Reason.CLOSED: 2}


def test_a_lasting_outage_is_mentioned_once_a_minute_and_what_is_to_be_mended_at_once(
    logged: list[str],
) -> None:
    world = World()
    world.a.failed("h", LOST, since=0)
    for _ in range(2):
        world.clock.advance(1)
        world.a.failed("h", REFUSED, since=0)
    world.clock.advance(SUMMARY_SECONDS)
    world.a.failed("h", LOST, since=0)
    world.b.failed("h", LOST, since=0)
    assert logged == [
        "No subscription at h: closed; trying again until there is one",
        "Still no subscription at h: NOAUTH no",
        "Still no subscription at h after 62 s, 4 more attempts: closed",
    ]


def test_a_source_whose_topics_are_all_refused_is_in_no_outage(logged: list[str]) -> None:
    world = World()
    world.come_back(world.a, A)
    world.a.failed("h", LOST, since=0)
    world.b.failed("h", LOST, since=0)
    world.clock.advance(2)
    for _ in range(2):  # one that comes and goes is named once
        world.come_back(world.a, A)
        world.a.failed("h", LOST, since=2)
    world.come_back(world.a, A)
    world.b.refused("h", {B: REFUSED}, since=0)
    world.b.subscribed("h")
    assert len(logged) == 4
    assert logged[3].startswith('Subscribed to "a" at h again, after 2.0 s')
    assert world.metrics.unsubscribed_seconds == 2
    world.clock.advance(5)
    world.come_back(world.b, B)
    assert logged[4].startswith('Subscribed to "b" at h again, after 7.0 s')
    assert world.metrics.unsubscribed_seconds == 7


def test_sources_that_are_refused_from_the_start_say_nothing_more(logged: list[str]) -> None:
    world = World()
    world.a.refused("h", {A: REFUSED}, since=0)
    world.a.subscribed("h")
    assert len(logged) == 1
    assert world.metrics.unsubscribed_seconds == 0


def test_attempts_are_for_debugging(logged: list[str]) -> None:
    world = World(debug=True)
    for _ in range(3):
        world.a.failed("h", LOST, since=0)
    assert logged[1:] == ["No subscription at h: closed"] * 2


def test_an_outage_counts_when_it_ends_with_pushd() -> None:
    world = World()
    world.clock.advance(3)
    world.a.failed("h", LOST, since=1)
    world.clock.advance(3)
    for _ in range(2):
        world.outages.close()
    assert world.metrics.unsubscribed_seconds == 5


def test_what_is_refused_is_said_once_until_it_was_allowed(logged: list[str]) -> None:
    world = World()
    topics = [Topic(b"%d" % number) for number in range(7)]
    account = world.account(*topics)
    no = SourceError(Reason.REFUSED, "NOPERM no")
    for _ in range(2):
        account.refused("h", dict.fromkeys(topics, no), since=0)
    assert logged == [
        'h refuses "0", "1", "2", "3", "4", and 2 more: NOPERM no; asking again until it is allowed'
    ]
    world.clock.advance(1)
    world.come_back(account, topics[0])
    account.refused("h", dict.fromkeys(topics, no), since=1)
    assert logged[2:] == ['h refuses "0": NOPERM no; asking again until it is allowed']


def test_a_probe_that_was_lost_is_a_gap_for_all_that_are_subscribed(logged: list[str]) -> None:
    world = World()
    account = world.account(A, B)
    account.confirmed(A)
    account.refused("h", {B: REFUSED}, since=0)
    world.clock.advance(60)
    account.lossy(since=30)
    assert world.gaps == [(A, SourceGap(NOON + 30, NOON + 60))]
    assert logged[-1].startswith(
        'Redis has lost a probe: what was published for "a", "b" from 2027-01-15T08:00:30Z'
    )


@pytest.mark.parametrize("name", [b"two\r\nlines", b"\x00", b"\xff"])
def test_a_topic_is_a_part_of_a_line(name: bytes) -> None:
    assert str(Topic(name)).isprintable()
