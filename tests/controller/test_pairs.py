"""The pair controller: what it decides on, announces, drops and removes."""

from collections.abc import Sequence

import msgspec
import pytest

from awc.policies.ladder import LadderPair, LadderPolicy
from awc.policies.static import StaticPolicy
from awc.policy import DEFAULT_CHOICE, MAX_JUDGED, PairControl, WindowChoice, WindowPolicy, decide_all
from awc.registry import POLICIES
from services.window_controller import pairs
from services.window_controller.pairs import ACCEPTANCE_HALF_LIFE, DropReason, PairController, PairId
from services.window_controller.verifiers import LiveVerifiers
from shared.protocol.messages import Heartbeat, Load, PairReport, Reason, Report, WindowDecision
from shared.protocol.subjects import new_instance_id
from shared.timing import MAX_SILENCE_S, STALE_HEARTBEATS

DRAFTER, OTHER_DRAFTER = new_instance_id("edge-1"), new_instance_id("edge-2")
CONTROLLER, OTHER_CONTROLLER = new_instance_id("controller"), new_instance_id("controller")
VERIFIER, OTHER_VERIFIER = new_instance_id("cloud-1"), new_instance_id("cloud-2")


def heartbeat(instance_id: str, interval_s: float = 1.0, load: Load | None = None, machine: str = "") -> Heartbeat:
    return Heartbeat(
        service="verifier",
        instance_id=instance_id,
        interval_s=interval_s,
        models=["tiny"],
        max_context=1024,
        vocab_size=100,
        fingerprint="none",
        load=load or Load(),
        draining=False,
        machine=machine,
    )


def seen(verifier_id: str = VERIFIER, matched: int = 16, mismatched: int = 0) -> PairReport:
    return PairReport(
        verifier_id=verifier_id,
        num_sessions=1,
        window=8,
        drafted=16,
        matched=matched,
        mismatched=mismatched,
        late=0,
        discarded=0,
        draft_ms=10.0,
        rtt_ms=20.0,
        queue=0.5,
        tpot_ms=30.0,
        context=100,
        pass_ms=40.0,
        batch=2.5,
    )


class Recorded:
    """A pair controller with two live verifiers, and what it reports to its callbacks."""

    def __init__(self, policy: WindowPolicy, max_pairs: int = 100) -> None:
        self.dropped: list[DropReason] = []
        self.changes: list[WindowDecision] = []
        self.failed: list[PairId] = []
        self.verifiers = LiveVerifiers(max_verifiers=10)
        for verifier_id in (VERIFIER, OTHER_VERIFIER):
            self.verifiers.hear(heartbeat(verifier_id), now=0.0)
        self.pairs = PairController(
            policy,
            self.verifiers,
            self.dropped.append,
            self.changes.append,
            self.failed.append,
            max_pairs=max_pairs,
            expiry_s=30.0,
            announce_s=2.0,
            controller_id=CONTROLLER,
        )

    def report(
        self,
        sequence: int,
        *pairs: PairReport,
        now: float = 0.0,
        drafter_id: str = DRAFTER,
        controllers: Sequence[str] = (CONTROLLER,),
    ) -> list[WindowDecision]:
        report = Report(drafter_id, sequence, list(pairs), "", tuple(controllers))
        return [] if self.pairs.passes_over(report, now) else self.pairs.observe([report], now)


@pytest.fixture
def static() -> Recorded:
    return Recorded(StaticPolicy(DEFAULT_CHOICE))


@pytest.fixture
def ladder() -> Recorded:
    return Recorded(LadderPolicy(DEFAULT_CHOICE, warm_up=1, interval=1))


def windows(decisions: Sequence[WindowDecision]) -> list[tuple[str, int]]:
    return [(decision.verifier_id, decision.window) for decision in decisions]


