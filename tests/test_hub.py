"""The hub: passes, shared encoding, slices, replay, lag, and the slow policies."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from twisted.internet.task import Clock

from pushd.chunks import SEND_BYTES
from pushd.clock import Timer
from pushd.encoders import Lines, WireFormat
from pushd.hub import SLICE_SECONDS, STRIDE, Hub
from pushd.message import Batch, Gap, Kind, Position, SourceGap, Topic
from pushd.metrics import Metrics
from pushd.settings import SlowPolicy, parse_history
from pushd.subscription import Subscription
from tests.clients import RecordingOutlet
from tests.upstream import published

UPDATES = Topic(b"updates")
NEWS = Topic(b"news.*", Kind.PATTERN)


class ShowingGaps(Lines):
    """A wire format that can say what is missing."""

    def source_gap(self, after: Position, gap: SourceGap) -> bytes:
        return b"gap%d\r\n" % gap.until

    def gap(self, gap: Gap) -> bytes:
        return b"missed%d-%d+%d\r\n" % (gap.since.offset, gap.until.offset, gap.source_gaps)


def encode_lines(payloads: Sequence[bytes]) -> bytes:
    return b"".join(payload + b"\r\n" for payload in payloads)


class World:
    """A hub with a clock, and clients on it."""

    def __init__(self, history: int = 1024**2, encoder: WireFormat = Lines) -> None:
        self.encoder = encoder
        self.clock = Clock()
        self.metrics = Metrics()
        self.hub = Hub(self.clock, history, self.metrics, "epoch")
        self.hub.open(UPDATES)
        self.hub.open(NEWS)

    def client(
        self, policy: SlowPolicy = SlowPolicy.DISCONNECT, *, topic: Topic = UPDATES, replay: int = 0
    ) -> tuple[RecordingOutlet, Subscription]:
        outlet = RecordingOutlet()
        return outlet, self.hub.subscribe(
            topic, outlet, self.encoder, policy, self.hub.feed(topic).log.back(replay)
        )

    def publish(self, *payloads: bytes, topic: Topic = UPDATES) -> None:
        self.hub.publish(Batch(topic, list(payloads)))

    def settle(self) -> None:
        """Run all passes that are due."""
        while self.clock.getDelayedCalls():
            self.clock.advance(0)


@pytest.fixture
def world() -> World:
    return World()


def test_a_batch_reaches_every_subscription_as_the_same_bytes(world: World) -> None:
    outlets = [world.client()[0] for _ in range(100)]
    world.publish(b"one", b"two")
    world.settle()
    for outlet in outlets:
        assert outlet.sent == [b"one\r\ntwo\r\n"]
        assert outlet.sent[0] is outlets[0].sent[0]


def test_publishing_sends_nothing_before_the_next_turn(world: World) -> None:
    outlet, _ = world.client()
    world.publish(b"one")
    assert outlet.sent == []


def test_batches_of_one_turn_become_one_send(world: World) -> None:
    outlet, _ = world.client()
    for number in range(1000):
        world.publish(b"%d" % number)
    world.settle()
    assert len(outlet.sent) == 1
    assert outlet.received == b"".join(b"%d\r\n" % number for number in range(1000))


def test_topics_of_one_name_are_apart_if_one_is_a_pattern(world: World) -> None:
    world.hub.open(Topic(b"news.*"))
    by_pattern, _ = world.client(topic=NEWS)
    by_name, _ = world.client(topic=Topic(b"news.*"))
    world.publish(b"for the pattern", topic=NEWS)
    world.settle()
    assert (by_pattern.received, by_name.received) == (b"for the pattern\r\n", b"")


def test_a_new_subscription_starts_at_the_head(world: World) -> None:
    world.publish(b"old")
    outlet, _ = world.client()
    world.publish(b"new")
    world.settle()
    assert outlet.received == b"new\r\n"


@pytest.mark.parametrize(
    ("replay", "expected"), [(1, b"two\r\n"), (2, b"one\r\ntwo\r\n"), (9, b"one\r\ntwo\r\n")]
)
@pytest.mark.parametrize("policy", SlowPolicy)
def test_replay_starts_with_the_last_messages(
    world: World, replay: int, expected: bytes, policy: SlowPolicy
) -> None:
    world.publish(b"one", b"two")
    world.settle()
    outlet, subscription = world.client(policy, replay=replay)
    world.settle()
    assert outlet.received == expected
    assert subscription.missed == 0


def test_one_send_holds_about_64_kib_and_the_rest_follows(world: World) -> None:
    outlet, _ = world.client()
    payloads = [b"%04d" % number + b"." * 996 for number in range(500)]
    world.publish(*payloads)
    world.settle()
    assert outlet.received == encode_lines(payloads)
    assert max(map(len, outlet.sent)) <= SEND_BYTES
    assert len(outlet.sent) == -(-500 // (SEND_BYTES // 1008))


def test_a_message_above_64_kib_is_one_send(world: World) -> None:
    outlet, _ = world.client()
    world.publish(b"x" * 1024**2)
    world.settle()
    assert outlet.sent == [b"x" * 1024**2 + b"\r\n"]


def test_an_unsubscribed_one_gets_no_more(world: World) -> None:
    outlet, subscription = world.client()
    world.publish(b"one")
    world.hub.unsubscribe(subscription)
    world.hub.unsubscribe(subscription)
    world.settle()
    assert outlet.sent == []


def test_a_pass_yields_after_its_slice_and_goes_on_later(world: World) -> None:
    outlets = [world.client()[0] for _ in range(10 * STRIDE)]

    def take_time() -> None:
        world.clock.rightNow += SLICE_SECONDS / 4

    for outlet in outlets:
        outlet.on_send = take_time
    world.publish(b"one")
    served: list[int] = []
    world.clock.callLater(0, lambda: served.append(sum(len(outlet.sent) for outlet in outlets)))
    world.settle()
    assert served == [STRIDE]
    assert [outlet.sent for outlet in outlets] == [[b"one\r\n"]] * len(outlets)


def test_what_arrives_during_a_pass_makes_later_sends_larger_not_more(world: World) -> None:
    first, last = world.client()[0], world.client()[0]
    first.on_send = lambda: world.publish(b"two") if len(first.sent) == 1 else None
    world.publish(b"one")
    world.settle()
    assert first.sent == [b"one\r\n", b"two\r\n"]
    assert last.sent == [b"one\r\ntwo\r\n"]


class RecordingSource:
    """What publishes, and is held back."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")


