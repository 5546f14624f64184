"""`make histories`: plays schedules in virtual time, from seed to seed, until one breaks a rule of the protocol.

`--seed N` repeats one and prints its events; `--shrink` first leaves out what the violation does not need. Exit status
1: a rule was broken.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields

from tests.histories.history import Outcome, play
from tests.histories.schedule import Schedule, make
from tests.histories.shrink import shrink

PORTION = 250  # schedules that a process plays at once


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.histories", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="schedules to play")
    parser.add_argument("--first", type=int, default=0, help="seed of the first one")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, help="plays this schedule alone and prints its events")
    parser.add_argument("--shrink", action="store_true", help="with --seed: the smallest schedule that breaks a rule")
    options = parser.parse_args()
    if options.seed is not None:
        return show(options.seed, options.shrink)
    return play_all(options.first, options.count, options.processes)


def show(seed: int, is_to_shrink: bool) -> int:
    """Prints a schedule and its history."""
    schedule = make(seed)
    if is_to_shrink and play(schedule).violation:
        schedule = shrink(schedule)
    notes: list[str] = []
    outcome = play(schedule, notes)
    print("\n".join([*described(schedule), *notes]))
    return 1 if outcome.violation else 0


def described(schedule: Schedule) -> Iterable[str]:
    for field in fields(schedule):
        value = getattr(schedule, field.name)
        yield from [f"{each}" for each in value] if isinstance(value, tuple) else [f"{field.name}={value}"]


def play_portion(seeds: range) -> list[Outcome]:
    return [play(make(seed)) for seed in seeds]


def play_all(first: int, count: int, num_processes: int) -> int:
    started, totals, broken = time.monotonic(), Counter[str](), []
    portions = [range(seed, min(seed + PORTION, first + count)) for seed in range(first, first + count, PORTION)]
    with ProcessPoolExecutor(num_processes) as pool:
        for outcomes in pool.map(play_portion, portions):
            for outcome in outcomes:
                totals.update(histories=1, answers=outcome.num_answers, failed=outcome.num_failed)
                totals.update(tokens=outcome.num_tokens, hits=outcome.num_hits, seconds=int(outcome.virtual_ms / 1e3))
                if outcome.violation:
                    broken.append(outcome)
                    print(f"\nseed {outcome.seed}: {outcome.violation}\n  {outcome.command}", flush=True)
            print(f"\r{totals['histories']:,} of {count:,}", end="", file=sys.stderr, flush=True)
    elapsed_s = time.monotonic() - started
    print(
        f"\n{totals['histories']:,} histories from seed {first} on in {elapsed_s:.0f} s on {num_processes} processes: "
        f"{totals['answers']:,} whole answers of {totals['tokens']:,} tokens, {totals['failed']:,} that failed for an "
        f"allowed cause, {totals['hits']:,} messages touched by faults, {totals['seconds']:,} virtual seconds, "
        f"{len(broken)} broken rules"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
