"""Runs the benchmark; see ``python -m bench --help``."""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.cases import Case
from bench.peers import BUILD, PEERS, BenchError, Peer
from bench.plan import FULL, QUICK
from bench.results import Result, load
from bench.report import save_all
from bench.runner import run

RAW = BUILD / "results.jsonl"
"""Every single run, as it was measured."""


def measured(plan: Sequence[tuple[Case, Sequence[Peer]]], runs: int, missing: set[str]) -> Iterator[Result]:
    """Run a plan so many times, one round after the other, so that drift of the machine hits all peers alike."""
    for number in range(1, runs + 1):
        for case, peers in plan:
            for peer in peers:
                if peer.name in missing:
                    continue
                start = time.monotonic()
                try:
                    figures, problem = run(peer, case), None
                except BenchError as error:
                    figures, problem = {}, str(error).splitlines()[0]
                took = time.monotonic() - start
                print(f"round {number}, {case.name}, {peer.name}: {problem or 'measured'} ({took:.0f} s)", flush=True)
                yield Result(case.name, peer.name, figures, problem)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what was asked for, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a subset that takes two minutes, to the terminal")
    parser.add_argument("--runs", type=int, help="rounds; the median counts (default: 3, quick: 1)")
    parser.add_argument("--only", action="append", help="only this case; repeatable")
    parser.add_argument("--render", type=Path, help="measure nothing; write the results of this file again")
    options = parser.parse_args(arguments)
    notes = [note for peer in PEERS if (note := peer.missing())]
    for note in notes:
        print(note, flush=True)
    if options.render:
        save_all(load(options.render), notes)
        return
    plan = [entry for entry in (QUICK if options.quick else FULL) if not options.only or entry[0].name in options.only]
    if not plan:
        sys.exit(f"bench: no such case; there are: {', '.join(case.name for case, _ in FULL)}")
    missing = {peer.name for peer in PEERS if peer.missing()}
    results: list[Result] = []
    with RAW.open("w") as raw:
        for result in measured(plan, options.runs or (1 if options.quick else 3), missing):
            results.append(result)
            raw.write(json.dumps(result.as_json()) + "\n")
            raw.flush()
    save_all(results, notes, to_files=not options.quick and not options.only)


if __name__ == "__main__":
    main()
