"""The validation of the simulator: cases, calibration, observations, and the simulated counterpart."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec import structs

from benchmarks.harness.cell_plan import NEAR
from benchmarks.harness.latency import RequestSample
from benchmarks.harness.scripted_controller import stop_and_wait
from benchmarks.standins.compute_log import ComputeRecord
from benchmarks.validation.bus_monitor import BusMonitor
from benchmarks.validation.calibration import (
    CalibrationPhase,
    NotCalibrated,
    beside_ms,
    extras,
    fit_gaps,
    message_ms,
    overhead_ms,
    shared_passes,
    shared_steps,
)
from benchmarks.validation.cases import (
    CASES,
    DEVELOPMENT,
    INT4,
    INT8,
    REPLAYED,
    SYSTEMS,
    UNLIMITED,
    Case,
    Outage,
    RequestLoad,
    calibration_of,
    rtt,
    sliding,
    target_only_beside,
)
from benchmarks.validation.prediction import error_of, predictions_of
from benchmarks.validation.prompts import (
    CALIBRATING,
    developing_prompts,
    is_recorded,
    origin_of,
    prompts_of,
    recorded_prompts,
    shipped_recording,
)
from benchmarks.validation.requests import CaseRequest, requests_of, send_in_turn
from benchmarks.validation.results import drift_of
from benchmarks.validation.rounds import run_round
from benchmarks.validation.scenario import scenario_of, simulate
from benchmarks.validation.store import Store
from dsd_sim.scenario.build import make_fleet
from model_zoo.prompt_file import read_prompts
from shared.bus.memory_bus import MemoryNetwork
from shared.data.profiles import MachineTimes, PassTimes
from shared.data.recording import Recording, read_recording
from shared.protocol import subjects
from shared.protocol.messages import PairReport, Report, Tally, TokenIds, Verdict
from tests.benchmarks.validation.sample_case import CODE, PROFILE, phase, sample
from tests.peers import until

# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_cases_are_what_the_calibration_was_not() -> None:
    drafting = [case for case in CASES if case.draft]
    assert len(drafting) >= 12
    assert len({case.name for case in (*CASES, *DEVELOPMENT)}) == len(CASES) + len(DEVELOPMENT)
    assert {case.system for case in drafting} == set(SYSTEMS)
    assert {case.draft for case in drafting if case.system == "vllm"} == {"int8", "distilled"}
    near = [case for case in drafting if case.link == NEAR]
    assert len(near) == 3
    assert {(case.draft, case.control) for case in near} == {("distilled", "adaptive")}
    assert any(case.link.jitter_ms for case in drafting)
    assert any(case.link.stall_rate for case in drafting)
    assert any(case.outage for case in drafting)
    assert any(case.control == "adaptive" for case in drafting)
    assert any(case.load.rate_per_s for case in drafting)
    assert any(500 in case.load.lengths for case in drafting)
    calibrating = [case for system in SYSTEMS.values() for case in calibration_of(system)]
    assert not {_kind(case) for case in CASES} & {_kind(case) for case in calibrating}
    assert {case.load.num_joined for case in CASES} == {1}


def test_a_calibration_measures_the_target_alone_between_the_loads_with_drafts() -> None:
    drafts = [case.draft for case in calibration_of(SYSTEMS["torch"])]
    alone = [number for number, draft in enumerate(drafts) if draft is None]
    gaps = [after - before for before, after in itertools.pairwise((-1, *alone, len(drafts)))]
    assert len(alone) == 7
    assert 2 <= min(gaps) <= max(gaps) <= 4


def _kind(case: Case) -> tuple[object, ...]:
    load = case.load
    return case.system, case.draft, case.control, load.num_clients, load.rate_per_s, load.lengths, case.link


def test_before_and_after_a_case_its_load_is_asked_without_drafts() -> None:
    loads = [(RequestLoad(8, 1), 2), (RequestLoad(12, 6), 6), (RequestLoad(1, 1, lengths=(500,)), 1)]
    loads += [(RequestLoad(48, 6), 12), (RequestLoad(30, rate_per_s=0.6, lengths=(16, 16, 160)), 6)]
    for load, num_requests in loads:
        case = Case("case", "torch", load, INT8, sliding(4), rtt(30), Outage(2, 2, 1, 5))
        alone = target_only_beside(case)
        assert alone.load == replace(load, num_requests=num_requests)
        assert (alone.draft, alone.outage, alone.link) == (None, None, case.link)


def test_a_contradictory_load_is_refused() -> None:
    for clients, rate in ((0, 0.0), (1, 1.0)):
        with pytest.raises(ValueError, match="either num_clients or rate_per_s"):
            RequestLoad(1, clients, rate)


def test_cases_of_real_models_ask_prompts_that_the_simulator_does_not_know() -> None:
    asked = set(prompts_of(SYSTEMS["torch"], is_development=False))
    assert len(asked) == len(read_prompts(CALIBRATING)) == 40
    assert len(set(recorded_prompts())) == 80
    assert not asked & set(recorded_prompts())
    pairs = zip(prompts_of(SYSTEMS["torch"], is_development=False), developing_prompts(), strict=True)
    assert sum(one.split()[0] != other.split()[0] for one, other in pairs) <= 1, (
        "one of each kind, not two of half of them"
    )
    assert all(shipped_recording(draft).is_file() for draft in REPLAYED.drafts)


def test_a_draft_that_was_trained_anew_under_its_name_is_recorded_again(tmp_path: Path) -> None:
    folder, file = tmp_path / "draft-int8", tmp_path / "guesses.jsonl"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"weights")
    assert not is_recorded(INT8, tmp_path, file)

    recording = read_recording(RECORDING)
    header = structs.replace(recording.header, origin=origin_of(INT8, tmp_path))
    Recording(header, recording.prompts).write(file)
    assert is_recorded(INT8, tmp_path, file)

    (folder / "model.onnx").write_bytes(b"other weights")
    assert not is_recorded(INT8, tmp_path, file)


# --- calibration ------------------------------------------------------------------------------------------------------


def records(times_ms: Sequence[tuple[float, float]], num_sessions: int = 1) -> list[ComputeRecord]:
    """From starts and ends."""
    return [ComputeRecord(start / 1e3, end / 1e3, num_sessions, num_sessions, 100) for start, end in times_ms]


def test_the_time_beside_others_is_that_of_their_union() -> None:
    others = records([(0, 10), (12, 20), (30, 100)])
    for given, expected in (((5, 15), 8), ((10, 12), 0), ((40, 60), 20), ((0, 120), 88), ((100, 110), 0)):
        assert beside_ms(records([given])[0], others) == pytest.approx(expected), given


def test_passes_and_their_slowdown_beside_draft_steps_are_told_apart() -> None:
    """A pass alone takes 20 ms and 2 ms for each further session, and beside draft steps half as long again."""
    rng = random.Random(1)
    found = []
    for draft in (None, INT8):
        passes, steps, now = [], [], 0.0
        for _ in range(200):
            num, beside = rng.randint(1, 4), rng.uniform(8, 18) if draft else 0.0
            elapsed = 18.0 + 2.0 * num
            elapsed += beside * (1 - 1 / (1 + 0.5 * 18.0 / elapsed))
            passes += records([(now, now + elapsed)], num)
            steps += records([(now, now + beside)]) if beside else []
            now += elapsed + 1.0
        found.append(CalibrationPhase(Case("c", "torch", RequestLoad(4, 1), draft), phase(passes, steps)))
    times, slowdowns = shared_passes(found)
    assert slowdowns[INT8] == pytest.approx(1.5, rel=0.01)
    assert times.pass_ms(3, 3, 100) == pytest.approx(24.0, rel=1e-3)


def test_steps_that_are_long_by_chance_do_not_look_slowed_down() -> None:
    """A step alone takes 6 ms, more or less by chance, and beside passes a fifth more; half of them run beside one."""
    rng = random.Random(1)
    passes, steps, now = [], [], 0.0
    for number in range(400):
        own_ms = 6.0 * rng.uniform(0.6, 1.4)
        elapsed = 1.2 * own_ms if number % 2 else own_ms
        steps += records([(now, now + elapsed)])
        passes += records([(now, now + elapsed)]) if number % 2 else []
        now += elapsed + 1.0
    times, slowdown = shared_steps(
        [CalibrationPhase(Case("c", "torch", RequestLoad(4, 1), INT8), phase(passes, steps))]
    )
    assert slowdown == pytest.approx(1.2, abs=0.05)
    assert times.step_ms == pytest.approx(6.0, rel=0.03)


def test_a_size_of_passes_that_suits_no_kernel_has_an_extra_time() -> None:
    times = PassTimes(base_ms=20.0, token_ms=1.0)
    passes = [ComputeRecord(0.0, ms / 1e3, 1, num, 0) for num, ms in ((2, 22.0), (3, 33.0)) for _ in range(96)]
    found = extras(passes, times)
    assert found[:3] == pytest.approx((0.0, 0.0, 10.0 * 96 / 100))
    assert times.model_copy(update={"extra_ms": found}).pass_ms(1, 3, 0) == pytest.approx(32.6)


def test_gaps_grow_with_sessions_and_requests_take_what_is_left_of_their_first_token() -> None:
    alone, together = records([(0, 20), (20.5, 40)]), records([(0, 20), (21, 40)], num_sessions=2)
    assert fit_gaps([alone, together]) == pytest.approx((0.0, 0.5))
    given = phase(records([(2, 22)]), samples=[sample(0.0, 0.025)])
    assert overhead_ms(given.samples[0], given) == pytest.approx(2 + 3)
    with pytest.raises(NotCalibrated, match="consecutive"):
        fit_gaps([alone[:1]])


def test_a_message_takes_half_of_the_round_trip() -> None:
    trips = ((1, 3.0), (8, 5.0))
    loads = [CalibrationPhase(Case("c", "torch", RequestLoad(8, num), INT8), phase([], rtt_ms=ms)) for num, ms in trips]
    assert message_ms(loads) == 2.0
    with pytest.raises(NotCalibrated, match="round trip"):
        message_ms([])


def test_drift_is_the_excess_over_the_profile_given_what_runs_beside() -> None:
    machine = MachineTimes(pass_slowdown=2.0, pass_gap_ms=5.0)  # a gap is outside the logged times
    profile = PROFILE.model_copy(update={"machine": machine})
    live = phase(records([(0, 25)]), records([(0, 10)]), rtt_ms=12.0)
    found = drift_of(live, profile, 10.0)
    assert (found.passes, found.steps, found.trip_ms) == pytest.approx((0.0, 0.25, 2.0))
    assert drift_of(phase(records([(0, 22)])), profile, 0.0).passes == pytest.approx(0.1)


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
    told = Report(drafter, 1, [seen, idle], "", (subjects.new_instance_id("c"), subjects.new_instance_id("c")))
    for controller in told.controllers:
        await speaker.publish(subjects.to("controller", controller, Report, drafter), told)
    await until(lambda: monitor.observed().rtt_ms == 31.0)
    await until(lambda: monitor.observed().queue == pytest.approx(0.25))
    assert monitor.observed().num_guesses == 40
    monitor.begin()
    assert monitor.observed().num_guesses == 0


class FakeSender:
    """Answers at once, or late if the drafter is named slow."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, str | None]] = []

    async def send(self, request: CaseRequest, due_at: float, started_at: float) -> RequestSample:
        self.sent.append((request.prompt_number, request.drafter))
        await asyncio.sleep(0.05 if request.drafter == "slow" else 0.0)
        return sample(0.0, 0.1, 40)


