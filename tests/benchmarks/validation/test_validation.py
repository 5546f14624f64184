"""The validation of the simulator: cases, calibration, observations, and the simulated counterpart."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks.harness.latency import RequestSample
from benchmarks.harness.scripted_controller import stop_and_wait
from benchmarks.standins.timed import ComputeRecord
from benchmarks.validation.bus_monitor import BusMonitor
from benchmarks.validation.calibration import (
    LARGE,
    ComputeLogs,
    KnownTimes,
    NotCalibrated,
    calibrate,
    drift_of,
    fit_gaps,
    pass_weights,
)
from benchmarks.validation.case_run import ValidationInputs, run_case
from benchmarks.validation.cases import CASES, NUM_PROMPTS, NUM_TOKENS, Case, sliding
from benchmarks.validation.record import JUDGED, OTHERS, DraftRecordings
from benchmarks.validation.report import error_of
from benchmarks.validation.requests import CaseRequest, Phase, requests_at_random, requests_of_clients, send_in_turn
from benchmarks.validation.scenario import scenario_of, simulate
from dsd_sim.scenario.build import make_fleet
from model_zoo.prompt_file import read_prompts
from services.gateway.text.tokenizer import load_tokenizer
from shared.bus.memory_bus import MemoryNetwork
from shared.data.profiles import PassTimes
from shared.protocol import subjects
from shared.protocol.messages import PairReport, Report, Tally, TokenIds, Verdict
from tests.benchmarks.sample_recordings import recorded_answers, recording
from tests.benchmarks.validation.sample_case import CALIBRATION, CODE, ORIGIN
from tests.peers import until

# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_cases_cover_fleets_windows_and_loads() -> None:
    assert len(CASES) >= 12
    assert len({case.name for case in CASES}) == len(CASES)
    assert {1, 2, 8} <= {len(case.drafts) for case in CASES}
    assert {case.num_verifiers for case in CASES} == {1, 2}
    assert {0, 100} <= {case.rtt_ms for case in CASES}
    drafting = [case for case in CASES if case.drafts]
    assert {1, 16} <= {case.choice.window for case in drafting}
    for models in ("real", "replayed"):
        assert {draft for case in drafting if case.models == models for draft in case.drafts} == {"int8", "int4"}
    schemes = {(case.choice.chunk == case.choice.window, case.choice.free_run) for case in drafting}
    assert schemes >= {(True, False), (False, True), (False, False)}
    assert any(case.rate_per_s for case in CASES)
    assert any(case.num_clients > 2 * len(case.drafts) for case in drafting), "saturated"


def test_real_models_have_the_cores_that_they_need() -> None:
    for case in CASES:
        most = {"real": (1, 1), "paced": (2, 1), "replayed": (8, 2)}[case.models]
        assert len(case.drafts) <= most[0]
        assert case.num_verifiers <= most[1]


def test_an_incomplete_or_contradictory_case_is_refused() -> None:
    with pytest.raises(ValueError, match="either num_clients or rate_per_s"):
        Case("test", "real", ("int8",), sliding(8))
    with pytest.raises(ValueError, match="either num_clients or rate_per_s"):
        Case("test", "real", ("int8",), sliding(8), num_clients=1, rate_per_s=1.0)
    with pytest.raises(ValueError, match="all drafts must be the same"):
        Case("test", "replayed", ("int8", "int4"), sliding(8), num_clients=1)


def test_the_simulator_gets_other_prompts_than_the_judged_ones() -> None:
    judged, others = read_prompts(JUDGED), read_prompts(OTHERS)
    assert len(judged) == NUM_PROMPTS
    assert not set(judged) & set(others)
    assert len(set(others)) == 2 * len(judged)


# --- calibration ------------------------------------------------------------------------------------------------------


def in_a_row(start_s: float, elapsed_ms: Sequence[float], gap_ms: float, num_sessions: int = 1) -> list[ComputeRecord]:
    """Consecutive passes or steps with a gap between them; each computes one token more than the previous one."""
    found = []
    for number, elapsed in enumerate(elapsed_ms):
        found.append(ComputeRecord(start_s, start_s + elapsed / 1e3, num_sessions, 1 + number, 100))
        start_s += (elapsed + gap_ms) / 1e3
    return found


def sample(due_s: float, first_s: float, num_prompt_tokens: int = 40) -> RequestSample:
    return RequestSample(
        0, due_s, 0.0, first_s, first_s + 0.5, num_tokens=NUM_TOKENS, num_prompt_tokens=num_prompt_tokens
    )


ALONE, BUSY, LOAD = Phase(0.0, 10.0, [sample(0.0, 0.025)]), Phase(20.0, 30.0, []), Phase(40.0, 60.0, [])
PASSES = [
    *in_a_row(0.002, [20.0], 0.0),
    *in_a_row(20.0, [30.0] * 10, 1.0, num_sessions=1),
    *in_a_row(25.0, [30.0] * 10, 1.5, num_sessions=2),
    *in_a_row(40.0, [20.5 + 0.5 * number for number in range(8)], 200.0),
]
STEPS = [*in_a_row(20.0, [9.0] * 20, 0.4), *in_a_row(40.0, [8.0 + 0.25 * number for number in range(6)], 150.0)]


def test_each_part_of_a_round_is_taken_from_the_logs() -> None:
    found = calibrate(ComputeLogs([PASSES], [STEPS]), KnownTimes(), ALONE, BUSY, [LOAD], rtt_ms=31.0)
    assert (found.pass_gap_ms, found.session_gap_ms) == pytest.approx((0.5, 0.5))
    assert found.step_gap_ms == pytest.approx(0.4)
    assert found.request_ms == pytest.approx(2.0 + 3.0 - 1.0), "the way there and back, minus the gap after a pass"
    assert found.rtt_ms == 31.0
    assert found.pass_times.pass_ms(1, 5, 100) == pytest.approx(22.5 + 1.0, rel=1e-3)
    assert found.step_times.feed_ms(3, 100) == pytest.approx(8.5 + 0.4, rel=1e-3)
    assert (found.num_passes, found.num_steps) == (8, 6)


def test_known_times_of_stand_ins_are_scaled_to_the_measured_ones() -> None:
    known = PassTimes(base_ms=50.0, session_ms=2.0)
    passes = [ComputeRecord(0.0, 0.0525, 1, 1, 0), ComputeRecord(1.0, 1.0567, 2, 2, 0)]
    scale = (52.5 + 56.7) / (52.0 + 54.0)
    assert pass_weights(passes, known)[:2] == pytest.approx([50.0 * scale, 2.0 * scale])


def test_records_before_and_after_the_judged_run_count_alike() -> None:
    before, behind = in_a_row(70.0, [20.0, 20.0], 1.0), in_a_row(90.0, [30.0, 30.0], 1.0)
    notes = [*PASSES, *before, *in_a_row(80.0, [90.0], 1.0), *behind]
    load = [Phase(69.0, 75.0, []), Phase(89.0, 95.0, [])]
    found = calibrate(ComputeLogs([notes], []), KnownTimes(), ALONE, BUSY, load, rtt_ms=None)
    assert found.num_passes == 4
    assert sum(found.pass_times.pass_ms(1, tokens, 100) for tokens in (1, 2)) == pytest.approx(2 * (25.0 + 1.0))


def test_a_cell_without_drafters_is_calibrated_without_steps() -> None:
    found = calibrate(ComputeLogs([PASSES], []), KnownTimes(), ALONE, BUSY, [LOAD], rtt_ms=None)
    assert (found.steps, found.step_gap_ms, found.rtt_ms) == ([], 0.0, 0.0)


def test_logs_that_hold_too_little_are_refused() -> None:
    with pytest.raises(NotCalibrated, match="round trip"):
        calibrate(ComputeLogs([PASSES], [STEPS]), KnownTimes(), ALONE, BUSY, [LOAD], rtt_ms=None)
    with pytest.raises(NotCalibrated, match="consecutive"):
        fit_gaps([[PASSES[0]]])
    with pytest.raises(NotCalibrated, match="no pass ran under load"):
        calibrate(ComputeLogs([PASSES], []), KnownTimes(), ALONE, BUSY, [Phase(70.0, 80.0, [])], rtt_ms=None)


def test_drift_is_the_excess_over_the_calibration() -> None:
    calibration = replace(CALIBRATION, pass_gap_ms=5.0, step_gap_ms=5.0)  # outside the logged times
    later = ComputeLogs([in_a_row(0.0, [22.0, 22.0], 1.0)], [in_a_row(0.0, [7.6], 1.0)])
    found = drift_of(calibration, later, rtt_ms=12.0)
    assert (found.passes, found.large_passes, found.steps, found.rtt_ms) == (
        pytest.approx(0.1),
        None,
        pytest.approx(-0.05),
        12.0,
    )
    assert drift_of(calibration, ComputeLogs(later.passes, []), None).steps is None
    large = ComputeLogs([[*later.passes[0], ComputeRecord(1.0, 1.03, 1, LARGE + 1, 0)]], [])
    assert drift_of(calibration, large, None).large_passes == pytest.approx(0.5)


# --- observations -----------------------------------------------------------------------------------------------


async def test_a_pass_counts_once_whatever_its_number_of_verdicts() -> None:
    network = MemoryNetwork()
    gateway, verifier, drafter = (subjects.new_instance_id(name) for name in ("g", "v", "d"))
    monitor, speaker = BusMonitor(network.connect()), network.connect()
    await monitor.start()

    async def say(compute_ms: float, queue: float) -> None:
        tally = Tally()
        ids = TokenIds([1])
        verdict = Verdict(subjects.new_session_id(), 1, 0, 5, ids, 0, None, None, compute_ms, 2, queue, tally)
        await speaker.publish(subjects.to("gateway", gateway, Verdict, verifier), verdict)

    await say(9.0, 0.9)
    await until(lambda: monitor.observed().queue == 0.9)
    monitor.begin()
    for compute_ms, queue in ((20.0, 0.1), (20.0, 0.1), (20.0, 0.1), (21.0, 0.4)):
        await say(compute_ms, queue)
    seen = PairReport(verifier, 1, 8, 40, 40, 0, 0, 0, 10.0, 31.0, 0.0, 20.0, 100)
    idle = PairReport(verifier, 0, 8, 0, 0, 0, 0, 0, 10.0, 99.0, 0.0, 20.0, 100)
    await speaker.publish(subjects.broadcast(Report, "drafter", drafter), Report(drafter, 1, [seen, idle]))
    await until(lambda: monitor.observed().rtt_ms == 31.0)
    await until(lambda: monitor.observed().queue == pytest.approx(0.25))


class FakeSender:
    """Answers at once, or late if the drafter is named slow."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, str | None]] = []

    async def send(self, request: CaseRequest, due_at: float, started_at: float) -> RequestSample:
        self.sent.append((request.prompt_number, request.drafter))
        await asyncio.sleep(0.05 if request.drafter == "slow" else 0.0)
        return sample(0.0, 0.1, 40)


