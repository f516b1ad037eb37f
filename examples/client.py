#!/usr/bin/env python3
"""Print what is published to a channel: client.py HOST PORT CHANNEL.

A token, if pushd asks for one, is taken from the environment variable PUSHD_TOKEN.
"""

import base64
import json
import os
import random
import socket
import sys
import time

if len(sys.argv) != 4:
    sys.exit(__doc__)
host, port, channel = sys.argv[1:]


def events(last_id):
    """Subscribe, and yield what pushd tells until the connection ends."""
    try:
        with socket.create_connection((host, port), timeout=10) as connection:
            for line in connection.makefile("rb"):  # as bytes: text would be split at more than LF
                event = json.loads(line)
                if event["type"] == "welcome":
                    # Nothing for so long: the connection is dead.
                    connection.settimeout(2 * event["heartbeat"] + 1)
                    if event["auth"] == "required":
                        connection.sendall(f"AUTH {os.environ.get('PUSHD_TOKEN', '')}\n".encode())
                    start = f" FROM {last_id}" if last_id else ""
                    connection.sendall(f"SUBSCRIBE {json.dumps(channel)}{start}\n".encode())
                yield event
    except (OSError, ValueError) as error:  # ValueError: the last line was torn
        print(f"connection lost: {error}", file=sys.stderr)


def show(event):
    """Print a message, or say what is wrong."""
    match event["type"]:
        case "message":
            payload = event["data"].encode() if "data" in event else base64.b64decode(event["data_base64"])
            sys.stdout.buffer.write(payload + b"\n")
            sys.stdout.flush()
        case "gap":
            missed = "unknown how many" if event["missed"] is None else event["missed"]
            print(f"gap: {missed} messages missed ({event['reason']})", file=sys.stderr)
        case "error":
            print(f"error: {event['message']}", file=sys.stderr)
            if "retry_ms" not in event:  # another time would be no better
                sys.exit(1)


last_id = None
wait = 1.0
while True:
    wait = min(2 * wait, 30)  # longer each time, until pushd says something
    for event in events(last_id):
        last_id = event.get("id", last_id)
        wait = event.get("retry_ms", random.uniform(500, 1500)) / 1000
        show(event)
    time.sleep(wait)