def test_a_request_may_join_prompts_to_a_long_one() -> None:
    (request,) = requests_of(["a", "b", "c"], RequestLoad(1, 1, num_joined=5), [], 1)
    assert request.prompt == "a b c a b"
    assert str(RequestLoad(1, 1, num_joined=5)) == "1 client, 64 tokens behind 5 prompts"


async def test_in_a_closed_loop_a_free_client_sends_the_next_request_with_its_own_drafter() -> None:
    requests = requests_of([str(number) for number in range(8)], RequestLoad(8, 2), ["slow", "quick"], seed=1)
    fake = FakeSender()
    samples = await send_in_turn(cast(Any, fake), requests, 2, started_at=0.0)
    assert len(samples) == 8
    assert fake.sent == [(0, "slow"), *((number, "quick") for number in range(1, 8))]


# --- the simulated counterpart ----------------------------------------------------------------------------------------


RECORDING = shipped_recording(INT8)


def answered(requests: Sequence[CaseRequest], due_s: Sequence[float] | None = None) -> list[RequestSample]:
    """Samples with prompts of 40, 41 and 43 tokens in turn."""
    dues = due_s or [0.0] * len(requests)
    return [
        sample(due, due + 0.1, (40, 41, 43)[index % 3], request.max_tokens)
        for index, (request, due) in enumerate(zip(requests, dues, strict=True))
    ]


