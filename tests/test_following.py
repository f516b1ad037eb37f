"""Topics that come and go while a source runs: what is asked of Redis, told to the listener, and missing."""

import gc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone

from pushd.message import Batch, Kind, SourceGap, Topic
from pushd.metrics import Reason
from pushd.sources.attempt import ASK_AGAIN_SECONDS
from tests.test_redis import PONG, led, publish_probe
from tests.upstream import (
    PING,
    PROBE,
    UPDATES,
    World,
    bulk,
    command,
    confirmed,
    published,
    stop_all,
    subscribed,
    subscribing,
)

ROOM = Topic(b"room")
ROOMS = Topic(b"room.*", Kind.PATTERN)


@pytest.fixture(autouse=True)
def _stopped() -> Iterator[None]:
    yield
    stop_all()


def unsubscribing(topic: Topic) -> bytes:
    return command(b"PUNSUBSCRIBE" if topic.kind is Kind.PATTERN else b"UNSUBSCRIBE", topic.name)


def left(topic: Topic) -> bytes:
    """Return how Redis confirms that a topic has been left."""
    word = b"punsubscribe" if topic.kind is Kind.PATTERN else b"unsubscribe"
    return b"*3\r\n" + bulk(word) + bulk(topic.name) + b":0\r\n"


def following(*topics: Topic) -> World:
    """Return a subscribed world that has followed topics a second later, and been confirmed at once."""
    world = subscribed()
    world.clock.advance(1)
    for topic in topics:
        world.source.follow(topic)
        world.server.answer(confirmed(topic))
    world.server.asked()
    world.told.said.clear()
    return world


def lose(world: World) -> None:
    world.server.connection.lose(ConnectionDone())


