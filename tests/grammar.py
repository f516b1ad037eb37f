"""Grammars in ABNF (RFC 5234), where no rule needs itself: as regular expressions, and to make texts of."""

import re
from typing import Generic, Protocol, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")

CORE = """
CR     = %x0D
LF     = %x0A
SP     = %x20
HTAB   = %x09
DQUOTE = %x22
DIGIT  = %x30-39
HEXDIG = DIGIT / "A" / "B" / "C" / "D" / "E" / "F"
"""

_COMMENT = re.compile(";.*")
_TOKEN = re.compile(r'"[^"]*"|%x[0-9A-F]+(?:-[0-9A-F]+)?|\d*\*\d*|\d+|[A-Za-z][\w-]*|[^ \n]')
_REPEAT = re.compile(r"\d+|\d*\*\d*")


class Builder(Protocol[T]):
    """Makes of rules what is wanted."""

    def either(self, parts: list[T]) -> T:
        """Return what is any of some parts."""

    def sequence(self, parts: list[T]) -> T:
        """Return what is one part after the other."""

    def repeated(self, part: T, least: int, most: int | None) -> T:
        """Return what is a part so many times."""

    def letter(self, first: int, last: int) -> T:
        """Return what is a letter of a range."""


class Regexes:
    """Makes texts of regular expressions."""

    def either(self, parts: list[str]) -> str:
        return f"(?:{'|'.join(parts)})"

    def sequence(self, parts: list[str]) -> str:
        return "".join(parts)

    def repeated(self, part: str, least: int, most: int | None) -> str:
        return f"(?:{part}){{{least},{'' if most is None else most}}}"

    def letter(self, first: int, last: int) -> str:
        return f"[\\U{first:08X}-\\U{last:08X}]"


class Strategies:
    """Makes strategies for texts, without halves of surrogate pairs."""

    def either(self, parts: list[st.SearchStrategy[str]]) -> st.SearchStrategy[str]:
        return st.one_of(parts)

    def sequence(self, parts: list[st.SearchStrategy[str]]) -> st.SearchStrategy[str]:
        return st.tuples(*parts).map("".join)

    def repeated(self, part: st.SearchStrategy[str], least: int, most: int | None) -> st.SearchStrategy[str]:
        return st.lists(part, min_size=least, max_size=least + 8 if most is None else most).map("".join)

    def letter(self, first: int, last: int) -> st.SearchStrategy[str]:
        return st.characters(codec="utf-8", min_codepoint=first, max_codepoint=last)


def rules_of(*texts: str) -> dict[str, str]:
    """Return the definitions of grammars by the names of rules; no string in them holds a semicolon."""
    rules: dict[str, str] = {}
    for line in _COMMENT.sub("", "\n".join((CORE, *texts))).splitlines():
        if found := re.match(r"([A-Za-z][\w-]*)\s*=(.*)", line):
            name = found[1]
            rules[name] = found[2]
        elif line.strip():
            rules[name] += f"\n{line}"
    return rules


class Grammar(Generic[T]):
    """Reads rules, and has a builder make of each what is wanted."""

    def __init__(self, rules: dict[str, str], builder: Builder[T]) -> None:
        self._rules = rules
        self._builder = builder

    def rule(self, name: str) -> T:
        """Return what is made of a rule."""
        tokens = _TOKEN.findall(self._rules[name])
        made = self._alternatives(tokens)
        assert tokens == []
        return made

    def _alternatives(self, tokens: list[str]) -> T:
        alternatives = [self._sequence(tokens)]
        while tokens[:1] == ["/"]:
            del tokens[0]
            alternatives.append(self._sequence(tokens))
        return self._builder.either(alternatives)

    def _sequence(self, tokens: list[str]) -> T:
        sequence = []
        while tokens and tokens[0] not in ("/", ")", "]"):
            times = tokens.pop(0) if _REPEAT.fullmatch(tokens[0]) else "1"
            element = self._element(tokens)
            sequence.append(element if times == "1" else self._repeated(element, times))
        return self._builder.sequence(sequence)

    def _repeated(self, element: T, times: str) -> T:
        least, star, most = times.partition("*")
        most = most if star else least
        return self._builder.repeated(element, int(least or 0), int(most) if most else None)

    def _element(self, tokens: list[str]) -> T:
        token = tokens.pop(0)
        if token in ("(", "["):
            inner = self._alternatives(tokens)
            assert tokens.pop(0) == {"(": ")", "[": "]"}[token]
            return inner if token == "(" else self._builder.repeated(inner, 0, 1)
        if token.startswith('"'):
            return self._builder.sequence([self._in_any_case(letter) for letter in token[1:-1]])
        if token.startswith("%x"):
            first, _, last = token[2:].partition("-")
            return self._builder.letter(int(first, 16), int(last or first, 16))
        return self.rule(token)

    def _in_any_case(self, letter: str) -> T:
        """Return a letter of a string; only those of ASCII have a case there, unlike with re.IGNORECASE."""
        cases = sorted({letter.upper(), letter.lower()})
        return self._builder.either([self._builder.letter(ord(case), ord(case)) for case in cases])
