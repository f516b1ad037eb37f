"""The control protocol as its clients have it: a real twistd, a real Redis, real sockets."""

import base64
import contextlib
import signal
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import jwt
import pytest

from tests.control_clients import CONTROL, ControlClient, Event, control_ports, seconds
from tests.harness import TIMEOUT, Client, Pushd, RedisServer, free_port
from tests.integration.certificates import write_certificate

LEAVE_SECONDS = 5.0
MARGIN = 3.0
"""Seconds that a busy machine may take besides."""

SECRET = "a secret of thirty-two bytes and more"

Start = Callable[..., Pushd]


def start(start_pushd: Start, server: RedisServer, *options: str) -> tuple[Pushd, int]:
    """Return a pushd that follows a Redis, and its port of the control protocol; all may be subscribed to."""
    pushd = start_pushd("--redis", server.url, "--control", CONTROL, "--allow", "*", *options)
    (port,) = control_ports(pushd)
    return pushd, port


def publish(server: RedisServer, channel: str, *payloads: str | bytes) -> list[int]:
    """Publish to Redis; return how many received each."""
    with server.client() as publisher:
        pipeline = publisher.pipeline(transaction=False)
        for payload in payloads:
            pipeline.publish(channel, payload)
        return list(pipeline.execute())


def is_followed(server: RedisServer, channel: str) -> bool:
    return channel in server.cli("PUBSUB", "CHANNELS").splitlines()


def wait_left(server: RedisServer, channel: str) -> None:
    """Return as soon as Redis has no subscriber to a channel."""
    deadline = time.monotonic() + TIMEOUT
    with server.client() as asking:
        while channel.encode() in asking.pubsub_channels():
            assert time.monotonic() < deadline
            time.sleep(0.01)  # between two questions


def numbers(client: ControlClient, count: int) -> list[str]:
    """Return the payloads of the next events, which must be messages."""
    return [client.hear_only("message")["data"] for _ in range(count)]