def test_the_first_report_of_a_pair_is_answered_with_the_policys_choice() -> None:
    recorded = Recorded(StaticPolicy(WindowChoice(window=4, chunk=3, free_run=False)))
    assert recorded.report(0, seen()) == [
        WindowDecision(
            drafter_id=DRAFTER,
            verifier_id=VERIFIER,
            window=4,
            chunk=3,
            free_run=False,
            policy="static",
            sequence=1,
            reason=Reason(
                num_sessions=1,
                acceptance=1.0,
                draft_ms=10.0,
                rtt_ms=20.0,
                pass_ms=40.0,
                tpot_ms=30.0,
                queue=0.5,
                batch=2.5,
            ),
        )
    ]


def test_a_choice_that_stays_is_announced_again_only_after_a_while(static: Recorded) -> None:
    assert static.report(0, seen(), now=0.0)
    assert static.report(1, seen(), now=1.9) == []
    assert windows(static.report(2, seen(), now=2.0)) == [(VERIFIER, 8)]


def test_a_choice_that_changes_is_announced_at_once_with_a_higher_sequence_number(ladder: Recorded) -> None:
    first = ladder.report(0, seen(matched=15, mismatched=1), now=0.0)
    second = ladder.report(1, seen(), now=0.1)
    assert windows([*first, *second]) == [(VERIFIER, 12), (VERIFIER, 16)]
    assert first[0].sequence < second[0].sequence


def test_a_drafter_that_another_controller_leads_is_decided_on_and_told_nothing_until_this_one_leads(
    ladder: Recorded,
) -> None:
    beside, leading = (OTHER_CONTROLLER, CONTROLLER), (CONTROLLER, OTHER_CONTROLLER)
    assert ladder.report(0, seen(matched=15, mismatched=1), now=0.0, controllers=beside) == []
    assert ladder.report(1, seen(), now=0.1, controllers=beside) == []
    assert ladder.pairs.refresh(3.0) == ladder.changes == []
    assert (len(ladder.pairs), ladder.pairs.num_led) == (1, 0)
    told = ladder.report(2, seen(), now=0.2, controllers=leading)
    assert windows(told) == [(VERIFIER, 16)], "it has learned"
    assert ladder.changes == told, "the change is logged"
    assert windows(ladder.pairs.refresh(3.0)) == [(VERIFIER, 16)]
    assert (len(ladder.pairs), ladder.pairs.num_led) == (1, 1)


def test_a_new_leader_repeats_decisions_on_pairs_that_were_not_reported_since(static: Recorded) -> None:
    both, beside = [seen(), seen(OTHER_VERIFIER)], (OTHER_CONTROLLER, CONTROLLER)
    static.report(0, *both, controllers=beside)
    static.report(1, seen(), controllers=[CONTROLLER])
    assert windows(static.pairs.refresh(0.1)) == [(OTHER_VERIFIER, 8)]
    static.report(2, seen(), controllers=beside)
    assert static.pairs.refresh(9.0) == []


def test_a_controller_that_takes_over_tells_its_decision_at_once_although_it_stays(static: Recorded) -> None:
    assert static.report(0, seen(), now=0.0, controllers=[OTHER_CONTROLLER, CONTROLLER]) == []
    assert windows(static.report(1, seen(), now=0.1, controllers=[CONTROLLER])) == [(VERIFIER, 8)]
    assert static.report(2, seen(), now=0.2, controllers=[CONTROLLER]) == []


def test_a_drafter_that_other_controllers_decide_for_is_forgotten(static: Recorded) -> None:
    others = [OTHER_CONTROLLER, new_instance_id("controller")]
    assert static.report(0, seen(), controllers=others) == []
    static.report(1, seen(), drafter_id=OTHER_DRAFTER)
    static.report(1, seen(), controllers=[CONTROLLER])
    assert len(static.pairs) == 2
    assert static.report(1, seen(), controllers=others) == []
    assert len(static.pairs) == 2, "an older report changes nothing"
    assert static.report(2, seen(), controllers=others) == []
    assert len(static.pairs) == 1
    assert windows(static.report(3, seen(), controllers=[CONTROLLER])) == [(VERIFIER, 8)], "and may come back"
    assert static.dropped == []


