"""URLs of Redis: what is read from them, what is shown of them, and which are refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.errors import SettingsError
from pushd.redis_urls import (
    Address,
    Cluster,
    Embedded,
    Redis,
    Sentinel,
    Source,
    parse_source,
    read_address,
)

H = Address("h", 6379)


@pytest.mark.parametrize(
    ("url", "source", "shown"),
    [
        ("redis://localhost", Redis(), "redis://localhost:6379"),
        ("redis://10.0.0.1:6380", Redis(address=Address("10.0.0.1", 6380)), "redis://10.0.0.1:6380"),
        ("redis://[::1]:6380/0", Redis(address=Address("::1", 6380)), "redis://[::1]:6380"),
        ("REDIS://H.Example", Redis(address=Address("h.example", 6379)), "redis://h.example:6379"),
        ("redis://:secret@h", Redis(address=H, password=b"secret"), "redis://h:6379"),
        ("redis://me:p%40ss%FF@h", Redis(address=H, username=b"me", password=b"p@ss\xff"), "redis://h:6379"),
        ("rediss://h", Redis(address=H, tls=True), "rediss://h:6379"),
        ("redis://me:se@cret@h", Redis(address=H, username=b"me", password=b"se@cret"), "redis://h:6379"),
        ("unix:///run/redis.sock", Redis(path="/run/redis.sock"), "unix:///run/redis.sock"),
        ("unix://:secret@/r.sock", Redis(path="/r.sock", password=b"secret"), "unix:///r.sock"),
    ],
)
def test_urls_of_redis_are_read_and_shown_without_the_password(url: str, source: Source, shown: str) -> None:
    assert parse_source(url) == source
    assert str(source) == shown
    assert "secret" not in repr(source)


def test_the_embedded_broker_takes_a_port() -> None:
    assert parse_source("embedded") == Embedded(6379)
    assert parse_source("embedded:7000") == Embedded(7000)
    assert "secret" not in repr(Embedded(password=b"secret"))
    assert str(Embedded(password=b"secret")) == "the embedded broker"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "redis",
        "http://:secret@localhost",
        "redis://",
        "redis://:secret@",
        "redis://:secret@h:0",
        "redis://:secret@h:99999",
        "redis://:secret@h:port",
        "redis://:secret@[::1",
        "redis://:secret@h/name",
        "redis://:secret@h?db=1",
        "unix://host/path",
        "unix:relative",
        "unix://:secret@/path?db=1",
        "redis+sentinel://h",
        "redis+sentinel://:secret@h/",
        "redis+sentinel://:secret@h/main/1",
        "redis+sentinel://:secret@/main",
        "redis+sentinel://:secret@h,/main",
        "redis+sentinel://:secret@h:0/main",
        "redis+sentinel://:secret@h:99999/main",
        "redis+sentinel://:secret@h:port/main",
        "redis+sentinel://:secret@[::1/main",
        "redis+sentinel://:secret@h/main?db=1",
        "redis+cluster://",
        "redis+cluster://:secret@",
        "redis+cluster://:secret@h:7000/0",
        "redis+cluster://:secret@h,i:99999",
        "redis+cluster://:secret@h#x",
        "redis+other://:secret@h",
        "redis+unix:///path",
        "redis://h1,h2",
        "redis://a b",
        "redis://my_redis",
        "rediss://-h",
        "redis://h..i",
        "redis://[h]",
        "redis://[1.2.3.4]:1:2",
        "redis+cluster://my host:1",
        "redis+sentinel://h1 ,h2/main",
        "unix:///new\nline",
    ],
)
def test_a_wrong_url_is_explained_without_the_password(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_source(url)
    assert "; allowed: redis://[[USER]:PASSWORD@]HOST[:PORT]" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "source", "shown"),
    [
        (
            "redis+sentinel://me:p%40ss@h1,h2:26380/main",
            Sentinel(
                addresses=(Address("h1", 26379), Address("h2", 26380)),
                master="main",
                username=b"me",
                password=b"p@ss",
            ),
            "redis+sentinel://h1:26379,h2:26380/main",
        ),
        (
            "rediss+sentinel://[::1]:1,h,h/m-1",
            Sentinel(addresses=(Address("::1", 1), Address("h", 26379)), master="m-1", tls=True),
            "rediss+sentinel://[::1]:1,h:26379/m-1",
        ),
        (
            "redis+cluster://:secret@h1,[::1]:7001/",
            Cluster(addresses=(Address("h1", 6379), Address("::1", 7001)), password=b"secret"),
            "redis+cluster://h1:6379,[::1]:7001",
        ),
        ("Redis+Cluster://h", Cluster(addresses=(H,)), "redis+cluster://h:6379"),
        ("rediss+cluster://h", Cluster(addresses=(H,), tls=True), "rediss+cluster://h:6379"),
    ],
)
def test_urls_of_several_servers_are_read_and_shown_without_the_password(
    url: str, source: Source, shown: str
) -> None:
    assert parse_source(url) == source
    assert str(source) == shown
    assert "secret" not in repr(source)


def test_sentinels_are_spoken_to_in_their_own_way() -> None:
    sentinel = Sentinel(
        addresses=(H,), master="m", tls=True, ca=b"PEM", password=b"data", sentinel_password=b"watch"
    )
    access = sentinel.sentinel_access
    assert (access.tls, access.ca, access.username, access.password) == (True, b"PEM", None, b"watch")
    assert "watch" not in repr(sentinel)


@pytest.mark.parametrize("port", ["x", "99999", "0.0.0.0:6379", "-1", ""])
def test_the_embedded_broker_takes_nothing_but_a_port(port: str) -> None:
    with pytest.raises(SettingsError, match="allowed: 0 to 65535"):
        parse_source(f"embedded:{port}")


prefixes = st.sampled_from(["", "redis://", "redis+sentinel://", "rediss+cluster://", "unix://", "embedded:"])


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://h:99999", "one of its ports is not from 1 to 65535"),
        ("redis+cluster://h:0", "one of its ports is not from 1 to 65535"),
        ("redis://my_redis", "one of its hosts is no address, and no name of letters, digits, '-' and '.'"),
        ("redis+sentinel://h,/main", "one of its hosts is missing, or no host"),
        ("redis+sentinel://h", "the name of the master"),
        ("redis+cluster://h/1", "a cluster has no databases"),
        ("gopher://h", "its scheme is unknown"),
    ],
)
def test_what_is_wrong_is_named(url: str, why: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_source(url)
    assert str(caught.value).startswith(why)


@given(st.text(max_size=10), st.text(max_size=6))
def test_what_servers_name_is_an_address_or_refused(host: str, port: str) -> None:
    with contextlib.suppress(ValueError):
        assert 1 <= read_address(host, port).port <= 65535


@given(prefixes, st.text())
def test_any_text_is_read_or_refused(prefix: str, text: str) -> None:
    assert len(read_or_refused(prefix + text).splitlines()) == 1


def read_or_refused(url: str) -> str:
    try:
        return str(parse_source(url))
    except SettingsError as error:
        return str(error)
