"""Reports: heartbeats and the answer to STATUS, line by line."""

import json

from pushd import reports
from pushd.encoders import Events
from pushd.message import Batch, Kind, SourceGap, Topic
from pushd.permissions import Permissions
from pushd.settings import SlowPolicy
from pushd.subscription import Subscription
from pushd.tokens import Grant
from tests.clients import RecordingOutlet
from tests.test_channels import SCORES, RecordingClaimant, World

NEWS = Topic(b"news.*", Kind.PATTERN)
ORDERS = Topic(b"orders", Kind.SHARD)


class Client:
    """One client's subscriptions, all to topics that are confirmed."""

    def __init__(self) -> None:
        self.world = World()
        self.outlet = RecordingOutlet()
        self.subscriptions: dict[Topic, Subscription] = {}
        self.claimant = RecordingClaimant(self.world.channels)

    def subscribe(self, *topics: Topic, policy: SlowPolicy = SlowPolicy.SKIP) -> None:
        for topic in topics:
            self.world.channels.claim(topic, self.claimant)
            self.world.channels.confirmed(topic)
            self.subscriptions[topic] = self.world.hub.subscribe(topic, self.outlet, Events, policy, 0)

    def publish(self, topic: Topic, count: int) -> None:
        channels = [b"news.sport"] * count if topic.kind is Kind.PATTERN else []
        self.world.hub.publish(Batch(topic, [b"x"] * count, channels))
        self.world.clock.advance(0)

    def heartbeat(self) -> bytes:
        return reports.heartbeat(self.subscriptions, self.world.channels)

    def status(self, grant: Grant | None = None) -> bytes:
        return reports.status("192.0.2.1:4242", grant, self.subscriptions, self.world.channels)


def test_who_subscribes_to_nothing_has_an_upstream() -> None:
    client = Client()
    assert client.heartbeat() == b'{"type":"heartbeat","upstream":"up","offsets":{}}\n'
    assert client.status() == (
        b'{"type":"status","client":"192.0.2.1:4242","upstream":"up","subscriptions":[]}\n'
    )


def test_a_heartbeat_has_the_heads_of_channels_and_patterns_apart() -> None:
    client = Client()
    client.subscribe(SCORES, NEWS, ORDERS, Topic(b"empty"))
    client.publish(SCORES, 3)
    client.publish(NEWS, 2)
    client.publish(ORDERS, 1)
    assert client.heartbeat() == (
        b'{"type":"heartbeat","upstream":"up","offsets":{"scores":3,"orders":1,"empty":0}'
        b',"pattern_offsets":{"news.*":2}}\n'
    )


def test_a_channel_and_a_pattern_may_have_one_name() -> None:
    client = Client()
    client.subscribe(NEWS, Topic(b"news.*"))
    client.publish(NEWS, 2)
    assert client.heartbeat() == (
        b'{"type":"heartbeat","upstream":"up","offsets":{"news.*":0},"pattern_offsets":{"news.*":2}}\n'
    )


def test_source_gaps_are_no_messages() -> None:
    client = Client()
    client.subscribe(SCORES)
    client.world.channels.interrupt(SCORES, SourceGap(0, 1))
    client.publish(SCORES, 1)
    client.world.channels.interrupt(SCORES, SourceGap(0, 1))
    client.world.clock.advance(0)
    assert client.heartbeat() == b'{"type":"heartbeat","upstream":"up","offsets":{"scores":1}}\n'
    client.outlet.lagging = True
    client.world.channels.interrupt(SCORES, SourceGap(0, 1))
    assert client.heartbeat() == b'{"type":"heartbeat","upstream":"up","offsets":{"scores":1}}\n'