class TestFollow:
    @pytest.mark.parametrize("topic", [ROOM, ROOMS])
    def test_it_is_asked_for_at_once_and_nothing_is_missing(self, topic: Topic) -> None:
        world = subscribed()
        world.server.asked()
        world.source.follow(topic)
        assert world.server.asked() == subscribing(topic)
        assert world.told.said == [("confirmed", UPDATES)]
        world.server.answer(confirmed(topic))
        assert world.told.said[1:] == [("confirmed", topic)]
        assert world.gaps == []

    def test_its_messages_come(self) -> None:
        world = following(ROOM, ROOMS)
        world.server.answer(
            published([b"one"], b"room") + command(b"pmessage", b"room.*", b"room.1", b"two") * 2
        )
        assert world.batches == [
            Batch(ROOM, [b"one"]),
            Batch(ROOMS, [b"two", b"two"], [b"room.1", b"room.1"]),
        ]
        first, second = world.batches[1].channels
        assert first is second

    def test_what_was_published_since_a_time_is_missing(self) -> None:
        world = subscribed()
        world.clock.advance(8)
        world.source.follow(ROOM, since=3)
        world.clock.advance(1)
        world.server.answer(confirmed(ROOM))
        assert world.gaps == [(ROOM, SourceGap(3, 9))]
        assert world.told.said[1:] == [("interrupt", ROOM), ("confirmed", ROOM)]

    def test_without_a_connection_it_is_lost_and_missing_from_then_on(self) -> None:
        world = World()
        world.server.refuses = True
        world.source.follow(ROOM)
        world.start()
        world.clock.advance(0.5)
        world.source.follow(ROOMS)
        assert world.told.said == [
            ("lost", ROOM),
            ("lost", UPDATES),
            ("lost", ROOM),
            ("lost", ROOMS),
        ]
        world.server.refuses = False
        world.clock.advance(0.5)
        world.answer_info()
        assert world.server.asked() == b"".join(map(subscribing, (UPDATES, ROOM, ROOMS)))
        world.confirm(UPDATES, ROOM, ROOMS)
        assert world.gaps == [
            (UPDATES, SourceGap(0, 1)),
            (ROOM, SourceGap(0, 1)),
            (ROOMS, SourceGap(0.5, 1)),
        ]

    def test_before_the_connection_is_ready_it_is_asked_for_with_all(self) -> None:
        world = World().start()
        world.source.follow(ROOM)
        world.clock.advance(1)
        assert world.told.said == [("lost", ROOM)]
        world.answer_info()
        assert world.server.asked() == subscribing(UPDATES) + subscribing(ROOM)
        world.confirm(UPDATES, ROOM)
        assert world.gaps == [(ROOM, SourceGap(0, 1))]

    def test_while_others_are_being_confirmed_it_is_asked_for_at_once(self) -> None:
        world = World().start()
        world.answer_info()
        world.server.asked()
        world.source.follow(ROOM)
        assert world.server.asked() == subscribing(ROOM)
        world.confirm(UPDATES, ROOM)
        assert world.told.said == [("confirmed", UPDATES), ("confirmed", ROOM)]
        assert world.gaps == []

    def test_what_fails_before_it_is_confirmed_is_missing_from_when_it_was_followed(self) -> None:
        world = subscribed()
        world.clock.advance(2)
        world.source.follow(ROOM)
        world.source.follow(ROOMS, since=1)
        world.clock.advance(1)
        lose(world)
        world.clock.advance(1)
        world.answer_info()
        world.confirm(UPDATES, ROOM, ROOMS)
        assert world.gaps == [
            (UPDATES, SourceGap(0, 4)),
            (ROOM, SourceGap(2, 4)),
            (ROOMS, SourceGap(1, 4)),
        ]

    def test_each_time_it_is_lost_then_interrupted_then_confirmed(self) -> None:
        world = following(ROOM)
        world.clock.advance(PING)
        world.server.answer(PONG)
        world.server.refuses = True
        lose(world)
        world.clock.advance(1)
        world.server.refuses = False
        world.clock.advance(2)
        world.answer_info()
        world.confirm(UPDATES, ROOM)
        assert [what for what, topic in world.told.said if topic == ROOM] == [
            *("lost", "lost", "interrupt", "confirmed")
        ]
        assert world.gaps[1] == (ROOM, SourceGap(PING + 1, PING + 4))

    def test_what_was_proven_before_it_was_followed_is_not_missing(self) -> None:
        world = World(probes=True).start()
        world.answer_info()
        world.server.answer(confirmed(PROBE) + confirmed(UPDATES))
        world.clock.advance(0)
        publish_probe(world, 1)
        subscription = world.server.connections[0]
        world.clock.advance(2)
        world.source.follow(ROOM)
        subscription.answer(confirmed(ROOM))
        world.clock.advance(2)
        subscription.lose(ConnectionDone())
        world.clock.advance(1)
        world.answer_info()
        world.server.answer(b"".join(map(confirmed, (PROBE, UPDATES, ROOM))))
        assert world.gaps == [(UPDATES, SourceGap(0, 5)), (ROOM, SourceGap(2, 5))]

    def test_while_reading_is_held_back_the_confirmation_is_late_and_nothing_is_missing(self) -> None:
        world = subscribed()
        world.source.pauseProducing()
        world.source.follow(ROOM)
        assert world.server.asked().endswith(subscribing(ROOM))
        for _ in range(5):
            world.clock.advance(PING)
            world.settle()
        world.source.resumeProducing()
        world.server.answer(published([b"one"]) + confirmed(ROOM) + published([b"two"], b"room") + PONG)
        assert world.told.said[-1] == ("confirmed", ROOM)
        assert world.batches[1:] == [Batch(ROOM, [b"two"])]
        assert world.gaps == []

    def test_an_answer_that_never_comes_is_noticed_by_the_pings(self, logged: list[str]) -> None:
        world = subscribed()
        world.source.follow(ROOM)
        world.clock.advance(PING)
        world.clock.advance(PING)
        world.settle()
        assert "no answer to PING within 5 s" in logged[-1]

    def test_a_topic_that_is_sent_on_is_missing_but_none_of_those_from_the_start(self) -> None:
        world, route = led()
        world.start()
        world.answer_info()
        world.source.follow(ROOM)
        world.clock.advance(1)
        world.server.answer(b"-MOVED 1 h:1\r\n")
        world.settle()
        world.answer_info()
        world.confirm(UPDATES, ROOM)
        assert route.found == 2
        assert world.gaps == [(ROOM, SourceGap(0, 1))]
        assert world.told.said == [
            *(("lost", ROOM), ("confirmed", UPDATES)),
            *(("interrupt", ROOM), ("confirmed", ROOM)),
        ]

    def test_one_that_is_followed_when_another_is_lost_is_lost_too(self) -> None:
        world = following(ROOM)
        told_lost = world.told.lost

        def lost(topic: Topic) -> None:
            told_lost(topic)
            if topic == ROOM and ROOMS not in world.account.followed:
                world.source.leave(ROOM)
                world.source.follow(ROOMS)

        world.told.lost = lost  # type: ignore[method-assign]
        lose(world)
        assert world.told.said == [("lost", UPDATES), ("lost", ROOM), ("lost", ROOMS)]
        world.clock.advance(1)
        world.answer_info()
        assert world.server.asked() == subscribing(UPDATES) + subscribing(ROOMS)
        world.confirm(UPDATES, ROOMS)
        assert world.gaps == [(UPDATES, SourceGap(1, 2)), (ROOMS, SourceGap(1, 2))]

    def test_a_probe_that_was_lost_is_a_gap_for_those_that_were_subscribed_to_then(self) -> None:
        world = following(ROOM)
        world.source.follow(ROOMS)
        world.clock.advance(1)
        world.account.lossy(0.5)
        assert world.gaps == [(UPDATES, SourceGap(0.5, 2)), (ROOM, SourceGap(1, 2))]