async def test_in_a_closed_loop_a_free_client_sends_the_next_request_with_its_own_drafter() -> None:
    requests = requests_of_clients([str(number) for number in range(8)], 8, 2, ["slow", "quick"], NUM_TOKENS)
    fake = FakeSender()
    samples = await send_in_turn(cast(Any, fake), requests, 2, started_at=0.0)
    assert len(samples) == 8
    assert fake.sent == [(0, "slow"), *((number, "quick") for number in range(1, 8))]


# --- the simulated counterpart ----------------------------------------------------------------------------------------


@pytest.fixture
def recordings(tmp_path: Path) -> DraftRecordings:
    """Recordings of drafts with an acceptance of 1/3 and 2/3."""
    made = DraftRecordings(tmp_path)
    for draft, acceptance in (("int4", 1 / 3), ("int8", 2 / 3)):
        recording(acceptance, num_prompts=20).write(made.others(draft))
    return made


def answered(requests: Sequence[CaseRequest], due_s: Sequence[float] | None = None) -> list[RequestSample]:
    """Samples with prompts of 40, 41 and 43 tokens in turn."""
    dues = due_s or [0.0] * len(requests)
    return [sample(due, due + 0.1, (40, 41, 43)[index % 3]) for index, due in enumerate(dues)]


def test_the_scenario_of_a_closed_loop_matches_its_case_and_calibration(
    recordings: DraftRecordings, tmp_path: Path
) -> None:
    case = Case("test", "real", ("int8", "int4"), stop_and_wait(4), 2, rtt_ms=30, num_clients=4, num_requests=9)
    requests = requests_of_clients(["a", "b"], 9, 4, ["drafter-0", "drafter-1"], NUM_TOKENS)
    calibration = replace(CALIBRATION, pass_gap_ms=0.5, step_gap_ms=0.25)
    found = scenario_of(case, calibration, recordings, requests, answered(requests), tmp_path)
    assert [edge.name for edge in found.edge] == ["drafter-0", "drafter-1"]
    assert {edge.link.rtt_ms for edge in found.edge} == {10.0}, "as measured, not as added"
    assert found.edge[0].times is not None
    assert found.edge[0].times.step_ms == 8.25
    assert [Path(cast(Any, edge.guesses).file) for edge in found.edge] == [recordings.others(d) for d in case.drafts]
    assert (found.cloud[0].count, cast(PassTimes, found.cloud[0].times).base_ms) == (2, 20.5)
    choice = found.policies.choice
    assert (choice.window, choice.chunk, choice.free_run, found.policies.drafting) == (4, 4, False, True)
    world = make_fleet(found, tmp_path).world
    assert world.requests["device"].tolist() == [int(cast(str, each.drafter)[-1]) for each in requests]
    assert set(world.requests["prompt"].tolist()) <= {40, 41, 43}
    assert set(world.requests["tokens"].tolist()) == {NUM_TOKENS}