def test_what_a_client_has_not_been_sent_or_told_is_behind() -> None:
    client = Client()
    client.subscribe(SCORES, policy=SlowPolicy.LATEST)
    client.subscribe(NEWS)
    client.publish(SCORES, 1)
    client.outlet.lagging = True
    client.publish(SCORES, 4)
    client.publish(NEWS, 2)
    said = (
        b'{"type":"heartbeat","upstream":"up","offsets":{"scores":5},"behind":{"scores":4}'
        b',"pattern_offsets":{"news.*":2},"pattern_behind":{"news.*":2}}\n'
    )
    assert client.heartbeat() == said
    client.outlet.lagging = False
    client.world.hub.wake(client.subscriptions.values())
    assert client.heartbeat() == said  # what is left out has still to be told
    client.world.clock.advance(0)
    assert client.heartbeat() == (
        b'{"type":"heartbeat","upstream":"up","offsets":{"scores":5},"pattern_offsets":{"news.*":2}}\n'
    )
    assert json.loads(client.outlet.sent[1])["missed"] == 3


def test_one_topic_without_an_upstream_is_enough_to_say_so_since_when() -> None:
    client = Client()
    client.subscribe(SCORES, NEWS)
    client.world.clock.advance(0.25)
    client.world.channels.lost(NEWS)
    client.world.clock.advance(1)
    client.world.channels.lost(SCORES)
    assert client.heartbeat() == (
        b'{"type":"heartbeat","upstream":"down","since":"1970-01-12T13:46:40.250Z"'
        b',"offsets":{"scores":0},"pattern_offsets":{"news.*":0}}\n'
    )
    client.world.channels.confirmed(NEWS)
    assert b'"upstream":"down","since":"1970-01-12T13:46:41.250Z"' in client.status()
    client.world.channels.confirmed(SCORES)
    assert b'"upstream":"up","offsets"' in client.heartbeat()


def test_an_outage_of_what_a_client_does_not_subscribe_to_is_not_its_concern() -> None:
    client = Client()
    client.world.channels.claim(NEWS, RecordingClaimant(client.world.channels))
    client.world.channels.lost(NEWS)
    client.subscribe(SCORES)
    assert client.heartbeat() == b'{"type":"heartbeat","upstream":"up","offsets":{"scores":0}}\n'


def test_status_tells_of_each_subscription() -> None:
    client = Client()
    client.subscribe(SCORES, policy=SlowPolicy.LATEST)
    client.subscribe(NEWS, policy=SlowPolicy.DISCONNECT)
    client.publish(SCORES, 1)
    client.outlet.lagging = True
    client.publish(SCORES, 4)
    client.publish(NEWS, 2)
    client.outlet.lagging = False
    client.world.hub.wake(client.subscriptions.values())
    assert client.status(Grant("alice", 1_800_000_000.5, Permissions())) == (
        b'{"type":"status","client":"192.0.2.1:4242","name":"alice","expires":"2027-01-15T08:00:00.500Z"'
        b',"upstream":"up","subscriptions":['
        b'{"channel":"scores","offset":1,"head":5,"missed":3,"slow":"latest"},'
        b'{"pattern":"news.*","offset":0,"head":2,"missed":0,"slow":"disconnect"}]}\n'
    )


def test_status_of_one_without_a_name_whose_token_is_good_for_ever() -> None:
    said = json.loads(Client().status(Grant(None, 1e12, Permissions())))
    assert (said["name"], said["expires"]) == (None, "9999-12-31T23:59:59.000Z")


def test_who_has_not_been_told_of_a_gap_is_behind_it() -> None:
    client = Client()
    client.subscribe(SCORES, policy=SlowPolicy.LATEST)
    client.outlet.lagging = True
    client.publish(SCORES, 5)
    client.outlet.lagging = False
    client.world.hub.wake([client.subscriptions[SCORES]])  # it skips, and has not been sent that yet
    assert json.loads(client.heartbeat())["behind"] == {"scores": 5}
    client.world.clock.advance(0)
    assert "behind" not in json.loads(client.heartbeat())


def test_who_subscribes_to_nothing_is_told_of_an_outage() -> None:
    client = Client()
    client.world.upstream.down_since = 1795500000.0
    heartbeat = json.loads(client.heartbeat())
    assert (heartbeat["upstream"], heartbeat["since"]) == ("down", "2026-11-24T06:00:00.000Z")
