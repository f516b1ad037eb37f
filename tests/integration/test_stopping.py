"""Stopping: everything that clients take is flushed, within the budget, whatever state Redis is in."""

import re
import signal
from collections.abc import Callable

import pytest

from tests.harness import TIMEOUT, Client, Pushd, RedisServer, clients, free_port

MARGIN = 3.0
"""Seconds that a busy machine may take beside the budget."""


def last_line(pushd: Pushd) -> str:
    """Return the last line that pushd itself logged: twistd says goodbye after it."""
    *_, last = re.finditer(r"\[pushd\..*?\] (.*)", pushd.output)
    return last[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_as_it_ends_twistd(
    number: signal.Signals, start_pushd: Callable[..., Pushd]
) -> None:
    pushd = start_pushd("--redis", "embedded:0", "--channel", "updates")
    with clients(pushd.port, 10) as readers:
        pushd.signal(number)
        assert pushd.wait(5 + MARGIN) == -number
        assert [reader.read_to_end() for reader in readers] == [b""] * 10
    assert last_line(pushd) == (
        "Stopped, and left the embedded broker: 10 clients served, 0 refused,"
        " 0 cut off with something left to send; 0 messages, 0 missed"
    )
    assert "Traceback" not in pushd.output


@pytest.mark.parametrize("state", ["refuses", "frozen at start", "follows", "frozen", "gone"])
def test_it_stops_in_time_whatever_redis_does(state: str, start_pushd: Callable[..., Pushd]) -> None:
    with RedisServer() as server:
        port = free_port() if state == "refuses" else server.port
        if state == "frozen at start":
            server.signal(signal.SIGSTOP)
        pushd = start_pushd("--redis", f"redis://127.0.0.1:{port}", "--channel", "updates", "--drain", "1")
        if state in {"follows", "frozen", "gone"}:
            pushd.wait_subscribed()
        if state == "frozen":
            server.signal(signal.SIGSTOP)
        if state == "gone":
            server.kill()
        if state in {"gone", "refuses"}:
            pushd.wait_for("No subscription")
        with Client(pushd.port) as reader:
            reader.echo()
            assert pushd.terminate(1 + MARGIN) == -signal.SIGTERM
            assert reader.read_to_end() == b""
    assert f"left redis://127.0.0.1:{port}: 1 clients served, 0 refused, 0 cut off" in last_line(pushd)
    assert "Traceback" not in pushd.output
    assert "Unhandled" not in pushd.output


def test_what_clients_take_is_flushed_and_the_others_are_cut_off(
    redis_server: RedisServer, start_pushd: Callable[..., Pushd]
) -> None:
    pushd = start_pushd(
        "--redis", redis_server.url, "--channel", "updates", "--drain", "1", "--send-buffer", "4K"
    )
    pushd.wait_subscribed()
    with (
        Client(pushd.port, receive_buffer=4096) as stalled,
        Client(pushd.port, receive_buffer=4096) as late,
        redis_server.client() as publisher,
    ):
        stalled.echo()
        late.echo()
        message = b"x" * 1000
        publisher.publish("updates", b"first")
        assert late.read_line() == b"first"
        for _ in range(1000):
            publisher.publish("updates", message)
        pushd.signal(signal.SIGTERM)
        pushd.wait_for("Stopping: 2 clients to flush")
        # All of it is more than the kernel holds: it was still in pushd when the signal came.
        assert late.read_to_end() == (message + b"\r\n") * 1000
        assert pushd.wait(TIMEOUT) == -signal.SIGTERM
    found = re.search(r"2 clients served, 0 refused, 1 cut off .*; 1001 messages, (\d+)", last_line(pushd))
    assert found
    assert 0 < int(found[1]) < 1000


def test_new_clients_are_refused_while_it_drains(start_pushd: Callable[..., Pushd]) -> None:
    pushd = start_pushd(
        "--redis", "embedded:0", "--channel", "updates", "--drain", "2", "--send-buffer", "4K"
    )
    with Client(pushd.port, receive_buffer=4096) as stalled:
        stalled.send_until_stuck((b"x" * 1000 + b"\r\n") * 100)
        pushd.signal(signal.SIGTERM)
        pushd.wait_for("Stopping: 1 clients to flush")
        with pytest.raises(ConnectionRefusedError):
            Client(pushd.port)
        assert pushd.wait(2 + MARGIN) == -signal.SIGTERM
    assert "1 clients served, 0 refused, 1 cut off" in last_line(pushd)


def test_a_second_signal_ends_the_drain(start_pushd: Callable[..., Pushd]) -> None:
    pushd = start_pushd(
        "--redis", "embedded:0", "--channel", "updates", "--drain", "600", "--send-buffer", "4K"
    )
    with Client(pushd.port, receive_buffer=4096) as stalled:
        stalled.send_until_stuck((b"x" * 1000 + b"\r\n") * 100)
        pushd.signal(signal.SIGTERM)
        pushd.wait_for("Stopping: 1 clients to flush")
        assert pushd.terminate() == -signal.SIGTERM
    assert "1 clients served, 0 refused, 1 cut off" in last_line(pushd)
    assert "Traceback" not in pushd.output
