"""Routes into a Redis Cluster: any node for ordinary topics, a slot's owner for shard channels."""

import binascii
import functools
from collections.abc import Sequence
from itertools import count
from typing import Any

from pushd.metrics import Reason
from pushd.redis_urls import Address, read_address
from pushd.sources.connection import Connector, Node, RedisConnection, SourceError
from pushd.sources.routes import Route

SLOTS = 16384

MAX_REDIRECTIONS = 5
"""How often in a row one may be sent on without a delay."""


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
    return b"%s{%d}" % (prefix, _tags()[slot])


@functools.cache
def _tags() -> dict[int, int]:
    """Return for each slot a number that belongs to it."""
    tags: dict[int, int] = {}
    for number in count():
        tags.setdefault(slot_of(b"%d" % number), number)
        if len(tags) == SLOTS:
            break
    return tags


class ClusterNodes:
    """The nodes to try: those that were given at first, and those that the cluster has named since."""

    def __init__(self, given: Sequence[Address], connect: Connector) -> None:
        self._given = given
        self._connect = connect
        self.addresses = list(given)

    def node(self, address: Address) -> Node:
        """Return one node; raises SourceError where there can be none."""
        return Node(str(address), self._connect(address), address)

    def learn(self, slots: Any, asked: Node) -> None:
        """Take note of the nodes that CLUSTER SLOTS answers; raises SourceError where it answers none."""
        try:
            named = [(host or b"", b"%d" % port) for _, _, *nodes in slots for host, port, *_ in nodes]
        except (TypeError, ValueError) as error:
            raise SourceError(Reason.PROTOCOL, "that is not what CLUSTER SLOTS answers") from error
        addresses = [_named(host, port, asked) for host, port in named]
        self.addresses = list(dict.fromkeys([*self._given, *filter(None, addresses)]))


class AnyNodeRoute(Route):
    """Leads to any node of a cluster, and to the next when that fails: all nodes carry ordinary messages.

    It begins with the one whose turn is given, and passes by those that are in use by another route.
    """

    def __init__(self, nodes: ClusterNodes, turn: int = 0, beside: "AnyNodeRoute | None" = None) -> None:
        self.at: Address | None = None
        self._nodes = nodes
        self._turn = turn
        self._beside = beside

    async def find(self) -> Node:
        """Return the node whose turn it is."""
        addresses = self._nodes.addresses
        address = addresses[self._turn % len(addresses)]
        if self._beside and address == self._beside.at:
            address = addresses[(self._turn + 1) % len(addresses)]
        self.at = address
        return self._nodes.node(address)

    async def check(self, connection: RedisConnection, node: Node) -> None:
        """Learn from a node what other nodes there are; refuse one that is in no cluster."""
        try:
            slots = await connection.ask("CLUSTER SLOTS", b"CLUSTER", b"SLOTS")
        except SourceError as failure:
            if failure.is_forbidden:
                return
            raise
        self._nodes.learn(slots, node)

    def advance(self) -> None:
        """Go on with the next node."""
        self._turn += 1


class SlotRoute(AnyNodeRoute):
    """Leads to the node that owns a slot: asks any, and follows where it is sent (MOVED)."""

    def __init__(self, nodes: ClusterNodes, turn: int = 0) -> None:
        super().__init__(nodes, turn)
        self._owner: Address | None = None
        self._redirections = 0

    async def find(self) -> Node:
        """Return the owner, as far as known."""
        return await super().find() if self._owner is None else self._nodes.node(self._owner)

    def advance(self) -> None:
        """Ask the next node who the owner is."""
        super().advance()
        self._owner = None
        self._redirections = 0

    def redirect(self, node: Node, failure: SourceError) -> bool:
        """Go where a node sends to; where it does not say where, ask the next node."""
        if failure.reason is not Reason.MOVED or self._redirections == MAX_REDIRECTIONS:
            return False
        self._redirections += 1
        self._owner = _moved_to(str(failure), node)
        if self._owner is None:
            super().advance()
        return True


def _moved_to(text: str, node: Node) -> Address | None:
    """Return the address in "MOVED slot host:port", which a node has said; None where there is none."""
    words = text.split(" ")
    if words[0] != "MOVED" or len(words) != 3:
        return None
    host, _, port = words[2].rpartition(":")
    return _named(host.encode(), port.encode(), node)


def _named(host: bytes, port: bytes, by: Node) -> Address | None:
    """Return the address of a node that another has named; without a host it is at that of the other."""
    try:
        known = by.address.host if host in (b"", b"?") and by.address else host.decode()
        return read_address(known, port.decode())
    except (AttributeError, ValueError):
        return None
