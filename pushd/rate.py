"""How often something may be done."""

BURST_SECONDS = 10.0
"""Who was quiet for so long may do at once what was allowed in that time."""


class RateLimit:
    """Allows so many a second on average (a token bucket). Times are those of one clock, in seconds."""

    __slots__ = ("_allowance", "_at", "per_second")

    def __init__(self, per_second: float, now: float) -> None:
        self.per_second = per_second
        self._allowance = per_second * BURST_SECONDS
        self._at = now

    def allows(self, now: float) -> bool:
        """Count one more; tell whether it is allowed."""
        earned = self._allowance + (now - self._at) * self.per_second
        self._allowance = min(earned, self.per_second * BURST_SECONDS) - 1
        self._at = now
        return self._allowance >= 0
