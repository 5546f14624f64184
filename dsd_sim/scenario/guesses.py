"""From the `guesses` and `lookup` tables of a scenario to models of right and wrong guesses."""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from dsd_sim.engine.acceptance import (
    AcceptanceModel,
    ByPosition,
    Independent,
    Markov,
    RecordedAnswer,
    Replay,
    TextLookups,
)
from dsd_sim.scenario.scenario import (
    Guesses,
    GuessesByPosition,
    IndependentGuesses,
    MarkovGuesses,
    RecordedGuesses,
    Scenario,
)
from dsd_sim.scenario.table import naming_key
from shared.data.recording import Recorded, read_recording
from shared.protocol.guesses import common_prefix
from shared.protocol.lookup import TextLookup
from shared.protocol.messages import MAX_WINDOW


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


def lookups_of(scenario: Scenario, folder: Path) -> TextLookups | None:
    """None without a `lookup` table. Raises BadScenario for a recording that can't be used."""
    if scenario.lookup is None:
        return None
    with naming_key("lookup.file"):
        return TextLookups(tuple(looked_up(each) for each in read_recording(folder / scenario.lookup.file).prompts))


def looked_up(answer: Recorded) -> NDArray[np.int8]:
    """[tokens, 3] before each token of an answer: the guesses that a verifier finds in the text so far, how many of
    them are right, and the equal tokens before them."""
    text, lookup, found = list(answer.prompt_ids), TextLookup(), []
    for position, token_id in enumerate(answer.target_ids):
        lookup.follow(text)
        guesses = lookup.find(text, (), MAX_WINDOW, ())
        right = common_prefix(guesses.token_ids, answer.target_ids[position:])
        found.append((len(guesses.token_ids), right, guesses.match))
        text.append(token_id)
    return np.array(found, np.int8)
