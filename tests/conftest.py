"""Fixtures that all tests share."""

import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import settings
from twisted.logger import LogEvent, LogLevel, globalLogPublisher

from tests.harness import RedisServer

if TYPE_CHECKING:
    from twisted.internet.base import DelayedCall, ReactorBase

# A busy machine is no reason for a test to fail.
settings.register_profile("pushd", deadline=None)
settings.load_profile("pushd")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `make chaos` and `make churn` choose what is played."""
    parser.addoption("--chaos-seeds", default="0:100", metavar="FROM:TO", help="schedules of harm to play")
    parser.addoption(
        "--churn", default="100:5000:4", metavar="CLIENTS:MESSAGES:SECONDS", help="who come and go"
    )


def pytest_collection_finish() -> None:
    """Leave what is there before the first test out of what each test looks at for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """Start a real redis-server for one test."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def reactor() -> Iterator["ReactorBase"]:
    """Return the reactor that pytest-twisted installed and runs."""
    from twisted.internet import reactor  # noqa: PLC0415 - not before it is installed

    yield cast("ReactorBase", reactor)
    vars(reactor).pop("seconds", None)  # makeService sets it for a process of its own


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Collect what pushd logs, as text."""
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        if event["log_namespace"].startswith("pushd."):
            lines.append(event["log_format"].format(**event))

    observer = cast("Any", observe)
    globalLogPublisher.addObserver(observer)
    yield lines
    globalLogPublisher.removeObserver(observer)


@pytest.fixture(autouse=True)
def logged_errors(reactor: "ReactorBase") -> Iterator[list[str]]:
    """Fail a test that leaves a delayed call in the reactor, or an error that nobody handled in a Deferred.

    Neither fails a test by itself under pytest-twisted. A test that provokes an error clears the list.
    """
    errors: list[str] = []

    def observe(event: LogEvent) -> None:
        if event.get("log_level") is LogLevel.critical:
            errors.append(str(event.get("log_failure") or event.get("log_format")))

    observer = cast("Any", observe)
    before = set(reactor.getDelayedCalls())
    globalLogPublisher.addObserver(observer)
    yield errors
    gc.collect()  # an unhandled error is reported when its Deferred is collected
    globalLogPublisher.removeObserver(observer)
    left = [call for call in reactor.getDelayedCalls() if call not in before]
    for call in left:
        cast("DelayedCall", call).cancel()
    assert not errors
    assert not left
