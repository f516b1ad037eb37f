"""Tells apart, where Redis lets it, that it was Redis who cut pushd off, for its output buffer."""

import re

from pushd.metrics import Reason
from pushd.sources.connection import RedisConnection, SourceError

_COUNTED = re.compile(rb"^client_output_buffer_limit_disconnections:([0-9]{1,18})", re.MULTILINE)


class BufferLimit:
    """Compares what a server counts of such disconnections: from Redis 7.4 on, INFO says so."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}  # by server, at the last look

    async def look(self, connection: RedisConnection, server: str) -> str:
        """Return a remark if the server has cut off clients since the last look; raises SourceError."""
        try:
            info = await connection.ask("INFO", b"INFO", b"stats")
        except SourceError as failure:
            if failure.reason is not Reason.REFUSED or "max number of clients" in str(failure):
                raise
            return ""  # it need not tell
        found = _COUNTED.search(info) if isinstance(info, bytes) else None
        if found is None:
            return ""
        cut_off = int(found[1]) - self._counts.get(server, int(found[1]))
        self._counts[server] = int(found[1])
        if cut_off <= 0:
            return ""
        return (
            f"; Redis has cut off {cut_off} clients for their output buffers since pushd last connected,"
            " perhaps this one too (client-output-buffer-limit pubsub)"
        )
