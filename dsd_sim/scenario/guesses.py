"""From the `guesses` tables of a scenario to acceptance models."""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

import numpy as np

from dsd_sim.engine.acceptance import AcceptanceModel, ByPosition, Independent, Markov, RecordedAnswer, Replay
from dsd_sim.scenario.scenario import (
    Guesses,
    GuessesByPosition,
    IndependentGuesses,
    MarkovGuesses,
    RecordedGuesses,
    Scenario,
)
from dsd_sim.scenario.table import naming_key
from shared.data.recording import read_recording


def acceptances_of(scenario: Scenario, folder: Path) -> list[AcceptanceModel]:
    """The model of each device, in the order of the edges. Raises BadScenario for a recording that can't be used."""
    found: list[AcceptanceModel] = []
    for number, edge in enumerate(scenario.edge):
        found += [acceptance_of(edge.guesses, folder, f"edge.{number}")] * edge.count
    return found


def acceptance_of(guesses: Guesses, folder: Path, place: str) -> AcceptanceModel:
    """`place`: key of the table that holds the guesses, for error messages."""
    match guesses:
        case IndependentGuesses(rate=rate):
            return Independent(rate)
        case GuessesByPosition(rates=rates):
            return ByPosition(rates)
        case MarkovGuesses():
            return Markov(guesses.easy, guesses.hard, guesses.to_hard, guesses.to_easy)
        case RecordedGuesses(file=file):
            with naming_key(f"{place}.guesses.file"):
                prompts = read_recording(folder / file).prompts
            columns = [(np.array(each.draft_right), np.array(each.confidence, np.float32)) for each in prompts]
            return Replay(tuple(RecordedAnswer(*each) for each in columns))
    assert_never(guesses)
