"""Fixtures that all tests share."""

from collections.abc import Iterator

import pytest

from tests.harness import RedisServer


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """Start a real redis-server for one test."""
    with RedisServer() as server:
        yield server


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a delayed call in the reactor, or an error that nobody handled in a Deferred.

    Neither fails a test by itself under pytest-twisted.
    """
    from twisted.internet import reactor  # noqa: PLC0415 - pytest-twisted installs it first
    from twisted.logger import LogLevel, globalLogPublisher  # noqa: PLC0415

    errors: list[str] = []

    def observe(event: dict[str, object]) -> None:
        if event.get("log_level") is LogLevel.critical:
            errors.append(str(event.get("log_failure") or event.get("log_format")))

    before = set(reactor.getDelayedCalls())  # type: ignore[attr-defined]
    globalLogPublisher.addObserver(observe)
    yield
    import gc  # noqa: PLC0415

    gc.collect()  # an unhandled error is reported when its Deferred is collected
    globalLogPublisher.removeObserver(observe)
    left = set(reactor.getDelayedCalls()) - before  # type: ignore[attr-defined]
    for call in left:
        call.cancel()
    assert not errors
    assert not left
