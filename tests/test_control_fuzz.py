"""Whatever clients send, wherever it is cut: pushd answers by its document, goes on, and keeps nothing."""

from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import globalLogPublisher

from tests.hostile import (
    CLOSING,
    CODES,
    FRAGMENTS,
    GOOD,
    SOMETIMES_CLOSING,
    TYPES,
    Act,
    Criticals,
    Step,
    World,
    decode,
    play,
)

NUMBERS = st.integers(0, 255)
KINDS = st.integers(0, 11)

# A line as clients write it, with something of it replaced by anything.
LINES = st.builds(
    lambda line, at, size, other: line[: at % (len(line) + 1)] + other + line[at % (len(line) + 1) + size :],
    st.sampled_from([fragment for fragment in FRAGMENTS if fragment.endswith(b"\n")]),
    NUMBERS,
    st.integers(0, 4),
    st.binary(max_size=6) | st.sampled_from(FRAGMENTS),
)

WILD = st.one_of(
    st.builds(Step, st.just(Act.CONNECT), NUMBERS, NUMBERS),
    st.builds(Step, st.just(Act.SAY), NUMBERS, NUMBERS),
    st.builds(Step, st.just(Act.SEND), NUMBERS, data=st.binary(max_size=40) | LINES),
    st.builds(Step, st.sampled_from([Act.READ, Act.WAIT, Act.SETTLE, Act.ANSWER]), NUMBERS, NUMBERS),
    st.builds(Step, st.just(Act.DELIVER), NUMBERS, data=st.binary(max_size=20)),
    st.builds(Step, st.sampled_from([Act.HALF_CLOSE, Act.RESET, Act.BREAK, Act.STOP]), NUMBERS),
)

# What leads far: clients with subscriptions and little room, and more messages than a log keeps.
USUAL = st.one_of(
    st.builds(Step, st.just(Act.CONNECT), NUMBERS, st.sampled_from([0, 40, 120, 255])),
    st.builds(
        Step,
        st.just(Act.SEND),
        NUMBERS,
        data=st.sampled_from(
            [
                *(b"SUBSCRIBE pinned\n", b"SUBSCRIBE pinned SLOW skip\n", b"SUBSCRIBE pinned SLOW latest\n"),
                *(b"SUBSCRIBE pinned FROM e.1-2\n", b"UNSUBSCRIBE pinned\n", b"SUBSCRIBE a SLOW skip\n"),
                *(
                    b"PSUBSCRIBE a*\n",
                    b"UNSUBSCRIBE a\n",
                    b"PUBLISH a b\n",
                    b"STATUS\n",
                    b"PING\n",
                    b"HELP\n",
                ),
                f"AUTH {GOOD}\n".encode(),
            ]
        ),
    ),
    st.builds(
        Step, st.just(Act.DELIVER), st.just(0), data=st.sampled_from([b"x\n" * 9, b"x" * 700, b"x" * 4000])
    ),
    st.builds(Step, st.just(Act.READ), NUMBERS, st.sampled_from([10, 100, 255])),
    st.builds(Step, st.just(Act.SETTLE), NUMBERS, st.sampled_from([0, 0, 1])),
    st.builds(Step, st.just(Act.WAIT), amount=st.sampled_from([4, 40])),
)

STEPS = st.lists(USUAL | USUAL | WILD, min_size=15, max_size=60)


def lagging(policy: bytes) -> list[Step]:
    """Begin with a client that has fallen off the tail of a log."""
    return [
        Step(Act.CONNECT, amount=20),
        Step(Act.SEND, data=b"SUBSCRIBE pinned SLOW " + policy + b"\n"),
        *[Step(Act.DELIVER, data=b"x" * 2000)] * 4,
    ]


PROLOGUES = st.sampled_from(
    [
        [Step(Act.CONNECT, amount=255)],
        [Step(Act.CONNECT, amount=40), Step(Act.SEND, data=b"PSUBSCRIBE a*\n")],
        [Step(Act.CONNECT, amount=255), *[Step(Act.DELIVER, data=b"x\n" * 9)] * 9],
        *map(lagging, [b"disconnect", b"skip", b"latest"]),
    ]
)


@pytest.fixture(autouse=True)
def criticals() -> Iterator[Criticals]:
    """Let nothing be logged that should never be."""
    criticals = Criticals()
    globalLogPublisher.addObserver(cast("Any", criticals))
    yield criticals
    globalLogPublisher.removeObserver(cast("Any", criticals))
    assert not criticals.said


def test_the_document_names_types_and_codes() -> None:
    assert {"welcome", "message", "error"} <= TYPES
    assert {"rate-limited", "line-too-long", "auth-timeout", "too-many-clients"} == CLOSING
    assert {"token-invalid", "unknown-command"} <= SOMETIMES_CLOSING
    assert len(CODES) == 19


@given(KINDS, PROLOGUES, STEPS)
@settings(max_examples=250)
def test_anything_may_happen(kind: int, prologue: list[Step], steps: list[Step]) -> None:
    play(kind, [*prologue, *steps])


@given(st.binary(max_size=300))
@settings(max_examples=200)
def test_any_bytes_are_a_script(script: bytes) -> None:
    play(script[0] if script else 0, decode(script[1:]))


@pytest.mark.parametrize("kind", [0, 1])
def test_each_fragment_is_answered_wherever_it_is_cut(kind: int) -> None:
    for fragment in FRAGMENTS:
        for cut in range(0, len(fragment), max(1, len(fragment) // 20)):
            world = World(kind)
            client = world.connect()
            for part in (fragment[:cut], fragment[cut:]):
                world.do(Step(Act.SEND, data=part))
            assert not client.connection.has_ended or client.told.was_ended
            world.finish()


def test_each_fragment_behind_each_other() -> None:
    for first in FRAGMENTS:
        world = World()
        for second in FRAGMENTS:
            world.connect()
            world.do(Step(Act.SEND, data=first + second))
            world.do(Step(Act.RESET))
        world.finish()


def test_lines_behind_a_good_token() -> None:
    world = World(1)
    client = world.connect()
    world.do(Step(Act.SEND, data=f"AUTH {GOOD}\n".encode()))
    for number in range(len(FRAGMENTS)):
        world.do(Step(Act.SAY, amount=number))
        world.do(Step(Act.SEND, data=b"\n"))
        world.do(Step(Act.WAIT, amount=8))
    assert client.told.events[1]["type"] == "authenticated"
    world.finish()
