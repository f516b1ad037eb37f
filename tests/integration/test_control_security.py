"""Hostile clients at a real pushd: each meets its named error or limit, and nobody else notices."""

import base64
import contextlib
import hmac
import json
import re
import selectors
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.control_clients import CONTROL, ControlClient, control_ports
from tests.harness import TIMEOUT, Pushd, RedisServer, raise_own_descriptor_limit
from tests.hostile import FAR, SECRET, token
from tests.programs import reset

NORMAL_SECONDS = 2.0
"""No neighbour of a hostile client waits so long, even on a busy machine."""

MIB = 1024**2

Start = Callable[..., Pushd]


@pytest.fixture
def start(start_pushd: Start) -> Iterator[Start]:
    """Return what starts a pushd with a control listener; whatever it meets, it must not log a traceback."""
    started: list[Pushd] = []

    def start(*options: str) -> Pushd:
        started.append(start_pushd("--control", CONTROL, *options))
        control_ports(started[-1])
        return started[-1]

    yield start
    for pushd in started:
        pushd.terminate()
        assert "Traceback" not in pushd.output
        assert "Unhandled" not in pushd.output


@pytest.fixture(params=["embedded", "redis"])
def source(request: pytest.FixtureRequest) -> str:
    """Return the URL of either source."""
    if request.param == "embedded":
        return "embedded:0"
    server: RedisServer = request.getfixturevalue("redis_server")
    return server.url


EVERYTHING = ("--allow", "*", "--allow-publish", "*")


def port_of(pushd: Pushd) -> int:
    return control_ports(pushd)[0]


