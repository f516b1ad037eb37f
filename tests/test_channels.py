"""Channels: when topics are followed and left, who is answered what, and how long logs are kept."""

from collections.abc import Callable

import pytest
from twisted.internet.task import Clock

from pushd.channels import LEAVE_SECONDS, Channels, TooManyChannelsError
from pushd.encoders import Lines
from pushd.hub import Hub
from pushd.message import Batch, Kind, SourceGap, Topic
from pushd.metrics import Metrics
from pushd.settings import SlowPolicy
from tests.clients import RecordingOutlet

SCORES = Topic(b"scores")
NEWS = Topic(b"news.*", Kind.PATTERN)
CHAT = Topic(b"chat")
LINGER = 60.0
WALL = 1_000_000.0
"""What wall clocks show when the test's clock begins."""


class RecordingUpstream:
    """Is asked for topics; the test says what becomes of them, or what does at once."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.followed: list[Topic] = []
        self.complete_until = 0.0
        self.down_since: float | None = None
        self.at_once: Callable[[Topic], object] = lambda _: None

    def follow(self, topic: Topic, since: float | None = None) -> None:
        assert topic not in self.followed
        self.followed.append(topic)
        self.calls.append(("follow", topic, since))
        self.at_once(topic)

    def leave(self, topic: Topic) -> float:
        self.followed.remove(topic)
        self.calls.append(("leave", topic))
        return self.complete_until


class RecordingClaimant:
    """Wants topics."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self.answers: list[tuple[object, ...]] = []

    def confirmed(self, topic: Topic) -> None:
        self.answers.append(("confirmed", topic))

    def refused(self, topic: Topic, why: str) -> None:
        self.answers.append(("refused", topic, why))
        self._channels.release(topic, self)


class World:
    """Channels over a hub, and an upstream."""

    def __init__(self, *, linger: float = LINGER, max_channels: int = 10, max_patterns: int = 10) -> None:
        self.clock = Clock()
        self.hub = Hub(self.clock, 1024**2, Metrics(), "epoch")
        self.upstream = RecordingUpstream()
        self.channels = Channels(
            self.hub,
            self.clock,
            lambda: WALL + self.clock.seconds(),
            linger=linger,
            max_channels=max_channels,
            max_patterns=max_patterns,
        )
        self.channels.upstream = self.upstream

    def claimant(self, *topics: Topic) -> RecordingClaimant:
        claimant = RecordingClaimant(self.channels)
        for topic in topics:
            self.channels.claim(topic, claimant)
        return claimant

    def keeps(self, topic: Topic) -> bool:
        """Tell whether there is a log."""
        try:
            self.hub.feed(topic)
        except KeyError:
            return False
        return True


@pytest.fixture
def world() -> World:
    return World()


def test_the_first_claim_has_a_topic_followed_and_is_answered_when_it_is_confirmed(world: World) -> None:
    claimant = world.claimant(SCORES)
    assert world.upstream.calls == [("follow", SCORES, None)]
    assert world.keeps(SCORES)
    assert claimant.answers == []
    world.channels.confirmed(SCORES)
    assert claimant.answers == [("confirmed", SCORES)]
    assert world.channels.down_since([SCORES]) is None


def test_every_claim_is_answered_once(world: World) -> None:
    first, second = world.claimant(SCORES), world.claimant(SCORES)
    world.channels.confirmed(SCORES)
    world.channels.lost(SCORES)
    world.channels.confirmed(SCORES)
    third = world.claimant(SCORES)
    assert first.answers == second.answers == third.answers == [("confirmed", SCORES)]
    assert world.upstream.calls == [("follow", SCORES, None)]


def test_an_upstream_may_answer_before_the_claim_returns(world: World) -> None:
    world.upstream.at_once = world.channels.confirmed
    assert world.claimant(SCORES).answers == [("confirmed", SCORES)]


def test_who_waits_for_a_topic_that_is_lost_goes_on_without_an_upstream(world: World) -> None:
    world.clock.advance(7)
    claimant = world.claimant(SCORES)
    world.clock.advance(1)
    world.channels.lost(SCORES)
    assert claimant.answers == [("confirmed", SCORES)]
    assert world.channels.down_since([SCORES]) == WALL + 8