def test_the_source_is_held_back_while_clients_are_a_quarter_of_the_history_behind(world: World) -> None:
    source = world.hub.source = RecordingSource()
    outlet, _ = world.client()
    seen: list[tuple[int, str]] = []
    outlet.on_send = lambda: seen.append((len(outlet.sent), source.calls[-1]))
    payload = b"." * (SEND_BYTES - Lines.framing)
    for expected in ([], [], ["pause"], ["pause"]):
        world.publish(payload)
        assert source.calls == expected
    world.settle()
    assert source.calls == ["pause", "resume"]
    # Four sends, and three are above a quarter of 1 MiB.
    assert seen == [(1, "pause"), (2, "pause"), (3, "resume"), (4, "resume")]
    assert len(outlet.received) == 4 * (len(payload) + 2)


def test_what_comes_during_a_pass_may_be_missing_to_those_who_were_served_first(world: World) -> None:
    source = world.hub.source = RecordingSource()
    first, last = world.client()[0], world.client()[0]
    first.on_send = lambda: None if first.sent[1:] else world.publish(b"." * 200_000)
    last.on_send = lambda: None if last.sent[1:] else world.publish(b"." * 100_000)
    world.publish(b"one")
    world.clock.advance(0)
    world.settle()
    assert source.calls == ["pause", "resume"]
    assert first.received == last.received


