"""What pushd counts while it runs."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum


class Reason(StrEnum):
    """Why a subscription at Redis ended, or did not come about."""

    CONNECT = "connect"  # there is no connection, or no address to connect to
    TLS = "tls"  # a certificate is not good, or the other side speaks no TLS
    CLOSED = "closed"  # by Redis, or by what is between
    TIMEOUT = "timeout"  # no answer in time
    PROBE = "probe"  # probes were published, and did not arrive
    PROTOCOL = "protocol"  # what came is not what Redis sends
    REFUSED = "refused"  # an answer that is an error
    MOVED = "moved"  # another server is the right one now


@dataclass(slots=True)
class Metrics:
    """Totals since the start of the process."""

    clients: int = 0  # connections accepted
    refused: int = 0  # connections turned away because of a limit
    messages: int = 0  # messages that a source handed over
    batches: int = 0  # reads that brought them, one for each topic
    missed: int = 0  # messages that a subscription will never get, summed over subscriptions
    slow_disconnects: int = 0  # clients cut off because their cursor fell off a log's tail
    source_gaps: int = 0  # interruptions of a topic's subscription, summed over topics
    reconnects: Counter[Reason] = field(default_factory=Counter)  # attempts after something ended the last
    probes_sent: int = 0  # probes that Redis has taken
    probes_missed: int = 0  # probes among them that did not come back in time
    unsubscribed_seconds: float = 0.0  # time without a subscription, summed over connections to Redis