class TestLeave:
    @pytest.mark.parametrize("topic", [ROOM, ROOMS])
    def test_redis_is_told(self, topic: Topic) -> None:
        world = following(topic)
        world.source.leave(topic)
        assert world.server.asked() == unsubscribing(topic)
        world.server.answer(left(topic))
        assert world.server.connection.connected
        assert world.told.said == []

    def test_it_returns_up_to_when_nothing_is_missing(self) -> None:
        world = following(ROOM, ROOMS)
        world.clock.advance(2)
        assert world.source.leave(ROOM) == 1  # when it was asked for, the last that was answered
        world.clock.advance(PING)
        world.server.answer(left(ROOM) + PONG)
        assert world.source.leave(ROOMS) == 3 + PING
        world.source.follow(ROOM, since=1)
        assert world.source.leave(ROOM) == 1
        world.source.follow(ROOM)
        assert world.source.leave(ROOM) == world.clock.seconds() == 3 + PING

    def test_in_an_outage_it_returns_since_when_it_is_missing(self) -> None:
        world = following(ROOM)
        world.clock.advance(1)
        lose(world)
        world.source.follow(ROOMS)
        assert (world.source.leave(ROOM), world.source.leave(ROOMS)) == (1, 2)
        world.clock.advance(1)
        world.answer_info()
        assert world.server.asked() == subscribing(UPDATES)
        world.confirm()
        world.server.answer(published([b"one"]))
        assert world.told.said[-1] == ("confirmed", UPDATES)

    def test_messages_on_their_way_still_come_but_none_after_redis_has_confirmed(self) -> None:
        world = following(ROOM)
        world.source.leave(ROOM)
        message = published([b"x"], b"room")
        world.server.answer(message)
        world.server.answer(message * 2 + left(ROOM))
        assert world.batches == [Batch(ROOM, [b"x"]), Batch(ROOM, [b"x", b"x"])]
        assert world.server.connection.connected
        world.server.answer(message)
        world.settle()
        assert not world.server.connection.connected
        assert world.metrics.reconnects == {Reason.PROTOCOL: 1}

    def test_a_connection_that_is_not_ready_is_not_asked(self) -> None:
        world = World().start()
        world.source.follow(ROOM)
        world.clock.advance(1)
        assert world.source.leave(ROOM) == 0
        world.answer_info()
        assert world.server.asked() == subscribing(UPDATES)

    def test_after_the_source_has_stopped(self) -> None:
        world = following(ROOM)
        world.source.stopService()
        world.source.follow(ROOMS)
        assert world.told.said == [("lost", ROOMS)]
        world.source.leave(ROOMS)
        world.source.leave(ROOM)
        world.settle()
        assert world.clock.getDelayedCalls() == []

    def test_that_redis_forbids_it_is_said_once(self, logged: list[str]) -> None:
        world = following(ROOM, ROOMS)
        del logged[:]
        world.source.leave(ROOM)
        world.source.leave(ROOMS)
        world.server.answer(b"-NOPERM no\r\n" * 2 + published([b"x"], b"room"))
        assert logged == [
            "redis://localhost:6379 goes on to send what nobody wants any more (NOPERM no): allow"
            " +unsubscribe and +punsubscribe"
        ]
        assert world.batches == [Batch(ROOM, [b"x"])]

    def test_that_redis_fails_to_is_the_end_of_the_connection(self, logged: list[str]) -> None:
        world = following(ROOM)
        world.source.leave(ROOM)
        world.server.answer(b"-ERR no\r\n")
        world.settle()
        assert "ERR no; trying again" in logged[-1]


