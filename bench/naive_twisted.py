"""What one would write first: a LineReceiver that echoes, a set of clients, and a sendLine for each.

python -m bench.naive_twisted LISTEN_PORT REDIS_PORT CHANNEL
"""

import sys

from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineReceiver
from txredisapi import SubscriberProtocol


class Echo(LineReceiver):
    """One client."""

    def connectionMade(self):
        """Join the broadcast."""
        self.factory.clients.add(self)

    def lineReceived(self, line):
        """Send the line back."""
        self.sendLine(line)

    def connectionLost(self, reason):
        """Leave the broadcast."""
        self.factory.clients.discard(self)


class Clients(Factory):
    """All clients."""

    noisy = False
    protocol = Echo

    def __init__(self):
        self.clients = set()

    def broadcast(self, message):
        """Send a message to every client."""
        for client in list(self.clients):
            client.sendLine(message)


class Redis(SubscriberProtocol):
    """The subscription."""

    def __init__(self, channel, broadcast):
        super().__init__(charset=None, convertNumbers=False)
        self.channel = channel
        self.broadcast = broadcast

    def connectionMade(self):
        """Subscribe."""
        super().connectionMade()
        self.subscribe([self.channel]).addCallback(lambda _: print("ready", flush=True))

    def messageReceived(self, pattern, channel, message):
        """Hand a message on."""
        self.broadcast(message)


def main():
    """Serve until killed."""
    port, redis_port, channel = sys.argv[1:]
    clients = Clients()
    TCP4ServerEndpoint(reactor, int(port), backlog=4096, interface="127.0.0.1").listen(clients)
    redis = Factory.forProtocol(lambda: Redis(channel.encode(), clients.broadcast))
    TCP4ClientEndpoint(reactor, "127.0.0.1", int(redis_port)).connect(redis)
    reactor.run()


if __name__ == "__main__":
    main()