def acceptances(decisions: Sequence[WindowDecision]) -> list[float | None]:
    return [decision.reason.acceptance for decision in decisions if decision.reason]


def test_a_decision_tells_the_acceptance_of_all_that_was_judged_and_older_guesses_count_less(static: Recorded) -> None:
    half_life = round(ACCEPTANCE_HALF_LIFE)
    reports = (seen(matched=0), seen(matched=half_life), seen(matched=0, mismatched=half_life), seen(matched=0))
    decided = [static.report(number, each, now=2.0 * number) for number, each in enumerate(reports)]
    assert [acceptances(each) for each in decided] == [[None], [1.0], [pytest.approx(1 / 3)], [pytest.approx(1 / 3)]]


def test_a_repeated_decision_tells_the_same_policy_and_reason(static: Recorded) -> None:
    (first,) = static.report(0, seen(matched=12, mismatched=4), now=0.0)
    (again,) = static.pairs.refresh(now=2.0)
    assert again == msgspec.structs.replace(first, sequence=2)


def test_changes_of_a_choice_are_passed_on_and_repeats_are_not(ladder: Recorded) -> None:
    climbed = [*ladder.report(0, seen(), now=0.0), *ladder.report(1, seen(), now=0.1)]
    repeated = [*ladder.report(2, seen(), now=2.5), *ladder.pairs.refresh(now=5.0)]
    assert windows([*climbed, *repeated]) == [(VERIFIER, 12), (VERIFIER, 16), (VERIFIER, 16), (VERIFIER, 16)]
    assert ladder.changes == climbed


def test_another_policy_decides_on_the_next_report_of_the_same_pairs(ladder: Recorded) -> None:
    ladder.report(0, seen(VERIFIER), seen(OTHER_VERIFIER), now=0.0)
    ladder.pairs.follow(StaticPolicy(WindowChoice(window=4, chunk=2, free_run=True)))
    assert ladder.pairs.refresh(now=2.0) == []
    assert ladder.report(0, seen(), now=2.0) == []
    (decision,) = ladder.report(1, seen(), now=2.0)
    assert (decision.verifier_id, decision.window, decision.policy, decision.sequence) == (VERIFIER, 4, "static", 3)
    assert len(ladder.pairs) == 2
    assert ladder.dropped == ["replayed"]


def test_another_policy_starts_afresh_and_names_itself_although_the_choice_is_the_same(ladder: Recorded) -> None:
    assert windows([*ladder.report(0, seen(), now=0.0), *ladder.report(1, seen(), now=0.1)]) == [
        (VERIFIER, 12), (VERIFIER, 16),
    ]  # fmt: skip
    ladder.pairs.follow(LadderPolicy(DEFAULT_CHOICE, warm_up=1, interval=1))
    assert windows(ladder.report(2, seen(), now=0.2)) == [(VERIFIER, 12)]
    ladder.pairs.follow(StaticPolicy(WindowChoice(window=12, chunk=2, free_run=True)))
    assert [decision.policy for decision in ladder.report(3, seen(), now=0.3)] == ["static"]


def test_a_pair_without_reports_is_refreshed_until_it_expires(static: Recorded) -> None:
    static.report(0, seen(), now=0.0)
    assert static.pairs.refresh(now=1.0) == []
    assert windows(static.pairs.refresh(now=2.0)) == [(VERIFIER, 8)]
    assert static.pairs.refresh(now=3.0) == []
    static.pairs.expire(now=29.9)
    assert len(static.pairs) == 1
    static.pairs.expire(now=30.0)
    assert len(static.pairs) == 0
    assert static.pairs.refresh(now=30.0) == []


