"""The window policies by name: the one list that settings, help texts and scenarios follow.

Each entry makes a policy from the choice it starts with and, optionally, other parameters. PausingPolicy wraps those
that do not lower the window to 0 by themselves. A name `module:Class` is a policy from elsewhere (plugins.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from awc.estimators.sliding import PRICE
from awc.plugins import BadPolicy, is_plugin, load_plugin
from awc.policies.adaptive import AdaptivePolicy
from awc.policies.closed_form import ClosedFormPolicy
from awc.policies.confidence import ConfidencePolicy
from awc.policies.delay_bandit import DelayBanditPolicy
from awc.policies.goodput import GoodputPolicy
from awc.policies.ladder import LadderPolicy
from awc.policies.nightjar import NightjarPolicy
from awc.policies.pipeline import PipelinePolicy
from awc.policies.static import StaticPolicy
from awc.policies.wc_dnn import WcDnnPolicy
from awc.policy import WindowChoice, WindowPolicy
from awc.wrappers.pausing import PausingPolicy


def _pausing(kind: Callable[..., WindowPolicy]) -> Callable[..., WindowPolicy]:
    def make(start: WindowChoice, **options: Any) -> WindowPolicy:
        return PausingPolicy(kind(start, **options))

    return make


def _adaptive(start: WindowChoice, price: float = PRICE, **options: Any) -> WindowPolicy:
    return PausingPolicy(AdaptivePolicy(start, price, **options), price=price)


POLICIES: dict[str, Callable[..., WindowPolicy]] = {
    StaticPolicy.name: StaticPolicy,
    LadderPolicy.name: _pausing(LadderPolicy),
    ConfidencePolicy.name: _pausing(ConfidencePolicy),
    ClosedFormPolicy.name: ClosedFormPolicy,
    GoodputPolicy.name: GoodputPolicy,
    NightjarPolicy.name: NightjarPolicy,
    DelayBanditPolicy.name: _pausing(DelayBanditPolicy),
    PipelinePolicy.name: PipelinePolicy,
    WcDnnPolicy.name: WcDnnPolicy,
    AdaptivePolicy.name: _adaptive,
}


def policy_kind(name: str) -> Callable[..., WindowPolicy]:
    """What makes the policy of this name. Raises BadPolicy."""
    if is_plugin(name):
        return load_plugin(name)
    if name not in POLICIES:
        raise BadPolicy(f"must be one of {', '.join(POLICIES)} or module:Class, got {name!r}")
    return POLICIES[name]
