"""The options of the twistd plugin: read, checked, explained; and ports that cannot be had."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from pushd.message import Kind, Topic
from pushd.redis_urls import Address, Cluster, Embedded, Redis, Sentinel
from pushd.settings import Settings, SlowPolicy
from pushd.tap import PASSWORD_VARIABLE, SENTINEL_PASSWORD_VARIABLE, Options


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


def test_channels_may_be_any_bytes_and_count_once() -> None:
    assert parse("--channel", "\udcff\udcfe", "--channel", "42", "--channel", "42").topics == (
        Topic(b"\xff\xfe"),
        Topic(b"42"),
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--slow", "drop"], "pushd: --slow: 'drop' is not a slow policy; allowed: disconnect, skip, latest"),
        (["--port", "99999"], "pushd: --port: '99999' is wrong; allowed: a whole number from 0 to 65535"),
        (
            ["--drain", "-1"],
            "pushd: --drain: '-1' is wrong; allowed: seconds, 0 and more, such as 2.5",
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
