"""The Redis source against real servers that are late, lost, frozen, locked or encrypted."""

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import TIMEOUT, Client, Pushd, RedisServer, free_port
from tests.integration.certificates import Authority
from tests.servers import Node


def arrives(client: Client, server: RedisServer, message: bytes) -> None:
    """Check that what is published now reaches a client."""
    with server.client() as publisher:
        assert publisher.publish("updates", message) >= 1
    assert client.read_line() == message


def test_it_starts_without_redis_and_follows_once_there_is_one(start_pushd: Callable[..., Pushd]) -> None:
    port = free_port()
    pushd = start_pushd("--redis", f"redis://127.0.0.1:{port}", "--channel", "updates", "--debug")
    with Client(pushd.port) as client:
        client.echo()
        refused = rf"No subscription at redis://127.0.0.1:{port}: .*refused"
        pushd.wait_for(rf"{refused}.*; trying again until there is one")
        pushd.wait_for(refused, count=2)  # the second one for debugging only
        client.echo()
        with RedisServer(port=port) as server:
            pushd.wait_subscribed()
            arrives(client, server, b"here I am")


def test_it_returns_to_a_redis_that_was_killed_and_restarted(start_pushd: Callable[..., Pushd]) -> None:
    with RedisServer() as first:
        pushd = start_pushd("--redis", first.url, "--channel", "updates")
        pushd.wait_subscribed()
        client = Client(pushd.port)
        client.echo()
        arrives(client, first, b"before")
    pushd.wait_for("No subscription at")
    client.echo()
    with RedisServer(port=first.port) as second, client:
        pushd.wait_subscribed(count=2)
        arrives(client, second, b"after")


def test_it_returns_after_client_kill(redis_server: RedisServer, start_pushd: Callable[..., Pushd]) -> None:
    pushd = start_pushd("--redis", redis_server.url, "--channel", "updates")
    pushd.wait_subscribed()
    with Client(pushd.port) as client, redis_server.client() as admin:
        client.echo()
        for count in (2, 3):
            assert admin.client_kill_filter(_type="pubsub") == 1
            pushd.wait_subscribed(count=count)
            arrives(client, redis_server, b"after")


def test_a_redis_that_is_frozen_at_start_is_given_up_and_tried_again(
    redis_server: RedisServer, start_pushd: Callable[..., Pushd]
) -> None:
    redis_server.signal(signal.SIGSTOP)
    pushd = start_pushd("--redis", redis_server.url, "--channel", "updates")
    with Client(pushd.port) as client:
        client.echo()
        pushd.wait_for("No subscription at .*: no answer to INFO within 5 s; trying again")
        redis_server.signal(signal.SIGCONT)
        pushd.wait_subscribed()
        client.echo()
        arrives(client, redis_server, b"thawed")


