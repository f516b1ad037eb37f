"""Chunks: what a log holds from a cursor on, as bytes of one wire format, encoded once and shared."""

from pushd.encoders import Encoder
from pushd.log import MESSAGE_OVERHEAD, Log, cost_of
from pushd.message import Position

SEND_BYTES = 96 * 1024
"""About what one send holds at most: larger units leave the processor's cache and meet full sockets."""

SHARED_CHUNKS = 8
"""Chunks kept of one log and wire format while passes run."""


class Chunk:
    """The messages after a cursor, or the source gap there: one send, of whole frames.

    There is nothing to send of a source gap in a wire format that cannot say it.
    """

    __slots__ = ("cost", "cut", "data", "end", "gaps", "written")

    def __init__(self, log: Log, cursor: int, encoder: Encoder) -> None:
        run = log.read(cursor, SEND_BYTES, encoder.framing)
        place = Position(run.offset, run.gaps)
        if run.gap:
            self.data = encoder.source_gap(place, run.gap)
            self.end = cursor + 1  # the cursor of who has been sent it
        else:
            self.data = encoder.messages(place, run.payloads, run.channels)
            self.end = cursor + len(run.payloads)
        self.cut = self.end < log.head  # more was there than one send holds
        if self.cut:
            self.cost = MESSAGE_OVERHEAD if run.gap else cost_of(run.payloads, run.channels)
            self.written, self.gaps = log.written_at(self.end), log.gaps_at(self.end)
        else:
            self.cost = 0  # it is of interest where more follows
            self.written, self.gaps = log.written, log.gaps


class Chunks:
    """One log in one wire format: encoded once for all that read from the same cursor.

    Puts itself into warm when it has encoded something, so that the memory can be given back.
    """

    __slots__ = ("_chunks", "_log", "_warm", "encoder")

    def __init__(self, log: Log, encoder: Encoder, warm: set["Chunks"]) -> None:
        self._log = log
        self.encoder = encoder
        self._warm = warm
        self._chunks: dict[int, Chunk] = {}

    def __len__(self) -> int:
        return len(self._chunks)

    def read(self, cursor: int) -> Chunk:
        """Return what comes after a cursor that is below the head, and not below the tail."""
        chunk = self._chunks.get(cursor)
        if chunk is None or (chunk.end != self._log.head and not chunk.cut):
            chunk = self._chunks[cursor] = Chunk(self._log, cursor, self.encoder)
            self._warm.add(self)
            if len(self._chunks) > SHARED_CHUNKS:
                del self._chunks[next(iter(self._chunks))]
        return chunk

    def clear(self) -> None:
        """Forget all chunks; who is being sent one keeps its bytes."""
        self._chunks.clear()