def test_the_scenario_of_a_closed_loop_matches_its_case_and_profile(tmp_path: Path) -> None:
    load = RequestLoad(9, 4, lengths=(16, 64))
    case = Case("test", "torch", load, INT8, stop_and_wait(4), rtt(30, 5, 0.1), Outage(3, 2, 2, 5))
    requests = requests_of(["a", "b"], load, ["drafter-0"], seed=1)
    found = scenario_of(case, PROFILE, RECORDING, [], answered(requests), tmp_path)
    (edge,) = found.edge
    assert (edge.name, edge.times) == ("drafter-0", PROFILE.drafter)
    assert (edge.link.rtt_ms, edge.link.jitter_ms, edge.link.stall_rate, edge.link.stall_ms) == (30.0, 5.0, 0.1, 200.0)
    assert Path(cast(Any, edge.guesses).file) == RECORDING
    assert found.machine is not None
    assert (found.cloud[0].times, found.machine.times) == (PROFILE.verifier, PROFILE.machine)
    choice = found.policies.choice
    assert (choice.window, choice.chunk, choice.free_run, found.policies.drafting) == (4, 4, False, True)
    assert [(each.part, each.at_s, each.for_s) for each in found.failure] == [("links", 3, 2), ("links", 8, 2)]
    world = make_fleet(found, tmp_path).world
    assert set(world.requests["prompt"].tolist()) <= {40, 41, 43}
    assert set(world.requests["tokens"].tolist()) == {16, 64}