def test_the_scenario_of_an_open_loop_has_the_same_requests(recordings: DraftRecordings, tmp_path: Path) -> None:
    case = Case("test", "replayed", ("int4",) * 3, sliding(16, 4, free_run=False), rate_per_s=2.0, num_requests=5)
    drafters = [f"stand-in-drafter-{number}" for number in range(3)]
    requests = requests_at_random(["a", "b"], 5, drafters, NUM_TOKENS, seed=1)
    times_s = [0.0, 0.5, 0.75, 2.0, 2.5]
    found = scenario_of(case, CALIBRATION, recordings, requests, answered(requests, times_s), tmp_path)
    world = make_fleet(found, tmp_path).world
    assert world.requests["arrival_ms"].tolist() == pytest.approx([1000 * each for each in times_s])
    assert world.requests["prompt"].tolist() == [40, 41, 43, 40, 41]
    assert world.requests["device"].tolist() == [drafters.index(cast(str, each.drafter)) for each in requests]


def test_without_drafters_the_simulated_tpot_is_a_pass_and_ttft_includes_the_request_time(
    recordings: DraftRecordings, tmp_path: Path
) -> None:
    case = Case("test", "real", (), sliding(8), num_clients=1, num_requests=6)
    requests = requests_of_clients(["a"], 6, 1, (), NUM_TOKENS)
    assert {each.drafter for each in requests} == {None}
    found = scenario_of(case, CALIBRATION, recordings, requests, answered(requests), tmp_path)
    figures = simulate(found, tmp_path, CALIBRATION.request_ms, num_seeds=2)
    assert figures.tpot_ms == pytest.approx(20.0)
    assert figures.ttft_ms == pytest.approx(20.0 + 4.0)
    assert figures.acceptance_length == pytest.approx(1.0)
    assert figures.tokens_per_s == pytest.approx(1000 / 20, rel=0.02)
    assert figures.acceptance is None


