"""What pushd counts while it runs."""

from dataclasses import dataclass


@dataclass(slots=True)
class Metrics:
    """Totals since the start of the process."""

    clients: int = 0  # connections accepted
    refused: int = 0  # connections turned away because of a limit
    messages: int = 0  # messages that a source handed over
    missed: int = 0  # messages that a subscription will never get, summed over subscriptions
    slow_disconnects: int = 0  # clients cut off because their cursor fell off a log's tail
