"""Routes into a Redis Cluster: any node for ordinary topics, a slot's owner for shard channels."""

import binascii
from collections.abc import Sequence
from itertools import count
from typing import Any

from pushd.metrics import Reason
from pushd.redis_urls import Address
from pushd.sources.connection import Connector, Node, RedisConnection, SourceError
from pushd.sources.routes import Route

SLOTS = 16384

MAX_REDIRECTIONS = 5
"""How often one cluster may send on without a delay."""


def slot_of(channel: bytes) -> int:
    """Return a shard channel's slot: of what is between its first braces, if anything is, else of all.

    As the Redis Cluster specification has it for keys.
    """
    _, opened, rest = channel.partition(b"{")
    tag, closed, _ = rest.partition(b"}")
    hashed = tag if opened and closed and tag else channel
    return binascii.crc_hqx(hashed, 0) % SLOTS


def channel_in(slot: int, prefix: bytes) -> bytes:
    """Return a channel that begins with a prefix, which has no brace, and belongs to a slot."""
    return next(name for number in count() if slot_of(name := b"%s{%d}" % (prefix, number)) == slot)


class ClusterNodes:
    """The nodes to try: those that were given at first, and those that the cluster has named since."""

    def __init__(self, given: Sequence[Address], connect: Connector) -> None:
        self._given = given
        self._connect = connect
        self._all = list(given)

    def node(self, address: Address) -> Node:
        """Return one node."""
        return Node(str(address), self._connect(address), address)

    def pick(self, turn: int) -> Node:
        """Return one node after the other."""
        return self.node(self._all[turn % len(self._all)])

    def learn(self, slots: Any, asked: Address) -> None:
        """Take note of the nodes that CLUSTER SLOTS answers; one without a host is the one that was asked."""
        named = [
            Address(host.decode() or asked.host, int(port))
            for _, _, *nodes in slots
            for host, port, *_ in nodes
            if host != b"?"
        ]
        self._all = list(dict.fromkeys([*self._given, *named]))


class AnyNodeRoute(Route):
    """Leads to any node of a cluster, and to the next when that fails: all nodes carry ordinary messages."""

    def __init__(self, nodes: ClusterNodes, turn: int = 0) -> None:
        self._nodes = nodes
        self._turn = turn
        self._at: Address | None = None

    async def find(self) -> Node:
        """Return the node whose turn it is."""
        node = self._nodes.pick(self._turn)
        self._at = node.address
        return node

    async def check(self, connection: RedisConnection) -> None:
        """Learn from a node what other nodes there are; refuse one that is in no cluster."""
        assert self._at is not None
        try:
            self._nodes.learn(await connection.ask("CLUSTER SLOTS", b"CLUSTER", b"SLOTS"), self._at)
        except SourceError as failure:
            if not failure.is_forbidden:
                raise
        except (AttributeError, TypeError, ValueError) as error:
            raise SourceError(Reason.PROTOCOL, "that is not what CLUSTER SLOTS answers") from error

    def ended(self, node: Node, failure: SourceError) -> bool:  # noqa: ARG002 - whatever it was
        """Go on with the next node."""
        self._turn += 1
        return False


class SlotRoute(AnyNodeRoute):
    """Leads to the node that owns a slot: asks any, and follows where it is sent (MOVED)."""

    def __init__(self, nodes: ClusterNodes, turn: int = 0) -> None:
        super().__init__(nodes, turn)
        self._owner: Address | None = None
        self._redirections = 0

    async def find(self) -> Node:
        """Return the owner, as far as known."""
        if self._owner is None:
            return await super().find()
        self._at = self._owner
        return self._nodes.node(self._owner)

    def ended(self, node: Node, failure: SourceError) -> bool:
        """Go where the node sends; ask the next node where that is not known."""
        self._owner = None
        if failure.reason is not Reason.MOVED:
            self._redirections = 0
            return super().ended(node, failure)
        self._redirections += 1
        if not (address := _moved_to(str(failure), node)):
            super().ended(node, failure)
        self._owner = address
        return self._redirections % MAX_REDIRECTIONS > 0


def _moved_to(text: str, node: Node) -> Address | None:
    """Return the address in "MOVED slot host:port"; without a host it is that of the node that says so."""
    words = text.split(" ")
    if words[0] != "MOVED" or len(words) != 3 or node.address is None:
        return None
    host, _, port = words[2].rpartition(":")
    return Address(host or node.address.host, int(port)) if port.isdecimal() else None
