"""The same design on Tornado, with redis-py's asyncio client: one awaited write for each client.

python -m bench.naive_tornado LISTEN_PORT REDIS_PORT CHANNEL
"""

import asyncio
import contextlib
import sys

from redis.asyncio import Redis
from tornado.iostream import IOStream, StreamClosedError
from tornado.tcpserver import TCPServer


class Clients(TCPServer):
    """All clients: each line is echoed."""

    def __init__(self) -> None:
        super().__init__()
        self._streams: set[IOStream] = set()

    async def handle_stream(self, stream: IOStream, address: tuple[str, int]) -> None:
        """Serve one client until it leaves."""
        stream.set_nodelay(True)
        self._streams.add(stream)
        with contextlib.suppress(StreamClosedError):
            while True:
                await stream.write(await stream.read_until(b"\n"))
        self._streams.discard(stream)

    async def broadcast(self, message: bytes) -> None:
        """Send a message to every client."""
        for stream in list(self._streams):
            with contextlib.suppress(StreamClosedError):
                await stream.write(message + b"\r\n")


async def main() -> None:
    """Serve until killed."""
    port, redis_port, channel = sys.argv[1:]
    clients = Clients()
    clients.listen(int(port), "127.0.0.1", backlog=4096)
    async with Redis(port=int(redis_port)).pubsub() as subscription:
        await subscription.subscribe(channel)
        async for message in subscription.listen():
            if message["type"] == "subscribe":
                print("ready", flush=True)
            else:
                await clients.broadcast(message["data"])


if __name__ == "__main__":
    asyncio.run(main())
