"""The command-line client: sends lines to pushd, and prints its echoes and the published messages.

A program of its own: it imports nothing of the server, nor anything that is slow to start.
"""

import argparse
import codecs
import os
import random
import select
import signal
import socket
import sys
import termios
import time
import tty
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

INPUT, OUTPUT, ERRORS = 0, 1, 2
CHUNK = 65536
CONNECT_TIMEOUT = 10.0
FIRST_DELAY, LONGEST_DELAY = 0.5, 15.0
HISTORY = 500
PROMPT = "> "
ERASE_ROW = "\r\x1b[K"
JOINERS = "\u200c\u200d"
"""Not printable by themselves, but scripts and emoji need them, and they do no harm."""

DESCRIPTION = "Send lines to a pushd server, and print its echoes and every published message."
EPILOG = """\
On a terminal: type a line and Enter. EXIT, or Ctrl-D on an empty line, leaves.
In a pipe: each line of standard input is sent, each line received is printed as it is. EXIT or the end of
input leaves once the server has answered. To listen only: tail -f /dev/null | pushd-client HOST PORT

exit status:
  0    left by EXIT, by the end of input, because nobody reads the output any more, or by SIGTERM
  1    could not connect, or the connection was lost, with --no-reconnect or when all input had been sent;
       or the output could not be written
  2    wrong usage
  130  Ctrl-C"""