def test_every_pair_has_its_own_state(ladder: Recorded) -> None:
    decisions = ladder.report(0, seen(VERIFIER), seen(OTHER_VERIFIER, matched=0, mismatched=16))
    assert windows(decisions) == [(VERIFIER, 12), (OTHER_VERIFIER, 4)]
    decisions = ladder.report(0, seen(VERIFIER, matched=0, mismatched=16), drafter_id=OTHER_DRAFTER)
    assert windows(decisions) == [(VERIFIER, 4)]


@pytest.mark.parametrize("sequence", [5, 4, 0])
def test_a_replayed_or_older_report_is_dropped_and_teaches_nothing(ladder: Recorded, sequence: int) -> None:
    ladder.report(5, seen())
    assert ladder.report(sequence, seen(matched=0, mismatched=16)) == []
    assert ladder.dropped == ["replayed"]
    assert windows(ladder.report(6, seen())) == [(VERIFIER, 16)]


def test_sequence_numbers_of_different_drafters_are_independent(static: Recorded) -> None:
    static.report(5, seen())
    assert static.report(0, seen(), drafter_id=OTHER_DRAFTER)
    assert static.dropped == []


def test_a_drafter_that_used_up_its_sequence_numbers_is_heard_again_after_the_expiry(static: Recorded) -> None:
    static.report(1 << 48, seen(), now=0.0)
    assert static.report(1, seen(), now=1.0) == []
    static.verifiers.hear(heartbeat(VERIFIER), now=30.0)
    static.pairs.expire(now=30.0)
    assert windows(static.report(2, seen(), now=30.0)) == [(VERIFIER, 8)]


def test_an_implausible_pair_is_dropped_and_the_others_of_its_report_count(ladder: Recorded) -> None:
    absurd = seen(OTHER_VERIFIER, matched=MAX_JUDGED + 1)
    assert windows(ladder.report(0, absurd, seen())) == [(VERIFIER, 12)]
    assert ladder.dropped == ["implausible"]
    assert len(ladder.pairs) == 1


def test_a_pair_that_a_report_names_twice_counts_once(ladder: Recorded) -> None:
    [decision] = ladder.report(1, seen(matched=8), seen(matched=0, mismatched=16))
    assert decision.reason is not None
    assert decision.reason.acceptance == 1.0
    assert ladder.dropped == ["replayed"]


