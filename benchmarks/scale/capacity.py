"""How many gateways, NATS nodes and verifiers a number of users needs, from the fitted costs. Pure but for DSD-Sim.

Invariant: what was not measured is an assumption with a name (`Assumptions`), which the report prints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.scale.cells import Cell
from benchmarks.scale.fit import Curve, Drivers, bus_of, cpu_of, curves_of, memory_of
from benchmarks.scale.prediction import PROMPT_TOKENS, scenario_of, simulate
from benchmarks.scale.results import CONTROLLER, GATEWAY, NATS, SERVICES, VERIFIER, BusCounts, CellResult, PassGap
from services.edge_drafter.steering import NUM_DECIDING
from shared.timing import REPORT_S

LEAST_NATS_NODES = 3  # of a cluster that survives the loss of a node
STEP = 16  # users of a verifier: the search ends between two multiples of it
MOST_ON_ONE = 1024  # that are tried


@dataclass(frozen=True, slots=True)
class Assumptions:
    """Of the users and the machines. target_share: of a core that a process may use. routed: copies of a message
    between the nodes of a NATS cluster, for each that a client sends or gets."""

    users: int = 10_000  # that wait for tokens at the same time
    tpot_ms: float = 50.0  # of each
    answer_tokens: int = 300
    users_per_drafter: int = 8
    target_share: float = 0.6
    nats_cores: int = 4  # of a node
    routed: float = 1.0

    @property
    def tokens_per_s(self) -> float:
        return self.users * 1e3 / self.tpot_ms

    @property
    def drafters(self) -> int:
        return math.ceil(self.users / self.users_per_drafter)

    def drivers(self, verifiers: int) -> Drivers:
        rate = self.tokens_per_s
        return Drivers(rate, rate / self.answer_tokens, self.users, self.drafters, verifiers)


@dataclass(frozen=True, slots=True)
class Costs:
    """The fitted curves: cores and MiB by service, and the bus by BusCounts' fields. per_message: cores of the NATS
    server for a message a second, published or delivered. gap: the median of the cells."""

    cpu: Mapping[str, Curve]
    memory: Mapping[str, Curve]
    bus: Mapping[str, Curve]
    per_message: float
    gap: PassGap


@dataclass(frozen=True, slots=True)
class Needed:
    """Processes, and what each uses: cores of a gateway, of a controller and of a verifier's own part, and all of
    NATS."""

    gateways: int
    nats_nodes: int
    verifiers: int
    verifiers_by_model: int  # by the times of the target
    verifiers_by_cpu: int  # by the processor time of the service itself
    users_per_verifier: int
    drafters: int
    controllers: int
    gateway_share: float
    controller_share: float
    verifier_share: float
    nats_cores: float
    messages_per_s: float  # published and delivered
    mbit_per_s: float
    gateway_mib: float


def costs_of(results: Sequence[CellResult]) -> Costs:
    """Raises ValueError without results."""
    cpu = curves_of(results, {name: cpu_of(name) for name in SERVICES})
    memory = curves_of(results, {name: memory_of(name) for name in SERVICES})
    bus = curves_of(results, {name: bus_of(name) for name in BusCounts.__slots__})
    loaded = [each.loaded for each in results]
    messages = sum(each.bus.published + each.bus.delivered for each in loaded)
    gaps = sorted((each.gap for each in results), key=lambda gap: gap.session_ms)
    return Costs(cpu, memory, bus, sum(each.cpu_s[NATS] for each in loaded) / messages, gaps[len(gaps) // 2])


def needed(costs: Costs, assumed: Assumptions, users_per_verifier: int) -> Needed:
    """users_per_verifier: whom the times of the target allow."""
    by_model = math.ceil(assumed.users / users_per_verifier)
    by_cpu = _verifiers_by_cpu(costs.cpu[VERIFIER], assumed)
    verifiers = max(by_model, by_cpu)
    drivers = assumed.drivers(verifiers)
    gateways = _gateways(costs.cpu[GATEWAY], drivers, assumed.target_share)
    controllers = _controllers(costs.cpu[CONTROLLER], drivers, assumed.target_share)
    # Heartbeats of drafters and verifiers reach every gateway, and reports two controllers: one of each was measured.
    sent_again = drivers.drafters / REPORT_S if controllers > 1 else 0.0
    heard = (gateways - 1) * (drivers.drafters + drivers.verifiers) + 2 * sent_again  # published, and delivered
    messages = costs.bus["published"].at(drivers) + costs.bus["delivered"].at(drivers) + heard
    nats_cores = (1 + assumed.routed) * costs.per_message * messages
    num_bytes = costs.bus["published_bytes"].at(drivers) + costs.bus["delivered_bytes"].at(drivers)
    nodes = max(LEAST_NATS_NODES, math.ceil(nats_cores / (assumed.target_share * assumed.nats_cores)))
    memory = costs.memory[GATEWAY]
    return Needed(
        gateways=gateways,
        nats_nodes=nodes,
        verifiers=verifiers,
        verifiers_by_model=by_model,
        verifiers_by_cpu=by_cpu,
        users_per_verifier=users_per_verifier,
        drafters=assumed.drafters,
        controllers=controllers,
        gateway_share=_shared(costs.cpu[GATEWAY], drivers) / gateways + _own(costs.cpu[GATEWAY], drivers),
        controller_share=_controller_share(costs.cpu[CONTROLLER], drivers, controllers),
        verifier_share=costs.cpu[VERIFIER].at(drivers) / verifiers,
        nats_cores=nats_cores,
        messages_per_s=messages,
        mbit_per_s=num_bytes * 8 / 1e6,
        gateway_mib=_shared(memory, drivers) / gateways + _own(memory, drivers),
    )


def _shared(curve: Curve, drivers: Drivers) -> float:
    """The part of a service's cost that its processes share."""
    names = ("tokens_per_s", "requests_per_s", "sessions")
    return float(sum(curve.cost(name) * getattr(drivers, name) for name in names))


