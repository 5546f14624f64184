"""Formulas of `awc`, compiled from their own lines: for records in place of reports and estimates.

A record has the fields that the lines read and write. Formulas of one module may call each other.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any, TypeAlias, cast

from numba import njit

from awc import policy
from awc.estimators import acceptance, sliding, verifier_cost

Formula: TypeAlias = Callable[..., Any]


def _compiled(module: ModuleType, functions: dict[str, Formula]) -> dict[str, Formula]:
    """The functions of a module, with each other's compiled forms in place of the names under which they call."""
    known: dict[str, Any] = dict(vars(module))
    made = {name: njit(FunctionType(cast(FunctionType, each).__code__, known)) for name, each in functions.items()}
    known |= made
    return made


def _named(module: ModuleType, *names: str) -> dict[str, Formula]:
    return _compiled(module, {name: getattr(module, name) for name in names})


_of_sliding = _named(
    sliding,
    *("is_measured", "within", "verdict_ms", "num_bought", "guesses_in_flight", "num_overtaking", "paying_depth"),
    *("speedup", "_alone", "guesses_made", "guesses_of_run", "net_gain", "share_of_runs"),
)
is_measured, num_bought = _of_sliding["is_measured"], _of_sliding["num_bought"]
guesses_in_flight, paying_depth = _of_sliding["guesses_in_flight"], _of_sliding["paying_depth"]
net_gain = _of_sliding["net_gain"]
is_plausible = _named(policy, "is_plausible")["is_plausible"]

_of_cost = _compiled(
    verifier_cost,
    {
        "observe": verifier_cost.VerifierCostLine.observe,
        "per_token_ms": cast(property, verifier_cost.VerifierCostLine.per_token_ms).fget,  # type: ignore[dict-item]
        "base_ms": cast(property, verifier_cost.VerifierCostLine.base_ms).fget,  # type: ignore[dict-item]
    },
)
_of_acceptance = _compiled(
    acceptance, {"average": acceptance.AcceptanceEstimate.observe, "change": acceptance.Cusum.observe}
)
add_to_average, add_to_test = _of_acceptance["average"], _of_acceptance["change"]
add_pass, slope_ms, intercept_ms = _of_cost["observe"], _of_cost["per_token_ms"], _of_cost["base_ms"]
