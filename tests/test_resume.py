"""Resuming: against a model that keeps everything, each start is what the document promises."""

from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pushd.commands import From, Last
from pushd.log import MESSAGE_OVERHEAD, Log
from pushd.message import Gap, Position, SourceGap
from pushd.positions import show_id
from pushd.resume import Start, start_in

LABEL = "k3f9ab.1"
GAP = SourceGap(since=1.0, until=2.5)
LIMIT = 16 * MESSAGE_OVERHEAD
"""So small that each message is a segment of its own, and so few are kept."""


def log_of(history: str, limit: int = 10**6) -> Log:
    """Return a log with a message for each m, and a source gap for each g."""
    log = Log(limit)
    for entry in history:
        if entry == "m":
            log.append([b""])
        else:
            log.append_gap(GAP)
    return log


def resumed(log: Log, offset: int, gaps: int = 0) -> Start:
    return start_in(log, LABEL, From(show_id(LABEL, Position(offset, gaps))))


def test_without_a_wish_it_begins_at_the_head() -> None:
    assert start_in(log_of("mmgm"), LABEL, None) == Start(Position(3, 1), 4)
    assert start_in(log_of(""), LABEL, None) == Start(Position(0, 0), 0)


@pytest.mark.parametrize(
    ("messages", "place"),
    [(0, Position(3, 1)), (1, Position(2, 1)), (2, Position(1, 0)), (3, Position(0, 0)), (9, Position(0, 0))],
)
def test_the_last_messages_come_again(messages: int, place: Position) -> None:
    assert start_in(log_of("mmgm"), LABEL, Last(messages)) == Start(place, place.cursor)


def test_the_last_messages_are_those_that_are_kept() -> None:
    log = log_of("m" * 100, LIMIT)
    assert start_in(log, LABEL, Last(1000)) == Start(Position(log.tail, 0), log.tail)


def test_it_goes_on_behind_an_id() -> None:
    assert resumed(log_of("mmmm"), 2) == Start(Position(2, 0), 2)
    assert resumed(log_of("mmmm"), 4) == Start(Position(4, 0), 4)
    assert resumed(log_of(""), 0) == Start(Position(0, 0), 0)


def test_a_source_gap_that_is_still_to_come_makes_it_incomplete() -> None:
    """It is told in its place, as to everybody."""
    log = log_of("mmgm")
    assert resumed(log, 2) == Start(Position(2, 0), 2, is_complete=False)
    assert resumed(log, 2, 1) == Start(Position(2, 1), 3)


def test_what_is_no_longer_kept_is_a_gap() -> None:
    log = log_of("m" * 100, LIMIT)
    tail = Position(log.tail, 0)
    assert log.tail > 80
    assert resumed(log, 10) == Start(
        Position(10, 0), log.tail, is_complete=False, gap=Gap(Position(10, 0), tail)
    )
    assert resumed(log, log.tail) == Start(tail, log.tail)


def test_a_source_gap_that_is_no_longer_kept_is_a_gap_too() -> None:
    log = log_of("m" * 10 + "g" + "m" * 16, LIMIT)
    assert log.tail == 11
    assert resumed(log, 10) == Start(
        Position(10, 0), 11, is_complete=False, gap=Gap(Position(10, 0), Position(10, 1))
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "latest",
        "k3f9ab.2-3",
        "k3f9ab.11-3",
        "zzzzzz.1-3",
        f"{LABEL}-6",  # beyond the head
        f"{LABEL}-5",  # with a source gap less it would be the head
        f"{LABEL}-4+2",
        f"{LABEL}-1+1",  # the source gap came later
        f"{LABEL}-0+1",
        f"{LABEL}-999999999999999",
        f"{LABEL}-1+999999999999999",
    ],
)
def test_what_never_was_a_place_here_is_unknown(text: str) -> None:
    unknown = Start(Position(0, 0), 0, is_complete=False, is_unknown=True)
    assert start_in(log_of("mmgmm"), LABEL, From(text)) == unknown