def _own(curve: Curve, drivers: Drivers) -> float:
    """The part that each process has: it hears all drafters and verifiers."""
    return curve.cost("drafters") * drivers.drafters + curve.cost("verifiers") * drivers.verifiers + curve.fixed


def _controllers(curve: Curve, drivers: Drivers, target_share: float) -> int:
    """Raises ValueError if the heartbeats alone are too much for a controller."""
    if _controller_share(curve, drivers, 1) <= target_share:
        return 1
    left = target_share - _own(curve, drivers)
    if left <= 0:
        raise ValueError(f"a controller would spend {_own(curve, drivers):.2f} of a core on heartbeats alone")
    return math.ceil(NUM_DECIDING * _shared(curve, drivers) / left)


def _controller_share(curve: Curve, drivers: Drivers, number: int) -> float:
    """Cores of each: several share the decisions, of which each is made twice, and none of the heartbeats."""
    return _shared(curve, drivers) * min(number, NUM_DECIDING) / number + _own(curve, drivers)


def _gateways(curve: Curve, drivers: Drivers, target_share: float) -> int:
    """Raises ValueError if the heartbeats alone are too much for a gateway."""
    left = target_share - _own(curve, drivers)
    if left <= 0:
        raise ValueError(f"a gateway would spend {_own(curve, drivers):.2f} of a core on heartbeats alone")
    return math.ceil(_shared(curve, drivers) / left)


def _verifiers_by_cpu(curve: Curve, assumed: Assumptions) -> int:
    """Verifiers whose event loops carry the tokens, each with its share of them and its own heartbeats."""
    drivers = assumed.drivers(0)
    per_drafter = curve.cost("drafters") * drivers.drafters  # messages of drafters are shared out
    left = assumed.target_share - curve.cost("verifiers")
    return max(1, math.ceil((_shared(curve, drivers) + per_drafter + curve.fixed) / max(left, 1e-9)))


# --- users of one verifier --------------------------------------------------------------------------------------------


def users_of_a_verifier(assumed: Assumptions, gap: PassGap) -> int:
    """The most users whose mean TPOT DSD-Sim keeps within the objective, with the target's own times and the measured
    gap between passes."""
    return most_users(partial(_holds, assumed, gap))


def most_users(holds: Callable[[int], bool]) -> int:
    """The most users, a multiple of STEP up to MOST_ON_ONE, for which it holds; STEP if it does for none. Pure."""
    good, bad = STEP, MOST_ON_ONE + STEP
    while bad - good > STEP:
        tried = (good + bad) // 2 // STEP * STEP
        if holds(tried):
            good = tried
        else:
            bad = tried
    return good


def _holds(assumed: Assumptions, gap: PassGap, users: int) -> bool:
    cell = Cell(users, math.ceil(users / assumed.users_per_drafter), 1)
    with TemporaryDirectory(prefix="dsd-scale-") as place:
        scenario = scenario_of(cell, 1.0, [PROMPT_TOKENS], gap, Path(place))
        return bool(simulate(scenario, Path(place), seed=1).tpot_ms.mean <= assumed.tpot_ms)
