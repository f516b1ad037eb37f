"""What a client of the control protocol does with the server's lines, without a server."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from pushd.client_io import CONNECT_TIMEOUT
from pushd.control_follower import (
    GRACE,
    MAY_PASS,
    Action,
    Follower,
    Lost,
    Missed,
    Print,
    Send,
    Stop,
    Subscription,
)

Tell = Callable[..., list[Action]]
UNTOLD = "(the server told of no gap)"


def told(follower: Follower, type_: str, /, **members: object) -> list[Action]:
    """Return what a follower does about an event; a message's name and id need not be given."""
    event: dict[str, Any] = {"type": type_, **members}
    if type_ in {"message", "gap", "subscribed"}:
        event = {"channel": "scores", "id": f"e.1-{members.get('offset', members.get('to', 'x'))}", **event}
    return list(follower.receive(json.dumps(event).encode()))


def welcome(follower: Follower, token: bytes = b"", **members: object) -> list[Action]:
    follower.begin(token)
    return told(
        follower, "welcome", **{"version": 1, "epoch": "e", "heartbeat": 30, "auth": "none", **members}
    )


def asked(follower: Follower) -> str:
    """Return what a follower says to the server when it comes back."""
    (action,) = welcome(follower)
    assert isinstance(action, Send)
    return action.data.decode().removesuffix("\n")


@pytest.fixture
def follower() -> Follower:
    """Return one that has subscribed to scores, and is at offset 5."""
    follower = Follower([Subscription("channel", "scores")])
    welcome(follower)
    told(follower, "subscribed", offset=5, upstream="up")
    return follower


class TestBeginning:
    @pytest.mark.parametrize(
        ("subscription", "command"),
        [
            (Subscription("channel", "scores"), b'SUBSCRIBE "scores"\n'),
            (Subscription("pattern", "news.*"), b'PSUBSCRIBE "news.*"\n'),
            (Subscription("channel", "scores", start="LAST 3"), b'SUBSCRIBE "scores" LAST 3\n'),
            (
                Subscription("channel", "scores", start="FROM e.1-2", slow="skip"),
                b'SUBSCRIBE "scores" FROM e.1-2 SLOW skip\n',
            ),
            (Subscription("channel", 'ä "b"\n'), 'SUBSCRIBE "ä \\"b\\"\\n"\n'.encode()),
        ],
    )
    def test_subscribes_once_welcome(self, subscription: Subscription, command: bytes) -> None:
        assert welcome(Follower([subscription])) == [Send(command)]

    def test_all_subscriptions_in_one_write(self) -> None:
        both = Follower([Subscription("channel", "a"), Subscription("pattern", "a")])
        assert welcome(both) == [Send(b'SUBSCRIBE "a"\nPSUBSCRIBE "a"\n')]
        told(both, "subscribed", channel="a", offset=0)
        assert not both.settled
        told(both, "subscribed", pattern="a", offset=0, channel=None)
        assert both.settled
        both.begin(b"")
        assert not both.settled

    def test_says_who_it_is_first(self) -> None:
        follower = Follower([Subscription("channel", "scores")])
        assert welcome(follower, b"a.b.c", auth="required") == [Send(b"AUTH a.b.c\n")]
        assert told(follower, "authenticated", name="alice", expires="...") == [Send(b'SUBSCRIBE "scores"\n')]

    def test_keeps_its_token_where_none_is_asked_for(self) -> None:
        assert welcome(Follower([Subscription("channel", "a")]), b"a.b.c") == [Send(b'SUBSCRIBE "a"\n')]

    def test_has_no_token(self) -> None:
        assert welcome(Follower([Subscription("channel", "a")]), auth="required") == [
            Stop("the server asks for a token: say where it is with --token-file")
        ]

    def test_another_version(self) -> None:
        assert welcome(Follower([]), version=2) == [
            Stop("this client speaks version 1 of the protocol, the server 2")
        ]

    def test_patience(self) -> None:
        follower = Follower([])
        assert follower.patience == CONNECT_TIMEOUT
        welcome(follower, heartbeat=30)
        assert follower.patience == 60 + GRACE
        welcome(follower, heartbeat=0)
        assert follower.patience is None
        follower.begin(b"")
        assert follower.patience == CONNECT_TIMEOUT