class TestFollowing:
    def test_redis_is_asked_for_what_somebody_wants_and_left_when_nobody_has_for_a_while(
        self, redis_server: RedisServer, start_pushd: Start
    ) -> None:
        _, lingering = start(start_pushd, redis_server)
        _, forgetting = start(start_pushd, redis_server, "--linger", "0")
        ids = {}
        with ControlClient(lingering) as client, ControlClient(forgetting) as other:
            assert not is_followed(redis_server, "scores")
            first = client.ask("SUBSCRIBE scores", "subscribed", upstream="up", offset=0)["id"]
            assert is_followed(redis_server, "scores")
            client.ask("UNSUBSCRIBE scores", "unsubscribed")
            assert is_followed(redis_server, "scores")
            assert publish(redis_server, "scores", "1") == [1]
            client.ask(f"SUBSCRIBE scores FROM {first}", "subscribed", recovered=True)
            ids[lingering] = client.hear_only("message", data="1", offset=1)["id"]
            other.ask("SUBSCRIBE other", "subscribed")
            publish(redis_server, "other", "1")
            ids[forgetting] = other.hear_only("message")["id"]
            begun = time.monotonic()
            client.ask("UNSUBSCRIBE scores", "unsubscribed", id=ids[lingering])
            other.ask("UNSUBSCRIBE other", "unsubscribed", id=ids[forgetting])
            wait_left(redis_server, "scores")
            assert LEAVE_SECONDS - 0.1 < time.monotonic() - begun < LEAVE_SECONDS + MARGIN
            wait_left(redis_server, "other")
            before = time.time()
            assert publish(redis_server, "scores", "while nobody listens") == [0]
            after = time.time()
            again = client.ask(f"SUBSCRIBE scores FROM {ids[lingering]}", "subscribed", recovered=False)
            assert again["offset"] == 1
            gap = client.hear_only("gap", reason="source", missed=None)
            assert seconds(gap["since"]) <= before
            assert after <= seconds(gap["until"]) + 0.001
            publish(redis_server, "scores", "2")
            client.hear_only("message", data="2", offset=again["offset"] + 1)
            # Its log has been freed with that.
            new = other.ask(
                f"SUBSCRIBE other FROM {ids[forgetting]}", "subscribed", recovered=False, offset=0
            )
            assert new["id"] == ids[forgetting]
            other.hear_only("gap", reason="unknown", missed=None)

    def test_messages_before_and_after_an_outage_and_its_times(self, start_pushd: Start) -> None:
        with RedisServer() as first, ExitStack() as stack:
            _, port = start(start_pushd, first, "--heartbeat", "0.2")
            client = stack.enter_context(ControlClient(port))
            client.ask("SUBSCRIBE scores", "subscribed", upstream="up")
            publish(first, "scores", "before")
            message = next_but_heartbeats(client)
            assert message["data"] == "before"
            killed = time.time()
            first.kill()
            while (beat := client.hear_only("heartbeat"))["upstream"] == "up":
                pass
            assert killed - MARGIN < seconds(beat["since"]) <= time.time()
            assert beat["offsets"] == {"scores": 1}
            late = stack.enter_context(ControlClient(port))
            late.ask("SUBSCRIBE scores LAST 1", "subscribed", upstream="down", offset=0)
            late.hear_only("message", data="before")
            late.ask("SUBSCRIBE new", "subscribed", upstream="down", offset=0)
            back = stack.enter_context(ControlClient(port))
            back.ask(f"SUBSCRIBE scores FROM {message['id']}", "subscribed", upstream="down", recovered=False)
            restarting = time.time()
            second = stack.enter_context(RedisServer(port=first.port))
            for each in (client, late, back):
                gap = next_but_heartbeats(each)
                assert (gap["type"], gap["reason"], gap["missed"]) == ("gap", "source", None)
                assert seconds(gap["since"]) <= killed
                assert restarting <= seconds(gap["until"]) <= time.time()
            assert next_but_heartbeats(late)["channel"] == "new"
            assert publish(second, "scores", "after") == [1]
            for each in (client, late, back):
                assert next_but_heartbeats(each)["data"] == "after"
            while (beat := client.hear_only("heartbeat"))["upstream"] == "down":
                pass
            assert beat == {"type": "heartbeat", "upstream": "up", "offsets": {"scores": 2}}


def next_but_heartbeats(client: ControlClient) -> Event:
    while (event := client.hear())["type"] == "heartbeat":
        pass
    return event