def test_the_scenario_of_an_open_loop_has_the_same_requests(tmp_path: Path) -> None:
    load = RequestLoad(5, rate_per_s=2.0)
    case = Case("test", "replayed", load, INT4, "adaptive")
    drafters = [f"drafter-{number}" for number in range(8)]
    requests = requests_of(["a", "b"], load, drafters, seed=1)
    assert {each.drafter for each in requests} <= set(drafters)
    times_s = [0.0, 0.5, 0.75, 2.0, 2.5]
    drafter_names = [each.drafter for each in requests]
    found = scenario_of(case, PROFILE, RECORDING, drafter_names, answered(requests, times_s), tmp_path)
    assert found.policies.windows == "adaptive"
    assert found.cloud[0].count == 2
    world = make_fleet(found, tmp_path).world
    assert world.requests["arrival_ms"].tolist() == pytest.approx([1000 * each for each in times_s])
    assert world.requests["prompt"].tolist() == [40, 41, 43, 40, 41]
    assert world.requests["device"].tolist() == [drafters.index(cast(str, each.drafter)) for each in requests]


def test_without_drafters_the_simulated_tpot_is_a_pass_and_ttft_includes_the_request_time(tmp_path: Path) -> None:
    load = RequestLoad(6, 1)
    case = Case("test", "torch", load)
    requests = requests_of(["a"], load, (), seed=1)
    assert {each.drafter for each in requests} == {None}
    scenario = scenario_of(case, PROFILE, RECORDING, [], answered(requests), tmp_path)
    figures = simulate(scenario, tmp_path, num_seeds=2)
    assert figures.tpot_ms is not None
    assert figures.tpot_ms < 19.0, "some of the tokens are found in the text"
    figures = simulate(scenario.model_copy(update={"lookup": None}), tmp_path, num_seeds=2)
    assert figures.tpot_ms == pytest.approx(20.0)
    assert figures.ttft_ms == pytest.approx(20.0 + 4.0)
    assert figures.acceptance_length == pytest.approx(1.0)
    assert figures.tokens_per_s == pytest.approx(1000 / 20, rel=0.02)
    assert figures.acceptance is None
    assert figures.guesses is None