class TestMessages:
    @pytest.mark.parametrize(
        ("members", "payload"),
        [
            ({"data": "2:0"}, b"2:0"),
            ({"data": ""}, b""),
            ({"data": "ä\x00\u2028\n"}, "ä\x00\u2028\n".encode()),
            ({"data_base64": "//4A"}, b"\xff\xfe\x00"),
        ],
    )
    def test_payloads(self, follower: Follower, members: dict[str, str], payload: bytes) -> None:
        assert told(follower, "message", offset=6, **members) == [Print(payload)]

    def test_through_a_pattern(self) -> None:
        follower = Follower([Subscription("pattern", "news.*"), Subscription("channel", "news.a")])
        welcome(follower)
        told(follower, "subscribed", pattern="news.*", channel=None, offset=0)
        assert told(follower, "message", pattern="news.*", channel="news.a", offset=1, data="x") == [
            Print(b"x")
        ]
        # Where the pattern is known, the channel need not be.
        line = b'{"type":"message","pattern":"news.*","channel_base64":"/w==","offset":2,"id":"i","data":"y"}'
        assert list(follower.receive(line)) == [Print(b"y")]

    def test_whole_events(self) -> None:
        follower = Follower([Subscription("channel", "a")], whole=True)
        welcome(follower)
        for line in (
            b'{"type":"subscribed","channel":"a","offset":1,"id":"i","upstream":"up","new": 1}',
            b'{"type":"message", "channel":"a","offset":2,"id":"i","data":"x"}',
        ):
            assert list(follower.receive(line)) == [Print(line)]
        line = b'{"type":"gap","channel":"a","reason":"unknown","missed":null,"id":"i"}'
        _, action = follower.receive(line)
        assert action == Print(line)
        assert told(follower, "heartbeat", upstream="up", offsets={"a": 2}) == []

    def test_what_it_does_not_know_is_ignored(self, follower: Follower) -> None:
        assert told(follower, "weather", channel="scores", offset=99) == []
        assert told(follower, "pong", data="") == []
        assert told(follower, "message", offset=6, data="x", sender="bob") == [Print(b"x")]

    @pytest.mark.parametrize(
        "line",
        [b"", b"SSH-2.0-OpenSSH_9", b"[]", b"1", b"{}", b'{"type":"message"}', b"\xff", b'{"type":"bye"}'],
    )
    def test_another_protocol(self, follower: Follower, line: bytes) -> None:
        (action,) = follower.receive(line)
        assert isinstance(action, Stop)
        assert action.text.startswith("this is not the control protocol: ")


class TestComingBack:
    def test_from_where_it_began(self, follower: Follower) -> None:
        assert asked(follower) == 'SUBSCRIBE "scores" FROM e.1-5'

    def test_from_the_last_message(self, follower: Follower) -> None:
        told(follower, "message", offset=6, id="e.1-6", data="")
        assert asked(follower) == 'SUBSCRIBE "scores" FROM e.1-6'

    def test_from_the_last_gap(self, follower: Follower) -> None:
        told(follower, "gap", reason="source", missed=None, since="a", until="b", id="e.1-5+1")
        assert asked(follower) == 'SUBSCRIBE "scores" FROM e.1-5+1'

    def test_as_it_was_told_to_begin_if_it_never_began(self) -> None:
        follower = Follower([Subscription("channel", "scores", start="LAST 3", slow="skip")])
        assert asked(follower) == asked(follower) == 'SUBSCRIBE "scores" LAST 3 SLOW skip'
        told(follower, "subscribed", offset=0, id="e.1-0")
        assert asked(follower) == 'SUBSCRIBE "scores" FROM e.1-0 SLOW skip'

    def test_each_subscription_has_its_place(self, follower: Follower) -> None:
        both = Follower([Subscription("channel", "a"), Subscription("pattern", "a")])
        welcome(both)
        told(both, "subscribed", channel="a", offset=1, id="e.1-1")
        told(both, "subscribed", channel=None, pattern="a", offset=2, id="e.2-2")
        told(both, "message", channel="a", offset=2, id="e.1-2", data="")
        assert asked(both) == 'SUBSCRIBE "a" FROM e.1-2\nPSUBSCRIBE "a" FROM e.2-2'

    def test_recovered(self, follower: Follower) -> None:
        welcome(follower)
        assert told(follower, "subscribed", offset=5, recovered=True) == []
        assert told(follower, "message", offset=6, data="x") == [Print(b"x")]

    def test_a_gap_that_did_not_arrive_any_more_is_told_again(self, follower: Follower) -> None:
        welcome(follower)
        assert told(follower, "subscribed", offset=70, id="e.1-5", recovered=False) == []
        assert asked(follower) == 'SUBSCRIBE "scores" FROM e.1-5'
        assert told(follower, "subscribed", offset=70, id="e.1-5", recovered=False) == []
        assert len(told(follower, "gap", reason="unknown", missed=None, id="f.1-70")) == 1
        assert asked(follower) == 'SUBSCRIBE "scores" FROM f.1-70'

    def test_evicted(self, follower: Follower) -> None:
        welcome(follower)
        told(follower, "subscribed", offset=5, recovered=False)
        gap = {"reason": "evicted", "from": 6, "to": 20, "missed": 15}
        assert told(follower, "gap", **gap) == [Missed("gap on scores: 15 messages missed (evicted)")]
        assert told(follower, "message", offset=21, data="x") == [Print(b"x")]

    def test_another_log(self, follower: Follower) -> None:
        welcome(follower)
        assert told(follower, "subscribed", offset=2, recovered=False) == []
        assert told(follower, "gap", reason="unknown", missed=None) == [
            Missed("gap on scores: unknown how many messages missed (unknown)")
        ]
        assert told(follower, "message", offset=3, data="x") == [Print(b"x")]


