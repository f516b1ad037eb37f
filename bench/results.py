"""The results of many runs: kept as they were measured, and summed up by their medians."""

import json
import statistics
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


def load(path: Path) -> list[Result]:
    """Read results that were written one a line."""
    return [Result(**json.loads(line)) for line in path.read_text().splitlines()]
