"""The command-line client with --control, without a connection."""

from pathlib import Path

import pytest

from pushd.client_options import parse
from pushd.control_client import read_token, subscriptions

CONTROL = ["--control", "localhost", "8888"]


@pytest.mark.parametrize(
    ("words", "commands"),
    [
        (["--subscribe", "a"], [b'SUBSCRIBE "a"\n']),
        (
            ["--psubscribe", "b", "--subscribe", "a", "--subscribe", "b", "--subscribe", "a", "--last", "0"],
            [b'SUBSCRIBE "a" LAST 0\n', b'SUBSCRIBE "b" LAST 0\n', b'PSUBSCRIBE "b" LAST 0\n'],
        ),
        (
            ["--subscribe", "a", "--from", "e.1-2", "--slow", "latest"],
            [b'SUBSCRIBE "a" FROM e.1-2 SLOW latest\n'],
        ),
    ],
)
def test_subscriptions(words: list[str], commands: list[bytes]) -> None:
    assert [each.begin() for each in subscriptions(parse([*CONTROL, *words]))] == commands


@pytest.mark.parametrize(
    ("content", "token"),
    [(b"a.b.c", b"a.b.c"), (b" a.b.c\r\nmore\n", b"a.b.c"), (b"", b""), (b"\na.b.c", b"")],
)
def test_tokens_are_the_first_line(content: bytes, token: bytes, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(content)
    assert read_token(str(tmp_path / "token")) == token


def test_no_token() -> None:
    assert read_token(None) == b""
