"""Identities: what a client may do, for how long, and how much time it has to say who it is."""

import pytest
from twisted.internet.task import Clock

from pushd.identity import LONGEST_TIMER, Identity, Verifier
from pushd.message import Kind, Topic
from pushd.patterns import Pattern
from pushd.permissions import Permissions
from pushd.tokens import Grant, TokenError

SCORES = Topic(b"scores")
NEWS = Topic(b"news.*", Kind.PATTERN)
WALL = 1_000_000.0


class NoTokens:
    """Finds every token wrong."""

    def verify(self, token: str) -> Grant:
        raise TokenError("it is wrong")


class World:
    """One client's identity, two clocks, and whether it has ended."""

    def __init__(self, bounds: Permissions | None = None, tokens: Verifier | None = None) -> None:
        self.clock = Clock()
        self.drift = 0.0  # between the two clocks
        self.ended = 0
        self.identity = Identity(
            bounds or permissions("*"),
            tokens,
            clock=self.clock,
            wall=lambda: WALL + self.drift + self.clock.seconds(),
            ended=self._end,
        )

    def _end(self) -> None:
        self.ended += 1


def permissions(*subscribe: str, publish: tuple[str, ...] = ()) -> Permissions:
    return Permissions(subscribe=_patterns(subscribe), publish=_patterns(publish))


def _patterns(texts: tuple[str, ...]) -> tuple[Pattern, ...]:
    return tuple(Pattern(text.encode()) for text in texts)


def grant(seconds: float, *subscribe: str, publish: tuple[str, ...] = ()) -> Grant:
    return Grant("alice", WALL + seconds, permissions(*subscribe, publish=publish))


def test_a_client_is_a_stranger_only_where_tokens_are_asked_for() -> None:
    assert not World().identity.is_stranger
    world = World(tokens=NoTokens())
    assert world.identity.is_stranger
    world.identity.accept(grant(60))
    assert not world.identity.is_stranger


def test_without_a_token_the_bounds_are_what_is_allowed() -> None:
    identity = World(permissions("scores", "news.*", publish=("chat",))).identity
    assert identity.may_subscribe(SCORES)
    assert identity.may_subscribe(NEWS)
    assert not identity.may_subscribe(Topic(b"secrets"))
    assert identity.may_publish(b"chat")
    assert not identity.may_publish(b"scores")


@pytest.mark.parametrize(
    ("bound", "granted", "allowed"),
    [("*", "scores", True), ("scores", "*", True), ("*", "news.*", False), ("news.*", "*", False)],
)
def test_with_a_token_both_it_and_the_bounds_must_allow(bound: str, granted: str, allowed: bool) -> None:
    world = World(permissions(bound, publish=(bound,)), NoTokens())
    world.identity.accept(grant(60, granted, publish=(granted,)))
    assert world.identity.may_subscribe(SCORES) is allowed
    assert world.identity.may_publish(b"scores") is allowed


def test_a_stranger_has_so_much_time() -> None:
    world = World(tokens=NoTokens())
    world.identity.wait(5)
    world.clock.advance(4.9)
    assert world.ended == 0
    world.clock.advance(0.1)
    assert world.ended == 1
    assert world.clock.getDelayedCalls() == []


def test_a_stranger_that_says_who_it_is_has_the_time_of_its_token() -> None:
    world = World(tokens=NoTokens())
    world.identity.wait(5)
    world.clock.advance(4)
    world.identity.accept(grant(60))
    world.clock.advance(55.9)
    assert world.ended == 0
    world.clock.advance(0.1)
    assert world.ended == 1
    assert world.clock.getDelayedCalls() == []


@pytest.mark.parametrize("second", [30, 90])
def test_the_last_token_is_what_counts(second: float) -> None:
    world = World(tokens=NoTokens())
    world.identity.accept(grant(60, "scores"))
    world.identity.accept(grant(second, "news.*"))
    assert world.identity.may_subscribe(NEWS)
    assert not world.identity.may_subscribe(SCORES)
    world.clock.advance(second - 0.1)
    assert world.ended == 0
    world.clock.advance(0.1)
    assert world.ended == 1


def test_a_token_that_has_expired_meanwhile_ends_in_the_next_turn() -> None:
    world = World(tokens=NoTokens())
    world.identity.accept(grant(-1))
    assert world.ended == 0
    world.clock.advance(0)
    assert world.ended == 1


def test_a_token_may_be_good_for_longer_than_any_timer() -> None:
    world = World(tokens=NoTokens())
    world.identity.accept(grant(1e12))
    for _ in range(1000):
        world.clock.advance(LONGEST_TIMER)
        (call,) = world.clock.getDelayedCalls()
        assert call.getTime() - world.clock.seconds() == LONGEST_TIMER
    assert world.ended == 0
    world.identity.forget()


@pytest.mark.parametrize("drift", [-30.0, 30.0])
def test_tokens_expire_when_the_wall_clock_says_so(drift: float) -> None:
    world = World(tokens=NoTokens())
    world.identity.accept(grant(LONGEST_TIMER + 60))
    world.drift = drift  # somebody has set it
    world.clock.advance(LONGEST_TIMER)
    world.clock.advance(60 - drift - 0.1)
    assert world.ended == 0
    world.clock.advance(0.1)
    assert world.ended == 1


def test_what_is_forgotten_never_ends() -> None:
    for seconds in (5.0, None):
        world = World(tokens=NoTokens())
        if seconds is not None:
            world.identity.wait(seconds)
        world.identity.forget()
        world.identity.forget()
        assert world.clock.getDelayedCalls() == []
        assert world.ended == 0
