"""Ids: each place has one, it is read in its own log only, and nothing else is one."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pushd.message import Position
from pushd.positions import id_parts, read_id, show_id

LABEL = "k3f9ab.12"

labels = st.builds("{}.{}".format, st.text("abcxyz0189", min_size=6, max_size=6), st.integers(1, 10**9))
positions = st.builds(Position, st.integers(0, 10**15 - 1), st.integers(0, 10**15 - 1))


@pytest.mark.parametrize(
    ("position", "text"),
    [
        (Position(0, 0), "k3f9ab.12-0"),
        (Position(42, 0), "k3f9ab.12-42"),
        (Position(42, 3), "k3f9ab.12-42+3"),
        (Position(0, 1), "k3f9ab.12-0+1"),
    ],
)
def test_ids_say_where(position: Position, text: str) -> None:
    assert show_id(LABEL, position) == text
    assert read_id(LABEL, text) == position


@given(labels, positions)
def test_an_id_leads_back_to_its_place(label: str, position: Position) -> None:
    text = show_id(label, position)
    assert read_id(label, text) == position
    before, behind = id_parts(label, position.gaps)
    assert text == f"{before}{position.offset}{behind}"


@given(labels, labels, positions)
@example("aaaaaa.1", "aaaaaa.11", Position(1, 0))
@example("aaaaaa.1", "aaaaab.1", Position(1, 0))
def test_an_id_means_nothing_in_another_log(label: str, other: str, position: Position) -> None:
    assert label == other or read_id(other, show_id(label, position)) is None


@given(labels, positions, positions)
def test_different_places_have_different_ids(label: str, one: Position, other: Position) -> None:
    assert (show_id(label, one) == show_id(label, other)) == (one == other)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        LABEL,
        f"{LABEL}-",
        f"{LABEL}--1",
        f"{LABEL}-1+",
        f"{LABEL}-1+-1",
        f"{LABEL}-1 ",
        f" {LABEL}-1",
        f"{LABEL}-1\n",
        f"{LABEL}-1.0",
        f"{LABEL}-1e3",
        f"{LABEL}-1_0",
        f"{LABEL}-\u0663",
        f"{LABEL}-1+\u0663",
        f"{LABEL}-{10**15}",
        f"{LABEL}-1+{10**15}",
        f"{LABEL}-{'9' * 10_000}",
        f"{LABEL.upper()}-1",
        f"{LABEL}-1-1",
        f"{LABEL}+1",
        "latest",
    ],
)
def test_what_is_no_id(text: str) -> None:
    assert read_id(LABEL, text) is None


@given(st.text(st.sampled_from([*LABEL, "-", "+", "9", "\n", "\u0663"]), max_size=12).map(LABEL.__add__))
def test_any_text_is_an_id_or_none(text: str) -> None:
    position = read_id(LABEL, text)
    assert (position is not None) == bool(re.fullmatch(r"k3f9ab\.12-[0-9]+(\+[0-9]+)?", text))
    assert position is None or position.cursor >= 0
