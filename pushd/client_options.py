"""Send lines to a pushd server, and print its echoes and every published message.

On a terminal, a line entered while there is no connection is refused; the up key brings it back. In a pipe,
each line of input is sent, and each line received printed, as it is; without a connection, input waits.
EXIT or the end of input (Ctrl-D) leaves, once the server has answered.

With --control it reads no input. It subscribes, prints the payload of each message and a line feed, and says
on standard error what is missing. When the connection is lost, or the server has been silent for twice its
heartbeat, it comes back and goes on exactly where it was. It also tries again where that may help: when the
server has too many clients, channels or commands, and when a token is not valid now: it is read anew.

exit status:
  0    left by EXIT or the end of input, or because nobody reads the output any more
  1    could not connect, or the connection was lost, with --no-reconnect or when all input had been sent;
       standard input or output failed; with --control, also: there is no token, or the server refuses it or
       a subscription (one that is forbidden, or that Redis refuses), or speaks another protocol
  2    wrong usage
  3    something is missing, with --strict
  130  Ctrl-C
  143  SIGTERM
"""

import functools
import re
from argparse import Action, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence


def parse(words: Sequence[str] | None = None) -> Namespace:
    """Return the values of the command line, or end the program with what is wrong with it."""
    parser = ArgumentParser(
        "pushd-client",
        usage="%(prog)s [OPTION ...] HOST PORT",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("host", metavar="HOST", help="a name, or an IPv4 or IPv6 address")
    parser.add_argument("port", metavar="PORT", type=int, help="1 to 65535")
    parser.add_argument("--no-reconnect", action="store_true", help="give up when the connection fails")
    parser.add_argument("--control", action="store_true", help="speak the control protocol: see below")
    control = _add_control_options(parser)
    options = parser.parse_args(words)
    if not 1 <= options.port <= 65535:
        parser.error("PORT must be from 1 to 65535")
    for option in control:
        if not options.control and getattr(options, option.dest) != option.default:
            parser.error(f"{option.option_strings[0]} needs --control")
    subscriptions = len({*options.subscribe}) + len({*options.psubscribe})
    if options.control and not subscriptions:
        parser.error("--control needs --subscribe or --psubscribe")
    if options.from_id and subscriptions != 1:
        parser.error("--from is a place in one log: it needs exactly one subscription")
    return options


def _add_control_options(parser: ArgumentParser) -> list[Action]:
    """Add the options that make sense only with --control, and return them."""
    group = parser.add_argument_group("with --control")
    start = group.add_mutually_exclusive_group()
    append = functools.partial(group.add_argument, action="append", default=[], type=utf8)
    return [
        append("--subscribe", metavar="CHANNEL", help="print what is published to it (repeatable)"),
        append("--psubscribe", metavar="PATTERN", help="and to all channels that match (repeatable)"),
        start.add_argument(
            "--last", metavar="N", type=count, help="begin with the newest N messages, of each subscription"
        ),
        start.add_argument(
            "--from", metavar="ID", dest="from_id", type=place, help="begin behind the event that had this id"
        ),
        group.add_argument(
            "--slow", choices=("disconnect", "skip", "latest"), help="what happens if this client is too slow"
        ),
        group.add_argument(
            "--token-file", metavar="FILE", help="say who this is, with the token in its first line"
        ),
        group.add_argument(
            "--json",
            action="store_true",
            help="print messages, gaps and subscriptions as the server tells them",
        ),
        group.add_argument(
            "--strict", action="store_true", help="leave with status 3 at once if anything is missing"
        ),
    ]


def utf8(text: str) -> str:
    """Read a name for a protocol that has only UTF-8."""
    text.encode()
    return text


def place(text: str) -> str:
    """Read an id as the server has given it: one word."""
    if not re.fullmatch(r'[^\s"]\S*', utf8(text)):
        raise ValueError
    return text


def count(text: str) -> int:
    """Read a number of messages."""
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError
    return int(text)
