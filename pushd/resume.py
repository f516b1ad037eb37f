"""Resuming: where in a log a subscription begins, and what is known to be missing before that."""

from dataclasses import dataclass

from pushd.commands import From, Last
from pushd.log import Log
from pushd.message import Gap, Position
from pushd.positions import read_id


@dataclass(frozen=True, slots=True)
class Start:
    """Where a client is, and where delivery begins: between them is a gap, or nothing.

    If complete, everything that the log has had after the client's place comes. If unknown, the client has
    named a place that was never in this log, and is put where delivery begins.
    """

    place: Position
    cursor: int
    is_complete: bool = True
    is_unknown: bool = False
    gap: Gap | None = None


def start_in(log: Log, label: str, wanted: From | Last | None) -> Start:
    """Return the start in a log that has a label; it comes as near to what is wanted as the log allows."""
    match wanted:
        case None:
            return _at(log, log.head)
        case Last(messages):
            return _at(log, log.back(messages))
        case _:
            place = read_id(label, wanted.id)
            return _unknown(log) if place is None else _after(log, place)


def _at(log: Log, cursor: int) -> Start:
    return Start(log.position(cursor), cursor)


def _unknown(log: Log) -> Start:
    return Start(log.position(log.tail), log.tail, is_complete=False, is_unknown=True)


def _after(log: Log, place: Position) -> Start:
    if log.tail <= place.cursor <= log.head:
        if log.position(place.cursor) != place:
            return _unknown(log)
        return Start(place, place.cursor, is_complete=log.gaps == place.gaps)
    gap = Gap(place, log.position(log.tail))
    if gap.messages < 0 or gap.source_gaps < 0:  # as where the place is beyond the head
        return _unknown(log)
    return Start(place, log.tail, is_complete=False, gap=gap)
