"""The options of the twistd plugin: read, checked, explained; and ports that cannot be had."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pushd.message import Kind, Topic
from pushd.redis_urls import Address, Cluster, Embedded, Redis, Sentinel
from pushd.settings import Control, Settings, SlowPolicy
from pushd.tap import PASSWORD_VARIABLE, SENTINEL_PASSWORD_VARIABLE, Options, makeService


@pytest.fixture(autouse=True)
def _no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)


def parse(*words: str) -> Settings:
    options = Options()
    options.parseOptions(words)
    return options.settings


def refusal(*words: str) -> str:
    """Return the line that wrong options end the process with."""
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    # Python prints a text to stderr, and exits with status 1.
    assert isinstance(caught.value.code, str)
    assert len(caught.value.code.splitlines()) == 1
    return caught.value.code


def test_without_options_the_defaults_hold() -> None:
    assert parse() == Settings()


def test_every_option_is_read() -> None:
    words = (
        "--port 8888 --port unix:/run/pushd/socket --channel updates --channel alerts --pattern news.*"
        " --redis redis://redis.example:6380"
        " --redis-ping 2 --redis-timeout 1 --redis-probe 0 --slow skip"
        " --history 1M --replay 10 --send-buffer 64K"
        " --max-line 1K --max-clients 100 --max-clients-per-ip 2 --idle-timeout 90 --drain 0.5 --debug"
    )
    assert parse(*words.split()) == Settings(
        endpoints=("tcp:8888:backlog=65535", "unix:/run/pushd/socket"),
        topics=(Topic(b"updates"), Topic(b"alerts"), Topic(b"news.*", Kind.PATTERN)),
        source=Redis(address=Address("redis.example", 6380)),
        redis_ping=2.0,
        redis_timeout=1.0,
        redis_probe=0.0,
        slow=SlowPolicy.SKIP,
        history=1024**2,
        replay=10,
        send_buffer=64 * 1024,
        max_line=1024,
        max_clients=100,
        max_clients_per_ip=2,
        idle_timeout=90.0,
        drain=0.5,
        debug=True,
    )


def test_every_option_of_the_control_protocol_is_read(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32 + b"\n")
    words = (
        "--control 8889 --control unix:/run/pushd/control --allow scores --allow news.*"
        f" --allow-publish chat --allow-publish log.* --jwt-key {key} --jwt-audience us --jwt-issuer them"
        " --auth-timeout 2.5 --max-subscriptions 1 --command-rate 0.5 --heartbeat 0.1"
        " --linger 0 --max-channels 7 --max-patterns 3"
    )
    assert parse(*words.split()).control == Control(
        endpoints=("tcp:8889:backlog=65535", "unix:/run/pushd/control"),
        allow=(b"scores", b"news.*"),
        allow_publish=(b"chat", b"log.*"),
        jwt_key=b"k" * 32 + b"\n",
        jwt_audience="us",
        jwt_issuer="them",
        auth_timeout=2.5,
        max_subscriptions=1,
        command_rate=0.5,
        heartbeat=0.1,
        linger=0.0,
        max_channels=7,
        max_patterns=3,
    )


def test_control_alone_opens_no_port_for_lines() -> None:
    """Who lets clients choose does not want everybody to get everything beside it."""
    control = Control(endpoints=("tcp:8889:backlog=65535",))
    assert parse("--control", "8889") == Settings(endpoints=(), control=control)
    assert parse("--control", "8889", "--port", "8888") == Settings(control=control)
    assert parse("--port", "1").endpoints == ("tcp:1:backlog=65535",)


def test_channels_may_be_any_bytes_and_count_once() -> None:
    assert parse("--channel", "\udcff\udcfe", "--channel", "42", "--channel", "42").topics == (
        Topic(b"\xff\xfe"),
        Topic(b"42"),
    )


def test_what_is_allowed_may_be_any_bytes() -> None:
    control = parse("--control", "1", "--allow", "\udcff*", "--allow-publish", "", "--allow", "snö").control
    assert (control.allow, control.allow_publish) == ((b"\xff*", "snö".encode()), (b"",))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--slow", "drop"], "pushd: --slow: 'drop' is not a slow policy; allowed: disconnect, skip, latest"),
        (
            ["--port", "99999"],
            "pushd: --port: '99999' is wrong; allowed: a whole number from 0 to 65535,"
            " or an endpoint such as unix:/run/pushd/socket",
        ),
        (
            ["--drain", "-1"],
            "pushd: --drain: '-1' is wrong; allowed: seconds, 0 and more, such as 2.5",
        ),
        (
            ["--control", "99999"],
            "pushd: --control: '99999' is wrong; allowed: a whole number from 0 to 65535,"
            " or an endpoint such as unix:/run/pushd/socket",
        ),
        (
            ["--command-rate", "0"],
            "pushd: --command-rate: '0' is wrong; allowed: a number from 0.1 on, such as 20 or 0.5",
        ),
        (
            ["--max-channels", "0"],
            "pushd: --max-channels: '0' is wrong; allowed: a whole number from 1 to 1000000000",
        ),
    ],
)
def test_a_wrong_value_is_one_line(words: list[str], line: str) -> None:
    assert refusal(*words) == line


@pytest.mark.parametrize(
    "words",
    [
        ["--bogus"],
        ["updates"],
        ["--port"],
        ["--redis-ca", "x"],
        ["--redis", "http://:secret@h"],
        ["--redis", "redis://me@h"],
        ["--redis", "redis+sentinel://:secret@h"],
        ["--redis", "redis+cluster://:secret@h/1"],
        ["--redis", "redis+cluster://:secret@h:99999"],
        ["--shard-channel", "updates"],
        ["--shard-channel", "updates", "--redis", "embedded"],
        ["--sentinel-user", "me"],
        ["--sentinel-password-file", "x"],
        ["--redis", "redis+sentinel://h/main", "--sentinel-user", "me"],
        ["--redis-ping", "0"],
        ["--redis-probe", "0.01"],
        ["--control"],
        ["--control", "http"],
        ["--control", "65536"],
        ["--control", "8889", "--control", "-1"],
        ["--auth-timeout", "0"],
        ["--max-subscriptions", "0"],
        ["--command-rate", "0"],
        ["--command-rate", "many"],
        ["--heartbeat", "0"],
        ["--linger", "-1"],
        ["--max-channels", "0"],
    ],
)
def test_other_mistakes_are_one_line_too(words: list[str]) -> None:
    line = refusal(*words)
    assert line.startswith("pushd: ")
    assert "allowed: " in line
    assert "secret" not in line


def test_the_password_comes_from_a_file_or_the_environment_or_the_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = ["--redis", "redis://me:from-url@localhost"]
    assert parse(*url).source == Redis(username=b"me", password=b"from-url")
    monkeypatch.setenv(PASSWORD_VARIABLE, "from-variable")
    assert parse(*url).source == Redis(username=b"me", password=b"from-variable")
    file = tmp_path / "password"
    file.write_bytes(b"from file\r\nsecond line\r\n")
    assert parse(*url, "--redis-password-file", str(file)).source == Redis(
        username=b"me", password=b"from file"
    )
    assert parse("--redis", "embedded").source == Embedded(password=b"from-variable")


@pytest.mark.parametrize("content", [None, b"", b"\nsecond line\n"])
def test_a_password_file_must_hold_one(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    line = refusal("--redis-password-file", str(file))
    assert str(file) in line
    assert "allowed: " in line


def test_authorities_go_with_tls_only(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(b"PEM")
    assert parse("--redis", "rediss://h", "--redis-ca", str(file)).source == Redis(
        address=Address("h", 6379), tls=True, ca=b"PEM"
    )
    assert "only with --redis rediss" in refusal("--redis", "redis://h", "--redis-ca", str(file))
    assert "cannot read" in refusal("--redis", "rediss://h", "--redis-ca", str(tmp_path / "none"))


def test_sentinels_have_a_password_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = ["--redis", "redis+sentinel://:data@h/main"]
    plain = Sentinel(addresses=(Address("h", 26379),), master="main", password=b"data")
    assert parse(*url).source == plain
    file = tmp_path / "password"
    file.write_bytes(b"from file\n")
    assert parse(*url, "--sentinel-user", "me", "--sentinel-password-file", str(file)).source == replace(
        plain, sentinel_username=b"me", sentinel_password=b"from file"
    )
    monkeypatch.setenv(SENTINEL_PASSWORD_VARIABLE, "from-variable")
    assert parse(*url).source == replace(plain, sentinel_password=b"from-variable")


@pytest.mark.parametrize("option", ["allow", "allow-publish", "jwt-key", "jwt-audience", "jwt-issuer"])
def test_what_protects_the_control_protocol_has_no_use_without_it(option: str) -> None:
    """Somebody who forgets --control would believe that something is protected."""
    line = f"pushd: --{option}: has no use here; allowed: only with --control"
    assert refusal(f"--{option}", "x") == line
    assert refusal(f"--{option}", "", "--port", "8888") == line


@pytest.mark.parametrize("option", ["jwt-audience", "jwt-issuer"])
def test_who_tokens_are_for_has_no_use_without_a_key(option: str) -> None:
    line = refusal("--control", "8889", f"--{option}", "x")
    assert line == f"pushd: --{option}: has no use here; allowed: only with --jwt-key"


@pytest.mark.parametrize(("name", "why"), [("none", "No such file or directory"), ("", "Is a directory")])
def test_a_key_must_be_in_a_readable_file(name: str, why: str, tmp_path: Path) -> None:
    path = str(tmp_path / name)
    assert refusal("--control", "8889", "--jwt-key", path) == (
        f"pushd: --jwt-key: cannot read {path!r}: {why}; allowed: a readable file"
    )


def refused_key(file: Path, content: bytes) -> str:
    """Return the line that a key ends the process with which is of no use for tokens."""
    file.write_bytes(content)
    options = Options()
    options.parseOptions(["--control", "tcp:0:interface=127.0.0.1", "--jwt-key", str(file)])
    with pytest.raises(SystemExit) as caught:
        makeService(options)
    assert isinstance(caught.value.code, str)
    assert len(caught.value.code.splitlines()) == 1
    return caught.value.code


KEYS = (
    "allowed: a PEM public key (RSA from 2048 bits, P-256, P-384, P-521, Ed25519, Ed448), or a secret of at"
    " least 32 bytes"
)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is a secret of 0 bytes"),
        (b"k" * 31 + b"\n", "it is a secret of 31 bytes"),
        (b"-----BEGIN PUBLIC KEY-----\nx\n", "it is PEM, but no public key that is understood"),
        (b"-----BEGIN PRIVATE KEY-----\nx\n", "it holds a private key, and the public key belongs there"),
    ],
)
def test_a_key_that_is_none_is_one_line(content: bytes, why: str, tmp_path: Path) -> None:
    assert refused_key(tmp_path / "key", content) == f"pushd: --jwt-key: {why}; {KEYS}"


def test_a_key_needs_pyjwt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jwt", None)
    assert refused_key(tmp_path / "key", b"k" * 32) == (
        "pushd: --jwt-key: PyJWT with cryptography is not installed; allowed: pip install 'pushd[jwt]'"
    )


def test_shard_channels_are_for_clusters() -> None:
    settings = parse("--redis", "redis+cluster://h", "--shard-channel", "s", "--channel", "s")
    assert settings.topics == (Topic(b"s", Kind.SHARD), Topic(b"s"))
    assert settings.source == Cluster(addresses=(Address("h", 6379),))


def test_help_names_every_option_and_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        Options().parseOptions(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code in (None, 0)
    assert max(map(len, text.splitlines())) <= 80
    offered = re.findall(r"--([a-z-]+)", text)
    for option in Options().longOpt:
        assert option.rstrip("=") in offered


def test_version_is_pushds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        Options().parseOptions(["--version"])
    assert re.fullmatch(r"pushd \d+\.\d+\.\d+\n", capsys.readouterr().out)
