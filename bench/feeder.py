"""Plays a Redis that is never the limit: it confirms a subscription, and sends what it has prepared.

    python -m bench.feeder PORT --messages M --size BYTES

It begins on a line of input, and prints one line of JSON when everything is sent.
"""

import argparse
import json
import socket
import sys

from bench.wires import CHANNEL, RESP, filler, micros, payload

NO_INFO = b"$0\r\n\r\n"
CONFIRMED = b"*3\r\n$9\r\nsubscribe\r\n$%d\r\n%b\r\n:1\r\n" % (len(CHANNEL), CHANNEL)


def main() -> None:
    """Serve one subscriber."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--messages", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    options = parser.parse_args()
    before, rest = RESP.before(options.size), filler(options.size)
    prepared = b"".join(before + payload(n, rest) + RESP.after for n in range(options.messages))
    with socket.create_server(("127.0.0.1", options.port)) as listener:
        print("ready", flush=True)
        connection, _ = listener.accept()
    with connection:
        for answer in (NO_INFO, CONFIRMED):
            connection.recv(1024)
            connection.sendall(answer)
        sys.stdin.readline()
        start = micros()
        connection.sendall(prepared)
        print(json.dumps({"start_us": start, "seconds": (micros() - start) / 1e6}), flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main()
