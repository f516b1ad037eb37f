"""Requests come out of any bytes, however they were cut; what is no request is refused."""

from itertools import pairwise

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.sources import resp
from pushd.sources.resp import MAX_LINE, MAX_REQUEST, MAX_WORDS, ProtocolError, RequestParser, split_words

MIXED = (
    b"*3\r\n$7\r\nPUBLISH\r\n$7\r\nupdates\r\n$14\r\n*1\r\n$4\r\nPING\r\n\r\n"
    b"PUBLISH updates 'follow the white rabbit'\r\n"
    b"*0\r\n\r\n  \n*-1\r\n"
    b"*2\r\n$0\r\n\r\n$2\r\n\r\n\r\n"
    b"ping\n"
)
MIXED_REQUESTS = [
    [b"PUBLISH", b"updates", b"*1\r\n$4\r\nPING\r\n"],
    [b"PUBLISH", b"updates", b"follow the white rabbit"],
    [b"", b"\r\n"],
    [b"ping"],
]


def parse(*pieces: bytes) -> list[list[bytes]]:
    parser = RequestParser()
    return [words for piece in pieces for words in parser.feed(piece)]


def refusal(*pieces: bytes) -> str:
    with pytest.raises(ProtocolError) as raised:
        parse(*pieces)
    return str(raised.value)


def test_arrays_and_lines_mix() -> None:
    assert parse(MIXED) == MIXED_REQUESTS


@pytest.mark.parametrize("cut", range(len(MIXED) + 1))
def test_cut_anywhere(cut: int) -> None:
    assert parse(MIXED[:cut], MIXED[cut:]) == MIXED_REQUESTS


def test_byte_by_byte() -> None:
    assert parse(*(MIXED[at : at + 1] for at in range(len(MIXED)))) == MIXED_REQUESTS


@given(st.lists(st.lists(st.binary(), min_size=1), max_size=5), st.lists(st.integers(0, 200)))
def test_any_words_come_through(requests: list[list[bytes]], cuts: list[int]) -> None:
    stream = b"".join(resp.array(map(resp.bulk, words)) for words in requests)
    edges = [0, *sorted(cuts), max([len(stream), *cuts])]
    assert parse(*(stream[begin:end] for begin, end in pairwise(edges))) == requests


@given(
    st.lists(st.sampled_from([b"*", b"$", b"1", b"2", b"-", b"\r\n", b"\n", b"'", b'"', b"x"])).map(b"".join)
)
def test_any_bytes_parse_alike_however_cut(stream: bytes) -> None:
    """Whole and byte by byte give the same requests, and the same refusal if any."""
    outcomes = []
    for pieces in ([stream], [stream[at : at + 1] for at in range(len(stream))]):
        parser, seen, fault = RequestParser(), [], ""
        try:
            for piece in pieces:
                for words in parser.feed(piece):
                    seen.append(words)  # noqa: PERF402 - keep what came before a fault
        except ProtocolError as refused:
            fault = str(refused)
        outcomes.append((seen, fault))
    assert outcomes[0] == outcomes[1]


def test_requests_before_a_fault_count() -> None:
    requests = RequestParser().feed(b"PING\r\n*1\r\n+PING\r\n")
    assert next(requests) == [b"PING"]
    with pytest.raises(ProtocolError):
        next(requests)


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (b"*x\r\n", "invalid multibulk length"),
        (b"*\r\n", "invalid multibulk length"),
        (b"*" + b"1" * 20, "invalid multibulk length"),
        (b"*%d\r\n" % (MAX_WORDS + 1), "invalid multibulk length"),
        (b"*1000000000\r\n", "invalid multibulk length"),
        (b"*1\r\n:5\r\n", "expected '$', got ':'"),
        (b"*1\r\n*1\r\n", "expected '$', got '*'"),
        (b"*1\r\n\xff", "expected '$', got '\xff'"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$" + b"0" * 20, "invalid bulk length"),
        (b"*1\r\n$%d\r\n" % (MAX_REQUEST + 1), "invalid bulk length"),
        (b"*1\r\n$1\r\nabc", "expected CRLF behind a bulk string"),
        (b"x" * MAX_LINE, "too big inline request"),
        (b"PING 'x\r\n", "unbalanced quotes in request"),
    ],
)
def test_refused(stream: bytes, why: str) -> None:
    assert refusal(stream) == why
    assert refusal(*(stream[at : at + 1] for at in range(len(stream)))) == why


