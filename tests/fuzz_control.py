"""Fuzzing of the control listener, led by the branches that each input takes: ``make fuzz RUNS=100000``.

Or ``python -m tests.fuzz_control [options of libFuzzer]``; the name of a file that it left plays that input
again. What was found to lead somewhere is kept in build/fuzz, and is where the next run begins.
"""

import random
import resource
import sys
import time
from pathlib import Path
from typing import Any, cast

import atheris
from twisted.logger import globalLogBeginner

with atheris.instrument_imports(include=["pushd"]):
    from tests.hostile import Act, Criticals, Step, decode, play

FOLDER = Path(__file__).parents[1] / "build" / "fuzz"
DEFAULTS = ("-max_len=100", "-timeout=10", "-rss_limit_mb=1000", f"-artifact_prefix={FOLDER}/")
WEIGHTS = (6, 28, 6, 6, 8, 8, 4, 6, 1, 1, 1, 1)
"""How often each act happens in the scripts to begin with."""

REPORT_EVERY = 50_000


def seed(number: int) -> bytes:
    """Return a script to begin with: acts at random, the likely ones more often."""
    chance = random.Random(number)
    script = bytearray((number,))
    for act in chance.choices(tuple(Act), WEIGHTS, k=15):
        data = b"x\n" * chance.randrange(9) if act in (Act.SEND, Act.DELIVER) else b""
        script += bytes((act, chance.randrange(256), len(data) or chance.randrange(256))) + data
    return bytes(script)


class Fuzzer:
    """Plays each input, and says now and then how far it has come."""

    def __init__(self) -> None:
        self._criticals = Criticals()
        self._started = time.monotonic()
        self._runs = 0
        globalLogBeginner.beginLoggingTo([cast("Any", self._criticals)], redirectStandardIO=False)

    def play(self, data: bytes) -> None:
        """Play one input; an exception ends the program."""
        steps: list[Step] = list(decode(data[1:]))
        try:
            play(data[0] if data else 0, steps)
            assert not self._criticals.said, self._criticals.said[0]
        except BaseException:
            print(f"world {data[:1]!r}:", *steps, sep="\n  ", file=sys.stderr)
            raise
        self._runs += 1
        if self._runs % REPORT_EVERY == 0:
            seconds = time.monotonic() - self._started
            kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            rate = self._runs / seconds
            print(f"{self._runs} runs in {seconds:.0f} s, {rate:.0f}/s; at most {kib} KiB of memory")


def main() -> None:
    """Fuzz as the command line says."""
    corpus = FOLDER / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number in range(50):
        (corpus / f"seed-{number}").write_bytes(seed(number))
    words = sys.argv[1:]
    places = [] if any(not word.startswith("-") for word in words) else [str(corpus)]
    atheris.Setup([sys.argv[0], *DEFAULTS, *words, *places], Fuzzer().play)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
