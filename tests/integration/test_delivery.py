"""From a real Redis through a real twistd to real sockets: exact, complete, in order."""

import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.harness import Client, Following, Pushd, RedisServer, clients, raise_own_descriptor_limit

PAYLOADS = [b"42", b"007", b"1.50", b"\xff\xfe", b"", b"a\r\nb", b"x" * 1024**2, b"follow the white rabbit"]


def test_every_payload_arrives_exactly(redis_server: RedisServer, start_pushd: Callable[..., Pushd]) -> None:
    pushd = start_pushd("--redis", redis_server.url, "--channel", "updates")
    pushd.wait_subscribed()
    with clients(pushd.port, 3) as readers, redis_server.client() as publisher:
        for payload in PAYLOADS:
            assert publisher.publish("updates", payload) == 1
        expected = b"".join(payload + b"\r\n" for payload in PAYLOADS)
        for reader in readers:
            assert reader.read(len(expected)) == expected


def test_channels_and_patterns_of_any_bytes(
    redis_server: RedisServer, start_pushd: Callable[..., Pushd]
) -> None:
    pushd = start_pushd(
        *("--redis", redis_server.url, "--channel", "updates", "--channel", "42"),
        *("--channel", "\udcff\udcfe", "--pattern", "news.*"),
    )
    pushd.wait_subscribed()
    with Client(pushd.port) as reader, redis_server.client() as publisher:
        reader.echo()
        for channel in ("updates", "42", b"\xff\xfe", "news.world", "news."):
            assert publisher.publish(channel, channel) == 1
            assert reader.read_line() == (channel if isinstance(channel, bytes) else channel.encode())
        assert publisher.publish("other", "nobody") == 0


def test_2000_clients_each_receive_1000_messages_complete_and_in_order(
    redis_server: RedisServer, start_pushd: Callable[..., Pushd]
) -> None:
    if not raise_own_descriptor_limit(2100):
        pytest.skip("this machine allows fewer than 2,100 open files")
    pushd = start_pushd("--redis", redis_server.url, "--channel", "updates")
    pushd.wait_subscribed()
    with (
        clients(pushd.port, 2000) as readers,
        Following(readers) as following,
        redis_server.client() as publisher,
    ):
        messages = [b"%04d follow the white rabbit" % number for number in range(1000)]
        for start in range(0, 1000, 50):
            pipeline = publisher.pipeline(transaction=False)
            for message in messages[start : start + 50]:
                pipeline.publish("updates", message)
            assert pipeline.execute() == [1] * 50
        following.expect(b"".join(message + b"\r\n" for message in messages), timeout=60)


def test_new_clients_get_the_last_messages_first(
    redis_server: RedisServer, start_pushd: Callable[..., Pushd]
) -> None:
    pushd = start_pushd("--redis", redis_server.url, "--channel", "updates", "--replay", "2")
    pushd.wait_subscribed()
    with redis_server.client() as publisher, Client(pushd.port) as early:
        early.echo()
        for number in range(5):
            publisher.publish("updates", b"%d" % number)
        assert [early.read_line() for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
        with Client(pushd.port) as late:
            assert [late.read_line() for _ in range(2)] == [b"3", b"4"]
            publisher.publish("updates", b"5")
            assert late.read_line() == b"5"


def test_published_messages_are_logged_only_with_debug(
    redis_server: RedisServer, start_pushd: Callable[..., Pushd]
) -> None:
    quiet = start_pushd("--redis", redis_server.url, "--channel", "updates")
    talkative = start_pushd("--redis", redis_server.url, "--channel", "updates", "--debug")
    for pushd in (quiet, talkative):
        assert pushd.wait_for(r'Subscribed to "updates" at redis://127.0.0.1:\d+$')
    with Client(quiet.port) as reader, redis_server.client() as publisher:
        reader.echo()
        assert publisher.publish("updates", "white rabbit") == 2
        assert reader.read_line() == b"white rabbit"
    talkative.wait_for("Message on \"updates\": b'white rabbit'")
    assert "white rabbit" not in quiet.output


def test_limits_of_clients_and_of_lines(redis_server: RedisServer, start_pushd: Callable[..., Pushd]) -> None:
    pushd = start_pushd(
        *("--redis", redis_server.url, "--channel", "updates", "--max-clients", "3"),
        *("--max-clients-per-ip", "2", "--max-line", "1K"),
    )
    with ExitStack() as stack:
        first, second = (stack.enter_context(Client(pushd.port)) for _ in range(2))
        first.echo(b"x" * 1024)
        second.echo(b"\xff\x00")
        with Client(pushd.port) as third:
            assert third.read_to_end() == b"ERR too many clients\r\n"
        first.send(b"before\r\n" + b"x" * 300_000)
        assert first.read_line() == b"before"
        assert first.read_line() == b"ERR line too long"
        second.echo(b"still here")


def test_an_idle_client_is_closed(redis_server: RedisServer, start_pushd: Callable[..., Pushd]) -> None:
    pushd = start_pushd("--redis", redis_server.url, "--channel", "updates", "--idle-timeout", "0.3")
    with Client(pushd.port) as client:
        client.echo()
        assert client.read_to_end() == b""


def test_a_client_that_half_closes_gets_its_echoes(start_pushd: Callable[..., Pushd]) -> None:
    pushd = start_pushd("--redis", "redis://127.0.0.1:1", "--channel", "updates")
    with Client(pushd.port) as client:
        client.send(b"a\r\n" * 1000)
        client.socket.shutdown(socket.SHUT_WR)
        assert client.read_to_end() == b"a\r\n" * 1000


def test_a_client_that_sends_and_does_not_read_is_paused(start_pushd: Callable[..., Pushd]) -> None:
    pushd = start_pushd("--redis", "redis://127.0.0.1:1", "--channel", "updates", "--send-buffer", "4K")
    with Client(pushd.port, receive_buffer=4096) as client, Client(pushd.port) as other:
        other.echo()
        before = pushd.resident_bytes()
        line = b"x" * 998 + b"\r\n"
        sent = client.send_until_stuck(line * 1000)
        other.echo()
        assert pushd.resident_bytes() - before < 4 * 1024**2
        whole = sent // len(line)
        assert client.read(whole * len(line)) == line * whole


def test_the_broker_answers_a_publisher_that_half_closes(start_pushd: Callable[..., Pushd]) -> None:
    pushd = start_pushd("--redis", "embedded:0", "--channel", "updates")
    with Client(pushd.port) as reader, Client(pushd.broker_port()) as publisher:
        reader.echo()
        publisher.send(b'PUBLISH updates "white rabbit"\r\n')
        publisher.socket.shutdown(socket.SHUT_WR)
        assert publisher.read_to_end() == b":1\r\n"
        assert reader.read_line() == b"white rabbit"