def test_each_round_is_simulated_with_other_guesses(tmp_path: Path) -> None:
    load = RequestLoad(2, 1)
    requests = requests_of(["a", "b"], load, ["drafter-0"], seed=1)
    case = Case("test", "torch", load, INT8, sliding(4), rtt(10))
    scenario = scenario_of(case, PROFILE, RECORDING, [], answered(requests), tmp_path)
    first, again, second = (simulate(scenario, tmp_path, number, num_seeds=2) for number in (0, 0, 1))
    assert first == again
    assert first.acceptance_length != second.acceptance_length


# --- a whole system ---------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_fleet_of_stand_ins_is_calibrated_run_until_nothing_else_computes_and_predicted(
    default_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = replace(REPLAYED, drafts=(INT4,) * 2, num_verifiers=1)
    load = RequestLoad(4, 2, lengths=(24,))
    loads = [Case("c", "replayed", replace(load, num_clients=num)) for num in (1, 2)]
    loads += [replace(each, draft=INT4, control=UNLIMITED) for each in loads]
    cases = [Case("far", "replayed", load, INT4, sliding(4, free_run=False), rtt(20))]
    monkeypatch.setitem(SYSTEMS, "replayed", system)
    for module in ("rounds", "store"):
        monkeypatch.setattr(f"benchmarks.validation.{module}.calibration_of", lambda system: loads)
    monkeypatch.setattr("benchmarks.validation.store.ROUNDS", 2)
    # The case, behind a calibration and its answers without drafts, is void the first time.
    verdicts = iter([False] * (len(loads) + 1) + [True])
    monkeypatch.setattr("benchmarks.validation.live.is_void", lambda share, seconds: next(verdicts, False))
    store = Store(tmp_path, tmp_path / "work", CODE)
    for number in range(2):
        run_round(system, cases, number, None, store, calibrates=store.needs_calibration(system))
    run_round(system, cases, 0, Path("no Python"), store, calibrates=True)  # is there, so nothing starts
    store.finish(system, cases)
    profiles = store.read_profiles()
    machine = profiles["replayed-int4"].machine_times
    assert 0 < machine.message_ms < 20
    assert 0 < machine.step_gap_ms < 20
    assert 0 < machine.request_ms < 200
    (found,) = predictions_of(store.results(cases), profiles, store.profiles)
    assert (found.result.complaints, [each.num_void for each in found.result.rounds]) == ([], [1, 0])
    for figure in ("tokens_per_s", "tpot_ms", "acceptance_length", "guesses", "speed_up"):
        error = error_of(found.figures(figure))
        assert error is not None
        assert abs(error) < 0.4, (figure, found)
    assert [len(run.samples) for each in found.result.rounds for run in each.beside] == [2, 2] * 2
    assert abs(error_of(found.beside_figures("tpot_ms")) or 0.0) < 0.4
