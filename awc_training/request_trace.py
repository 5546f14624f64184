"""Request traces drawn after published statistics of real ones. Nothing of the traces themselves is used.

| figure | value | source |
| --- | --- | --- |
| median prompt and answer, conversation | 1,020 and 129 tokens | Splitwise (arXiv 2311.18677) |
| median prompt and answer, coding | 1,500 and 13 tokens | the same |
| gaps between arrivals | Gamma, burstier than Poisson | BurstGPT (arXiv 2401.17644; CC BY 4.0) |

Splitwise describes the Azure LLM inference trace 2023, which is published under CC BY.

Our assumptions: lengths are log-normal with SPREADS and end at MOST_PROMPT and MOST_ANSWER; the coefficient of
variation of gaps is 1.5 to 3.

Invariant: arrivals do not decrease, and equal generators give equal traces.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

MOST_PROMPT, MOST_ANSWER = 4000, 600
LEAST_ANSWER = 4


@dataclass(frozen=True, slots=True)
class Service:
    """Lengths of a service's requests: medians, and standard deviations of their logarithms."""

    prompt: float
    answer: float
    prompt_spread: float
    answer_spread: float


CONVERSATION = Service(1020, 129, 1.0, 0.9)
CODING = Service(1500, 13, 0.8, 1.0)


def write_trace(
    path: Path, rng: np.random.Generator, service: Service, rate_per_s: float, variation: float, num: int
) -> None:
    """A trace file for a scenario (docs/scenarios.md). `variation`: coefficient of variation of the gaps."""
    shape = 1 / variation**2
    arrival_ms = 1000 * np.cumsum(rng.gamma(shape, 1 / (shape * rate_per_s), num))
    prompt = rng.lognormal(np.log(service.prompt), service.prompt_spread, num).clip(8, MOST_PROMPT)
    answer = rng.lognormal(np.log(service.answer), service.answer_spread, num).clip(LEAST_ANSWER, MOST_ANSWER)
    rows = zip(arrival_ms.tolist(), prompt.astype(int).tolist(), answer.astype(int).tolist(), strict=True)
    names = ("arrival_ms", "prompt_tokens", "target_tokens")
    path.write_bytes(b"".join(msgspec.json.encode(dict(zip(names, row, strict=True))) + b"\n" for row in rows))
