"""Fixtures for tests with a real twistd."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness import Pushd


@pytest.fixture
def start_pushd(tmp_path: Path) -> Iterator[Callable[..., Pushd]]:
    """Return what starts a pushd with the given options; all are killed when the test ends."""
    with ExitStack() as stack:
        yield lambda *options: stack.enter_context(Pushd(*options, cwd=tmp_path))
