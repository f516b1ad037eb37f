"""pushd at a real Redis Cluster: any node for channels, the owner of the slot for shard channels."""

import re
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import Client, Pushd, RedisServer
from tests.integration.certificates import Authority
from tests.servers import Cluster, Node, has_sharded_pubsub, until

needs_sharding = pytest.mark.skipif(
    not has_sharded_pubsub(), reason="sharded Pub/Sub needs Redis 7; the redis-server here is older"
)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as deployment:
        yield deployment


def url(*nodes: Node) -> str:
    scheme = "redis" if nodes[0].authority is None else "rediss"
    return f"{scheme}+cluster://{','.join(f'127.0.0.1:{node.port}' for node in nodes)}"


def arrives(client: Client, node: Node, message: bytes) -> None:
    """Check that what is published at any node reaches a client."""
    node.ask("PUBLISH", "updates", message)
    assert client.read_line() == message


def test_channels_come_through_any_node_and_the_next_when_it_is_lost(
    cluster: Cluster, start_pushd: Callable[..., Pushd]
) -> None:
    # One node is enough to begin with: the others are learned from it.
    pushd = start_pushd("--redis", url(cluster.servers[0]), "--channel", "updates", "--pattern", "news.*")
    pushd.wait_subscribed()
    with Client(pushd.port) as client:
        client.echo()
        for node in cluster.servers:
            arrives(client, node, b"from %d" % node.port)
        cluster.servers[0].kill()
        at = pushd.wait_for(r"Subscribed to .* at 127.0.0.1:(\d+) again")
        assert int(at[1]) in {node.port for node in cluster.servers[1:]}
        arrives(client, cluster.servers[2], b"after the first was lost")
        cluster.servers[2].ask("PUBLISH", "news.today", b"by a pattern")
        assert client.read_line() == b"by a pattern"


def test_a_frozen_node_is_left_for_the_next(cluster: Cluster, start_pushd: Callable[..., Pushd]) -> None:
    pushd = start_pushd(
        *("--redis", url(*cluster.servers), "--channel", "updates"),
        *("--redis-ping", "0.5", "--redis-timeout", "0.5"),
    )
    pushd.wait_subscribed()
    with Client(pushd.port) as client:
        client.echo()
        cluster.servers[0].signal(signal.SIGSTOP)
        pushd.wait_for("No subscription at .*: no answer to PING within 0.5 s")
        pushd.wait_for("Subscribed to .* again")
        arrives(client, cluster.servers[1], b"by another")


def test_a_server_in_no_cluster_is_refused(
    redis_server: RedisServer, start_pushd: Callable[..., Pushd]
) -> None:
    pushd = start_pushd("--redis", f"redis+cluster://127.0.0.1:{redis_server.port}", "--channel", "updates")
    pushd.wait_for("No subscription at .*: ERR This instance has cluster support disabled; trying again")


@needs_sharding
def test_a_shard_channel_follows_its_slot_while_it_is_moved(
    cluster: Cluster, start_pushd: Callable[..., Pushd]
) -> None:
    channels = (b"part", b"{part}.two", b"other")
    pushd = start_pushd(
        *("--redis", url(*cluster.servers), "--debug"),
        *(word for channel in channels for word in ("--shard-channel", channel.decode())),
    )
    pushd.wait_for('Subscribed to shard channel "part", shard channel "{part}.two" at')
    pushd.wait_for('Subscribed to shard channel "other" at')
    with Client(pushd.port) as client:
        client.echo()
        sent: list[bytes] = []

        def publish() -> None:
            for channel in channels:
                sent.append(b"%d" % len(sent))
                assert cluster.publish_sharded(channel, sent[-1]) == 1
                assert client.read_line() == sent[-1]

        publish()
        owner = cluster.owner(b"part")
        others = [node for node in cluster.servers if node is not owner]
        for count, target in enumerate((*others, owner), 1):
            cluster.move(b"part", target)
            pushd.wait_for(rf'Subscribed to shard channel "part".* at 127.0.0.1:{target.port} again')
            assert len(re.findall("its slot has moved", pushd.output)) == count
            publish()
        # The other slot has stayed where it was, and so has its subscription.
        assert len(re.findall('Subscribed to shard channel "other"', pushd.output)) == 1


def reaches(client: Client, cluster: Cluster, message: bytes) -> bool:
    """Publish in the shard channel, and tell whether something comes to a client soon after."""
    cluster.publish_sharded(b"part", message)
    return bool(select.select([client.socket], [], [], 0.5)[0])


@needs_sharding
@pytest.mark.parametrize("state", ["alive", "frozen", "killed"])
def test_a_shard_channel_follows_a_failover_of_its_slot(
    tmp_path: Path, start_pushd: Callable[..., Pushd], state: str
) -> None:
    with Cluster(tmp_path, replicas=3) as cluster:
        pushd = start_pushd(
            *("--redis", url(*cluster.servers[:3]), "--shard-channel", "part"),
            *("--redis-ping", "0.5", "--redis-timeout", "0.5", "--redis-probe", "0.5"),
        )
        pushd.wait_subscribed()
        with Client(pushd.port) as client:
            client.echo()
            cluster.publish_sharded(b"part", b"before")
            assert client.read_line() == b"before"
            owner = cluster.owner(b"part")
            if state == "frozen":
                owner.signal(signal.SIGSTOP)
            elif state == "killed":
                owner.kill()
            cluster.failover(owner)
            if state != "alive":
                pushd.wait_for("Subscribed to .* again")
            # A former owner that is alive keeps its subscribers, as a replica of the new one, which may lose
            # what is published before it knows that.
            until(lambda: reaches(client, cluster, b"after"), "what is published arrives again")
            assert client.read_line() == b"after"


@needs_sharding
def test_passwords_and_tls(tmp_path: Path, start_pushd: Callable[..., Pushd]) -> None:
    authority = Authority(tmp_path)
    (tmp_path / "password").write_text("data secret\n")
    with Cluster(tmp_path, password="data secret", authority=authority) as cluster:
        pushd = start_pushd(
            *("--redis", url(*cluster.servers), "--shard-channel", "part", "--channel", "updates"),
            *("--redis-password-file", str(tmp_path / "password")),
            *("--redis-ca", str(authority.certificate)),
        )
        pushd.wait_subscribed(count=2)
        with Client(pushd.port) as client:
            client.echo()
            cluster.publish_sharded(b"part", b"sharded")
            assert client.read_line() == b"sharded"
            arrives(client, cluster.servers[1], b"ordinary")
        assert "secret" not in pushd.output
