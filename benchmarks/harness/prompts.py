"""The benchmarks' own prompts, and arrivals out of JSONL files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model_zoo.prompt_file import read_rows

OWN = Path(__file__).parents[2] / "tests" / "data" / "prompts.jsonl"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request of a trace: when it comes, behind the first one, and how many tokens its answer had."""

    at_s: float
    num_tokens: int


def read_arrivals(path: Path) -> list[Arrival]:
    """The fields arrival_ms and target_tokens of a trace, in the order of time."""
    arrivals = []
    for number, row in enumerate(read_rows(path), start=1):
        at_ms, num_tokens = row.get("arrival_ms"), row.get("target_tokens")
        if not isinstance(at_ms, int | float) or not isinstance(num_tokens, int) or at_ms < 0 or num_tokens < 1:
            raise ValueError(f"{path}:{number}: arrival_ms and target_tokens are needed")
        arrivals.append((at_ms, num_tokens))
    arrivals.sort(key=lambda arrival: arrival[0])
    return [Arrival((at_ms - arrivals[0][0]) / 1e3, num_tokens) for at_ms, num_tokens in arrivals]
