"""Admission: how many clients there may be, by any protocol, and how many from one address."""

from collections import Counter

from pushd.metrics import Metrics


class Admission:
    """Counts clients in and out. A host is None where there is no address, as with Unix sockets."""

    def __init__(self, max_clients: int, max_per_host: int | None, metrics: Metrics) -> None:
        self.max_clients = max_clients
        self.clients = 0
        self._max_per_host = max_per_host
        self._metrics = metrics
        self._hosts: Counter[str] = Counter()

    def admits(self, host: str | None) -> bool:
        """Tell whether one more may come; where not, it is counted as refused."""
        full = self.clients >= self.max_clients
        if self._max_per_host is not None and host is not None:
            full |= self._hosts[host] >= self._max_per_host
        self._metrics.refused += full
        return not full

    def joined(self, host: str | None) -> None:
        """Count a client in."""
        self._metrics.clients += 1
        self.clients += 1
        if host is not None:
            self._hosts[host] += 1

    def left(self, host: str | None) -> None:
        """Count a client out."""
        self.clients -= 1
        if host is not None:
            self._hosts[host] -= 1
            if not self._hosts[host]:
                del self._hosts[host]
