"""Records of the compiled default policy: a report, and what the policy keeps of a pair and of a verifier.

Fields have the names of the attributes that the compiled formulas read and write (formulas.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from awc.estimators.verifier_cost import KEEP
from awc.wrappers.pausing import PauseSettings

SEEN = np.dtype(
    [  # shared.protocol.messages.PairReport
        *((name, np.int64) for name in ("num_sessions", "window", "drafted", "matched", "mismatched", "late")),
        *((name, np.int64) for name in ("discarded", "context")),
        *((name, np.float64) for name in ("draft_ms", "rtt_ms", "tpot_ms", "pass_ms", "batch", "pass_tokens")),
        ("shares_machine", np.bool_),
    ],
    align=True,
)
AVERAGE = np.dtype([(name, np.float64) for name in ("_half_life", "matched", "judged")])  # AcceptanceEstimate
TEST = np.dtype([(name, np.float64) for name in ("_evidence", "happened", "num")])  # Cusum
COST = np.dtype(
    [  # VerifierCostLine
        *((name, np.float64) for name in ("keep", "weight", "mean_tokens", "mean_ms", "squares", "products")),
        ("per_token_ms", np.float64),
        ("base_ms", np.float64),
    ]
)
PAIR_STATE = np.dtype(
    [  # AdaptivePair and PausingPair
        ("window", np.int64),  # START, or that of the choice in force between pauses
        ("is_paused", np.bool_),
        ("left", np.int64),
        ("length", np.int64),
        ("reason", np.float64),
        ("num_better", np.int64),
        ("unproven", np.int64),
        ("trust", np.int64),
        ("trusted", np.int64),
        ("probing", np.int64),
        ("num_worthless", np.int64),
        ("num_speeds", np.int64),  # ever written to the ring of the pair
        ("tpot_ms", np.float64),
        ("is_trial", np.bool_),
        ("settling", np.int64),
        ("num_compared", np.int64),  # reports of the trial
        ("sum_compared", np.float64),  # of their speeds / those while drafting
        ("told", np.int64),  # the decision before; UNTOLD: there was none
    ],
    align=True,
)
UNTOLD, START, PAUSED = -2, -1, 0  # in place of a window


class Settings(NamedTuple):
    """Numbers of both policies."""

    start_window: int
    chunk: int
    least: float  # a guess pays if it is used at least so often
    price: float
    first: int
    longest: int
    compared: int
    margin: float
    doubtful: float
    before_trial: int
    after_failed: int
    settling: int

    @classmethod
    def of(cls, start_window: int, chunk: int, least: float, price: float, pauses: PauseSettings) -> Settings:
        numbers = (pauses.first, pauses.longest, pauses.compared, pauses.margin, pauses.doubtful)
        derived = (pauses.before_trial, pauses.after_failed, pauses.settling)
        return cls(start_window, chunk, least, price, *numbers, *derived)


class Acceptances(NamedTuple):
    """CusumAcceptance of each row."""

    average: NDArray[Any]
    matches: NDArray[Any]
    mismatches: NDArray[Any]


class Rows(NamedTuple):
    """What is kept of each pair, one row each, and of each verifier."""

    pairs: NDArray[Any]
    speeds: NDArray[np.float64]  # [rows, settings.after_failed] a ring
    situations: NDArray[np.int64]  # [rows, settings.after_failed] of the speeds
    of_windows: Acceptances  # of the windows: only reports between pauses
    of_pauses: Acceptances
    window_costs: NDArray[Any]  # [verifiers]
    pause_costs: NDArray[Any]


def make_rows(num: int, num_nodes: int, num_speeds: int, half_life: float, pause_half_life: float) -> Rows:
    """`num` rows. Half-lives: of the acceptance that decides windows, and of that which decides pauses."""
    costs = np.zeros(num_nodes, COST)
    costs["keep"] = KEEP

    def acceptances(half_life: float) -> Acceptances:
        average = np.zeros(num, AVERAGE)
        average["_half_life"] = half_life
        return Acceptances(average, np.zeros(num, TEST), np.zeros(num, TEST))

    of_windows, of_pauses = acceptances(half_life), acceptances(pause_half_life)
    speeds, situations = np.zeros((num, num_speeds)), np.zeros((num, num_speeds), np.int64)
    return Rows(np.zeros(num, PAIR_STATE), speeds, situations, of_windows, of_pauses, costs, costs.copy())


def with_more(rows: Rows) -> Rows:
    """The same with twice as many rows."""

    def twice(array: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate((array, array))  # renewed before they are used; half-lives are all equal

    return rows._replace(
        pairs=twice(rows.pairs),
        speeds=twice(rows.speeds),
        situations=twice(rows.situations),
        of_windows=Acceptances(*map(twice, rows.of_windows)),
        of_pauses=Acceptances(*map(twice, rows.of_pauses)),
    )