def test_an_outage_begins_when_it_is_told_first(world: World) -> None:
    world.claimant(SCORES, CHAT)
    for topic in (SCORES, CHAT):
        world.channels.confirmed(topic)
    world.clock.advance(1)
    world.channels.lost(CHAT)
    world.clock.advance(1)
    world.channels.lost(SCORES)
    world.channels.lost(CHAT)
    assert world.channels.down_since([SCORES]) == WALL + 2
    assert world.channels.down_since([SCORES, CHAT]) == WALL + 1
    world.channels.confirmed(CHAT)
    assert world.channels.down_since([SCORES, CHAT]) == WALL + 2
    assert world.channels.down_since([CHAT]) is None
    assert world.channels.down_since([]) is None


def test_a_claim_that_is_taken_back_is_not_answered(world: World) -> None:
    leaving, staying = world.claimant(SCORES), world.claimant(SCORES)
    world.channels.release(SCORES, leaving)
    world.channels.confirmed(SCORES)
    assert (leaving.answers, staying.answers) == ([], [("confirmed", SCORES)])


def test_a_topic_is_left_some_seconds_after_its_last_claimant_has_gone(world: World) -> None:
    first, last = world.claimant(SCORES), world.claimant(SCORES)
    world.channels.release(SCORES, first)
    world.clock.advance(2 * LEAVE_SECONDS)
    world.channels.release(SCORES, last)
    world.clock.advance(LEAVE_SECONDS - 0.1)
    assert world.upstream.followed == [SCORES]
    world.clock.advance(0.1)
    assert world.upstream.calls[1:] == [("leave", SCORES)]
    assert world.keeps(SCORES)


def test_who_comes_back_before_it_is_left_is_answered_at_once_and_misses_nothing(world: World) -> None:
    claimant = world.claimant(SCORES)
    world.channels.confirmed(SCORES)
    world.channels.release(SCORES, claimant)
    world.clock.advance(LEAVE_SECONDS - 0.1)
    label = world.hub.feed(SCORES).label
    assert world.claimant(SCORES).answers == [("confirmed", SCORES)]
    world.clock.advance(2 * LINGER)
    assert world.upstream.calls == [("follow", SCORES, None)]
    assert world.hub.feed(SCORES).label == label
    assert world.clock.getDelayedCalls() == []


@pytest.mark.parametrize("complete_until", [0.0, 3.5])
def test_who_comes_back_before_the_log_is_closed_has_it_followed_since_it_was_left(
    world: World, complete_until: float
) -> None:
    claimant = world.claimant(SCORES)
    world.channels.confirmed(SCORES)
    label = world.hub.feed(SCORES).label
    world.channels.release(SCORES, claimant)
    world.upstream.complete_until = complete_until
    world.clock.advance(LEAVE_SECONDS)
    world.clock.advance(LINGER - LEAVE_SECONDS - 0.1)
    back, another = world.claimant(SCORES), world.claimant(SCORES)
    assert world.upstream.calls[2:] == [("follow", SCORES, complete_until)]
    assert back.answers == another.answers == []
    assert world.channels.down_since([SCORES]) is None
    world.channels.interrupt(SCORES, SourceGap(1, 2))
    world.channels.confirmed(SCORES)
    assert back.answers == another.answers == [("confirmed", SCORES)]
    assert (world.hub.feed(SCORES).label, world.hub.feed(SCORES).log.gaps) == (label, 1)
    world.clock.advance(2 * LINGER)
    assert world.keeps(SCORES)


@pytest.mark.parametrize("linger", [0.0, 2.0, LEAVE_SECONDS, LINGER])
def test_a_log_is_closed_after_its_time_but_not_before_its_topic_is_left(linger: float) -> None:
    world = World(linger=linger)
    world.channels.release(SCORES, world.claimant(SCORES))
    label = world.hub.feed(SCORES).label
    world.clock.advance(LEAVE_SECONDS - 0.1)
    assert world.keeps(SCORES)
    world.clock.advance(0.1)
    world.clock.advance(max(0, linger - LEAVE_SECONDS))
    assert not world.keeps(SCORES)
    assert world.clock.getDelayedCalls() == []
    world.claimant(SCORES)
    assert world.upstream.calls == [("follow", SCORES, None), ("leave", SCORES), ("follow", SCORES, None)]
    assert world.hub.feed(SCORES).label != label


