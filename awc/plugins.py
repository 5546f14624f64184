"""Window policies from outside this project, named `module:Class`.

Invariant: a class that was loaded makes a policy from a WindowChoice, and the policy decides on a report of zeros, as a
pair's first report may be. Anything else raises BadPolicy, one line that says what is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from awc.policy import DEFAULT_CHOICE, WindowPolicy, decide_all
from shared.protocol.messages import PairReport

SEPARATOR = ":"
NOTHING_YET = PairReport("v.1", 0, 0, 0, 0, 0, 0, 0, draft_ms=0.0, rtt_ms=0.0, queue=0.0, tpot_ms=0.0, context=0)


class BadPolicy(ValueError):
    """The name of a policy that can't be used."""


def is_plugin(name: str) -> bool:
    return SEPARATOR in name


@cache
def load_plugin(name: str) -> Callable[..., WindowPolicy]:
    """The class `name` of a module that Python can import. Raises BadPolicy."""
    module_name, _, class_name = name.partition(SEPARATOR)
    try:
        kind: Any = getattr(import_module(module_name), class_name)
    except ModuleNotFoundError as error:
        where = "start in its folder, or add that to PYTHONPATH"
        raise BadPolicy(f"policy {name!r}: there is no module {error.name!r}; {where}") from error
    except AttributeError as error:
        raise BadPolicy(f"policy {name!r}: {error}") from error
    except Exception as error:
        raise BadPolicy(f"policy {name!r}: importing {module_name} failed: {_describe(error)}") from error
    _try(name, kind)
    return kind  # type: ignore[no-any-return]


def _try(name: str, kind: Any) -> None:
    """Makes a policy and lets it decide once."""
    step = "Class(start)"
    try:
        policy = kind(DEFAULT_CHOICE)
        step = "name"
        if not isinstance(policy.name, str):
            raise TypeError(f"must be a text, got {policy.name!r}")
        step = "for_pair()"
        pair = policy.for_pair()
        step = "decide(report of zeros)"
        decide_all(policy, [pair], [NOTHING_YET])
    except Exception as error:
        raise BadPolicy(f"policy {name!r}: {step}: {_describe(error)}") from error


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def sources_of(name: str) -> Iterator[Path]:
    """The Python files of a plugin's top package, or the one file of its module."""
    top = name.partition(SEPARATOR)[0].partition(".")[0]
    module = sys.modules.get(top)
    spec = module.__spec__ if module is not None else find_spec(top)
    if spec is None:
        return
    if spec.submodule_search_locations:
        yield from sorted(path for place in spec.submodule_search_locations for path in Path(place).rglob("*.py"))
    elif spec.origin:
        yield Path(spec.origin)