class TestResuming:
    def test_after_a_restart_of_pushd(self, redis_server: RedisServer, start_pushd: Start) -> None:
        pushd, port = start(start_pushd, redis_server)
        with ControlClient(port) as client:
            client.ask("SUBSCRIBE scores", "subscribed")
            publish(redis_server, "scores", "1")
            last = client.hear_only("message")["id"]
            pushd.signal(signal.SIGTERM)
            client.hear_only("bye", reason="drain")
        pushd.wait()
        pushd, port = start(start_pushd, redis_server)
        with ControlClient(port) as client:
            assert not last.startswith(client.welcome["epoch"])
            client.ask(f"SUBSCRIBE scores FROM {last}", "subscribed", recovered=False, offset=0, id=last)
            client.hear_only("gap", reason="unknown", missed=None)
            publish(redis_server, "scores", "2")
            client.hear_only("message", data="2", offset=1)
        pushd.terminate()
        assert "Traceback" not in pushd.output

    def test_what_is_kept_comes_and_the_rest_is_counted(
        self, redis_server: RedisServer, start_pushd: Start
    ) -> None:
        _, port = start(start_pushd, redis_server, "--history", "1M")
        with ControlClient(port) as client, ControlClient(port) as keeping:
            keeping.ask("SUBSCRIBE scores SLOW latest", "subscribed")
            client.ask("SUBSCRIBE scores", "subscribed")
            publish(redis_server, "scores", *map(str, range(10)))
            assert numbers(client, 10) == list(map(str, range(10)))
            fifth, account = f"{client.account('scores').id.rsplit('-', 1)[0]}-5", client.account("scores")
            last = account.id
            client.ask("UNSUBSCRIBE scores", "unsubscribed")
            publish(redis_server, "scores", "10", "11")
            client.ask(f"SUBSCRIBE scores FROM {last}", "subscribed", recovered=True, offset=10)
            assert numbers(client, 2) == ["10", "11"]
            client.ask("UNSUBSCRIBE scores", "unsubscribed", offset=12)
            client.ask(f"SUBSCRIBE scores FROM {fifth}", "subscribed", recovered=True, offset=5)
            assert numbers(client, 7) == list(map(str, range(5, 12)))
            client.ask("UNSUBSCRIBE scores", "unsubscribed", offset=12)
            client.ask("SUBSCRIBE scores LAST 3", "subscribed", offset=9)
            assert numbers(client, 3) == ["9", "10", "11"]
            client.ask("UNSUBSCRIBE scores", "unsubscribed", offset=12)
            client.ask("SUBSCRIBE scores LAST 1000", "subscribed", offset=0)
            assert numbers(client, 12) == list(map(str, range(12)))
            publish(redis_server, "scores", *(f"{number:06}" + "x" * 50_000 for number in range(12, 52)))
            [client.hear_only("message") for _ in range(40)]
            client.ask("UNSUBSCRIBE scores", "unsubscribed", offset=52)
            client.ask(f"SUBSCRIBE scores FROM {fifth}", "subscribed", recovered=False, offset=5, id=fifth)
            gap = client.hear_only("gap", reason="evicted")
            assert gap["from"] == 6
            assert gap["missed"] == gap["to"] - 5
            assert 52 - 1024**2 // 50_000 <= gap["to"] <= 40
            first = client.hear_only("message", offset=gap["to"] + 1)
            assert int(first["data"][:6]) == first["offset"] - 1
            for _ in range(first["offset"], 52):
                client.hear_only("message")
            client.ask("STATUS", "status")
            client.ask("UNSUBSCRIBE scores", "unsubscribed", offset=52)
            client.ask("SUBSCRIBE scores LAST 1000", "subscribed", offset=gap["to"])


class TestMessages:
    def test_any_bytes(self, redis_server: RedisServer, start_pushd: Start) -> None:
        _, port = start(start_pushd, redis_server)
        texts = ["", "42", "007", "1.50", '{"a":1}', "a\r\nb\0", "ä\u2028\U0001f407", '"\\', "x" * 1024**2]
        binary = [b"\xff\xfe", b"\x80", "\ud800".encode(errors="surrogatepass"), bytes(range(256))]
        with ControlClient(port) as client:
            client.ask("SUBSCRIBE scores", "subscribed")
            publish(redis_server, "scores", *texts, *binary)
            for text in texts:
                message = client.hear_only("message", data=text)
                assert message.keys() == {"type", "channel", "offset", "id", "data"}
            for data in binary:
                message = client.hear_only("message", data_base64=base64.b64encode(data).decode())
                assert "data" not in message

    def test_patterns(self, redis_server: RedisServer, start_pushd: Start) -> None:
        _, port = start(start_pushd, redis_server)
        with ControlClient(port) as client, redis_server.client() as publisher:
            client.ask("PSUBSCRIBE news.*", "subscribed", pattern="news.*", offset=0)
            client.ask("SUBSCRIBE news.sport", "subscribed", channel="news.sport", offset=0)
            client.ask('SUBSCRIBE "late news"', "subscribed", channel="late news")
            assert publish(redis_server, "news.sport", "goal") == [2]
            both = [
                client.hear_only("message", data="goal", offset=1, channel="news.sport") for _ in range(2)
            ]
            assert sorted("pattern" in message for message in both) == [False, True]
            publish(redis_server, "news.politics", "vote")
            client.hear_only("message", pattern="news.*", channel="news.politics", offset=2)
            publisher.publish(b"news.\xff", "odd")
            odd = client.hear_only("message", pattern="news.*", offset=3, data="odd")
            assert base64.b64decode(odd["channel_base64"]) == b"news.\xff"
            publish(redis_server, "late news", "late")
            client.hear_only("message", channel="late news", data="late")
            client.ask("PUNSUBSCRIBE news.*", "unsubscribed", pattern="news.*", offset=3)
            publish(redis_server, "news.sport", "again")
            client.hear_only("message", channel="news.sport", data="again", offset=2)
            status = client.ask("STATUS", "status", upstream="up")
            assert [each["channel"] for each in status["subscriptions"]] == ["news.sport", "late news"]

    def test_publishing(self, redis_server: RedisServer, start_pushd: Start) -> None:
        _, port = start(start_pushd, redis_server, "--allow-publish", "scores")
        with (
            ControlClient(port) as client,
            redis_server.client() as other,
            other.pubsub() as subscriber,
        ):
            client.ask("PUBLISH scores nobody", "published", receivers=0)
            subscriber.subscribe("scores")
            assert subscriber.get_message(timeout=TIMEOUT)
            client.ask("PUBLISH scores somebody", "published", channel="scores", receivers=1)
            client.ask("SUBSCRIBE scores", "subscribed")
            client.say(r'PUBLISH scores "two\nlines"')
            client.say("PUBLISH scores 3:0 at last")
            events = [client.hear() for _ in range(4)]
            answers = [event for event in events if event["type"] == "published"]
            assert [answer["receivers"] for answer in answers] == [2, 2]
            assert [event["data"] for event in events if event["type"] == "message"] == [
                "two\nlines",
                "3:0 at last",
            ]
            assert publish(redis_server, "scores", "x") == [2]
            client.hear_only("message")
            client.ask("PUBLISH other x", "error", code="forbidden", command="PUBLISH", channel="other")
            redis_server.kill()
            client.ask("PUBLISH scores lost", "error", code="unavailable", command="PUBLISH")