class TestGaps:
    @pytest.mark.parametrize(
        ("members", "text"),
        [
            ({"reason": "slow", "from": 6, "to": 20, "missed": 15}, "15 messages missed (slow)"),
            ({"reason": "slow", "from": 6, "to": 6, "missed": 1}, "1 message missed (slow)"),
            (
                {"reason": "slow", "from": 6, "to": 7, "missed": 2, "source_gaps": 1},
                "2 messages missed (slow, and 1 source gap)",
            ),
            (
                {"reason": "slow", "missed": 0, "source_gaps": 2},
                "0 messages missed (slow, and 2 source gaps)",
            ),
            (
                {"reason": "source", "missed": None, "since": "12:00", "until": "12:01"},
                "unknown how many messages missed (source, 12:00 to 12:01)",
            ),
            ({"reason": "whim", "missed": None}, "unknown how many messages missed (whim)"),
        ],
    )
    def test_told(self, follower: Follower, members: dict[str, object], text: str) -> None:
        assert told(follower, "gap", **members) == [Missed(f"gap on scores: {text}")]
        follows = members.get("to", 5)
        assert isinstance(follows, int)
        assert told(follower, "message", offset=follows + 1, data="x") == [Print(b"x")]

    @pytest.mark.parametrize(
        ("offset", "what"),
        [
            (8, "2 messages missed"),
            (7, "1 message missed"),
            (5, "message 5 came after 5"),
            (1, "message 1 came after 5"),
        ],
    )
    def test_not_told(self, follower: Follower, offset: int, what: str) -> None:
        missed = Missed(f"gap on scores: {what} {UNTOLD}")
        assert told(follower, "message", offset=offset, data="x") == [missed, Print(b"x")]
        assert told(follower, "message", offset=offset + 1, data="y") == [Print(b"y")]

    def test_a_gap_that_does_not_follow(self, follower: Follower) -> None:
        gap = {"reason": "slow", "from": 8, "to": 9, "missed": 2}
        assert told(follower, "gap", **gap) == [
            Missed(f"gap on scores: 2 messages missed {UNTOLD}"),
            Missed("gap on scores: 2 messages missed (slow)"),
        ]

    def test_a_recovery_that_is_none(self, follower: Follower) -> None:
        welcome(follower)
        assert told(follower, "subscribed", offset=6, recovered=True) == [
            Missed(f"gap on scores: 1 message missed {UNTOLD}")
        ]


class TestHeartbeats:
    def test_all_is_here(self, follower: Follower) -> None:
        assert told(follower, "heartbeat", upstream="up", offsets={"scores": 5}) == []
        assert told(follower, "heartbeat", upstream="up", offsets={"scores": 7}, behind={"scores": 2}) == []
        assert told(follower, "heartbeat", upstream="up") == []

    def test_the_last_messages_are_not(self, follower: Follower) -> None:
        heartbeat = {"offsets": {"scores": 8}, "behind": {"scores": 1}}
        assert told(follower, "heartbeat", **heartbeat) == [
            Missed(f"gap on scores: 2 messages missed {UNTOLD}")
        ]
        assert told(follower, "heartbeat", **heartbeat) == []
        assert told(follower, "message", offset=8, data="x") == [Print(b"x")]

    def test_patterns_have_their_own(self) -> None:
        follower = Follower([Subscription("pattern", "a"), Subscription("channel", "a")])
        welcome(follower)
        told(follower, "subscribed", channel=None, pattern="a", offset=0)
        told(follower, "subscribed", channel="a", offset=0)
        heartbeat = {"offsets": {"a": 0}, "pattern_offsets": {"a": 3}, "pattern_behind": {"a": 2}}
        assert told(follower, "heartbeat", **heartbeat) == [Missed(f"gap on a: 1 message missed {UNTOLD}")]


class TestEnds:
    @pytest.mark.parametrize("code", sorted(MAY_PASS))
    def test_errors_that_may_pass(self, follower: Follower, code: str) -> None:
        assert told(follower, "error", code=code, message="no", command=None) == [Lost(f"no ({code})")]

    @pytest.mark.parametrize(
        "code", ["forbidden", "token-invalid", "auth-required", "bad-arguments", "refused", "whim"]
    )
    def test_errors_that_do_not(self, follower: Follower, code: str) -> None:
        assert told(follower, "error", code=code, message="no", command=None) == [Stop(f"no ({code})")]

    def test_errors_that_say_when(self, follower: Follower) -> None:
        assert told(follower, "error", code="whim", message="no", command=None, retry_ms=10) == [
            Lost("no (whim)", 0.01)
        ]

    def test_goodbye(self, follower: Follower) -> None:
        assert told(follower, "bye", reason="drain", retry_ms=1500) == [
            Lost("the server said goodbye (drain)", 1.5)
        ]
        assert told(follower, "bye", reason="idle") == [Lost("the server said goodbye (idle)", None)]

    def test_a_subscription_that_is_taken_away(self, follower: Follower) -> None:
        assert told(follower, "unsubscribed", channel="scores", offset=5, id="e.1-5") == [
            Stop("the server has ended the subscription to scores")
        ]
