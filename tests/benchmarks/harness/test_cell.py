"""A benchmark cell runs what its plan says, with the planned delay, and reports what voids its figures."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import aiohttp
import pytest

from awc.policy import WindowChoice
from benchmarks.harness.cell import complaint_of, running, usage_of
from benchmarks.harness.cell_plan import CONTROLLER, DRAFTER, GATEWAY, NEAR, VERIFIER, CellPlan, StandinPlan, kind_of
from benchmarks.harness.latency import OK
from benchmarks.harness.link import LinkConditions
from benchmarks.harness.origin import Origin
from benchmarks.harness.prompts import DEFAULT_PROMPTS
from benchmarks.harness.requests import RequestTemplate, ScheduledRequest, connected, measure_request
from benchmarks.harness.scripted_controller import scripted_controller
from benchmarks.harness.standin import OVERRUN
from benchmarks.load.__main__ import LoadSpec, run
from benchmarks.policies.measure import RunSettings, run_cell
from benchmarks.policies.plan import SLIDING_FREE, TARGET_ONLY, CellSpec
from client.wire import AnswerOptions
from model_zoo.prompt_file import read_prompts
from services.gateway.text.tokenizer import load_tokenizer
from services.local.engine import EngineName, VerifierEngine
from services.local.supervisor import Program
from shared.data.profiles import PassTimes, Profile, StepTimes
from tests.benchmarks.sample_recordings import profile_json, recorded_answers

NUM_PROMPTS, NUM_TOKENS, RTT_MS = 3, 24, 40.0
PROFILE = Profile(
    name="test", origin="made up", verifier=PassTimes(base_ms=20.0), drafter=StepTimes(step_ms=2.0, fed_ms=0.1)
)


def programs(plan: CellPlan) -> dict[str, Program]:
    return {program.name: program for program in plan.programs("nats://127.0.0.1:1", "nats://127.0.0.1:2", 3)}


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_only_the_drafter_connects_through_the_relay() -> None:
    urls = {name: program.env["DSD_NATS_URL"] for name, program in programs(CellPlan(Path("m"))).items()}
    assert urls.pop(DRAFTER) == "nats://127.0.0.1:2"
    assert set(urls.values()) == {"nats://127.0.0.1:1"}
    assert set(urls) == {CONTROLLER, VERIFIER, GATEWAY}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_drafter_and_verifier_have_a_core_each_and_one_thread() -> None:
    made = programs(CellPlan(Path("m")))
    cores = [made[name].argv[made[name].argv.index("benchmarks.harness.pinned") + 1] for name in (DRAFTER, VERIFIER)]
    assert len(set(cores)) == 2
    assert [made[name].env["DSD_NUM_THREADS"] for name in (DRAFTER, VERIFIER)] == ["1", "1"]
    assert "benchmarks.harness.pinned" not in made[GATEWAY].argv
    loose = programs(CellPlan(Path("m"), is_pinned=False))
    assert not any("benchmarks.harness.pinned" in program.argv for program in loose.values())


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_verifier_whose_prompts_have_both_cores_is_not_held_to_one() -> None:
    engine = VerifierEngine(EngineName.VLLM)
    for num_threads in (0, 2):
        made = programs(CellPlan(Path("m"), engine=engine, prefill_threads=num_threads))
        assert made[VERIFIER].env["DSD_PREFILL_THREADS"] == str(num_threads)
        assert made[VERIFIER].env["DSD_NUM_THREADS"] == "1"
        assert ("benchmarks.harness.pinned" in made[VERIFIER].argv) == (num_threads == 0)
        assert "benchmarks.harness.pinned" in made[DRAFTER].argv


def test_a_relay_runs_where_the_link_may_change() -> None:
    assert not CellPlan(Path("m")).has_relay
    plan = CellPlan(Path("m"), conditions=Path("link.json"))
    assert plan.has_relay
    assert "--conditions=link.json" in plan.relay("nats://127.0.0.1:1", 5).argv


def test_a_link_becomes_flags_of_the_relay() -> None:
    link = LinkConditions(delay_ms=15, jitter_ms=2, bandwidth_mbit=20, stall_rate=0.01, stall_ms=250)
    argv = CellPlan(Path("m"), link=link, seed=7).relay("nats://127.0.0.1:1", 5).argv
    assert "--to=nats://127.0.0.1:1" in argv
    assert {"--rtt-ms=30", "--jitter-ms=2", "--stall-rate=0.01", "--seed=7", "--port=5"} <= set(argv)
    assert CellPlan(Path("m"), link=LinkConditions()).link == NEAR


def test_stand_ins_replace_services_and_the_served_model_is_named_a_stand_in() -> None:
    standin = StandinPlan("paced", Path("p.json"), names=(VERIFIER,))
    made = programs(CellPlan(Path("m"), standin=standin))
    assert made[VERIFIER].argv[-2:] == ("benchmarks.standins", "cloud_verifier")
    assert made[DRAFTER].argv[-1] == "services.edge_drafter"
    assert "stand-in" in made[VERIFIER].env["DSD_NAME"]
    assert {"stand-in" in program.env["DSD_MODEL_NAME"] for program in made.values()} == {True}


def test_several_drafters_have_their_own_drafts_and_all_connect_through_the_relay() -> None:
    plan = CellPlan(Path("m"), drafts=("int8", "int4", "int8"), num_verifiers=2)
    made = programs(plan)
    drafters, verifiers = plan.processes(DRAFTER), plan.processes(VERIFIER)
    assert (drafters, verifiers) == (["drafter-0", "drafter-1", "drafter-2"], ["verifier-0", "verifier-1"])
    assert set(made) == {CONTROLLER, GATEWAY, *drafters, *verifiers}
    folders = [Path(made[name].env["DSD_DRAFT"]).name for name in drafters]
    assert folders == ["draft-int8", "draft-int4", "draft-int8"]
    assert {made[name].env["DSD_NATS_URL"] for name in drafters} == {"nats://127.0.0.1:2"}
    assert {made[name].env["DSD_NATS_URL"] for name in (*verifiers, GATEWAY)} == {"nats://127.0.0.1:1"}


def test_a_cell_without_drafters_starts_none_and_waits_for_none() -> None:
    plan = CellPlan(Path("m"), names=(VERIFIER, GATEWAY), num_verifiers=2)
    assert set(programs(plan)) == {"verifier-0", "verifier-1", GATEWAY}
    assert (plan.processes(DRAFTER), plan.drafter_names) == ([], [])


def test_every_instance_of_a_kind_gets_its_stand_in_and_its_compute_log() -> None:
    standin = StandinPlan("paced", Path("p.json"), names=(DRAFTER,))
    plan = CellPlan(Path("m"), standin=standin, drafts=("int8", "int4"), compute_logs=Path("c"))
    made = programs(plan)
    assert plan.drafter_names == ["stand-in-drafter-0", "stand-in-drafter-1"]
    assert [made[name].env["DSD_NAME"] for name in plan.processes(DRAFTER)] == plan.drafter_names
    timed = ("-m", "benchmarks.standins.timed")
    assert made["drafter-1"].argv[-5:] == (*timed, str(Path("c") / "drafter-1.jsonl"), "edge_drafter", "--stand-in")
    assert made[VERIFIER].argv[-4:] == (*timed, str(Path("c") / "verifier-0.jsonl"), "cloud_verifier")
    assert made[GATEWAY].argv[-1] == "services.gateway"


# --- complaints and usage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"event": "ready", "level": "info"}', None),
        ('{"event": "slow", "level": "warning"}', None),
        ('{"event": "pass failed", "level": "error"}', "pass failed"),
        (
            f'{{"event": "{OVERRUN}", "took_ms": 9.5, "allowed_ms": 8, "level": "warning"}}',
            f"{OVERRUN}: 9.5 ms, 8 allowed",
        ),
        ("Traceback", None),
        ('{"event": "cut', 'log line is not JSON: {"event": "cut'),
    ],
)
def test_errors_and_overruns_are_complaints(line: str, complaint: str | None) -> None:
    assert complaint_of(line) == complaint


def test_usage_is_the_peak_of_memory_and_processor_time() -> None:
    held = bytearray(os.urandom(1 << 20) * 64)
    before = usage_of(os.getpid())
    del held
    after = usage_of(os.getpid())
    assert after.peak_rss_mib > before.peak_rss_mib - 1 > 64  # the kernel adds up pages of threads in batches
    assert after.cpu_s >= before.cpu_s > 0


# --- a whole cell -----------------------------------------------------------------------------------------------------


@pytest.fixture
def standin(default_models: Path, tmp_path: Path) -> StandinPlan:
    """Replays answers to the first prompts."""
    tokenizer, prompts = load_tokenizer(default_models / "target"), read_prompts(DEFAULT_PROMPTS)[:NUM_PROMPTS]
    recorded_answers(tokenizer, prompts, NUM_TOKENS).write(tmp_path / "recording.jsonl")
    (tmp_path / "profile.json").write_bytes(profile_json(PROFILE))
    return StandinPlan("replayed", tmp_path / "profile.json", tmp_path / "recording.jsonl")


async def rtt_seen_by(url: str) -> float:
    """Round trip to the verifier in seconds, from the metrics of a drafter."""
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as response:
        found = re.search(r"^dsd_drafter_rtt_seconds\{.*\} (\S+)$", await response.text(), re.MULTILINE)
    assert found, "the metrics hold no round trip"
    return float(found[1])


@pytest.mark.timeout(180)
async def test_a_far_cell_of_replayed_stand_ins_serves_recorded_texts_under_load(
    default_models: Path, standin: StandinPlan, tmp_path: Path
) -> None:
    link, names = LinkConditions.of_round_trip(RTT_MS), (VERIFIER, DRAFTER, GATEWAY)
    plan = CellPlan(default_models, names=names, link=link, standin=standin)
    notices: list[str] = []
    options = AnswerOptions(max_tokens=NUM_TOKENS, temperature=0.0)
    load = LoadSpec(
        read_prompts(DEFAULT_PROMPTS)[:NUM_PROMPTS], (), num_clients=2, num_requests=NUM_PROMPTS, think_s=0.0
    )
    async with running(plan, tmp_path / "run", notices.append) as cell:
        async with scripted_controller(cell.nats_url) as controller:
            await controller.choose(WindowChoice(4, 4, free_run=False))
            done = await run(cell.url, None, options, ignore_eos=True, load=load)
        usage, rtt_ms = cell.usage(), await rtt_seen_by(cell.children[DRAFTER].urls[-1]) * 1e3
        others = [complaint for complaint in cell.complaints() if OVERRUN not in complaint]
        assert others == [], notices  # on a busy machine a step may overrun the profile
        async with connected(cell.url) as gateway:
            fleet = await gateway.fleet()
            now = time.monotonic()
            await measure_request(
                gateway,
                RequestTemplate(done.model, AnswerOptions(max_tokens=4)),
                ScheduledRequest(0, "This was never recorded.", now, now),
            )
        assert any("pass failed" in complaint for complaint in cell.complaints())
    samples = done.samples
    assert [sample.status for sample in samples] == [OK] * NUM_PROMPTS
    assert {sample.num_tokens for sample in samples} == {NUM_TOKENS}
    assert sum(sample.accepted for sample in samples) > NUM_TOKENS
    assert RTT_MS <= rtt_ms < 5 * RTT_MS
    assert "stand-in" in done.model
    assert all("stand-in" in peer.fingerprint for peer in (*fleet.verifiers, *fleet.drafters))
    assert set(usage) == {"nats-server", "relay", *names}
    assert min(each.peak_rss_mib for each in usage.values()) > 5


@pytest.mark.timeout(180)
async def test_a_policy_cell_on_two_drafters_uses_both(default_models: Path, standin: StandinPlan) -> None:
    spec = CellSpec("int8", 0, 2, (TARGET_ONLY, SLIDING_FREE), num_drafters=2)
    effort = RunSettings(
        default_models, read_prompts(DEFAULT_PROMPTS)[:NUM_PROMPTS], NUM_TOKENS, seconds=0.0, seed=1, standin=standin
    )
    notices: list[str] = []
    result = await run_cell(spec, effort, Origin("a test", "a machine", "a date", "3"), notices.append)
    assert [complaint for complaint in result.complaints if OVERRUN not in complaint] == [], notices
    assert result.num_drafters == 2
    assert {name for name in result.usage if kind_of(name) == DRAFTER} == {"drafter-0", "drafter-1"}
    samples = {mode: [one for each in result.rounds for one in each.samples[mode]] for mode in result.modes}
    assert not any(one.accepted for one in samples[TARGET_ONLY.name])
    assert all(one.accepted for one in samples[SLIDING_FREE.name])
