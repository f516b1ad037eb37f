"""Publishes messages as a process of its own: by the clock, as fast as they are acknowledged, or all at once.

    python -m bench.publisher WIRE PORT --messages M --size BYTES [--rate PER_SECOND | --window IN_FLIGHT]
                              [--channels N]

With channels M messages go to each of N, one to each after the other; a rate is that of all together.

It prints one line of JSON at the end. What is sent all at once is prepared before, so that the server is the
limit; its stamps then tell nothing.
"""

import argparse
import json
import resource
import socket
import sys
import threading
import time
from collections.abc import Sequence

from bench.wires import (
    CHANNEL,
    PUBLISH_MQTT,
    PUBLISH_NATS,
    PUBLISH_RESP,
    PublishWire,
    filler,
    micros,
    own_channel,
    payload,
)

WIRES = {"redis": PUBLISH_RESP, "nats": PUBLISH_NATS, "mqtt": PUBLISH_MQTT}


class Publisher:
    """A connection that publishes, and knows what has not been acknowledged."""

    def __init__(self, wire: PublishWire, port: int, size: int, channels: int = 0) -> None:
        self.number = 0
        self._channels = [own_channel(number) for number in range(channels)]
        self._wire = wire
        self._filler = filler(size)
        self._unacknowledged = 0
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(wire.hello)
        greeting = b""
        while wire.ready not in greeting:
            greeting += self._receive()

    def publish(self, count: int) -> None:
        """Publish the next so many messages with one send."""
        commands = [self._next() for _ in range(count)]
        self._socket.sendall(b"".join(commands))
        self._unacknowledged += count

    def publish_prepared(self, count: int) -> int:
        """Publish the next so many messages as one stream; return when it began."""
        commands = b"".join(self._next() for _ in range(count))
        self._unacknowledged += count
        sender = threading.Thread(target=self._socket.sendall, args=[commands])
        start = micros()
        sender.start()
        self.wait(1)
        sender.join()
        return start

    def _next(self) -> bytes:
        turn, channel = divmod(self.number, len(self._channels) or 1)
        command = self._wire.command(payload(turn, self._filler))
        self.number += 1
        return command.replace(CHANNEL, self._channels[channel], 1) if self._channels else command

    def wait(self, window: int) -> int:
        """Return how many may be published now; at least one."""
        while self._unacknowledged >= window:
            self._unacknowledged -= self._receive().count(self._wire.mark)
        return window - self._unacknowledged

    def _receive(self) -> bytes:
        data = self._socket.recv(1 << 16)
        if not data:
            sys.exit("publisher: the server closed the connection")
        return data


def publish_at(publisher: Publisher, messages: int, rate: float) -> float:
    """Publish each message when it is due; return by how many seconds the latest of them was late.

    What has become due while this slept is published together.
    """
    start, late = time.monotonic(), 0.0
    while publisher.number < messages:
        due = publisher.number / rate
        time.sleep(max(0.0, start + due - time.monotonic()))
        passed = time.monotonic() - start
        late = max(late, passed - due)
        room = publisher.wait(1000)
        publisher.publish(
            max(1, min(int(passed * rate) + 1, publisher.number + room, messages) - publisher.number)
        )
    return late


def publish_within(publisher: Publisher, messages: int, window: int) -> None:
    """Publish as fast as the server acknowledges, with so many messages in flight at most."""
    while publisher.number < messages:
        publisher.publish(min(publisher.wait(window), messages - publisher.number))


def main(arguments: Sequence[str] | None = None) -> None:
    """Publish, and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("wire", choices=WIRES)
    parser.add_argument("port", type=int)
    parser.add_argument("--messages", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--window", type=int)
    parser.add_argument("--channels", type=int, default=0)
    options = parser.parse_args(arguments)
    publisher = Publisher(WIRES[options.wire], options.port, options.size, options.channels)
    messages = options.messages * (options.channels or 1)
    start, late = micros(), 0.0
    if options.rate:
        late = publish_at(publisher, messages, options.rate)
    elif options.window:
        publish_within(publisher, messages, options.window)
    else:
        start = publisher.publish_prepared(messages)
    publisher.wait(1)
    used = resource.getrusage(resource.RUSAGE_SELF)
    report = {
        "start_us": start,
        "seconds": (micros() - start) / 1e6,
        "late_ms": 1000 * late,
        "cpu": used.ru_utime + used.ru_stime,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
