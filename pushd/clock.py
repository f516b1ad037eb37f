"""What the core needs of a reactor: the time, and to be called later."""

from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that is still to come."""

    def cancel(self) -> None:
        """Do not make it; an error where it has been made."""


class Clock(Protocol):
    """A reactor, or a clock that a test moves."""

    def seconds(self) -> float:
        """Return the time, in seconds, from any fixed point: it only goes forward."""

    def callLater(self, delay: float, call: Callable[[], object], /) -> Timer:
        """Call something after so many seconds, from a later turn of the loop."""