def processor_seconds(pushd: Pushd) -> float:
    """How much time a processor has spent on pushd."""
    fields = Path(f"/proc/{pushd.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def descriptors(pushd: Pushd) -> int:
    return len(list(Path(f"/proc/{pushd.pid}/fd").iterdir()))


class Neighbour:
    """A well-behaved client: publishes to itself and says PING, again and again; notes the longest wait."""

    def __init__(self, pushd: Pushd, *, token: str | None = None, publishes: bool = True) -> None:
        self.longest = 0.0
        self.rounds = 0
        self._client = ControlClient(port_of(pushd))
        if token is not None:
            self._client.ask(f"AUTH {token}", "authenticated")
        self._publishes = publishes
        if publishes:
            self._client.ask("SUBSCRIBE quiet", "subscribed")
        self._done = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._client.socket.close()
        if error is None:
            if self._failure is not None:
                raise self._failure
            assert self.rounds
            assert self.longest < NORMAL_SECONDS

    def _run(self) -> None:
        try:
            while True:
                self._round()
                if self._done.wait(0.15):
                    break
            self._round()
        except Exception as failure:
            self._failure = failure

    def _round(self) -> None:
        asked_at = time.monotonic()
        if self._publishes:
            self._client.say(f"PUBLISH quiet {self.rounds}")
            self._hear("message", data=str(self.rounds))
        self._client.say(f"PING {self.rounds}")
        self._hear("pong", data=str(self.rounds))
        self.longest = max(self.longest, time.monotonic() - asked_at)
        self.rounds += 1

    def _hear(self, kind: str, **members: str) -> None:
        event = self._client.hear_until(kind)
        assert event == event | members


def code(client: ControlClient, line: str) -> str:
    """Send what is no good command, and return the code of the error."""
    code: str = client.ask(line, "error")["code"]
    return code


def hear_closing(client: ControlClient, code: str) -> None:
    """Check that a client is told this error at last, and closed."""
    while (event := client.hear())["type"] != "error":
        pass
    assert event["code"] == code
    client.hear_end()


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(header: bytes, claims: bytes, secret: bytes = b"?") -> str:
    """Make a token by hand, as no library would, signed with HS256."""
    message = f"{encoded(header)}.{encoded(claims)}"
    return f"{message}.{encoded(hmac.digest(secret, message.encode(), 'sha256'))}"


class TestTokens:
    PRIVATE = rsa.generate_private_key(65537, 2048)
    PUBLIC = PRIVATE.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    CLAIMS: ClassVar[dict[str, Any]] = {
        "sub": "neo",
        "aud": "pushd",
        "exp": FAR,
        "pushd": {"subscribe": ["*"], "publish": ["quiet"]},
    }

    def signed(self, **claims: object) -> str:
        return jwt.encode({**self.CLAIMS, **claims}, self.PRIVATE, "RS256")

    def bad(self) -> list[str]:
        claims = json.dumps(self.CLAIMS).encode()
        nested = b"[" * 2500 + b"]" * 2500
        with warnings.catch_warnings(action="ignore"):  # of a key that is no secret
            unsigned = jwt.encode(self.CLAIMS, None, "none")  # type: ignore[arg-type]
        return [
            unsigned,
            unsigned + "AAAA",
            forged(b'{"alg":"none"}', claims),
            forged(b'{"alg":"HS256"}', claims, self.PUBLIC),
            forged(b'{"alg":"HS256"}', claims, self.PUBLIC.strip()),
            forged(b'{"alg":"RS256"}', claims, self.PUBLIC),
            token(SECRET, aud="pushd"),
            self.signed()[:-8] + "AAAAAAAA",
            self.signed(aud="others"),
            self.signed(aud=["others", "more"]),
            self.signed(exp="never"),
            self.signed(exp=float("inf")),
            self.signed(pushd={"subscribe": "*"}),
            self.signed(pushd={"subscribe": [["*"]]}),
            forged(b'{"alg":"RS256"}', nested),
            forged(nested, claims),
            forged(b'{"alg":' + nested + b"}", claims),
            forged(b'{"alg":"RS256","x":' + b'{"a":' * 900 + b"1" + b"}" * 901, claims),
            forged(b'{"alg":' + b"1" * 5000 + b"}", claims),
            "..",
            "x" * 8187,  # with AUTH and a space, the longest line
        ]

    def test_bad_ones(self, start: Start, tmp_path: Path) -> None:
        (tmp_path / "key").write_bytes(self.PUBLIC)
        pushd = start(
            *("--redis", "embedded:0", "--jwt-key", str(tmp_path / "key"), "--jwt-audience", "pushd"),
            *("--auth-timeout", "60"),
        )
        refused = [(bad, "token-invalid") for bad in self.bad()]
        refused += [
            (self.signed(exp=1), "token-expired"),
            (self.signed(nbf=FAR), "token-not-yet-valid"),
            (self.signed(iat=FAR), "token-not-yet-valid"),
        ]
        with Neighbour(pushd, token=self.signed()), ControlClient(port_of(pushd)) as client:
            for bad, expected in refused:
                with ControlClient(port_of(pushd)) as stranger:
                    assert code(stranger, f"AUTH {bad}") == expected, bad
            with ControlClient(port_of(pushd)) as guessing:
                for _ in range(3):
                    assert code(guessing, "AUTH guess") == "token-invalid"
                guessing.hear_end()
            for line in ("SUBSCRIBE a", "PSUBSCRIBE *", "UNSUBSCRIBE a", "PUBLISH quiet 1", "STATUS"):
                assert code(client, line) == "auth-required"
            client.ask("PING still here", "pong")
            client.ask(f"AUTH {self.signed(exp=FAR * 1000)}", "authenticated")
            client.ask("SUBSCRIBE a", "subscribed")
            assert code(client, f"AUTH {self.signed(exp=1)}") == "token-expired"
            deep = self.signed(x=json.loads("[" * 400 + "]" * 400))
            assert client.ask(f"AUTH {deep}", "authenticated")
            assert client.ask("STATUS", "status")["subscriptions"]

    @pytest.mark.parametrize("size", [8 * 1024, MIB])
    def test_a_huge_one(self, size: int, start: Start, tmp_path: Path) -> None:
        (tmp_path / "key").write_bytes(SECRET)
        pushd = start(
            *("--redis", "embedded:0", "--jwt-key", str(tmp_path / "key"), "--max-line", "1M"),
            *("--auth-timeout", "60"),
        )
        good = token(pushd={"subscribe": ["quiet"], "publish": ["quiet"]})
        with Neighbour(pushd, token=good), ControlClient(port_of(pushd)) as client:
            before = pushd.resident_bytes()
            with contextlib.suppress(ConnectionError):  # it is closed before it has said all
                client.socket.sendall(b"AUTH " + b"x" * size)
                hear_closing(client, "line-too-long")
            assert pushd.resident_bytes() - before < MIB
        with ControlClient(port_of(pushd)) as client:
            client.ask(f"AUTH {good}", "authenticated")
            assert code(client, "AUTH " + "x" * 100_000) == "token-invalid"


class TestStrangers:
    @pytest.fixture
    def pushd(self, start: Start, tmp_path: Path) -> Pushd:
        (tmp_path / "key").write_bytes(SECRET)
        return start("--redis", "embedded:0", "--jwt-key", str(tmp_path / "key"), "--auth-timeout", "2")

    GOOD = token(pushd={"subscribe": ["quiet"], "publish": ["quiet"]})

    def test_a_slow_loris(self, pushd: Pushd) -> None:
        """However slowly a stranger speaks, it has its time and no more; who is known may take longer."""
        with (
            Neighbour(pushd, token=self.GOOD),
            ControlClient(port_of(pushd)) as stranger,
            ControlClient(port_of(pushd)) as known,
        ):
            known.ask(f"AUTH {self.GOOD}", "authenticated")
            before = processor_seconds(pushd)
            began = time.monotonic()
            stranger.socket.settimeout(0.02)
            known.say("PING")
            while True:
                stranger.socket.send(b"A")
                known.socket.send(b"P")
                with contextlib.suppress(TimeoutError):
                    event = stranger.hear()
                    break
            assert 1.5 < time.monotonic() - began < 2 + NORMAL_SECONDS
            assert event["code"] == "auth-timeout"
            stranger.hear_end()
            assert processor_seconds(pushd) - before < 1
            known.socket.sendall(b"\nQUIT\n")
            assert known.hear_until("error")["code"] == "unknown-command"
            known.hear_only("bye")

    def test_1000_that_never_say_who_they_are(self, pushd: Pushd) -> None:
        strangers(pushd, 1000, self.GOOD)

    def test_floods(self, pushd: Pushd) -> None:
        """What a stranger makes pushd keep for it is little, though it says much and reads nothing."""
        before = pushd.resident_bytes()
        with Neighbour(pushd, token=self.GOOD), contextlib.ExitStack() as stack:
            clients = [
                stack.enter_context(ControlClient(port_of(pushd), receive_buffer=4096)) for _ in range(20)
            ]
            for client in clients:
                client.socket.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    client.socket.send((b"PING " + b"x" * 8000 + b"\n") * 200)
            with ControlClient(port_of(pushd)) as last:
                last.hear_only("error", code="auth-timeout")
            assert pushd.resident_bytes() - before < 20 * 160 * 1024


def strangers(pushd: Pushd, count: int, good: str) -> None:
    """Have so many connect and say nothing; see them all closed in time, and a good client beside served."""
    assert raise_own_descriptor_limit(count + 500)
    before, processor = pushd.resident_bytes(), processor_seconds(pushd)
    with Neighbour(pushd, token=good) as neighbour, contextlib.ExitStack() as stack:
        waiting = selectors.DefaultSelector()
        stack.callback(waiting.close)
        began = time.monotonic()
        for number in range(count):
            connection = stack.enter_context(socket.socket())
            connection.bind((f"127.0.0.{2 + number % 50}", 0))
            connection.connect(("127.0.0.1", port_of(pushd)))
            connection.setblocking(False)
            waiting.register(connection, selectors.EVENT_READ, [])
        connected = time.monotonic() - began
        most = pushd.resident_bytes()
        while waiting.get_map():
            ready = waiting.select(TIMEOUT)
            assert ready
            for key, _ in ready:
                assert isinstance(key.fileobj, socket.socket)
                if data := key.fileobj.recv(65536):
                    key.data.append(data)
                else:
                    waiting.unregister(key.fileobj)
                    *_, last = b"".join(key.data).splitlines()
                    assert json.loads(last)["code"] == "auth-timeout"
        most = max(most, pushd.resident_bytes())
        closed = time.monotonic() - began
    print(
        f"{count} strangers connected in {connected:.1f} s, all closed after {closed:.1f} s;"
        f" {(most - before) / count:.0f} bytes each; neighbour waited {neighbour.longest:.3f} s at most;"
        f" {processor_seconds(pushd) - processor:.2f} s of processor"
    )
    assert (most - before) / count < 16 * 1024


class TestLimits:
    def test_clients_of_one_address(self, start: Start) -> None:
        pushd = start("--redis", "embedded:0", *EVERYTHING, "--max-clients-per-ip", "3")
        with contextlib.ExitStack() as stack:
            clients = [
                stack.enter_context(ControlClient(connection_from("127.0.0.2", pushd))) for _ in range(3)
            ]
            for _ in range(20):
                with connection_from("127.0.0.2", pushd) as connection, connection.makefile("rb") as lines:
                    (line,) = lines.readlines()
                refusal = json.loads(line)
                assert refusal["code"] == "too-many-clients"
                assert 0 <= refusal["retry_ms"] <= 10_000
            with Neighbour(pushd):
                clients[0].say("QUIT")
                clients[0].hear_only("bye")
                clients[0].hear_end()
                clients[0].socket.close()
                stack.enter_context(ControlClient(connection_from("127.0.0.2", pushd)))

    def test_mistakes(self, start: Start) -> None:
        pushd = start("--redis", "embedded:0", "--allow", "a*", "--max-subscriptions", "2")
        with ControlClient(port_of(pushd)) as client:
            client.ask("SUBSCRIBE a", "subscribed")
            assert code(client, "SUBSCRIBE a") == "already-subscribed"
            assert code(client, "SUBSCRIBE a FROM x SLOW latest") == "already-subscribed"
            client.ask("PSUBSCRIBE a", "subscribed")
            assert code(client, "SUBSCRIBE ab") == "too-many-subscriptions"
            assert code(client, "UNSUBSCRIBE ab") == "not-subscribed"
            client.ask("PUNSUBSCRIBE a", "unsubscribed")
            assert code(client, "PUNSUBSCRIBE a") == "not-subscribed"
            assert code(client, "PSUBSCRIBE *") == "forbidden"
            assert code(client, "PUBLISH a b") == "forbidden"
            assert code(client, "AUTH x.y.z") == "auth-unused"
            assert code(client, "SUBSCRIBE " + "a" * 1025) == "bad-arguments"

    def test_more_than_the_rate(self, start: Start, source: str) -> None:
        pushd = start("--redis", source, *EVERYTHING)
        with Neighbour(pushd), ControlClient(port_of(pushd)) as client:
            rounds = 0
            while True:
                client.say("SUBSCRIBE a", "UNSUBSCRIBE a")
                event = json.loads(client.read_line())
                if event["type"] == "subscribed":  # with Redis it may have had no time for that
                    event = json.loads(client.read_line())
                if event["type"] == "error":
                    break
                rounds += 1
            assert event == event | {"code": "rate-limited", "retry_ms": 10_000}
            client.hear_end()
            assert 100 <= rounds <= 150

    def test_coming_and_going_to_one_channel(self, start: Start, source: str) -> None:
        pushd = start("--redis", source, *EVERYTHING, "--command-rate", "1000")
        with Neighbour(pushd), ControlClient(port_of(pushd)) as client:
            rounds(client, ["a"] * 500)
            before = pushd.resident_bytes()
            rounds(client, ["a"] * 2000)
            assert pushd.resident_bytes() - before < MIB

    def test_ever_new_channels(self, start: Start, source: str) -> None:
        """Logs that nobody claims make room, and nothing grows."""
        pushd = start("--redis", source, *EVERYTHING, "--command-rate", "1000", "--max-channels", "100")
        with Neighbour(pushd), ControlClient(port_of(pushd)) as client:
            rounds(client, [f"a{number}" for number in range(1000)])
            before = pushd.resident_bytes()
            rounds(client, [f"b{number}" for number in range(3000)])
            assert pushd.resident_bytes() - before < MIB

    def test_all_channels(self, start: Start, source: str) -> None:
        """When all logs are in use nobody gets another one, until somebody goes."""
        pushd = start("--redis", source, *EVERYTHING, "--max-channels", "101")
        with Neighbour(pushd), ControlClient(port_of(pushd)) as other:
            with ControlClient(port_of(pushd)) as client:
                for number in range(100):
                    client.ask(f"SUBSCRIBE a{number}", "subscribed")
                assert code(client, "SUBSCRIBE b") == "too-many-channels"
                assert code(other, "SUBSCRIBE b") == "too-many-channels"
                other.ask("SUBSCRIBE a1", "subscribed")
                client.ask("QUIT", "bye")
                client.hear_end()
            other.ask("SUBSCRIBE b", "subscribed")

    def test_patterns(self, start: Start, redis_server: RedisServer) -> None:
        """Each brings a copy of each message; there are few, and who has them gets all copies."""
        pushd = start("--redis", redis_server.url, *EVERYTHING, "--max-patterns", "12")
        with (
            Neighbour(pushd),
            ControlClient(port_of(pushd)) as client,
            ControlClient(port_of(pushd)) as other,
            redis_server.client() as publisher,
        ):
            patterns = [f"{'*' * number}{'?' * number}n" for number in range(1, 10)]
            for pattern in patterns[:8]:
                client.ask(f"PSUBSCRIBE {pattern}", "subscribed")
            assert code(client, f"PSUBSCRIBE {patterns[8]}") == "too-many-subscriptions"
            for number in range(4):
                other.ask(f"PSUBSCRIBE a{number}*", "subscribed")
            assert code(other, "PSUBSCRIBE b*") == "too-many-channels"
            pipeline = publisher.pipeline(transaction=False)
            for _ in range(1000):
                pipeline.publish("a" * 20 + "n", "x" * 1000)
            assert set(pipeline.execute()) == {8}
            for _ in range(8 * 1000):
                client.hear_until("message")
            assert {account.received for account in client.accounts.open.values()} == {1000}
        assert "No subscription" not in pushd.output


def connection_from(address: str, pushd: Pushd) -> socket.socket:
    connection = socket.socket()
    connection.settimeout(TIMEOUT)
    connection.bind((address, 0))
    connection.connect(("127.0.0.1", port_of(pushd)))
    return connection


def rounds(client: ControlClient, names: Sequence[str]) -> None:
    """Subscribe to each channel, and unsubscribe again."""
    for name in names:
        client.ask(f"SUBSCRIBE {name}", "subscribed")
        client.ask(f"UNSUBSCRIBE {name}", "unsubscribed")


class TestMemory:
    NAMES = tuple('"' + "\\u0001" * 1020 + f'{number:03}"' for number in range(128))
    """The longest to tell: each byte takes six."""

    def test_long_names(self, start: Start) -> None:
        pushd = start("--redis", "embedded:0", *EVERYTHING, "--heartbeat", "0.5")
        with Neighbour(pushd) as neighbour, ControlClient(port_of(pushd)) as client:
            client.say(*(f"SUBSCRIBE {name}" for name in self.NAMES))
            for _ in self.NAMES:
                client.hear_until("subscribed")
            client.say("STATUS")
            assert len(client.hear_until("status")["subscriptions"]) == 128
            before = processor_seconds(pushd)
            for _ in range(4):
                heartbeat = client.hear_until("heartbeat")
            assert len(heartbeat["offsets"]) == 128
            print(f"{processor_seconds(pushd) - before:.2f} s for 4 heartbeats; {neighbour.longest:.3f} s")

    def test_clients_that_never_read(self, start: Start) -> None:
        """What waits for them is bounded, by the longest answer, too."""
        pushd = start("--redis", "embedded:0", *EVERYTHING, "--command-rate", "100000")
        with Neighbour(pushd), contextlib.ExitStack() as stack:
            before = pushd.resident_bytes()
            for _ in range(10):
                client = stack.enter_context(ControlClient(port_of(pushd), receive_buffer=4096))
                client.say(*(f"SUBSCRIBE {name}" for name in self.NAMES))
                client.socket.settimeout(0.3)
                with contextlib.suppress(TimeoutError, ConnectionError):
                    while True:
                        client.socket.sendall(b"STATUS\nHELP\nPING\n" * 100)
            # Ten times 64 KiB of answers, one more of 0.8 MB, and one that is on its way.
            assert pushd.resident_bytes() - before < 10 * 2.5 * MIB

    def test_publishing_while_redis_is_frozen(self, start: Start, redis_server: RedisServer) -> None:
        pushd = start(
            *("--redis", redis_server.url, *EVERYTHING, "--command-rate", "100000", "--redis-timeout", "2"),
        )
        with Neighbour(pushd, publishes=False), contextlib.ExitStack() as stack:
            clients = [stack.enter_context(ControlClient(port_of(pushd))) for _ in range(10)]
            clients[0].ask("PUBLISH a 1", "published")
            before = pushd.resident_bytes()
            redis_server.signal(signal.SIGSTOP)
            try:
                for client in clients:
                    client.say(*["PUBLISH a " + "x" * 16_000] * 200)
                most = before
                for client in clients:
                    for _ in range(200):
                        assert client.hear_only("error")["code"] == "unavailable"
                        most = max(most, pushd.resident_bytes())
            finally:
                redis_server.signal(signal.SIGCONT)
            assert most - before < 40 * MIB
            print(f"{(most - before) / MIB:.1f} MiB more")
            pushd.wait_for("Connected to|Subscribed to")
            clients[0].ask("PUBLISH a 2", "published")

    def test_saying_goodbye_while_redis_is_frozen(self, start: Start, redis_server: RedisServer) -> None:
        """Who has closed its sending side is answered what Redis does not, and closed."""
        pushd = start("--redis", redis_server.url, *EVERYTHING, "--redis-timeout", "1", "--redis-ping", "1")
        with ControlClient(port_of(pushd)) as publisher, ControlClient(port_of(pushd)) as subscriber:
            publisher.ask("PUBLISH a 1", "published")
            redis_server.signal(signal.SIGSTOP)
            try:
                publisher.say("PUBLISH a 2", "PING")
                subscriber.say("SUBSCRIBE a", "PING")
                for client in (publisher, subscriber):
                    client.socket.shutdown(socket.SHUT_WR)
                    client.hear_only("pong")
                publisher.hear_only("error", code="unavailable", command="PUBLISH", channel="a")
                subscriber.hear_only("subscribed", upstream="down")
                publisher.hear_end()
                subscriber.hear_end()
            finally:
                redis_server.signal(signal.SIGCONT)

    def test_coming_and_going(self, start: Start) -> None:
        """Clients leave nothing behind, however they go."""
        pushd = start("--redis", "embedded:0", *EVERYTHING, "--max-channels", "100")
        endings: Sequence[Callable[[ControlClient], object]] = (
            lambda client: client.socket.close(),
            lambda client: reset(client.socket),
            lambda client: client.say("QUIT"),
            lambda client: client.socket.shutdown(socket.SHUT_WR),
        )
        words = (b"", b"PI", b"SUBSCRIBE a\n", b"SUBSCRIBE a\nPUBLISH a b\nSUBSC", b"PSUBSCRIBE a*\nSTATUS\n")

        def come_and_go(count: int) -> None:
            for number in range(count):
                with ControlClient(port_of(pushd)) as client:
                    client.socket.sendall(words[number % len(words)])
                    endings[number % len(endings)](client)

        with Neighbour(pushd):
            come_and_go(500)
            memory, opened = pushd.resident_bytes(), descriptors(pushd)
            come_and_go(5000)
            with ControlClient(port_of(pushd)) as client:
                client.ask("PING", "pong")
                assert descriptors(pushd) <= opened + 20
            assert pushd.resident_bytes() - memory < MIB


class TestBytes:
    def test_no_commands(self, start: Start) -> None:
        pushd = start("--redis", "embedded:0", *EVERYTHING)
        with Neighbour(pushd), ControlClient(port_of(pushd)) as client:
            for line, expected in (
                (b"\xff\xfb\x1f\xff\xfd\x03PING\r\n", "bad-encoding"),  # as telnet begins
                (b"\x00\n", "unknown-command"),
                (b"PING\x00\n", "bad-arguments"),
                (b"PING\rPING\n", "bad-arguments"),
                (b"PING a\x00b\n", "bad-arguments"),
                (b'PING "\\ud800"\n', "bad-arguments"),
                (b'PUBLISH "\\udc00" x\n', "bad-arguments"),
                (b"\xed\xa0\x80\n", "bad-encoding"),
                (b'SUBSCRIBE "' + b"[" * 5000 + b"\n", "bad-arguments"),
                (b"SUBSCRIBE a LAST 9999999999\n", "bad-arguments"),
                (b"GET / HTTP/1.1\r\n", "unknown-command"),
                (b"*1\r\n", "unknown-command"),
                (b"\x16\x03\x01\x02\x00\x01\n", "unknown-command"),  # as TLS begins
            ):
                client.socket.sendall(line)
                assert client.hear_only("error")["code"] == expected, line
            client.socket.sendall(b"\r\n\n \n\t\r\nPING end\r\n")
            client.hear_only("pong", data="end")
            client.socket.sendall(b"\r" * 20_000)
            hear_closing(client, "line-too-long")

    def test_a_browser(self, start: Start) -> None:
        """A foreign page can make it connect and send lines: none of them is done."""
        pushd = start("--redis", "embedded:0", *EVERYTHING)
        with Neighbour(pushd) as neighbour, ControlClient(port_of(pushd)) as watcher:
            watcher.ask("SUBSCRIBE a", "subscribed")
            for first in ("POST / HTTP/1.1", "PUT / HTTP/1.1\r\nHost: localhost", "OPTIONS /\r\nhOsT: x"):
                with ControlClient(port_of(pushd)) as client:
                    client.socket.sendall(f"{first}\r\nX: y\r\n\r\nPUBLISH a x\r\n".encode())
                    with contextlib.suppress(ConnectionResetError):
                        while line := client.read_line():
                            assert json.loads(line)["type"] == "error"
            watcher.ask("PING", "pong")  # and no message before that
        assert neighbour.rounds

    def test_ids_of_other_places(self, start: Start) -> None:
        pushd = start("--redis", "embedded:0", *EVERYTHING)
        with ControlClient(port_of(pushd)) as client:
            client.ask("SUBSCRIBE a", "subscribed")
            client.ask("SUBSCRIBE b", "subscribed")
            for number in range(3):
                client.say(f"PUBLISH a {number}")
                client.hear_until("published")
            place = client.account("a").id
            label = place.split("-")[0]
            client.say("UNSUBSCRIBE a")
            client.hear_until("unsubscribed")
            for forged in (
                *(f"{label}-4", f"{label}-999999999999999", f"{label}-1+1", f"{label}-0+999999999999999"),
                *(f"{label}-", label, f"{label}-1+", "-", "x" * 5000, f"{label}-1-1", f"{label}x-1"),
                *(client.account("b").id, f"{label}-00000000000000000001", f"{label}-\u0661"),
            ):
                asked = client.ask(f"SUBSCRIBE a FROM {forged}", "subscribed", recovered=False, id=forged)
                client.hear_only("gap", reason="unknown", missed=None)
                # Delivery goes on with the oldest that is kept.
                assert asked["offset"] == 0
                assert [client.hear_only("message")["data"] for _ in range(3)] == ["0", "1", "2"]
                client.ask("UNSUBSCRIBE a", "unsubscribed", offset=3)
            client.ask("SUBSCRIBE a LAST 999999999", "subscribed", offset=0)

    def test_patterns_that_cost_much(self, start: Start) -> None:
        """Redis and pushd match in bounded time, where a recursion would never end."""
        pushd = start(
            *("--redis", "embedded:0", "--allow", "quiet", "--allow", "*a*a*a*a*b", "--allow", "*[c]*a*"),
            *("--allow-publish", "quiet", "--allow-publish", "*a*a*a*a*a*a*a*a*c"),
        )
        name = "a" * 1024
        with Neighbour(pushd), ControlClient(port_of(pushd)) as client:
            for _ in range(30):
                assert code(client, f"SUBSCRIBE {name}") == "forbidden"
                assert code(client, f"PUBLISH {name} x") == "forbidden"
                assert code(client, f"PSUBSCRIBE {'*a' * 60}") == "forbidden"
            client.ask(f"SUBSCRIBE {name[:-1]}b", "subscribed")
            client.ask("PSUBSCRIBE *a*a*a*a*a*a*b", "subscribed")
            for _ in range(20):
                client.ask(f"PUBLISH {name[:-1]}c x", "published", receivers=0)


class TestProbes:
    def test_clients_cannot_disturb_them(self, start: Start, redis_server: RedisServer) -> None:
        """Nor do they see any: not even who subscribes to everything."""
        pushd = start("--redis", redis_server.url, *EVERYTHING, "--redis-probe", "0.2")
        with Neighbour(pushd), ControlClient(port_of(pushd)) as client, redis_server.client() as redis:
            for line in ("SUBSCRIBE pushd:probe:1", "PSUBSCRIBE pushd:probe:*", "PUBLISH pushd:probe:1 1"):
                assert code(client, line) == "forbidden"
            client.ask("PSUBSCRIBE *", "subscribed")
            (probe,) = redis.pubsub_channels("pushd:probe:*")
            with redis.pubsub() as probes:
                probes.subscribe(probe)
                sent = 0
                while sent < 10:
                    sent += (probes.get_message(timeout=TIMEOUT) or {})["type"] == "message"
            client.say("PING end")
            heard = []
            while (event := client.hear())["type"] != "pong":
                heard.append(event)
        named = {event["channel"] for event in heard if event["type"] == "message"}
        assert named <= {"quiet"}
        pushd.terminate()
        sent, missed = map(int, re.findall(r"probes: (\d+) sent, (\d+) missed", pushd.output)[-1])
        assert sent >= 10
        assert missed == 0
        assert "failures: none" in pushd.output