# --- a whole case -----------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_case_of_replayed_stand_ins_is_run_calibrated_and_simulated(default_models: Path, tmp_path: Path) -> None:
    judged, others = read_prompts(JUDGED)[:2], read_prompts(OTHERS)[:4]
    tokenizer = load_tokenizer(default_models / "target")
    recordings = DraftRecordings(tmp_path)
    recorded_answers(tokenizer, [*others, *judged], NUM_TOKENS).write(recordings.all("int8"))
    recorded_answers(tokenizer, others, NUM_TOKENS).write(recordings.others("int8"))
    choice = sliding(4, free_run=False)
    case = Case("tiny", "replayed", ("int8",) * 2, choice, rtt_ms=20, num_clients=2, num_requests=4)
    notices: list[str] = []
    inputs = ValidationInputs(default_models, recordings, judged, others, CODE, num_tokens=24)
    made = run_case(case, inputs, ORIGIN, notices.append)
    assert made.complaints == [], notices
    assert 20 < made.calibration.rtt_ms < 60
    assert 0 < made.calibration.step_gap_ms < 20
    assert 0 < made.calibration.pass_gap_ms + made.calibration.session_gap_ms < 20
    assert 0 < made.calibration.request_ms < 200
    assert made.live.acceptance_length > 1
    for figure in ("tokens_per_s", "tpot_ms", "acceptance_length"):
        assert abs(error_of(made, figure)) < 0.4, made