class TestLeaveAndFollow:
    def test_before_redis_has_answered_anything(self) -> None:
        entries: list[object] = []
        world = following(ROOM)
        world.told.gaps = entries  # type: ignore[assignment]
        world.clock.advance(3)
        since = world.source.leave(ROOM)
        world.source.follow(ROOM, since)
        assert world.server.asked() == unsubscribing(ROOM) + subscribing(ROOM)
        world.server.answer(published([b"one"], b"room") + left(ROOM))
        assert world.told.said == []
        world.clock.advance(1)
        world.server.answer(confirmed(ROOM) + published([b"two"], b"room"))
        assert world.told.said == [("interrupt", ROOM), ("confirmed", ROOM)]
        assert entries == [(ROOM, SourceGap(1, 5))]
        assert world.batches == [Batch(ROOM, [b"one"]), Batch(ROOM, [b"two"])]

    def test_what_one_read_brings_is_told_in_order(self) -> None:
        entries: list[object] = []
        world = subscribed(deliver=entries.append)
        world.told.gaps = entries  # type: ignore[assignment]
        world.source.follow(ROOM)
        world.server.answer(confirmed(ROOM))
        world.source.follow(ROOM, world.source.leave(ROOM))
        world.server.answer(
            published([b"one"], b"room") + left(ROOM) + confirmed(ROOM) + published([b"two"], b"room")
        )
        assert entries == [Batch(ROOM, [b"one"]), (ROOM, SourceGap(0, 0)), Batch(ROOM, [b"two"])]

    def test_a_confirmation_of_what_was_left_meanwhile_confirms_nothing(self) -> None:
        world = following()
        world.source.follow(ROOM)
        world.source.leave(ROOM)
        world.source.follow(ROOM, since=1)
        world.clock.advance(1)
        world.server.answer(confirmed(ROOM) + published([b"x"], b"room") + left(ROOM))
        # What comes between them is delivered, and lies between what may be missing.
        assert world.told.said == [("interrupt", ROOM)]
        assert world.batches == [Batch(ROOM, [b"x"])]
        world.clock.advance(1)
        world.server.answer(confirmed(ROOM))
        assert world.gaps == [(ROOM, SourceGap(1, 2)), (ROOM, SourceGap(1, 3))]
        assert world.told.said[1:] == [("interrupt", ROOM), ("confirmed", ROOM)]

    def test_messages_of_what_was_left_before_it_was_confirmed_are_not_delivered(self) -> None:
        world = following(ROOM, ROOMS)
        since = world.source.leave(ROOM)
        world.source.follow(ROOM, since)
        assert world.source.leave(ROOM) == since
        message = published([b"x"], b"room")
        world.server.answer(message + left(ROOM) + confirmed(ROOM) + message)
        assert world.batches == [Batch(ROOM, [b"x"])]
        world.source.follow(ROOM, since)
        world.server.answer(message + left(ROOM))
        assert len(world.batches) == 1
        world.server.answer(confirmed(ROOM) + message)
        assert world.gaps == [(ROOM, SourceGap(1, 1))]
        assert len(world.batches) == 2

    def test_what_is_missing_between_messages_on_their_way_and_new_ones_is_a_gap(self) -> None:
        world = following(ROOM)
        world.clock.advance(1)
        world.source.leave(ROOM)
        world.clock.advance(1)
        world.source.follow(ROOM)
        world.server.answer(published([b"old"], b"room") + left(ROOM) + confirmed(ROOM))
        assert world.gaps == [(ROOM, SourceGap(2, 3))]
        assert world.told.said == [("interrupt", ROOM), ("confirmed", ROOM)]
        world.source.leave(ROOM)
        world.server.answer(left(ROOM))
        world.source.follow(ROOM)
        world.server.answer(confirmed(ROOM))
        assert len(world.gaps) == 1

    def test_a_refusal_of_what_was_left_meanwhile_counts_for_nothing(self) -> None:
        world = following()
        world.source.follow(ROOM)
        world.source.leave(ROOM)
        world.source.follow(ROOM)
        world.server.answer(b"-NOPERM no\r\n" + left(ROOM) + confirmed(ROOM) + published([b"x"], b"room"))
        assert world.told.said == [("interrupt", ROOM), ("confirmed", ROOM)]
        assert world.batches == [Batch(ROOM, [b"x"])]
        world.server.asked()
        world.clock.advance(ASK_AGAIN_SECONDS)
        assert world.server.asked() == b""

    def test_it_can_be_left_twice_before_redis_has_answered(self) -> None:
        world = following(ROOM)
        for _ in range(2):
            world.source.leave(ROOM)
            world.source.follow(ROOM)
        world.source.leave(ROOM)
        message = published([b"x"], b"room")
        world.server.answer((message + left(ROOM) + confirmed(ROOM)) * 2 + message + left(ROOM))
        assert world.told.said == []
        assert len(world.batches) == 1
        assert world.server.connection.connected
        world.server.answer(message)
        assert not world.server.connection.connected

    @given(st.lists(st.sampled_from(["toggle", "answer", "lose"]), max_size=12))
    def test_in_any_order_it_ends_as_the_last_call_says(self, steps: list[str]) -> None:
        """A Redis that answers each command, one at a time, in order."""
        world = subscribed()
        world.server.asked()
        is_followed = False
        answers: list[bytes] = []
        told: list[tuple[str, Topic]] = world.told.said

        def answer_all() -> None:
            asked = world.server.asked()
            while asked:
                for question, answer in (
                    (subscribing(ROOM), confirmed(ROOM)),
                    (unsubscribing(ROOM), left(ROOM)),
                    (subscribing(UPDATES), confirmed(UPDATES)),
                    (command(b"INFO", b"stats"), b"$0\r\n\r\n"),
                ):
                    if asked.startswith(question):
                        asked = asked[len(question) :]
                        answers.append(answer)

        for step in [*steps, *["answer"] * 20]:
            answer_all()
            match step:
                case "toggle" if is_followed:
                    world.source.leave(ROOM)
                    is_followed = False
                case "toggle":
                    world.source.follow(ROOM)
                    is_followed = True
                case "answer" if answers:
                    world.server.answer(answers.pop(0))
                case "lose" if world.server.connection.connected:
                    answers.clear()
                    lose(world)
                    world.clock.advance(60)
        del told[:]
        world.server.answer(published([b"x"]))
        assert world.server.connection.connected
        world.server.answer(published([b"x"], b"room"))
        assert world.server.connection.connected is is_followed
        assert Batch(ROOM, [b"x"]) in world.batches or not is_followed