class TestSlowClients:
    @pytest.mark.parametrize("policy", ["skip", "latest", "disconnect"])
    def test_a_client_that_does_not_read(
        self, policy: str, redis_server: RedisServer, start_pushd: Start
    ) -> None:
        pushd, port = start(
            start_pushd, redis_server, "--history", "1M", "--send-buffer", "4K", "--heartbeat", "0.5"
        )
        count = 3000
        with (
            ControlClient(port, receive_buffer=4096) as stalled,
            ControlClient(port) as reader,
        ):
            stalled.ask(f"SUBSCRIBE scores SLOW {policy}", "subscribed", offset=0)
            reader.ask("SUBSCRIBE scores SLOW disconnect", "subscribed", offset=0)
            for first in range(0, count, 100):
                batch = [f"{number:06}" + "x" * 994 for number in range(first, first + 100)]
                publish(redis_server, "scores", *batch)
                for text in batch:
                    while (event := reader.hear())["type"] == "heartbeat":
                        pass
                    assert event["data"] == text
            account = stalled.account("scores")
            if policy == "disconnect":
                pushd.wait_for(r"Disconnected slow consumer .* behind on \"scores\"")
                hear_until_reset(stalled)
                resumed = {("channel", "scores"): account}
                with ControlClient(port, resumed=resumed) as back:
                    last = account.offset
                    back.ask(
                        f"SUBSCRIBE scores FROM {account.id}", "subscribed", recovered=False, offset=last
                    )
                    back.hear_only("gap", reason="evicted", **{"from": last + 1})
                    check_the_rest(back, count)
            else:
                gaps = check_the_rest(stalled, count)
                assert [gap["reason"] for gap in gaps] == ["slow"] * len(gaps)
                assert gaps
                if policy == "latest":
                    assert gaps[-1]["to"] == count - 1
                said = stalled.ask("UNSUBSCRIBE scores", "unsubscribed", offset=count)
                assert said["id"] == account.id
                assert account.received + account.missed == count

    def test_answers_that_are_not_read_end_the_reading_and_no_more(
        self, redis_server: RedisServer, start_pushd: Start
    ) -> None:
        _, port = start(start_pushd, redis_server, "--send-buffer", "4K", "--command-rate", "100000")
        with ControlClient(port, receive_buffer=4096) as client:
            for number in range(ping_until_stuck(client)):
                assert client.hear_only("pong")["data"][:6] == f"{number:06}"


