"""The results of many runs: kept as they were measured, and summed up by their medians."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """One run of one case on one peer; problem says why there are no figures."""

    case: str
    peer: str
    figures: dict[str, float]
    problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


class Medians:
    """The median of each figure of each case and peer, over all runs that did not fail."""

    def __init__(self, results: Iterable[Result]) -> None:
        runs: defaultdict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
        self.problems: list[str] = []
        for result in results:
            if result.problem:
                self.problems.append(f"{result.case}, {result.peer}: {result.problem}")
            else:
                runs[result.case, result.peer].append(result.figures)
        self.runs = " or ".join(str(count) for count in sorted({len(done) for done in runs.values()}))
        self._figures = {
            key: {name: statistics.median(run[name] for run in done) for name in done[0]}
            for key, done in runs.items()
        }

    def cases(self) -> list[str]:
        """Return the names of the cases, in the order in which they were run."""
        return list(dict.fromkeys(case for case, _ in self._figures))

    def peers(self, case: str) -> dict[str, dict[str, float]]:
        """Return the figures of every peer that was measured in a case."""
        return {peer: figures for (name, peer), figures in self._figures.items() if name == case}

    def get(self, case: str, peer: str, figure: str) -> float | None:
        """Return one median, or None where it was not measured."""
        return self._figures.get((case, peer), {}).get(figure)


def load(path: Path) -> list[Result]:
    """Read results that were written one a line."""
    return [Result(**json.loads(line)) for line in path.read_text().splitlines()]