@pytest.mark.parametrize("name", ["ladder", "adaptive"])
def test_reports_that_are_taken_together_count_as_one_after_the_other(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def decide(
        policy: WindowPolicy, controls: Sequence[PairControl], shown: Sequence[PairReport]
    ) -> list[WindowChoice]:
        assert len(set(map(id, controls))) == len(controls), "no pair twice"
        sizes.append(len(controls))
        return decide_all(policy, controls, shown)

    monkeypatch.setattr(pairs, "decide_all", decide)
    reports = [
        Report(
            drafter_id,
            sequence,
            [seen(matched=12 + sequence), seen(OTHER_VERIFIER, matched=0, mismatched=16)],
            "",
            (CONTROLLER,),
        )
        for sequence in (*range(20), 19)
        for drafter_id in (DRAFTER, OTHER_DRAFTER)
    ]
    together, single = (Recorded(POLICIES[name](DEFAULT_CHOICE)) for _ in range(2))
    found = together.pairs.observe(reports, 0.0)
    assert set(sizes) == {0, 4}, "of both drafters, and none of what was replayed"
    assert found == [decision for report in reports for decision in single.pairs.observe([report], 0.0)]
    assert len({decision.window for decision in found}) > 1
    assert together.dropped == single.dropped == ["replayed"] * 2


def test_a_pair_on_which_a_policy_fails_costs_no_decision_but_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(StaticPolicy(DEFAULT_CHOICE))
    decide = StaticPolicy.decide

    def fail(control: StaticPolicy, report: PairReport) -> WindowChoice:
        if report.matched == 0:
            raise RuntimeError("no idea")
        return decide(control, report)

    monkeypatch.setattr(StaticPolicy, "decide", fail)
    reports = [
        Report(DRAFTER, 0, [seen(), seen(OTHER_VERIFIER, matched=0)], "", (CONTROLLER,)),
        Report(OTHER_DRAFTER, 0, [seen(), seen(OTHER_VERIFIER)], "", (CONTROLLER,)),
    ]
    assert len(recorded.pairs.observe(reports, 0.0)) == 3
    assert recorded.failed == [PairId(DRAFTER, OTHER_VERIFIER)]
    assert windows(recorded.report(1, seen(OTHER_VERIFIER))) == [(OTHER_VERIFIER, DEFAULT_CHOICE.window)]


def test_a_pair_on_which_a_policy_fails_begins_afresh(ladder: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    climbs = [windows(ladder.report(sequence, seen())) for sequence in range(5)]
    assert climbs[:2] == [[(VERIFIER, 12)], [(VERIFIER, 16)]]
    with monkeypatch.context() as patch:
        patch.setattr(LadderPair, "decide", lambda *_: 1 / 0)
        assert ladder.report(5, seen()) == []
    assert windows(ladder.report(6, seen())) == climbs[0]


def test_a_pair_with_a_verifier_that_is_not_alive_is_not_taken(static: Recorded) -> None:
    assert static.report(0, seen(new_instance_id("nobody"))) == []
    assert static.report(0, seen(), now=STALE_HEARTBEATS * 1.0) == []
    assert static.dropped == ["unknown_verifier", "unknown_verifier"]
    assert len(static.pairs) == 0


def test_a_known_pair_lives_on_while_the_verifiers_heartbeats_are_lost(ladder: Recorded) -> None:
    ladder.report(0, seen(), now=0.0)
    assert windows(ladder.report(1, seen(), now=20.0)) == [(VERIFIER, 16)]


def test_the_number_of_pairs_is_bounded_and_those_known_are_kept() -> None:
    recorded = Recorded(StaticPolicy(DEFAULT_CHOICE), max_pairs=1)
    recorded.report(0, seen())
    assert recorded.report(0, seen(), drafter_id=OTHER_DRAFTER) == []
    assert recorded.dropped == ["full"]
    assert recorded.report(1, seen(), now=5.0)
    assert len(recorded.pairs) == 1


def test_the_nonces_of_one_name_take_no_room_from_other_drafters() -> None:
    recorded = Recorded(StaticPolicy(DEFAULT_CHOICE), max_pairs=4)
    for number in range(100):
        recorded.report(0, seen(), seen(OTHER_VERIFIER), now=number / 50, drafter_id=f"liar.{number:012x}")
    assert len(recorded.pairs) == 2
    assert "full" not in recorded.dropped
    assert windows(recorded.report(0, seen(), now=2.0, drafter_id=OTHER_DRAFTER)) == [(VERIFIER, 8)]
    assert recorded.report(1, seen(), now=9.0, drafter_id=f"liar.{0:012x}") == [], "it was replaced"
    assert recorded.dropped[-1] == "replaced"


LOAD = Load(num_sessions=2, max_sessions=64, token_budget=256, step_ms=40.0, prefill_ms=0.5)
LIES: dict[str, dict[str, object]] = {
    "long texts for nothing": {"pass_tokens": 131072.0, "pass_ms": 0.001},
    "endless passes": {"pass_tokens": 1.0, "pass_ms": 60_000.0},
    "endless passes of long texts": {"pass_tokens": 131072.0, "pass_ms": 60_000.0},
    "a thousand sessions": {"num_sessions": 4096},
}


def honest_window(policy: str, lies: dict[str, object]) -> int:
    """The window of a drafter beside one that reports this."""
    recorded = Recorded(POLICIES[policy](DEFAULT_CHOICE))
    window = DEFAULT_CHOICE.window
    for number in range(400):
        now, tokens = number / 4, 20.0 + number % 7
        recorded.verifiers.hear(heartbeat(VERIFIER, load=LOAD), now)
        honest = msgspec.structs.replace(
            seen(matched=15, mismatched=1), window=window, pass_tokens=tokens, pass_ms=30.0 + tokens / 2, draft_ms=5.0
        )
        for decision in recorded.report(number, honest, now=now):
            window = decision.window
        recorded.report(number, msgspec.structs.replace(honest, **lies), now=now, drafter_id=OTHER_DRAFTER)
    return window


@pytest.mark.parametrize("policy", ["adaptive", "goodput"])
@pytest.mark.parametrize("lies", LIES.values(), ids=LIES.keys())
def test_what_a_drafter_reports_of_a_verifier_is_no_more_than_that_tells_itself(
    policy: str, lies: dict[str, object]
) -> None:
    alone = honest_window(policy, {})
    assert alone / 2 <= honest_window(policy, lies) <= 2 * alone


class Witness:
    """A policy that notes whether its pairs share a machine."""

    name = "witness"

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def for_pair(self) -> PairControl:
        return self

    def decide(self, seen: PairReport) -> WindowChoice:
        self.seen.append(seen.shares_machine)
        return DEFAULT_CHOICE


@pytest.mark.parametrize("claimed", [False, True], ids=["", "claimed"])
@pytest.mark.parametrize(
    ("of_verifier", "of_drafter", "shares"), [("a", "a", True), ("a", "b", False), ("", "", False), ("a", "", False)]
)
def test_policies_learn_from_both_senders_whether_a_pair_shares_a_machine_and_not_from_its_report(
    of_verifier: str, of_drafter: str, shares: bool, claimed: bool
) -> None:
    recorded = Recorded(policy := Witness())
    recorded.verifiers.hear(heartbeat(VERIFIER, machine=of_verifier), now=0.0)
    told = msgspec.structs.replace(seen(), shares_machine=claimed)
    recorded.pairs.observe([Report(DRAFTER, 0, [told], of_drafter)], 0.0)
    recorded.verifiers.expire(now=MAX_SILENCE_S)
    recorded.pairs.observe([Report(DRAFTER, 1, [told], of_drafter)], MAX_SILENCE_S)
    assert policy.seen == [shares, False], "and of a silent verifier nothing is known"


def test_a_report_with_no_pairs_leaves_nothing_behind(static: Recorded) -> None:
    assert static.report(0) == []
    assert len(static.pairs) == 0


def test_a_verifier_is_alive_until_it_missed_its_heartbeats() -> None:
    verifiers = LiveVerifiers(max_verifiers=10)
    assert not verifiers.is_live(VERIFIER, now=0.0)
    verifiers.hear(heartbeat(VERIFIER, interval_s=2.0), now=0.0)
    assert verifiers.is_live(VERIFIER, now=5.9)
    assert not verifiers.is_live(VERIFIER, now=6.0)
    verifiers.expire(now=6.0)
    assert len(verifiers) == 0


def test_a_verifier_that_claims_a_long_interval_is_not_believed_for_long() -> None:
    verifiers = LiveVerifiers(max_verifiers=10)
    verifiers.hear(heartbeat(VERIFIER, interval_s=3600.0), now=0.0)
    assert not verifiers.is_live(VERIFIER, now=MAX_SILENCE_S)


def test_the_number_of_verifiers_is_bounded_and_those_known_are_kept() -> None:
    verifiers = LiveVerifiers(max_verifiers=1)
    assert verifiers.hear(heartbeat(VERIFIER), now=0.0)
    assert not verifiers.hear(heartbeat(OTHER_VERIFIER), now=0.0)
    assert verifiers.hear(heartbeat(VERIFIER), now=2.0)
    assert verifiers.is_live(VERIFIER, now=4.0)


def test_the_nonces_of_one_verifier_take_no_room_from_others() -> None:
    verifiers = LiveVerifiers(max_verifiers=3)
    for number in range(100):
        verifiers.hear(heartbeat(f"liar.{number:012x}"), now=number / 50)
    assert len(verifiers) == 1
    assert verifiers.hear(heartbeat(VERIFIER), now=2.0)
