"""Runs the benchmark; see ``python -m bench --help``."""

import argparse
import json
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.cases import Case
from bench.peers import BUILD, MOST_CLIENTS, PEERS, PUSHD, ROOT, BenchError, Peer
from bench.plan import FULL, QUICK
from bench.plots import save_plots
from bench.report import render
from bench.results import Medians, Result, load
from bench.runner import run

RAW = BUILD / "results.jsonl"
"""Every single run, as it was measured."""

INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

RESULTS = ROOT / "bench" / "RESULTS.md"


def measured(plan: Sequence[tuple[Case, Sequence[Peer]]], runs: int) -> Iterator[Result]:
    """Run a plan so many times, one round after the other, so that drift hits all peers alike."""
    missing = {peer.name for peer in PEERS if peer.missing()}
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
                    print(error, file=sys.stderr)
                took = time.monotonic() - start
                done = problem or f"measured in {took:.0f} s"
                print(f"round {number}, {case.name}, {peer.name}: {done}", flush=True)
                yield Result(case.name, peer.name, figures, problem)


def save(medians: Medians, notes: Sequence[str], *, to_files: bool) -> None:
    """Write the report and the plots into the repository; or only the report, to the terminal."""
    text = render(medians, notes)
    if to_files:
        RESULTS.write_text(text)
        save_plots(medians, RESULTS.parent)
    else:
        sys.stdout.write(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what was asked for, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure pushd beside its peers.")
    parser.add_argument(
        "--quick", action="store_true", help="a subset, in two minutes; report to the terminal"
    )
    parser.add_argument(
        "--only", action="append", metavar="CASE", help="only this case; repeatable; to the terminal"
    )
    parser.add_argument("--runs", type=int, help="rounds, of which the median counts (default: 3, quick: 1)")
    parser.add_argument(
        "--render", type=Path, metavar="FILE", help="measure nothing: report what this file holds"
    )
    options = parser.parse_args(arguments)
    notes = [note for peer in PEERS if (note := peer.missing())]
    for note in notes:
        print(note, flush=True)
    if options.render:
        save(Medians(load(options.render)), notes, to_files=True)
        return
    if note := PUSHD.missing():
        sys.exit(f"bench: {note}")
    if not (BUILD / "load").exists():
        sys.exit("bench: the load generator is not built; say make bench, or make bench-quick")
    _allow_descriptors()
    plan = QUICK if options.quick else FULL
    if options.only:
        known = [case.name for case, _ in plan]
        if unknown := set(options.only) - set(known):
            sys.exit(f"bench: no case {', '.join(unknown)}; there are: {', '.join(known)}")
        plan = tuple(entry for entry in plan if entry[0].name in options.only)
    results: list[Result] = []
    whole = not options.quick and not options.only
    with (RAW if whole else RAW.with_name("trial.jsonl")).open("w") as raw:
        for result in measured(plan, options.runs or (1 if options.quick else 3)):
            results.append(result)
            raw.write(json.dumps(result.as_json()) + "\n")
            raw.flush()
    save(Medians(results), notes, to_files=whole)


def _allow_descriptors() -> None:
    """Let this process and its children open as many files as there are clients in the largest case."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < MOST_CLIENTS + 100:
        sys.exit(f"bench: at most {hard} open files are allowed here; {MOST_CLIENTS + 100} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _end(number: int, _: object) -> None:
    """End as if by an exception, once, so that nothing which was started goes on."""
    for interruption in INTERRUPTIONS:
        signal.signal(interruption, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    for interruption in INTERRUPTIONS:
        signal.signal(interruption, _end)
    main()
