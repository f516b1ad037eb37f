"""Identities: who a client has shown to be, what it may do, and until when."""

from collections.abc import Callable
from typing import Protocol

from pushd.clock import Clock, Timer
from pushd.message import Topic
from pushd.permissions import Permissions
from pushd.tokens import Grant

LONGEST_TIMER = 60.0
"""So often is looked at the wall clock, which may be set while a token holds."""


class Verifier(Protocol):
    """Knows good tokens from bad ones."""

    def verify(self, token: str) -> Grant:
        """Return what a token grants; raises TokenError."""


class Identity:
    """One client's grant, where it needs one: ended is called when that has expired, or did not come in time.

    Bounds are what nobody may exceed, whatever a token says. Tokens expire by wall time.
    """

    def __init__(
        self,
        bounds: Permissions,
        tokens: Verifier | None,
        *,
        clock: Clock,
        wall: Callable[[], float],
        ended: Callable[[], None],
    ) -> None:
        self.grant: Grant | None = None
        self.tokens = tokens
        self._bounds = bounds
        self._clock = clock
        self._wall = wall
        self._ended = ended
        self._timer: Timer | None = None

    @property
    def is_stranger(self) -> bool:
        """Whether the client has still to say who it is."""
        return self.tokens is not None and self.grant is None

    def wait(self, seconds: float) -> None:
        """Give a stranger so much time."""
        self._set_timer(seconds, self._ended)

    def accept(self, grant: Grant) -> None:
        """Take the place of what was granted before."""
        self.grant = grant
        self._watch_expiry()

    def forget(self) -> None:
        """Wait for nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def may_subscribe(self, topic: Topic) -> bool:
        """Tell whether everything of a topic is allowed."""
        return all(permissions.may_subscribe(topic) for permissions in self._permissions)

    def may_publish(self, channel: bytes) -> bool:
        """Tell whether a channel may be published to."""
        return all(permissions.may_publish(channel) for permissions in self._permissions)

    @property
    def _permissions(self) -> tuple[Permissions, ...]:
        return (self._bounds, self.grant.permissions) if self.grant else (self._bounds,)

    def _watch_expiry(self) -> None:
        assert self.grant is not None
        left = self.grant.expires - self._wall()
        if left <= 0:
            self._set_timer(0, self._ended)
        else:
            self._set_timer(min(left, LONGEST_TIMER), self._watch_expiry)

    def _set_timer(self, seconds: float, due: Callable[[], None]) -> None:
        def fire() -> None:
            self._timer = None
            due()

        self.forget()
        self._timer = self._clock.callLater(seconds, fire)
