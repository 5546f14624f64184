"""The window policies by name. Each is made from the choice it starts with; those that may draft in vain rest."""

from __future__ import annotations

from collections.abc import Callable

from awc.adaptive import AdaptivePolicy
from awc.closed_form import ClosedFormPolicy
from awc.confidence import ConfidencePolicy
from awc.delay_bandit import DelayBanditPolicy
from awc.fair_share import FairSharePolicy
from awc.goodput import GoodputPolicy
from awc.ladder import LadderPolicy
from awc.nightjar import NightjarPolicy
from awc.policy import WindowChoice, WindowPolicy
from awc.resting import RestingPolicy
from awc.static import StaticPolicy
from awc.wc_dnn import WcDnnPolicy

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