def ping_until_stuck(client: ControlClient) -> int:
    """Send PINGs until pushd has read no more for a second; return how many."""
    sent = 0
    client.socket.settimeout(1)
    with contextlib.suppress(TimeoutError):
        while True:
            client.say(f"PING {sent:06}{'x' * 1000}")
            sent += 1
    client.socket.settimeout(TIMEOUT)
    return sent


def hear_until_reset(client: ControlClient) -> None:
    """Take everything that comes whole before the connection is cut."""
    with contextlib.suppress(ConnectionResetError):
        while True:
            client.hear()


def check_the_rest(client: ControlClient, count: int) -> list[Event]:
    """Let a client read until it has everything; return its gaps: data says which number each message has."""
    account, gaps = client.account("scores"), []
    while account.offset < count:
        event = client.hear()
        if event["type"] == "message":
            assert int(event["data"][:6]) == event["offset"] - 1
        elif event["type"] == "gap":
            gaps.append(event)
    return gaps


class TestConnections:
    def test_everything_is_flushed_before_pushd_stops_and_all_are_told_when_to_come_back(
        self, redis_server: RedisServer, start_pushd: Start
    ) -> None:
        pushd, port = start(start_pushd, redis_server, "--send-buffer", "4K")
        with ExitStack() as stack:
            clients = [stack.enter_context(ControlClient(port, receive_buffer=4096)) for _ in range(10)]
            for client in clients:
                client.ask("SUBSCRIBE scores", "subscribed")
            reader = stack.enter_context(ControlClient(port))
            reader.ask("SUBSCRIBE scores", "subscribed")
            publish(redis_server, "scores", *("x" * 1000 for _ in range(1000)))
            numbers(reader, 1000)  # all are at pushd then
            pushd.signal(signal.SIGTERM)
            pushd.wait_for("Stopping: 11 clients to flush")
            waits = set()
            for client in clients:
                bye = client.hear_until("bye")
                assert bye["reason"] == "drain"
                waits.add(bye["retry_ms"])
                client.hear_end()
                assert (client.account("scores").offset, client.account("scores").missed) == (1000, 0)
            assert len(waits) > 5
            assert all(0 <= wait <= 10_000 for wait in waits)
        pushd.wait()
        assert "11 clients served, 0 refused, 0 cut off" in pushd.output

    def test_several_endpoints_one_of_them_a_unix_socket(
        self, redis_server: RedisServer, start_pushd: Start, tmp_path: Path
    ) -> None:
        path = tmp_path / "control"
        pushd = start_pushd(
            *("--redis", redis_server.url, "--channel", "scores"),
            *("--control", CONTROL, "--control", CONTROL, "--control", f"unix:{path}"),
        )
        ports = control_ports(pushd, 2)
        pushd.wait_for(f"Control protocol on {path}")
        local = socket.socket(socket.AF_UNIX)
        local.connect(str(path))
        with (
            ControlClient(local) as first,
            ControlClient(ports[0]) as second,
            ControlClient(ports[1]) as third,
            Client(pushd.port) as line,
        ):
            line.echo()
            for client in (first, second, third):
                client.ask("SUBSCRIBE scores", "subscribed")
                client.ask("SUBSCRIBE secrets", "error", code="forbidden")
            assert publish(redis_server, "scores", "1") == [1]
            for client in (first, second, third):
                client.hear_only("message", data="1", offset=1)
            assert line.read_line() == b"1"
            assert first.ask("STATUS", "status")["client"]

    def test_by_tls(self, redis_server: RedisServer, start_pushd: Start, tmp_path: Path) -> None:
        certificate = write_certificate(tmp_path / "server.pem", "127.0.0.1")
        port = free_port()
        pushd = start_pushd(
            *("--control", f"ssl:{port}:interface=127.0.0.1:privateKey={certificate}:certKey={certificate}"),
            *("--redis", redis_server.url, "--allow", "*", "--history", "1M", "--heartbeat", "0.5"),
        )
        control_ports(pushd, 0)
        context = ssl.create_default_context(cafile=str(certificate))

        def connect() -> ControlClient:
            plain = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
            return ControlClient(context.wrap_socket(plain, server_hostname="127.0.0.1"))

        with connect() as reader, connect() as stalled:
            reader.ask("SUBSCRIBE scores", "subscribed")
            stalled.ask("SUBSCRIBE scores SLOW skip", "subscribed")
            for first in range(0, 10_000, 100):
                publish(
                    redis_server,
                    "scores",
                    *(f"{number:06}{'x' * 994}" for number in range(first, first + 100)),
                )
                check_the_rest(reader, first + 100)
            assert check_the_rest(stalled, 10_000)
            reader.say("QUIT")
            while (event := reader.hear())["type"] == "heartbeat":
                pass
            assert event == {"type": "bye", "reason": "quit"}
            reader.hear_end()

    def test_no_more_clients_than_may_be_by_either_protocol(
        self, redis_server: RedisServer, start_pushd: Start
    ) -> None:
        pushd, port = start(start_pushd, redis_server, "--max-clients", "2")
        with Client(pushd.port) as line:
            line.echo()
            with ControlClient(port):
                for _ in range(2):
                    with Client(port) as client:
                        told = client.read_to_end()
                        assert told.startswith(b'{"type":"error","code":"too-many-clients"')
                        assert b'"retry_ms":' in told
                with Client(pushd.port) as client:
                    assert b"\r\n" in client.read_to_end()
        pushd.terminate()
        assert "2 clients served, 3 refused" in pushd.output


