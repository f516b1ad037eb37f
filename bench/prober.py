"""Asks one question every few milliseconds, and times the answers: what a client feels beside all the others.

    python -m bench.prober WIRE PORT

It ends when its input does, and prints one line of JSON. A late answer makes the questions after it late:
they are timed from when they were due.
"""

import json
import select
import socket
import statistics
import sys
import time

from bench.wires import LINES, MQTT, NATS, RESP

WIRES = {"lines": LINES, "redis": RESP, "nats": NATS, "mqtt": MQTT}
INTERVAL = 0.005


def receive_until(connection: socket.socket, wanted: bytes) -> None:
    """Return once some bytes have come, whatever comes before them."""
    data = b""
    while wanted not in data:
        got = connection.recv(1 << 16)
        if not got:
            sys.exit("prober: the server closed the connection")
        data = data[-len(wanted) :] + got


def main() -> None:
    """Probe until the input ends."""
    wire = WIRES[sys.argv[1]]
    with socket.create_connection(("127.0.0.1", int(sys.argv[2]))) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(wire.hello)
        receive_until(connection, wire.ready)
        print("ready", flush=True)
        delays: list[float] = []
        due = time.monotonic()
        while not select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
            connection.sendall(wire.request)
            receive_until(connection, wire.reply)
            delays.append(1000 * (time.monotonic() - due))
            due += INTERVAL
    hundredths = statistics.quantiles(delays, n=100, method="inclusive")
    report = {
        "probes": len(delays),
        "p50_ms": hundredths[49],
        "p99_ms": hundredths[98],
        "max_ms": max(delays),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
