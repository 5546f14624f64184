"""Times of a target and a draft, made longer: two cores can run the services of many sessions of slower models.

Invariant: all times grow by the same factor, so what models cost in relation to each other stays.
"""

from __future__ import annotations

from pathlib import Path

from shared.data.profiles import PassTimes, Profile, StepTimes, read_profile


def stretched(name: str, verifier: Path, drafter: Path, slower: float) -> Profile:
    """A profile with the times of both, each `slower` times as long."""
    target, draft = read_profile(verifier), read_profile(drafter)
    passes, steps = target.pass_times, draft.step_times

    def times(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(slower * value for value in values)

    base_ms, session_ms, token_ms, *above_ms, cached_ms = times(passes.weights)
    return Profile(
        name=name,
        origin=f"{slower:g} times {target.name} and {draft.name}",
        verifier=PassTimes(
            base_ms=base_ms,
            session_ms=session_ms,
            token_ms=token_ms,
            above_ms=(above_ms[0], above_ms[1], above_ms[2]),
            cached_ms=cached_ms,
            extra_ms=times(passes.extra_ms),
        ),
        drafter=StepTimes(
            step_ms=slower * steps.step_ms,
            step_ms_per_1000=slower * steps.step_ms_per_1000,
            fed_ms=slower * steps.fed_ms,
            session_ms=None if steps.session_ms is None else slower * steps.session_ms,
        ),
    )
