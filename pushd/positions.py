"""Ids: places in logs as clients know them, to come back to."""

import re

from pushd.message import Position

_ID = re.compile(r"([0-9a-z.]{1,40})-([0-9]{1,15})(?:\+([0-9]{1,15}))?", re.ASCII)


def id_parts(label: str, gaps: int) -> tuple[str, str]:
    """Return what is before and behind the offset in the ids of a log, which has a label."""
    return f"{label}-", f"+{gaps}" if gaps else ""


def show_id(label: str, position: Position) -> str:
    """Return the id of a place in the log that has a label."""
    before, behind = id_parts(label, position.gaps)
    return f"{before}{position.offset}{behind}"


def read_id(label: str, text: str) -> Position | None:
    """Return the place that an id means in the log that has a label; None where it is no id of that log."""
    found = _ID.fullmatch(text)
    if found is None or found[1] != label:
        return None
    return Position(int(found[2]), int(found[3] or 0))