def test_a_request_is_bounded_as_a_whole() -> None:
    half = b"x" * (MAX_REQUEST // 2)
    word = b"$%d\r\n%b\r\n" % (len(half), half)
    assert parse(b"*2\r\n", word, word) == [[half, half]]
    assert refusal(b"*3\r\n", word, word, b"$1\r\n") == "invalid bulk length"


def test_the_longest_line() -> None:
    word = b"x" * (MAX_LINE - 1)
    assert parse(word, b"\n") == [[word]]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", []),
        (b" \t\r", []),
        (b"PING", [b"PING"]),
        (
            b'PUBLISH updates "follow the white rabbit"\r',
            [b"PUBLISH", b"updates", b"follow the white rabbit"],
        ),
        (rb'"\n\r\t\b\a\\\"\q"', [b'\n\r\t\b\a\\"q']),
        (rb'"\xff\x00\xZZ\x"', [b"\xff\x00xZZx"]),
        (rb"'a\'b\n\\c'", [rb"a'b\n\\c"]),
        (b"\"it's\" '\"'", [b"it's", b'"']),
        (b"\"\" ''", [b"", b""]),
        (b'a"b c"', [b"ab c"]),
    ],
)
def test_words_of_a_line(line: bytes, words: list[bytes]) -> None:
    assert split_words(line) == words


@pytest.mark.parametrize(
    "line", [b'"', b"'", b'"a', b'"a\\"', b"'a\\'", b'"a"b', b"'a'b", b"\"a\"'b'", b'a"b']
)
def test_unbalanced_quotes(line: bytes) -> None:
    with pytest.raises(ProtocolError, match="unbalanced quotes"):
        split_words(line)


@given(st.lists(st.binary()))
def test_quoted_words_come_through(words: list[bytes]) -> None:
    line = b" ".join(b'"' + b"".join(b"\\x%02x" % byte for byte in word) + b'"' for word in words)
    assert split_words(line) == words


def test_quotes_take_linear_time() -> None:
    with pytest.raises(ProtocolError):
        split_words(b"'" + rb"\'" * (MAX_LINE // 2))
    with pytest.raises(ProtocolError):
        split_words(b'a"' * (MAX_LINE // 2))


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        (resp.OK, b"OK"),
        (resp.integer(-42), -42),
        (resp.bulk(b""), b""),
        (resp.bulk(b"\r\n\xff"), b"\r\n\xff"),
        (resp.array([]), []),
        (resp.array([resp.integer(1), resp.bulk(b"a")]), [1, b"a"]),
        (resp.RESP2.null, None),
        (resp.RESP3.null, None),
        (resp.RESP2.mapping({b"a": resp.integer(1)}), [b"a", 1]),
        (resp.RESP3.mapping({b"a": resp.integer(1)}), {b"a": 1}),
    ],
)
def test_a_client_reads_what_is_encoded(encoded: bytes, value: object) -> None:
    reader = hiredis.Reader()
    reader.feed(encoded)
    assert reader.gets() == value
    assert not reader.has_data()


def test_a_push_answers_nothing() -> None:
    reader = hiredis.Reader()
    reader.feed(resp.array([resp.bulk(b"message")], resp.RESP3.push))
    assert isinstance(reader.gets(), hiredis.PushNotification)


def test_an_error_stays_on_its_line() -> None:
    assert resp.error(b"ERR a\r\n+OK\r\n") == b"-ERR a  +OK  \r\n"