def test_a_refused_topic_is_released_by_those_who_wait(world: World) -> None:
    first, second = world.claimant(SCORES), world.claimant(SCORES)
    world.channels.refused(SCORES, "NOPERM")
    assert first.answers == second.answers == [("refused", SCORES, "NOPERM")]
    world.channels.refused(SCORES, "NOPERM again")
    assert world.claimant(SCORES).answers == [("refused", SCORES, "NOPERM again")]
    world.clock.advance(LEAVE_SECONDS)
    assert world.upstream.calls == [("follow", SCORES, None), ("leave", SCORES)]
    world.clock.advance(LINGER)
    assert not world.keeps(SCORES)


@pytest.mark.parametrize("then", ["confirmed", "lost"])
def test_a_refusal_lasts_until_something_else_is_told(world: World, then: str) -> None:
    world.claimant(SCORES)
    world.channels.refused(SCORES, "NOPERM")
    getattr(world.channels, then)(SCORES)
    assert world.claimant(SCORES).answers == [("confirmed", SCORES)]


def test_a_topic_that_was_refused_is_asked_for_anew_once_it_has_been_left(world: World) -> None:
    world.claimant(SCORES)
    world.channels.refused(SCORES, "NOPERM")
    world.clock.advance(LEAVE_SECONDS)
    claimant = world.claimant(SCORES)
    assert claimant.answers == []
    world.channels.confirmed(SCORES)
    assert claimant.answers == [("confirmed", SCORES)]


def test_who_has_a_topic_that_is_refused_later_keeps_it_without_an_upstream(world: World) -> None:
    claimant = world.claimant(SCORES)
    world.channels.confirmed(SCORES)
    world.clock.advance(1)
    world.channels.lost(SCORES)
    world.clock.advance(1)
    world.channels.refused(SCORES, "NOPERM")
    assert claimant.answers == [("confirmed", SCORES)]
    assert world.channels.down_since([SCORES]) == WALL + 1
    world.channels.confirmed(SCORES)
    assert world.channels.down_since([SCORES]) is None
    assert claimant.answers == [("confirmed", SCORES)]


def test_where_all_logs_are_claimed_there_is_no_room_for_one_more() -> None:
    world = World(max_channels=2)
    world.claimant(SCORES, NEWS)
    with pytest.raises(TooManyChannelsError):
        world.claimant(CHAT)
    assert not world.keeps(CHAT)
    assert world.upstream.followed == [SCORES, NEWS]
    world.claimant(SCORES)  # which is there


@pytest.mark.parametrize("waited", [0.0, LEAVE_SECONDS])
def test_the_log_that_nobody_has_claimed_for_the_longest_makes_room(waited: float) -> None:
    world = World(max_channels=3)
    world.channels.pin(Topic(b"pinned"))
    claimant = world.claimant(SCORES, NEWS)
    world.channels.release(NEWS, claimant)
    world.channels.release(SCORES, claimant)
    world.clock.advance(waited)
    world.claimant(CHAT)
    assert (world.keeps(NEWS), world.keeps(SCORES), world.keeps(CHAT)) == (False, True, True)
    assert world.upstream.calls.count(("leave", NEWS)) == 1
    assert world.upstream.calls[-1] == ("follow", CHAT, None)
    world.clock.advance(LEAVE_SECONDS)
    world.clock.advance(LINGER)
    assert world.upstream.followed == [CHAT]
    assert (world.keeps(SCORES), world.keeps(Topic(b"pinned"))) == (False, True)


def test_a_claim_counts_anew_for_how_long_a_log_was_not_claimed() -> None:
    world = World(max_channels=2)
    claimant = world.claimant(SCORES, NEWS)
    for topic in (SCORES, NEWS):
        world.channels.release(topic, claimant)
    world.channels.release(SCORES, world.claimant(SCORES))
    world.claimant(CHAT)
    assert (world.keeps(SCORES), world.keeps(NEWS)) == (True, False)