class TestRefused:
    def test_it_is_told_and_asked_for_again_until_it_is_allowed(self, logged: list[str]) -> None:
        world = following()
        del logged[:]
        world.source.follow(ROOM)
        for _ in range(2):
            world.server.answer(b"-NOPERM no\r\n")
            world.server.asked()
            world.clock.advance(ASK_AGAIN_SECONDS)
            assert subscribing(ROOM) in world.server.asked()
        world.server.answer(PONG + confirmed(ROOM))
        assert world.told.said == [
            *[("refused: NOPERM no", ROOM)] * 2,
            *(("interrupt", ROOM), ("confirmed", ROOM)),
        ]
        assert world.gaps == [(ROOM, SourceGap(1, 1 + 2 * ASK_AGAIN_SECONDS))]
        assert logged == []

    def test_one_that_has_been_left_is_not_asked_for_again(self) -> None:
        world = following()
        world.source.follow(ROOM)
        world.source.follow(ROOMS)
        world.server.answer(b"-NOPERM no\r\n" * 2)
        assert world.source.leave(ROOM) == 1
        world.server.answer(left(ROOM))
        world.server.asked()
        world.clock.advance(ASK_AGAIN_SECONDS)
        assert world.server.asked() == subscribing(ROOMS)
        world.source.leave(ROOMS)
        world.server.answer(b"-NOPERM no\r\n" + left(ROOMS))
        world.clock.advance(ASK_AGAIN_SECONDS)
        assert [what for what, topic in world.told.said if topic == ROOMS] == ["refused: NOPERM no"]

    def test_it_may_be_left_when_that_is_told(self) -> None:
        world = following()
        world.told.refused = lambda topic, why: world.source.leave(topic)  # type: ignore[method-assign,assignment]
        world.source.follow(ROOM)
        world.source.follow(ROOMS)
        world.server.answer(b"-NOPERM no\r\n" * 2)
        world.server.asked()
        world.server.answer(left(ROOM) + left(ROOMS))
        world.clock.advance(ASK_AGAIN_SECONDS)
        assert world.server.asked() == b""

    def test_all_that_are_refused_are_asked_for_together(self) -> None:
        world = following()
        world.source.follow(ROOM)
        world.server.answer(b"-NOPERM no\r\n")
        world.clock.advance(2)
        world.source.follow(ROOMS)
        world.server.answer(b"-NOPERM no\r\n")
        world.server.asked()
        for _ in range(2):
            world.clock.advance(ASK_AGAIN_SECONDS - 2)
            assert subscribing(ROOM) + subscribing(ROOMS) in world.server.asked()
            world.server.answer(b"-NOPERM no\r\n" * 2)
            world.clock.advance(2)
            assert not world.server.asked()

    def test_an_outage_ends_although_all_are_refused(self, logged: list[str]) -> None:
        world = nothing_from_the_start()
        world.source.follow(ROOM)
        world.server.answer(confirmed(ROOM))
        lose(world)
        world.clock.advance(1)
        world.answer_info()
        world.server.answer(b"-NOPERM no\r\n")
        assert logged[-1] == "Connected to redis://localhost:6379 again, after 1.0 s"