class LineSplitter:
    """Cuts a stream of bytes into lines at a delimiter; its work is linear, however long a line is."""

    def __init__(self, delimiter: bytes) -> None:
        self._delimiter = delimiter
        self._rest = bytearray()

    @property
    def rest(self) -> bytes:
        """The line that has begun and not ended."""
        return bytes(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes, cut anywhere, and return the lines that they end."""
        # The delimiter may have begun in the bytes that came before.
        unseen = max(len(self._rest) - len(self._delimiter) + 1, 0)
        self._rest += data
        if self._rest.find(self._delimiter, unseen) < 0:
            return []
        *lines, self._rest = self._rest.split(self._delimiter)
        return [bytes(line) for line in lines]


class Outgoing:
    """Lines on their way to the server: at most what one read of the input brought."""

    def __init__(self) -> None:
        self._data = b""
        self._sent = 0

    def __bool__(self) -> bool:
        return self._sent < len(self._data)

    def put(self, lines: Sequence[bytes]) -> None:
        """Take the next lines, once all before are sent."""
        self._data, self._sent = b"".join(line + b"\r\n" for line in lines), 0

    def send(self, send: Callable[[memoryview], int]) -> None:
        """Hand over what is left to something that says how much of it it took."""
        self._sent += send(memoryview(self._data)[self._sent :])

    def rewind(self) -> None:
        """Go back to the start of a line that was sent in part: a new connection must get it whole."""
        if self:
            whole = self._data.rfind(b"\r\n", 0, self._sent)
            self._data, self._sent = self._data[whole + 2 if whole >= 0 else 0 :], 0


class Editor:
    """The line that is being typed on a terminal: keys in, whole lines and a view of the unfinished one out.

    Two stacks meet at the cursor, so that a key costs the same however long the line is.
    """

    def __init__(self) -> None:
        self.ended = False
        # What is not UTF-8 is sent as it was typed.
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._before: list[str] = []
        self._after: list[str] = []
        self._sequence = ""
        self._history: deque[str] = deque(maxlen=HISTORY)
        self._back = 0  # how many lines back in the history the shown one is
        self._draft = ""

    def feed(self, data: bytes) -> list[bytes]:
        """Take what was typed, cut anywhere, and return the lines that it ended; Ctrl-D sets `ended`."""
        lines: list[bytes] = []
        for char in self._decoder.decode(data):
            key = self._key(char)
            if key in ("\r", "\n"):
                lines.append(self._enter().encode("utf-8", "surrogateescape"))
            elif action := self.KEYS.get(key):
                action(self)
            elif key == "\t" or (len(key) == 1 and key >= " "):
                self._before.append(key)
            if self.ended:
                break
        return lines

    def view(self, room: int) -> tuple[str, int]:
        """Return what of the line, around the cursor, fits into so many cells, and the cursor's cell."""
        _, near = _fit(reversed(self._after), room // 4)
        left, used = _fit(reversed(self._before), room - near)
        right, _ = _fit(reversed(self._after), room - used)
        return "".join(reversed(left)) + "".join(right), used

    def _key(self, char: str) -> str:
        """Return the key that this character completes, and nothing inside an escape sequence."""
        if not self._sequence and char != "\x1b":
            return char
        self._sequence += char
        if len(self._sequence) == 1 or (len(self._sequence) == 2 and char in "[O"):
            return ""
        if len(self._sequence) > 2 and not "@" <= char <= "~":
            return ""
        key, self._sequence = self._sequence, ""
        return key

    def _enter(self) -> str:
        line = self._text()
        self._show("")
        self._back = 0
        if line and (not self._history or self._history[-1] != line):
            self._history.append(line)
        return line

    def _text(self) -> str:
        return "".join(self._before) + "".join(reversed(self._after))

    def _show(self, line: str) -> None:
        self._before, self._after = list(line), []

    def _recall(self, back: int) -> None:
        """Show the line so far back in the history; 0 is the one that was being typed."""
        if not 0 <= back <= len(self._history):
            return
        if not self._back:
            self._draft = self._text()
        self._back = back
        self._show(self._history[-back] if back else self._draft)

    def _older(self) -> None:
        self._recall(self._back + 1)

    def _newer(self) -> None:
        self._recall(self._back - 1)

    def _left(self) -> None:
        if self._before:
            self._after.append(self._before.pop())

    def _right(self) -> None:
        if self._after:
            self._before.append(self._after.pop())

    def _start(self) -> None:
        self._after.extend(reversed(self._before))
        self._before.clear()

    def _end(self) -> None:
        self._before.extend(reversed(self._after))
        self._after.clear()

    def _rub_out(self) -> None:
        del self._before[-1:]

    def _delete(self) -> None:
        del self._after[-1:]

    def _delete_or_leave(self) -> None:
        if self._before or self._after:
            self._delete()
        else:
            self.ended = True

    def _rub_out_word(self) -> None:
        line = "".join(self._before).rstrip()
        del self._before[len(line) :]
        while self._before and not self._before[-1].isspace():
            self._before.pop()

    def _rub_out_all(self) -> None:
        self._before.clear()

    def _delete_all(self) -> None:
        self._after.clear()

    KEYS: Mapping[str, Callable[["Editor"], None]] = {
        "\x01": _start,
        "\x02": _left,
        "\x04": _delete_or_leave,
        "\x05": _end,
        "\x06": _right,
        "\x08": _rub_out,
        "\x0b": _delete_all,
        "\x0e": _newer,
        "\x10": _older,
        "\x15": _rub_out_all,
        "\x17": _rub_out_word,
        "\x7f": _rub_out,
        "\x1b[A": _older,
        "\x1b[B": _newer,
        "\x1b[C": _right,
        "\x1b[D": _left,
        "\x1b[F": _end,
        "\x1b[H": _start,
        "\x1b[1~": _start,
        "\x1b[3~": _delete,
        "\x1b[4~": _end,
        "\x1bOA": _older,
        "\x1bOB": _newer,
        "\x1bOC": _right,
        "\x1bOD": _left,
        "\x1bOF": _end,
        "\x1bOH": _start,
    }


class Pipes:
    """Plain lines in and out: standard input and output are not both a terminal."""

    interactive = False

    def __init__(self) -> None:
        self.ended = False
        self._splitter = LineSplitter(b"\n")
        self._exact = not os.isatty(OUTPUT)

    def open(self) -> None:
        """Begin: there is nothing to prepare."""

    def close(self) -> None:
        """End: there is nothing to restore."""

    def read(self) -> list[bytes]:
        """Return the lines that one read of the input ends; EXIT or the end of the input sets `ended`."""
        data = _read_input()
        lines = self._splitter.feed(data)
        if not data and self._splitter.rest:
            lines = [self._splitter.rest]
        lines, left = until_exit([line.removesuffix(b"\r") for line in lines])
        self.ended = left or not data
        return lines

    def show(self, lines: Sequence[bytes]) -> None:
        """Print what the server sent."""
        if self._exact:
            _write(OUTPUT, b"".join(line + b"\n" for line in lines))
        else:
            _write(OUTPUT, "".join(visible(line) + "\n" for line in lines).encode())

    def note(self, text: str) -> None:
        """Say something of the client's own."""
        _note(text)


class Terminal:
    """A prompt with line editing; whatever else is printed appears above it.

    The prompt never fills more than its row, so erasing that row is all it takes to print above it, whatever
    the size of the terminal was or becomes. A long line scrolls sideways while it is edited.
    """

    interactive = True

    def __init__(self) -> None:
        self._editor = Editor()
        self._saved = termios.tcgetattr(INPUT)
        self.ended = False

    def open(self) -> None:
        """Take the terminal over: the keys come as they are pressed."""
        # Ctrl-\ is no way to leave a terminal that nobody has restored.
        signal.signal(signal.SIGQUIT, signal.default_int_handler)
        signal.signal(signal.SIGTSTP, self._suspend)
        signal.signal(signal.SIGWINCH, self._resized)
        self._take()

    def close(self) -> None:
        """Give the terminal back as it was."""
        self.ended = True
        self._give_back()

    def read(self) -> list[bytes]:
        """Return the lines that one read of the keyboard ends; EXIT or Ctrl-D sets `ended`."""
        data = _read_input()
        entered = self._editor.feed(data)
        lines, left = until_exit(entered)
        self.ended = left or self._editor.ended or not data
        # They stay above the prompt, whole, as they were typed.
        self._above("".join(f"{PROMPT}{visible(line)}\n" for line in entered))
        return lines

    def show(self, lines: Sequence[bytes]) -> None:
        """Print what the server sent, so that it cannot control the terminal."""
        self._above("".join(visible(line) + "\n" for line in lines))

    def note(self, text: str) -> None:
        """Say something of the client's own."""
        _write(OUTPUT, ERASE_ROW.encode())
        _note(text)
        self._above("")

    def _above(self, text: str) -> None:
        # One write: a signal handler that draws the prompt comes before it or after it.
        _write(OUTPUT, f"{ERASE_ROW}{text}{self._prompt()}".encode())

    def _prompt(self) -> str:
        if self.ended:
            return ""
        # A terminal that does not tell its size says 0. The last column stays free: it would wrap.
        columns = os.get_terminal_size(OUTPUT).columns or 80
        text, cursor = self._editor.view(max(columns - len(PROMPT) - 1, 1))
        return f"{PROMPT}{text}\r\x1b[{len(PROMPT) + cursor}C"

    def _take(self) -> None:
        # What was typed before is not thrown away.
        tty.setcbreak(INPUT, termios.TCSADRAIN)
        self._above("")

    def _give_back(self) -> None:
        termios.tcsetattr(INPUT, termios.TCSADRAIN, self._saved)
        _write(OUTPUT, ERASE_ROW.encode())

    def _resized(self, *_: object) -> None:
        self._above("")

    def _suspend(self, *_: object) -> None:
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()


class Client:
    """Keeps a connection to the server, and carries lines between it and the face shown to the user."""

    def __init__(self, host: str, port: int, face: Pipes | Terminal, *, reconnect: bool) -> None:
        self._address = (host, port)
        self._name = f"{host} port {port}"
        self._face = face
        self._reconnect = reconnect
        self._outgoing = Outgoing()

    def run(self) -> int:
        """Return the exit status, once the user has left or the connection is given up."""
        waits = delays(random.random)
        problem: str | None = None
        while True:
            try:
                connection = _connect(self._address)
            except OSError as error:
                problem = f"cannot connect to {self._name}: {_reason(error)}"
            else:
                waits = delays(random.random)
                if problem:
                    self._face.note(f"connected to {self._name}")
                with connection:
                    problem = self._talk(connection)
                if problem is None:
                    return 0
            self._outgoing.rewind()
            if not self._reconnect or (self._face.ended and not self._outgoing):
                self._face.note(f"{problem}")
                return 1
            wait = next(waits)
            self._face.note(f"{problem}; trying again in {wait:.1f} s")
            if self._pause(wait):
                return 1 if self._outgoing else 0

    def _talk(self, connection: socket.socket) -> str | None:
        """Carry lines both ways until the connection ends; return what went wrong, if anything."""
        received = LineSplitter(b"\r\n")
        try:
            left = self._exchange(connection, received)
            problem = None if left else f"{self._name} closed the connection"
        except OSError as error:
            problem = f"connection to {self._name} lost: {_reason(error)}"
        if received.rest:
            # It would pass for a message.
            self._face.note(f"{len(received.rest)} bytes of an unfinished line dropped")
        return problem

    def _exchange(self, connection: socket.socket, received: LineSplitter) -> bool:
        """Return whether it was this side that ended the conversation first."""
        sending = True
        left = False
        while True:
            if sending and self._face.ended and not self._outgoing:
                connection.shutdown(socket.SHUT_WR)
                sending, left = False, True
            interest = {connection.fileno(): select.POLLIN}
            if sending and self._outgoing:
                interest[connection.fileno()] |= select.POLLOUT
            elif sending:
                interest[INPUT] = select.POLLIN
            ready = _wait(interest)
            if ready.get(connection.fileno(), 0) & ~select.POLLOUT:
                data = connection.recv(CHUNK)
                if not data:
                    return left
                if lines := received.feed(data):
                    self._face.show(lines)
            if ready.get(connection.fileno(), 0) & select.POLLOUT:
                try:
                    self._outgoing.send(connection.send)
                except OSError:
                    # What the server said before it closed is still to be read; reading tells the reason.
                    sending = False
            if INPUT in ready:
                self._outgoing.put(self._face.read())

    def _pause(self, seconds: float) -> bool:
        """Wait to try again, and return whether the user left meanwhile.

        On a terminal, editing goes on. Input from a pipe waits where it is.
        """
        end = time.monotonic() + seconds
        editing = self._face.interactive and not self._face.ended
        while (remaining := end - time.monotonic()) > 0:
            if INPUT in _wait({INPUT: select.POLLIN} if editing else {}, remaining):
                for line in self._face.read():
                    self._face.note(f"not connected, not sent (the up key brings it back): {visible(line)}")
                if self._face.ended:
                    return True
        return False


def delays(jitter: Callable[[], float]) -> Iterator[float]:
    """Yield how long to wait before each try to connect; the jitter, in [0, 1), keeps clients apart."""
    longest = FIRST_DELAY
    while True:
        yield longest * (1 + jitter()) / 2
        longest = min(2 * longest, LONGEST_DELAY)


def until_exit(lines: list[bytes]) -> tuple[list[bytes], bool]:
    """Return the lines before EXIT, and whether it is among them."""
    for index, line in enumerate(lines):
        if line.upper() == b"EXIT":
            return lines[:index], True
    return lines, False


def visible(line: bytes) -> str:
    """Return a text for these bytes that cannot control a terminal."""
    text = line.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(c if c == "\t" else _shown(c) for c in text)


def _shown(char: str) -> str:
    return char if char.isprintable() or char in JOINERS else char.encode("unicode_escape").decode()


def _cells(shown: str) -> int:
    """Return how many cells of a terminal a character, or the escape shown for it, takes."""
    if len(shown) > 1:
        return len(shown)
    if unicodedata.category(shown) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(shown) in "WF" else 1


def _fit(chars: Iterable[str], room: int) -> tuple[list[str], int]:
    """Return the first of these characters, as shown, that fit into so many cells, and how many they take."""
    fitting: list[str] = []
    used = 0
    for char in chars:
        shown = _shown(char)
        cells = _cells(shown)
        if used + cells > room:
            break
        fitting.append(shown)
        used += cells
    return fitting, used


def _connect(address: tuple[str, int]) -> socket.socket:
    # Its timeout stays: a send then takes what fits into the kernel's buffer, and does not wait for the rest.
    try:
        connection = socket.create_connection(address, CONNECT_TIMEOUT)
    except UnicodeError:
        raise OSError("not a valid host name") from None
    # A client that only listens would never notice that the server is gone.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _wait(interest: Mapping[int, int], seconds: float | None = None) -> dict[int, int]:
    """Return which descriptors are ready, and for what; end the program once nobody reads its output."""
    poll = select.poll()  # unlike epoll, it takes regular files
    poll.register(OUTPUT, 0)
    for descriptor, events in interest.items():
        poll.register(descriptor, events)
    ready = dict(poll.poll(None if seconds is None else seconds * 1000))
    if OUTPUT in ready:
        raise SystemExit(0)
    return ready


def _read_input() -> bytes:
    try:
        return os.read(INPUT, CHUNK)
    except OSError:  # of a terminal that was hung up
        return b""


def _write(descriptor: int, data: bytes) -> None:
    """Write all of it, or end the program."""
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:  # somebody else who has this terminal open made it so
            select.select([], [descriptor], [])
        except BrokenPipeError:
            raise SystemExit(0) from None
        except OSError as error:
            _note(f"cannot write: {_reason(error)}")
            raise SystemExit(1) from None


def _note(text: str) -> None:
    with suppress(OSError):
        os.write(ERRORS, f"pushd-client: {text}\n".encode("utf-8", "backslashreplace"))


def _hold_standard_descriptors() -> None:
    """Open those that were closed, lest the connection becomes the standard output."""
    for descriptor in (INPUT, OUTPUT, ERRORS):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor is this one


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError("it must be a number from 1 to 65535")
    return int(text)


def _host(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it must not be empty")
    return text


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the values of the command line, or end the program with what is wrong with it."""
    parser = argparse.ArgumentParser(
        "pushd-client",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("host", metavar="HOST", type=_host, help="a name, or an IPv4 or IPv6 address")
    parser.add_argument("port", metavar="PORT", type=_port, help="1 to 65535")
    parser.add_argument(
        "--no-reconnect",
        dest="reconnect",
        action="store_false",
        help="end when the connection fails or is lost; otherwise connect again, after growing delays",
    )
    return parser.parse_args(words)


def _terminated(*_: object) -> None:
    raise SystemExit(0)


def main() -> int:
    """Run the client that the command line asks for, and return its exit status."""
    options = parse()
    _hold_standard_descriptors()
    signal.signal(signal.SIGTERM, _terminated)
    face = Terminal() if os.isatty(INPUT) and os.isatty(OUTPUT) else Pipes()
    try:
        face.open()
        return Client(options.host, options.port, face, reconnect=options.reconnect).run()
    except KeyboardInterrupt:
        return 130
    finally:
        face.close()


if __name__ == "__main__":
    sys.exit(main())
