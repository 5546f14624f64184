"""The window policies by name. Each is made from the choice it starts with; those that may draft in vain rest."""

from __future__ import annotations

from collections.abc import Callable

from awc.policies.adaptive import AdaptivePolicy
from awc.policies.closed_form import ClosedFormPolicy
from awc.policies.confidence import ConfidencePolicy
from awc.policies.delay_bandit import DelayBanditPolicy
from awc.policies.goodput import GoodputPolicy
from awc.policies.ladder import LadderPolicy
from awc.policies.nightjar import NightjarPolicy
from awc.policies.static import StaticPolicy
from awc.policies.wc_dnn import WcDnnPolicy
from awc.policy import WindowChoice, WindowPolicy
from awc.wrappers.fair_share import FairSharePolicy
from awc.wrappers.resting import RestingPolicy

POLICIES: dict[str, Callable[[WindowChoice], WindowPolicy]] = {
    StaticPolicy.name: StaticPolicy,
    LadderPolicy.name: lambda start: RestingPolicy(LadderPolicy(start)),
    ConfidencePolicy.name: lambda start: RestingPolicy(ConfidencePolicy(start)),
    DelayBanditPolicy.name: lambda start: RestingPolicy(DelayBanditPolicy(start)),
    # These go to a window of 0 by themselves, and come back; wc-dnn as far as the paper's five inputs lead back.
    ClosedFormPolicy.name: ClosedFormPolicy,
    GoodputPolicy.name: GoodputPolicy,
    NightjarPolicy.name: NightjarPolicy,
    WcDnnPolicy.name: WcDnnPolicy,
    AdaptivePolicy.name: lambda start: FairSharePolicy(RestingPolicy(AdaptivePolicy(start))),
}