def test_a_pinned_topic_is_neither_followed_nor_left_nor_closed(world: World) -> None:
    world.channels.pin(SCORES)
    claimant = world.claimant(SCORES)
    assert claimant.answers == []
    world.channels.confirmed(SCORES)
    assert claimant.answers == [("confirmed", SCORES)]
    world.channels.release(SCORES, claimant)
    world.clock.advance(LINGER)
    assert world.upstream.calls == []
    assert world.keeps(SCORES)
    assert world.clock.getDelayedCalls() == []


def test_a_name_may_be_that_of_a_pinned_shard_channel(world: World) -> None:
    shard = Topic(b"orders", Kind.SHARD)
    world.channels.pin(shard)
    assert world.channels.resolve(Topic(b"orders")) == shard
    assert world.channels.resolve(Topic(b"scores")) == SCORES
    assert world.channels.resolve(Topic(b"orders", Kind.PATTERN)) == Topic(b"orders", Kind.PATTERN)


def test_after_a_stop_nothing_is_left_to_be_done(world: World) -> None:
    idle, left, claimed = Topic(b"idle"), Topic(b"left"), Topic(b"claimed")
    claimant = world.claimant(left, idle, claimed)
    world.channels.release(left, claimant)
    world.clock.advance(LEAVE_SECONDS)
    world.channels.release(idle, claimant)
    calls = list(world.upstream.calls)
    world.channels.stop()
    world.channels.release(claimed, claimant)  # a client whose connection ends a turn later
    assert world.clock.getDelayedCalls() == []
    assert world.upstream.calls == calls


def test_what_was_on_its_way_when_a_topic_was_left_is_not_lost(world: World) -> None:
    claimant = world.claimant(SCORES)
    world.channels.confirmed(SCORES)
    world.channels.release(SCORES, claimant)
    world.clock.advance(LEAVE_SECONDS)
    world.hub.publish(Batch(SCORES, [b"late"]))
    outlet = RecordingOutlet()
    world.hub.subscribe(SCORES, outlet, Lines, SlowPolicy.SKIP, 0)
    world.clock.advance(0)
    assert outlet.sent == [b"late\r\n"]


def test_patterns_are_fewer_and_make_room_for_each_other() -> None:
    world = World(max_patterns=1)
    sports = Topic(b"sports.*", Kind.PATTERN)
    first = world.claimant(NEWS, SCORES)
    with pytest.raises(TooManyChannelsError):
        world.claimant(sports)
    world.channels.release(SCORES, first)
    with pytest.raises(TooManyChannelsError):
        world.claimant(sports)  # a channel that is idle is no room for a pattern
    world.channels.release(NEWS, first)
    world.claimant(sports)
    assert (world.keeps(NEWS), world.keeps(SCORES), world.keeps(sports)) == (False, True, True)


def test_pinned_patterns_do_not_count() -> None:
    world = World(max_patterns=1)
    world.channels.pin(Topic(b"pinned.*", Kind.PATTERN))
    world.claimant(NEWS)
    assert world.keeps(NEWS)


def test_an_outage_began_before_a_topic_was_asked_for_in_it(world: World) -> None:
    assert world.channels.down_since([]) is None
    world.upstream.down_since = WALL - 100
    assert world.channels.down_since([]) == WALL - 100
    world.claimant(SCORES)
    world.channels.lost(SCORES)
    assert world.channels.down_since([SCORES]) == WALL - 100
    world.channels.confirmed(SCORES)
    assert world.channels.down_since([SCORES]) is None


def test_a_log_with_messages_outlives_an_empty_one() -> None:
    world = World(max_channels=2)
    first = world.claimant(SCORES, CHAT)
    world.hub.publish(Batch(SCORES, [b"3:1"]))
    world.channels.release(SCORES, first)
    world.channels.release(CHAT, first)
    world.claimant(Topic(b"other"))
    assert (world.keeps(SCORES), world.keeps(CHAT)) == (True, False)


def test_patterns_that_have_gone_leave_room() -> None:
    world = World(max_patterns=1, linger=5)
    for number in range(3):
        pattern = Topic(b"%d*" % number, Kind.PATTERN)
        world.channels.release(pattern, world.claimant(pattern))
        world.clock.advance(LEAVE_SECONDS)
        world.clock.advance(0)