def nothing_from_the_start() -> World:
    """Return a world that is connected, and follows nothing."""
    world = World(follows=False).start()
    world.answer_info()
    return world


class TestLines:
    def test_topics_that_come_and_go_write_none(self, logged: list[str]) -> None:
        world = subscribed()
        del logged[:]
        for number in range(20):
            topic = Topic(b"%d" % number)
            world.source.follow(topic)
            world.server.answer(confirmed(topic))
            world.source.leave(topic)
            world.server.answer(left(topic))
        assert logged == []

    def test_an_outage_of_many_is_one_at_its_start_and_one_at_its_end(self, logged: list[str]) -> None:
        topics = [Topic(b"%d" % number) for number in range(1000)]
        world = following(*topics)
        del logged[:]
        lose(world)
        world.clock.advance(1)
        world.answer_info()
        world.confirm(UPDATES, *topics)
        assert [line.partition(": ")[0] for line in logged] == [
            "No subscription at redis://localhost:6379",
            'Subscribed to "updates", "0", "1", "2", "3", and 996 more at redis://localhost:6379 again, after'
            " 1.0 s",
        ]
        assert len(world.gaps) == 1001

    def test_one_is_written_where_nothing_is_followed(self, logged: list[str]) -> None:
        world = nothing_from_the_start()
        assert logged == ["Connected to redis://localhost:6379"]
        world.clock.advance(2)
        lose(world)
        world.clock.advance(1)
        world.answer_info()
        assert logged[1:] == [
            "No subscription at redis://localhost:6379: Connection was closed cleanly;"
            " trying again until there is one",
            "Connected to redis://localhost:6379 again, after 3.0 s",
        ]

    def test_what_is_followed_before_the_first_connection_does_not_make_an_outage(
        self, logged: list[str]
    ) -> None:
        world = World()
        world.source.follow(ROOM)
        world.start()
        world.clock.advance(1)
        world.answer_info()
        world.confirm(UPDATES, ROOM)
        assert logged == ['Subscribed to "updates", "room" at redis://localhost:6379']
        assert world.metrics.unsubscribed_seconds == 0


class TestNothing:
    def test_it_stays_connected_and_answers_that_it_lives(self) -> None:
        world = nothing_from_the_start()
        world.server.asked()
        for _ in range(3):
            world.clock.advance(PING)
            assert world.server.asked() == command(b"PING")
            world.server.answer(b"+PONG\r\n")
        world.source.follow(ROOM)
        world.server.answer(confirmed(ROOM))
        world.source.leave(ROOM)
        world.server.answer(left(ROOM))
        world.clock.advance(PING)
        world.server.answer(b"+PONG\r\n")
        assert world.server.connection.connected

    def test_its_probe_alone_is_a_subscription(self) -> None:
        world = World(follows=False, probes=True).start()
        world.answer_info()
        assert world.server.asked() == subscribing(PROBE)
        world.server.answer(confirmed(PROBE))
        world.clock.advance(0)
        publish_probe(world, 1)
        assert world.metrics.probes_sent == 1
        world.account.lossy(0)
        assert world.gaps == []

    def test_nothing_is_kept_of_topics_that_were_left(self) -> None:
        world = following()
        for number in range(100):
            topic = Topic(b"passing-%d" % number, Kind.PATTERN if number % 2 else Kind.CHANNEL)
            world.source.follow(topic)
            world.server.answer(confirmed(topic) if number % 3 else b"-NOPERM no\r\n")
            world.source.leave(topic)
            world.server.answer(left(topic))
        world.told.said.clear()
        world.gaps.clear()
        del topic
        gc.collect()
        kept = [found for found in gc.get_objects() if type(found) is Topic and b"passing" in found.name]
        assert kept == []
