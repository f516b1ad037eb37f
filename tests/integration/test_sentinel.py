"""pushd behind Sentinels: real masters, replicas and Sentinels that fail over, freeze and vanish."""

import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import Client, Pushd
from tests.integration.certificates import Authority
from tests.servers import Node, Replicated, until

LATE_SECONDS = 2.0
"""pushd receives again no later than so long after the new master serves."""


@pytest.fixture
def replicated(tmp_path: Path) -> Iterator[Replicated]:
    with Replicated(tmp_path) as deployment:
        yield deployment


def url(deployment: Replicated) -> str:
    hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in deployment.sentinels)
    scheme = "redis" if deployment.authority is None else "rediss"
    return f"{scheme}+sentinel://{hosts}/{deployment.master_name}"


def follow(start_pushd: Callable[..., Pushd], deployment: Replicated, *options: str) -> Pushd:
    pushd = start_pushd("--redis", url(deployment), "--channel", "updates", *options)
    pushd.wait_subscribed()
    return pushd


def arrives(client: Client, master: Node, message: bytes) -> None:
    with master.client() as publisher:
        publisher.publish("updates", message)
    assert client.read_line() == message


def wait_until_serving(master: Node) -> float:
    """Return when a server has become a master, to 20 ms."""
    until(lambda: master.role() == "master", "the new master serves")
    return time.monotonic()


def receives_in_time(pushd: Pushd, client: Client, master: Node) -> None:
    """Check that pushd is subscribed at a new master in time, and that what is published there arrives."""
    serving = wait_until_serving(master)
    pushd.wait_for(rf"Subscribed to .* at 127.0.0.1:{master.port} .* again")
    assert time.monotonic() - serving < LATE_SECONDS
    arrives(client, master, b"from the new master")


def test_a_failover_by_hand(replicated: Replicated, start_pushd: Callable[..., Pushd]) -> None:
    pushd = follow(start_pushd, replicated)
    with Client(pushd.port) as client:
        client.echo()
        arrives(client, replicated.master(), b"before")
        receives_in_time(pushd, client, replicated.failover())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_master_that_is_gone_or_frozen(
    replicated: Replicated, start_pushd: Callable[..., Pushd], how: signal.Signals
) -> None:
    # That is too slow to notice a frozen master: it is the Sentinels who say that there is another.
    pushd = follow(start_pushd, replicated, "--redis-ping", "60")
    master, other = replicated.master(), replicated.other()
    with Client(pushd.port) as client:
        client.echo()
        arrives(client, master, b"before")
        master.signal(how)
        receives_in_time(pushd, client, other)
        if how is signal.SIGSTOP:
            master.signal(signal.SIGCONT)
            replicated.wait_for_master(other)
            arrives(client, other, b"still")
            assert len(re.findall("again, after", pushd.output)) == 1


def test_sentinels_that_are_gone_or_do_not_know(
    replicated: Replicated, start_pushd: Callable[..., Pushd]
) -> None:
    gone, frozen, last = replicated.sentinels
    pushd = follow(start_pushd, replicated)
    with Client(pushd.port) as client:
        client.echo()
        promoted = replicated.failover()
        receives_in_time(pushd, client, promoted)
        replicated.wait_for_master(promoted)
        gone.kill()
        frozen.signal(signal.SIGSTOP)
        arrives(client, promoted, b"one is left")
        last.kill()
        arrives(client, promoted, b"none is left")
        # With no Sentinel to ask, the master that was named last is followed still.
        before = pushd.output.count(" again, after ")  # Sentinels may have cut off those who came early
        with promoted.client() as admin:
            admin.client_kill_filter(_type="pubsub")
        pushd.wait_for(" again, after ", count=before + 1)
        arrives(client, promoted, b"and again")


def test_passwords_and_tls_for_both(tmp_path: Path, start_pushd: Callable[..., Pushd]) -> None:
    authority = Authority(tmp_path)
    (tmp_path / "data").write_text("data secret\n")
    (tmp_path / "sentinel").write_text("sentinel secret\n")
    with Replicated(
        tmp_path, password="data secret", sentinel_password="sentinel secret", authority=authority
    ) as deployment:
        pushd = follow(
            start_pushd,
            deployment,
            *("--redis-password-file", str(tmp_path / "data")),
            *("--sentinel-password-file", str(tmp_path / "sentinel")),
            *("--redis-ca", str(authority.certificate)),
        )
        with Client(pushd.port) as client:
            client.echo()
            arrives(client, deployment.master(), b"secretly")
            receives_in_time(pushd, client, deployment.failover())
        assert "secret" not in pushd.output


def test_a_name_that_no_sentinel_knows_and_a_missing_password_are_said(
    tmp_path: Path, start_pushd: Callable[..., Pushd]
) -> None:
    with Replicated(tmp_path, sentinel_password="secret") as deployment:
        pushd = start_pushd("--redis", url(deployment), "--channel", "updates")
        pushd.wait_for("No subscription at redis.sentinel://.*: no Sentinel names a master: .*: NOAUTH ")
        (tmp_path / "sentinel").write_text("secret\n")
        pushd = start_pushd(
            *("--redis", url(deployment).replace("/main", "/other"), "--channel", "updates"),
            *("--sentinel-password-file", str(tmp_path / "sentinel")),
        )
        pushd.wait_for("no Sentinel names a master: .*: ERR No such master with that name")
