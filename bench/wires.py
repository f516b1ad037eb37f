"""What goes over the wire of each system: greetings, messages, how one publishes."""

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

CHANNEL = b"bench"
"""The channel of all, or as long as each client's own."""

STAMP_MASK = 0xFFFFFFFFFF
"""Stamps count microseconds in 40 bits: they wrap around after twelve days."""

STAMP_BYTES = 16
"""Hex digits at the beginning of a payload: 6 for its number, 10 for the microsecond of its stamp."""


@dataclass(frozen=True, slots=True)
class Wire:
    """A protocol as clients meet it.

    A client sends hello and is connected when it has received ready. A message is before(payload size), the
    payload, after. What equals noise may stand between messages. request is answered by reply.

    With lead frames are lines: something more stands between before and lead, which the payload follows. What
    stands between messages are lines, too, that begin with noise, and go on with another byte than a message.
    """

    hello: bytes
    ready: bytes
    before: Callable[[int], bytes]
    after: bytes
    noise: bytes
    request: bytes
    reply: bytes
    lead: bytes = b""


def _mqtt_length(size: int) -> bytes:
    """Encode a remaining length: MQTT 3.1.1, section 2.2.3."""
    digits = bytearray()
    while size > 127:
        digits.append(size & 127 | 128)
        size >>= 7
    return bytes([*digits, size])


def _mqtt(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + _mqtt_length(len(body)) + body


def _mqtt_text(text: bytes) -> bytes:
    return struct.pack(">H", len(text)) + text


MQTT_CONNECT = _mqtt(0x10, _mqtt_text(b"MQTT") + bytes([4, 2, 0, 0]) + _mqtt_text(b""))
MQTT_CONNACK = b"\x20\x02\x00\x00"

LINES = Wire(
    hello=b"ready\r\n",
    ready=b"ready\r\n",
    before=lambda _: b"",
    after=b"\r\n",
    noise=b"",
    request=b"the quick brown fox jumps over\r\n",
    reply=b"the quick brown fox jumps over\r\n",
)
GREETED_LINES = Wire(
    hello=b"",
    ready=LINES.ready,
    before=LINES.before,
    after=LINES.after,
    noise=b"",
    request=b"",
    reply=b"",
)
CONTROL = Wire(
    hello=b"SUBSCRIBE %b\n" % CHANNEL,
    ready=b'"upstream":"up"}\n',
    before=lambda _: b'{"type":"message","channel":"%b","offset":' % CHANNEL,
    after=b'"}\n',
    noise=b'{"type":"',
    request=b"",
    reply=b"",
    lead=b'","data":"',
)
RESP = Wire(
    hello=b"SUBSCRIBE %b\r\n" % CHANNEL,
    ready=b":1\r\n",
    before=lambda size: b"*3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$%d\r\n" % (len(CHANNEL), CHANNEL, size),
    after=b"\r\n",
    noise=b"",
    request=b"*1\r\n$4\r\nPING\r\n",
    reply=b"*2\r\n$4\r\npong\r\n$0\r\n\r\n",
)
NATS = Wire(
    hello=b'CONNECT {"verbose":false}\r\nSUB %b 1\r\nPING\r\n' % CHANNEL,
    ready=b"PONG\r\n",
    before=lambda size: b"MSG %b 1 %d\r\n" % (CHANNEL, size),
    after=b"\r\n",
    noise=b"PING\r\n",
    request=b"PING\r\n",
    reply=b"PONG\r\n",
)
MQTT = Wire(
    hello=MQTT_CONNECT + _mqtt(0x82, b"\x00\x01" + _mqtt_text(CHANNEL) + b"\x00"),
    ready=b"\x90\x03\x00\x01\x00",
    before=lambda size: b"\x30" + _mqtt_length(2 + len(CHANNEL) + size) + _mqtt_text(CHANNEL),
    after=b"",
    noise=b"",
    request=b"\xc0\x00",
    reply=b"\xd0\x00",
)


@dataclass(frozen=True, slots=True)
class PublishWire:
    """A protocol as a publisher meets it: each message it sends is answered, with mark once in the answer."""

    hello: bytes
    ready: bytes
    command: Callable[[bytes], bytes]
    mark: bytes


def _mqtt_publish(payload: bytes) -> bytes:
    """Publish with quality of service 1, so that it is acknowledged.

    The identifier comes from the message's number. One of 63 is enough for what is in flight, and is never
    the mark of an acknowledgement.
    """
    identifier = bytes([1, 1 + int(payload[:6], 16) % 63])
    return _mqtt(0x32, _mqtt_text(CHANNEL) + identifier + payload)


PUBLISH_RESP = PublishWire(
    hello=b"PING\r\n",
    ready=b"+PONG\r\n",
    command=lambda payload: (
        b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(CHANNEL), CHANNEL, len(payload), payload)
    ),
    mark=b"\n",
)
PUBLISH_NATS = PublishWire(
    hello=b'CONNECT {"verbose":true}\r\n',
    ready=b"+OK\r\n",
    command=lambda payload: b"PUB %b %d\r\n%b\r\n" % (CHANNEL, len(payload), payload),
    mark=b"+",
)
PUBLISH_MQTT = PublishWire(hello=MQTT_CONNECT, ready=MQTT_CONNACK, command=_mqtt_publish, mark=b"\x40")


def own_channel(number: int) -> bytes:
    """Return the channel of one client, where each has its own; the generator names them alike."""
    return CHANNEL[:-4] + b"%04d" % number


def filler(size: int) -> bytes:
    """Return what follows the stamp in a payload of so many bytes."""
    return (b"follow-the-white-rabbit-" * (size // 24 + 1))[: size - STAMP_BYTES]


def micros() -> int:
    """Return the time as payloads carry it: 40 bits of the microseconds of the monotonic clock."""
    return time.monotonic_ns() // 1000 & STAMP_MASK


def payload(number: int, rest: bytes) -> bytes:
    """Return the payload of one message, published now."""
    return b"%06x%010x%b" % (number, micros(), rest)
