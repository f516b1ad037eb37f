"""The deployments themselves: they come up, fail over and reshard."""

import signal
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.harness import TIMEOUT
from tests.integration.certificates import Authority
from tests.servers import HOST, Cluster, Node, Replicated, has_sharded_pubsub, has_tls


def test_sentinels_replace_a_master_by_hand_and_a_frozen_one(tmp_path: Path) -> None:
    authority = Authority(tmp_path) if has_tls() else None
    with Replicated(
        tmp_path, password="white rabbit", sentinel_password='the "queen"', authority=authority
    ) as deployed:
        first, second = deployed.servers
        assert (deployed.master(), deployed.other()) == (first, second)
        assert deployed.failover() is second
        deployed.wait_for_master(second)
        deployed.settle()
        assert first.follows() == second.port
        second.signal(signal.SIGSTOP)
        deployed.wait_for_master(first)
        assert {server.cli("ping") for server in (first, *deployed.sentinels)} == {"PONG\n"}


def test_a_cluster_moves_slots_and_replaces_masters(tmp_path: Path) -> None:
    authority = Authority(tmp_path) if has_tls() else None
    with Cluster(tmp_path, replicas=3, password="white rabbit", authority=authority) as cluster:
        first, second, third = cluster.masters()
        assert cluster.owner(b"updates") is third
        cluster.move(b"updates", second)
        assert cluster.owner(b"updates") is second
        with second.client() as client, client.pubsub() as subscriber:
            if has_sharded_pubsub():
                subscriber.ssubscribe("updates")
                subscriber.get_message(timeout=TIMEOUT)
                assert cluster.publish_sharded(b"updates", b"here") == 1
        replica = cluster.failover(second)
        cluster.settle()
        assert second.follows() == replica.port
        first.kill()
        successor = cluster.failover(first)
        cluster.settle()
        first = cluster.restart(first)
        cluster.settle()
        assert first.follows() == successor.port


@pytest.mark.skipif(not has_tls(), reason="the redis-server here is built without TLS")
def test_certificates_of_an_authority(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    once = Retry(NoBackoff(), 0)

    def ping(host: str, certificate: Path, trusted: Authority) -> bool:
        with (
            Node(tmp_path, authority=authority, certificate=certificate) as server,
            redis.Redis(
                *(host, server.port), ssl=True, ssl_ca_certs=str(trusted.certificate), retry=once
            ) as client,
        ):
            assert server.cli("ping") == "PONG\n"
            return bool(client.ping())

    good = authority.issue(tmp_path / "good.pem", HOST)
    assert ping(HOST, good, authority)
    with pytest.raises(redis.ConnectionError, match="Hostname mismatch"):
        ping("localhost", good, authority)
    with pytest.raises(redis.ConnectionError, match="self-signed"):
        ping(HOST, good, Authority(tmp_path, "other"))
    with pytest.raises(redis.ConnectionError, match="expired"):
        ping(HOST, authority.issue(tmp_path / "expired.pem", HOST, expired=True), authority)