def test_what_cannot_have_been_a_place_is_unknown_when_it_is_no_longer_kept() -> None:
    log = log_of("ggmmm" + "m" * 16, LIMIT)
    assert log.position(log.tail) == Position(3, 2)
    unknown = Start(Position(3, 2), 5, is_complete=False, is_unknown=True)
    assert resumed(log, 0, 3) == unknown
    assert resumed(log, 4, 0) == unknown


@dataclass
class Model:
    """All that a log has ever had, and from where on it is kept."""

    entries: str
    tail: int

    def place(self, cursor: int) -> Position:
        return Position(self.entries[:cursor].count("m"), self.entries[:cursor].count("g"))

    @property
    def places(self) -> list[Position]:
        return [self.place(cursor) for cursor in range(len(self.entries) + 1)]


histories = st.text("mmmg", max_size=40)
limits = st.sampled_from([10**6, LIMIT, 6 * MESSAGE_OVERHEAD])


def check(model: Model, start: Start, had: Position) -> None:
    """Check the start of who comes back with an id that was given to it once."""
    assert not start.is_unknown
    assert start.place == had
    gap = start.gap or Gap(had, had)
    # The gap begins where the client is, and ends where delivery begins.
    assert (gap.since, gap.until) == (had, model.place(start.cursor))
    missing = model.entries[had.cursor : start.cursor]
    assert (gap.messages, gap.source_gaps) == (missing.count("m"), missing.count("g"))
    # No more is missing than has to be; and it is complete if nothing is.
    assert start.cursor == max(model.tail, had.cursor)
    assert (start.gap is not None) == (had.cursor < model.tail)
    assert start.is_complete == (not missing and "g" not in model.entries[had.cursor :])


@given(histories, histories, limits)
def test_an_id_is_good_for_as_long_as_the_log(before: str, after: str, limit: int) -> None:
    """The id of any place, taken when it was the head or later, and shown when more has come."""
    entries = before + after
    log = log_of(entries, limit)
    model = Model(entries, log.tail)
    for had in model.places[: len(before) + 1]:
        check(model, resumed(log, *had), had)


@given(histories, limits, st.integers(0, 50), st.integers(0, 50))
@example("ggmmm" + "m" * 16, LIMIT, 1, 1)
def test_a_forged_id_gains_nothing(entries: str, limit: int, offset: int, gaps: int) -> None:
    """What is kept is delivered from its beginning, or from where the id would be; and it is said."""
    log = log_of(entries, limit)
    model = Model(entries, log.tail)
    forged = Position(offset, gaps)
    start = resumed(log, offset, gaps)
    if forged in model.places:
        check(model, start, forged)
    elif start.is_unknown:
        assert start == Start(model.place(log.tail), log.tail, is_complete=False, is_unknown=True)
    else:
        # It might have been a place, before the oldest that is kept.
        assert forged.cursor < log.tail
        assert start == Start(forged, log.tail, is_complete=False, gap=Gap(forged, model.place(log.tail)))
        assert start.gap
        assert start.gap.messages >= 0
        assert start.gap.source_gaps >= 0


@given(
    histories,
    limits,
    st.text(max_size=20) | st.from_regex(r"k3f9ab\.[12]-[0-9]{1,3}(\+[0-9]{1,2})?", fullmatch=True),
)
def test_any_text_leads_to_a_place_that_is_kept(entries: str, limit: int, text: str) -> None:
    log = log_of(entries, limit)
    start = start_in(log, LABEL, From(text))
    assert log.tail <= start.cursor <= log.head
    assert not (start.is_unknown and start.gap)
    assert not (start.is_complete and (start.is_unknown or start.gap))
    if not text.startswith(f"{LABEL}-"):
        assert start.is_unknown


@given(histories, limits, st.integers(0, 60))
def test_the_last_messages_are_as_many_as_are_kept(entries: str, limit: int, messages: int) -> None:
    log = log_of(entries, limit)
    start = start_in(log, LABEL, Last(messages))
    assert start.place == Model(entries, log.tail).place(start.cursor)
    assert entries[start.cursor :].count("m") == min(messages, entries[log.tail :].count("m"))
    assert (start.gap, start.is_unknown) == (None, False)
