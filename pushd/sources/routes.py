"""Routes: which server to connect to next, for one subscription."""

from twisted.internet.defer import Deferred

from pushd.sources.connection import Node, RedisConnection, SourceError


class Route:
    """The way to one server that is always the same; the base of those that know of several."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def start(self) -> None:
        """Begin to look for servers."""

    def stop(self) -> None:
        """Look for none any more."""

    async def find(self) -> Node:
        """Return where to connect now; raises SourceError where that is not known."""
        return self._node

    async def check(self, connection: RedisConnection, node: Node) -> None:
        """Ask a server to which a connection was made; raises SourceError where it is not the right one."""

    def left(self, node: Node) -> Deferred[None]:  # noqa: ARG002 - the one node is never left
        """Return what fires when another server than this one has become the right one."""
        return Deferred()

    def advance(self) -> None:
        """Look elsewhere next time, if there is a choice."""

    def redirect(self, node: Node, failure: SourceError) -> bool:  # noqa: ARG002
        """Go where a node that does not serve has sent to; return whether it has, so that no delay is due."""
        return False