class TestTokens:
    def test_from_nobody_to_somebody_until_the_token_expires(
        self, redis_server: RedisServer, start_pushd: Start, tmp_path: Path
    ) -> None:
        key = tmp_path / "key"
        key.write_text(SECRET)
        pushd = start_pushd(
            *("--redis", redis_server.url, "--control", CONTROL, "--jwt-key", str(key)),
            *("--auth-timeout", "1", "--jwt-audience", "screens", "--heartbeat", "0.3"),
        )
        (port,) = control_ports(pushd)

        def token(expires_in: float, *channels: str, secret: str = SECRET, **claims: object) -> str:
            granted = {"subscribe": channels, "publish": ["scores"]}
            told = {"sub": "alice", "aud": "screens", "exp": time.time() + expires_in, "pushd": granted}
            return jwt.encode({**told, **claims}, secret)

        with ControlClient(port) as silent, ControlClient(port) as client:
            assert client.welcome["auth"] == "required"
            client.ask("SUBSCRIBE scores", "error", code="auth-required")
            client.ask("PING", "pong")
            client.ask(f"AUTH {token(60, secret=SECRET[::-1])}", "error", code="token-invalid")
            client.ask(f"AUTH {token(-1)}", "error", code="token-expired")
            first = token(60, "scores", "news.*")
            client.ask(f"AUTH {first}", "authenticated", name="alice")
            client.ask("SUBSCRIBE scores", "subscribed")
            client.ask("PSUBSCRIBE news.*", "subscribed")
            client.ask("PSUBSCRIBE *", "error", code="forbidden")
            client.ask("PUBLISH secrets x", "error", code="forbidden")
            expires = time.time() + 1.0
            claims = token(1.0, "scores")
            client.say(f"AUTH {claims}")
            said = next_but_heartbeats(client)
            assert said["type"] == "authenticated"
            assert abs(seconds(said["expires"]) - expires) < 0.5
            assert next_but_heartbeats(client)["pattern"] == "news.*"
            client.say("PUBLISH scores 1")
            events = [next_but_heartbeats(client), next_but_heartbeats(client)]
            assert sorted(event["type"] for event in events) == ["message", "published"]
            bye = client.hear_until("bye")
            assert bye["reason"] == "token-expired"
            assert seconds(said["expires"]) - 0.1 < time.time() < expires + MARGIN
            client.hear_end()
            silent.hear_only("error", code="auth-timeout")
            silent.hear_end()
        assert first not in pushd.output
        pushd.terminate()
        assert "Traceback" not in pushd.output