def test_a_wrong_password_is_tried_until_it_is_right(
    start_pushd: Callable[..., Pushd], tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text("white rabbit\n")
    with RedisServer("--requirepass", "other") as server, server.client("other") as admin:
        pushd = start_pushd(
            "--redis", server.url, "--redis-password-file", str(password), "--channel", "updates"
        )
        pushd.wait_for("No subscription at .*: WRONGPASS .*; trying again")
        admin.config_set("requirepass", "white rabbit")
        pushd.wait_subscribed()
        with Client(pushd.port) as client:
            client.echo()
            assert admin.publish("updates", "unlocked") == 1
            assert client.read_line() == b"unlocked"
        assert "white rabbit" not in pushd.output


def test_a_full_redis_is_tried_until_there_is_room(start_pushd: Callable[..., Pushd]) -> None:
    with RedisServer("--maxclients", "1") as server:
        with server.client() as only:
            only.ping()
            pushd = start_pushd("--redis", server.url, "--channel", "updates")
            pushd.wait_for("No subscription at .*: ERR max number of clients reached; trying again")
        pushd.wait_subscribed()


def test_a_redis_that_freezes_while_subscribed_is_replaced_and_said(
    redis_server: RedisServer, start_pushd: Callable[..., Pushd]
) -> None:
    waiting = ("--redis-ping", "0.5", "--redis-timeout", "0.5")
    pushd = start_pushd("--redis", redis_server.url, "--channel", "updates", *waiting)
    pushd.wait_subscribed()
    with Client(pushd.port) as client:
        client.echo()
        arrives(client, redis_server, b"before")
        redis_server.signal(signal.SIGSTOP)
        pushd.wait_for("No subscription at .*: no answer to PING within 0.5 s; trying again")
        client.echo()
        redis_server.signal(signal.SIGCONT)
        pushd.wait_for(
            r"Subscribed to .* again, after \d+\.\d s: what was published from \S+Z to \S+Z is missing"
        )
        arrives(client, redis_server, b"after")
    pushd.wait_for(r"left; it missed 0 messages, and what was published in 1 source gaps")
    pushd.terminate()
    assert "1 source gaps, " in pushd.output
    assert "1 timeout" in pushd.output


def test_a_probe_comes_back_and_reaches_no_client(
    redis_server: RedisServer, start_pushd: Callable[..., Pushd]
) -> None:
    pushd = start_pushd(
        *("--redis", redis_server.url, "--channel", "updates", "--pattern", "*", "--redis-probe", "0.1")
    )
    pushd.wait_subscribed()
    with Client(pushd.port) as client, redis_server.client() as publisher, publisher.pubsub() as watcher:
        client.echo()
        watcher.psubscribe("pushd:probe:*")
        for _ in range(4):
            assert watcher.get_message(timeout=TIMEOUT)
        publisher.publish("updates", "one")
        assert [client.read_line(), client.read_line()] == [b"one", b"one"]
        client.echo()
    pushd.terminate()
    counted = re.search(r"probes: (\d+) sent, 0 missed", pushd.output)
    assert counted
    assert int(counted[1]) >= 3


def test_an_acl_that_allows_one_channel_only(
    redis_server: RedisServer, start_pushd: Callable[..., Pushd]
) -> None:
    with redis_server.client() as admin:
        admin.execute_command(
            "ACL", "SETUSER", "pusher", "on", ">secret", "+@all", "resetchannels", "&updates"
        )
        url = redis_server.url.replace("redis://", "redis://pusher:secret@")
        pushd = start_pushd(
            "--redis", url, "--channel", "updates", "--channel", "hidden", "--redis-probe", "0.2"
        )
        pushd.wait_for(rf'{redis_server.url} refuses "hidden": NOPERM .*; asking again until it is allowed')
        pushd.wait_for(rf'Subscribed to "updates" at {redis_server.url}$')
        pushd.wait_for(r"Probing does not work \(NOPERM .*\): .* or say --redis-probe 0")
        with Client(pushd.port) as client:
            client.echo()
            arrives(client, redis_server, b"allowed")
            admin.execute_command("ACL", "SETUSER", "pusher", "&hidden")
            pushd.wait_for(rf'Subscribed to "hidden" at {redis_server.url} again, after ')
            admin.publish("hidden", "no more")
            assert client.read_line() == b"no more"
        assert "secret" not in pushd.output
        assert pushd.output.count("refuses") == pushd.output.count("Probing does not work") == 1


def test_a_unix_socket(start_pushd: Callable[..., Pushd], tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with RedisServer("--unixsocket", str(path)) as server:
        pushd = start_pushd("--redis", f"unix://{path}", "--channel", "updates")
        pushd.wait_subscribed()
        with Client(pushd.port) as client:
            client.echo()
            arrives(client, server, b"local")


def test_tls_with_an_authority_of_ones_own(tmp_path: Path, start_pushd: Callable[..., Pushd]) -> None:
    authority = Authority(tmp_path)
    with Node(tmp_path, authority=authority) as server:
        pushd = start_pushd(
            *("--redis", server.url, "--redis-ca", str(authority.certificate), "--channel", "updates")
        )
        pushd.wait_for(f'Subscribed to "updates" at {server.url}')
        with Client(pushd.port) as client:
            client.echo()
            arrives(client, server, b"secretly")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("the system's authorities", "TLS: certificate verify failed"),
        ("another authority", "TLS: certificate verify failed"),
        ("another name", "TLS: the certificate is good, but for another host"),
        ("expired", "TLS: certificate verify failed"),
    ],
)
def test_tls_is_refused_where_the_certificate_is_not_good(
    wrong: str, why: str, tmp_path: Path, start_pushd: Callable[..., Pushd]
) -> None:
    authority = Authority(tmp_path)
    host = "redis.example" if wrong == "another name" else "127.0.0.1"
    certificate = authority.issue(tmp_path / "server.pem", host, expired=wrong == "expired")
    trusted = Authority(tmp_path, "other") if wrong == "another authority" else authority
    ca = () if wrong == "the system's authorities" else ("--redis-ca", str(trusted.certificate))
    with Node(tmp_path, authority=authority, certificate=certificate) as server:
        pushd = start_pushd("--redis", server.url, *ca, "--channel", "updates", "--debug")
        pushd.wait_for(f"No subscription at {server.url}: ({why}).*; trying again until there is one")
        pushd.wait_for(f"No subscription at {server.url}: ({why})", count=2)
        assert "Subscribed" not in pushd.output
        assert "Traceback" not in pushd.output


def test_plain_and_tls_do_not_meet_in_silence(
    redis_server: RedisServer, tmp_path: Path, start_pushd: Callable[..., Pushd]
) -> None:
    with Node(tmp_path, authority=Authority(tmp_path)) as encrypted:
        pushd = start_pushd("--redis", f"redis://127.0.0.1:{encrypted.port}", "--channel", "updates")
        pushd.wait_for("No subscription at redis://.*; trying again")
    pushd = start_pushd("--redis", f"rediss://127.0.0.1:{redis_server.port}", "--channel", "updates")
    pushd.wait_for("No subscription at rediss://.*; trying again")
    assert "Traceback" not in pushd.output
