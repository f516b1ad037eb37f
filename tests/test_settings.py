"""The settings: what each option takes, and what it says about what it does not take."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd import settings
from pushd.errors import SettingsError
from pushd.redis_urls import Address, Redis
from pushd.settings import LEAST_RATE, Control, Settings, SlowPolicy


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (settings.parse_slow, "disconnect", SlowPolicy.DISCONNECT),
        (settings.parse_slow, "skip", SlowPolicy.SKIP),
        (settings.parse_slow, "latest", SlowPolicy.LATEST),
        (settings.parse_count, "0", 0),
        (settings.parse_count, "17", 17),
        (settings.parse_limit, "1", 1),
        (settings.parse_seconds, "0", 0.0),
        (settings.parse_seconds, "2.5", 2.5),
        (settings.parse_timeout, "0.1", 0.1),
        (settings.parse_rate, "20", 20.0),
        (settings.parse_rate, "0.1", LEAST_RATE),
        (settings.parse_rate, "999999999.5", 999999999.5),
        (settings.parse_interval, "0", 0.0),
        (settings.parse_interval, "0.1", 0.1),
        (settings.parse_history, "2048K", 2 * 1024**2),
        (settings.parse_history, "8m", 8 * 1024**2),
        (settings.parse_history, "2G", 2 * 1024**3),
        (settings.parse_history, "2000000", 2_000_000),
        (settings.parse_send_buffer, "256K", 256 * 1024),
        (settings.parse_max_line, "1", 1),
        (settings.parse_endpoint, "8888", "tcp:8888:backlog=65535"),
        (settings.parse_endpoint, "tcp:8888:interface=127.0.0.1", "tcp:8888:interface=127.0.0.1"),
        (settings.parse_endpoint, "unix:/run/pushd/socket", "unix:/run/pushd/socket"),
    ],
)
def test_what_is_allowed_is_read(parse: Callable[[str], Any], text: str, value: Any) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "allowed"),
    [
        (settings.parse_slow, "drop", "disconnect, skip, latest"),
        (settings.parse_slow, "SKIP", "disconnect, skip, latest"),
        (settings.parse_count, "-1", "0 to"),
        (settings.parse_count, "1.5", "0 to"),
        (settings.parse_count, "٣", "0 to"),
        (settings.parse_limit, "0", "1 to"),
        (settings.parse_seconds, "soon", "0 and more"),
        (settings.parse_seconds, "nan", "0 and more"),
        (settings.parse_timeout, "0", "0.1 and more"),
        (settings.parse_rate, "0", "a number from 0.1 on"),
        (settings.parse_rate, "0.09", "a number from 0.1 on"),
        (settings.parse_rate, "-1", "a number from 0.1 on"),
        (settings.parse_rate, "1e3", "a number from 0.1 on"),
        (settings.parse_rate, "inf", "a number from 0.1 on"),
        (settings.parse_rate, "2,5", "a number from 0.1 on"),
        (settings.parse_rate, "٣", "a number from 0.1 on"),
        (settings.parse_rate, "20\n", "a number from 0.1 on"),
        (settings.parse_rate, "", "a number from 0.1 on"),
        (settings.parse_interval, "0.01", "0.1 and more, or 0"),
        (settings.parse_history, "8MB", "1M to"),
        (settings.parse_history, "1K", "1M to"),
        (settings.parse_history, "", "1M to"),
        (settings.parse_history, "9" * 30, "1M to"),
        (settings.parse_send_buffer, "1", "4K to"),
        (settings.parse_max_line, "0", "1 to"),
        (settings.parse_max_line, "2M", "to 1M"),
        (settings.parse_endpoint, "65536", "0 to 65535"),
        (settings.parse_endpoint, "http", "0 to 65535"),
    ],
)
def test_what_is_not_allowed_is_said_in_one_line(
    parse: Callable[[str], Any], text: str, allowed: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(text)
    assert repr(text) in str(caught.value)
    assert "allowed: " in str(caught.value)
    assert allowed in str(caught.value).partition("allowed: ")[2]
    assert "\n" not in str(caught.value)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (
        settings.parse_slow,
        settings.parse_count,
        settings.parse_limit,
        settings.parse_seconds,
        settings.parse_timeout,
        settings.parse_history,
        settings.parse_send_buffer,
        settings.parse_max_line,
        settings.parse_endpoint,
        settings.parse_interval,
        settings.parse_rate,
    ):
        assert len(refusal(parse, text).splitlines()) <= 1


def refusal(parse: Callable[[str], Any], text: str) -> str:
    try:
        parse(text)
    except SettingsError as error:
        return str(error)
    return ""


def test_defaults_are_those_of_the_documents() -> None:
    assert Settings() == Settings(
        endpoints=("tcp:8888:backlog=65535",),
        topics=(),
        source=Redis(address=Address("localhost", 6379)),
        redis_ping=10.0,
        redis_timeout=5.0,
        redis_probe=30.0,
        slow=SlowPolicy.DISCONNECT,
        history=8 * 1024**2,
        replay=0,
        send_buffer=256 * 1024,
        max_line=16 * 1024,
        max_clients=None,
        max_clients_per_ip=None,
        idle_timeout=None,
        drain=5.0,
        debug=False,
    )


def test_so_are_those_of_the_control_protocol() -> None:
    assert Settings().control == Control(
        endpoints=(),
        allow=None,
        allow_publish=None,
        jwt_key=None,
        jwt_audience=None,
        jwt_issuer=None,
        auth_timeout=5.0,
        max_subscriptions=128,
        command_rate=20.0,
        heartbeat=30.0,
        linger=60.0,
        max_channels=10_000,
        max_patterns=32,
    )