def test_a_client_that_lags_or_leaves_in_the_middle_of_a_burst_holds_nothing_back(world: World) -> None:
    source = world.hub.source = RecordingSource()
    lagging, _ = world.client()
    lagging.on_send = lambda: setattr(lagging, "lagging", True)
    leaving, subscription = world.client()
    leaving.on_send = lambda: world.hub.unsubscribe(subscription)
    world.publish(*[b"." * 1000] * 400)
    world.settle()
    assert source.calls == ["pause", "resume"]


@pytest.mark.parametrize("lagging", [True, False])
def test_the_source_does_not_wait_for_a_lagging_client_nor_for_none(world: World, lagging: bool) -> None:
    source = world.hub.source = RecordingSource()
    if lagging:
        world.client()[0].lagging = True
    for _ in range(20):
        world.publish(b"." * 3 * SEND_BYTES)
        assert source.calls.pop() == "pause"
        world.settle()
        assert source.calls.pop() == "resume"
    assert source.calls == []


class GreedySource:
    """Brings reads of 64 KiB as long as it is not held back."""

    def __init__(self, hub: Hub, size: int) -> None:
        self._hub = hub
        frame = len(published([b"." * size]))
        self._batch = [b"." * size] * max(1, 64 * 1024 // frame)
        self._held = False
        self.brought = 0

    def pauseProducing(self) -> None:
        self._held = True

    def resumeProducing(self) -> None:
        self._held = False

    def bring(self, reads: int) -> None:
        for _ in range(reads):
            if not self._held:
                self._hub.publish(Batch(UPDATES, self._batch))
                self.brought += len(self._batch)


class Turns:
    """A reactor that turns when the test says so, and between two turns of whose the source may be read."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[Callable[[], object]] = []

    def seconds(self) -> float:
        return self.now

    def callLater(self, delay: float, call: Callable[[], object]) -> Timer:
        self._due.append(call)
        return Clock().callLater(0, call)

    def turn(self) -> None:
        due, self._due = self._due, []
        for call in due:
            call()


@pytest.mark.parametrize("size", [0, 1, 6, 16, 100, 1000, 10_000])
def test_the_smallest_history_holds_what_passes_have_still_to_send(size: int) -> None:
    turns = Turns()
    hub = Hub(turns, parse_history("1M"), Metrics(), "epoch")
    hub.open(UPDATES)
    source = hub.source = GreedySource(hub, size)

    def take_time() -> None:
        turns.now += SLICE_SECONDS

    outlets = [RecordingOutlet() for _ in range(10 * STRIDE)]
    for outlet in outlets:
        outlet.on_send = take_time
        hub.subscribe(UPDATES, outlet, Lines, SlowPolicy.DISCONNECT, 0)
    # Now nothing for some slices of a pass, now all that may come at once.
    random = Random(size)
    for _ in range(3000):
        source.bring(random.choice((0, 0, 0, 1, 20)))
        turns.turn()
    assert source.brought > 10 * SEND_BYTES / (size + Lines.framing)
    assert [outlet.overruns for outlet in outlets if outlet.overruns] == []


def test_who_leaves_during_a_pass_is_not_sent_to(world: World) -> None:
    first, _ = world.client()
    last, subscription = world.client()
    first.on_send = lambda: world.hub.unsubscribe(subscription)
    world.publish(b"one")
    world.settle()
    assert (first.received, last.received) == (b"one\r\n", b"")


def test_one_failing_client_does_not_stop_the_pass(world: World) -> None:
    before, failing, after = (world.client()[0] for _ in range(3))

    def fail() -> None:
        raise ValueError("no such thing")

    failing.on_send = fail
    world.publish(b"one")
    world.settle()
    world.publish(b"two")
    world.settle()
    assert before.received == after.received == b"one\r\ntwo\r\n"
    assert (failing.failures, failing.received) == (1, b"one\r\n")


def test_a_lagging_client_is_left_alone_until_it_wakes(world: World) -> None:
    outlet, subscription = world.client()
    outlet.lagging = True
    world.publish(b"one")
    world.publish(b"two")
    world.settle()
    assert outlet.sent == []
    assert subscription.behind == 2
    outlet.lagging = False
    world.hub.wake([subscription])
    world.settle()
    assert outlet.sent == [b"one\r\ntwo\r\n"]


def test_one_that_lags_in_the_middle_of_a_long_read_goes_on_when_it_wakes(world: World) -> None:
    outlet, subscription = world.client()
    outlet.on_send = lambda: setattr(outlet, "lagging", True)
    payloads = [b"." * 1000] * 100
    world.publish(*payloads)
    world.settle()
    assert len(outlet.sent) == 1
    outlet.lagging = False
    world.hub.wake([subscription])
    world.settle()
    assert outlet.received == encode_lines(payloads)


def overflow(world: World) -> int:
    """Publish numbered messages until the log has evicted some; return how many."""
    for number in range(1, 3001):
        world.publish(b"%04d" % number + b"." * 996)
    world.settle()
    return 3000


def test_disconnect_ends_a_client_whose_cursor_fell_off(world: World) -> None:
    outlet, subscription = world.client(SlowPolicy.DISCONNECT)
    healthy, _ = world.client(SlowPolicy.DISCONNECT)
    outlet.lagging = True
    world.publish(b"first")
    world.settle()
    assert outlet.overruns == []
    count = 1
    while not outlet.overruns:
        world.publish(b"." * 1000)
        world.settle()
        count += 1
    world.publish(b"more")
    world.settle()
    assert outlet.overruns == [(UPDATES, count, 5 + 1000 * (count - 1))]
    assert subscription.missed == world.metrics.missed == count
    assert world.metrics.slow_disconnects == 1
    assert outlet.sent == []
    assert len(healthy.received) == 7 + 1002 * (count - 1) + 6


def test_skip_goes_on_with_the_oldest_kept_and_counts_the_gap(world: World) -> None:
    outlet, subscription = world.client(SlowPolicy.SKIP)
    outlet.lagging = True
    published = overflow(world)
    outlet.lagging = False
    world.hub.wake([subscription])
    world.settle()
    lines = outlet.received.split(b"\r\n")[:-1]
    assert int(lines[0][:4]) == subscription.missed + 1 > 1
    assert int(lines[-1][:4]) == published
    assert len(lines) + subscription.missed == published
    assert world.metrics.missed == subscription.missed


def test_latest_goes_on_with_the_newest_as_soon_as_it_lagged(world: World) -> None:
    outlet, subscription = world.client(SlowPolicy.LATEST)
    outlet.lagging = True
    world.publish(b"one", b"two", b"three")
    world.settle()
    outlet.lagging = False
    world.hub.wake([subscription])
    world.settle()
    assert outlet.received == b"three\r\n"
    assert subscription.missed == world.metrics.missed == 2


def test_latest_skips_nothing_that_a_client_keeps_up_with(world: World) -> None:
    outlet, subscription = world.client(SlowPolicy.LATEST)
    world.publish(*[b"." * 1000] * 200)
    world.settle()
    assert (len(outlet.received), subscription.missed) == (200 * 1002, 0)


def test_latest_counts_what_falls_off_while_it_lags(world: World) -> None:
    outlet, subscription = world.client(SlowPolicy.LATEST)
    outlet.lagging = True
    published = overflow(world)
    outlet.lagging = False
    world.hub.wake([subscription])
    world.settle()
    assert outlet.received.startswith(b"%04d" % published)
    assert subscription.missed == published - 1


def test_what_was_left_out_is_told_once_before_the_next_message() -> None:
    world = World(encoder=ShowingGaps)
    outlet, subscription = world.client(SlowPolicy.LATEST)
    outlet.lagging = True
    world.publish(b"one", b"two", b"three")
    outlet.lagging = False
    world.hub.wake([subscription])
    outlet.on_send = lambda: setattr(outlet, "lagging", True)
    world.settle()
    # The client takes no more behind the gap's line: what is left out then is another gap.
    assert outlet.received == b"missed0-2+0\r\n"
    assert subscription.untold is None
    world.publish(b"four")
    outlet.on_send = lambda: None
    outlet.lagging = False
    world.hub.wake([subscription])
    world.settle()
    assert outlet.received == b"missed0-2+0\r\nmissed2-3+0\r\nfour\r\n"


def test_gaps_that_were_not_told_yet_are_told_as_one() -> None:
    world = World(encoder=ShowingGaps)
    outlet, subscription = world.client(SlowPolicy.LATEST)
    for number in range(3):
        outlet.lagging = True
        world.publish(b"%d" % number, b"x")
        world.hub.interrupt(UPDATES, SourceGap(0, number))
        outlet.lagging = False
        world.hub.wake([subscription])
        assert subscription.position == Position(0, 0)
    world.settle()
    assert outlet.received == b"missed0-5+2\r\nx\r\ngap2\r\n"
    assert subscription.position == Position(6, 3)


def test_a_log_is_forgotten_and_opened_anew_under_another_label(world: World) -> None:
    first = world.hub.feed(UPDATES).label
    world.publish(b"one")
    world.hub.close(UPDATES)
    world.publish(b"late")  # was on its way
    world.settle()
    world.hub.open(UPDATES)
    assert world.hub.feed(UPDATES).label != first
    outlet, _ = world.client()
    world.publish(b"new")
    world.settle()
    assert outlet.received == b"new\r\n"
    assert world.metrics.messages == 2


def test_chunks_are_encoded_once_for_each_place_and_given_back_when_idle(world: World) -> None:
    encoded: list[int] = []

    class Counting(Lines):
        def messages(self, after: Position, payloads: Sequence[bytes], channels: Sequence[bytes]) -> bytes:
            encoded.append(len(payloads))
            return super().messages(after, payloads, channels)

    outlets = [RecordingOutlet() for _ in range(50)]
    subscriptions = [world.hub.subscribe(UPDATES, o, Counting, SlowPolicy.SKIP, 0) for o in outlets]
    world.publish(*[b"." * 1000] * 1000)
    world.settle()
    assert sum(encoded) == 1000
    assert len(encoded) == len(outlets[0].sent)
    assert len(subscriptions[0].chunks) == 0


def test_a_source_gap_is_handed_over_in_order_and_counted() -> None:
    world = World(encoder=ShowingGaps)
    outlet, subscription = world.client()
    late, _ = world.client(replay=0)
    world.publish(b"one")
    world.hub.interrupt(UPDATES, SourceGap(10, 1))
    world.publish(b"two")
    world.hub.interrupt(UPDATES, SourceGap(20, 2))
    world.settle()
    assert outlet.received == late.received == b"one\r\ngap1\r\ntwo\r\ngap2\r\n"
    assert (subscription.source_gaps, subscription.missed, subscription.behind) == (2, 0, 0)
    assert world.metrics.source_gaps == 2
    joined, newest = world.client(replay=1)
    world.settle()
    assert joined.received == b"two\r\ngap2\r\n"
    assert newest.source_gaps == 1


def test_a_source_gap_costs_a_protocol_that_cannot_say_it_no_send(world: World) -> None:
    outlet, subscription = world.client()
    world.hub.interrupt(UPDATES, SourceGap(10, 1))
    world.settle()
    assert outlet.sent == []
    assert (subscription.source_gaps, subscription.behind) == (1, 0)


def test_latest_goes_on_with_the_newest_message_and_not_with_a_gap_behind_it() -> None:
    world = World(encoder=ShowingGaps)
    outlet, subscription = world.client(SlowPolicy.LATEST)
    outlet.lagging = True
    world.publish(b"one", b"two")
    world.hub.interrupt(UPDATES, SourceGap(10, 2))
    outlet.lagging = False
    world.hub.wake([subscription])
    world.settle()
    assert outlet.received == b"missed0-1+0\r\ntwo\r\ngap2\r\n"
    assert (subscription.missed, subscription.source_gaps) == (1, 1)


def test_what_is_skipped_counts_its_messages_and_its_gaps_apart() -> None:
    world = World(encoder=ShowingGaps)
    outlet, subscription = world.client(SlowPolicy.SKIP)
    outlet.lagging = True
    world.publish(b"first")
    world.hub.interrupt(UPDATES, SourceGap(10, 1))
    published = overflow(world)
    outlet.lagging = False
    world.hub.wake([subscription])
    world.settle()
    gap, *lines = outlet.received.split(b"\r\n")[:-1]
    assert gap == b"missed0-%d+1" % subscription.missed
    assert len(lines) + subscription.missed == published + 1
    assert (subscription.source_gaps, b"gap1" in lines) == (1, False)


class Delivery(RuleBasedStateMachine):
    """Any interleaving of appends, passes, lags, wakes, joins and leaves, against a naive model.

    The model of a client is the list of all messages published while it was subscribed. What it received
    must be that list with gaps: in order, exact, and as many missing as were counted, and told in order. A
    source gap comes as "gap" and the number of messages published before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.world = World(history=2000, encoder=ShowingGaps)
        self.published: list[bytes] = []
        self.clients: list[tuple[RecordingOutlet, Subscription, int]] = []

    @rule(policy=st.sampled_from(SlowPolicy), replay=st.integers(0, 5))
    def join(self, policy: SlowPolicy, replay: int) -> None:
        outlet, subscription = self.world.client(policy, replay=replay)
        self.clients.append((outlet, subscription, subscription.cursor - subscription.gaps))

    @rule(sizes=st.lists(st.integers(0, 400), min_size=1, max_size=20))
    def publish(self, sizes: list[int]) -> None:
        batch = [b"%06d" % (len(self.published) + number) + b"." * size for number, size in enumerate(sizes)]
        self.published += batch
        self.world.publish(*batch)

    @rule()
    def interrupt(self) -> None:
        self.world.hub.interrupt(UPDATES, SourceGap(0, len(self.published)))

    @rule()
    def turn(self) -> None:
        self.world.clock.advance(0)

    @rule(data=st.data())
    def lag(self, data: st.DataObject) -> None:
        for outlet, _, _ in self.clients:
            outlet.lagging |= data.draw(st.booleans())

    @rule(data=st.data())
    def lag_at_next_send(self, data: st.DataObject) -> None:
        for outlet, _, _ in self.clients:
            if data.draw(st.booleans()):
                outlet.on_send = partial(setattr, outlet, "lagging", True)

    @rule(data=st.data())
    def wake(self, data: st.DataObject) -> None:
        for outlet, subscription, _ in self.clients:
            if outlet.lagging and data.draw(st.booleans()):
                outlet.lagging = False
                outlet.on_send = lambda: None
                self.world.hub.wake([subscription])

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.clients:
            _, subscription, _ = data.draw(st.sampled_from(self.clients))
            self.world.hub.unsubscribe(subscription)

    @invariant()
    def exactly_in_order_or_counted(self) -> None:
        for outlet, subscription, start in self.clients:
            everything = outlet.received.split(b"\r\n")[:-1]
            self.check_told(everything, subscription, start)
            received = [line for line in everything if not line.startswith(b"missed")]
            lines = [line for line in received if not line.startswith(b"gap")]
            numbers = [int(line[:6]) for line in lines]
            assert [self.published[number] for number in numbers] == lines
            assert numbers == sorted(set(numbers))
            assert not numbers or start <= numbers[0]
            # A gap comes behind the message that it was recorded behind, and before the next one.
            places = [int(line[3:]) if line.startswith(b"gap") else int(line[:6]) + 0.5 for line in received]
            assert places == sorted(places)
            gaps_behind = subscription.feed.log.gaps - subscription.gaps
            messages_behind = subscription.behind - gaps_behind
            assert len(lines) + subscription.missed + messages_behind == len(self.published) - start
            assert len(received) - len(lines) <= subscription.source_gaps
            assert (
                subscription.policy is not SlowPolicy.DISCONNECT
                or outlet.overruns
                or len(received) - len(lines) == subscription.source_gaps
            )
            assert (
                subscription.missed == 0
                or outlet.overruns
                or subscription.policy is not SlowPolicy.DISCONNECT
            )
        assert sum(subscription.missed for _, subscription, _ in self.clients) == self.world.metrics.missed

    def check_told(self, received: list[bytes], subscription: Subscription, start: int) -> None:
        """Check that messages and gaps follow one another, each where the last one ended."""
        place, gaps = start, 0
        for line in received:
            if line.startswith(b"gap"):
                gaps += 1
            elif line.startswith(b"missed"):
                since, until, among = (int(word) for word in re.split(rb"[-+]", line[6:]))
                assert (since, until > since or among > 0) == (place, True)
                place = until
                gaps += among
            else:
                assert int(line[:6]) == place
                place += 1
        assert place == subscription.position.offset
        if subscription.active and subscription.untold is None:
            assert gaps == subscription.source_gaps

    def teardown(self) -> None:
        """Let everybody read: all who are still subscribed end at the head."""
        for outlet, subscription, _ in self.clients:
            outlet.on_send = lambda: None
            if outlet.lagging:
                outlet.lagging = False
                self.world.hub.wake([subscription])
        self.world.settle()
        self.exactly_in_order_or_counted()
        for _, subscription, _ in self.clients:
            assert not subscription.active or not subscription.behind


TestDelivery = Delivery.TestCase
TestDelivery.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(st.lists(st.binary(max_size=5000), min_size=1, max_size=50))
def test_any_bytes_pass_exactly(payloads: list[bytes]) -> None:
    world = World()
    outlet, _ = world.client()
    world.publish(*payloads)
    world.settle()
    assert outlet.received == b"".join(payload + b"\r\n" for payload in payloads)


def test_a_client_that_fell_off_the_tail_is_served_in_the_same_pass() -> None:
    """Else a stream that evicts a segment in each turn would always be ahead of it."""
    world = World(encoder=ShowingGaps)
    outlet, subscription = world.client(SlowPolicy.SKIP)
    outlet.lagging = True
    for _ in range(12):
        world.publish(*[b"." * 1000] * 100)
    outlet.lagging = False
    # One turn of the reactor: the clock would go on with what this one schedules.
    world.hub._run()
    assert outlet.received.startswith(b"missed0-")
    assert len(outlet.sent) == 2
    assert subscription.untold is None


def test_what_is_kept_encoded_goes_with_its_log(world: World) -> None:
    outlet, subscription = world.client()
    other, _ = world.client(topic=NEWS)
    # Never idle, so that nothing is given back for that.
    other.on_send = lambda: world.publish(b"x", topic=NEWS) if len(other.sent) < 3 else None
    world.publish(b"one")
    world.publish(b"x", topic=NEWS)
    other.on_send()
    world.hub._run()
    assert outlet.sent
    chunks = subscription.chunks
    world.hub.unsubscribe(subscription)
    world.hub.close(UPDATES)
    assert chunks not in world.hub._warm
    world.settle()


def test_a_busy_topic_does_not_starve_a_quiet_one_of_the_same_client(world: World) -> None:
    outlet = RecordingOutlet()
    subscriptions = [
        world.hub.subscribe(topic, outlet, Lines, SlowPolicy.SKIP, 0) for topic in (UPDATES, NEWS)
    ]
    outlet.on_send = lambda: setattr(outlet, "lagging", True)
    outlet.lagging = True
    world.publish(b"quiet", topic=NEWS)
    for _ in range(2):
        world.publish(b"busy")
        world.settle()
        outlet.lagging = False
        subscriptions.append(subscriptions.pop(0))  # as an outlet does
        world.hub.wake(subscriptions)
        world.settle()
    assert b"quiet\r\n" in outlet.sent
