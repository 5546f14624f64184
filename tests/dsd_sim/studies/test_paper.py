"""The scenario files that ship: they are valid, complete, and fit into the memory of their hardware."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from dsd_sim.roofline.roofline import SHIPPED
from dsd_sim.scenario.demand import Closed, Trace
from dsd_sim.scenario.scenario import MarkovGuesses, Scenario, read_scenario, read_toml, scenario_of
from dsd_sim.studies.compare import read_comparison
from dsd_sim.studies.sweep import read_plan

ROOT = Path(__file__).parents[3]
SCENARIOS = ROOT / "scenarios"
PAPER = SCENARIOS / "paper"
PAIRS = ("a40-a100", "orin-a100", "phone-h100")
FAMILIES = {"gsm8k": "llama-2", "humaneval": "qwen2", "cnndm": "llama-2"}
RIGHT = {"gsm8k": 0.80, "humaneval": 0.84, "cnndm": 0.70}
CELLS = list(product(FAMILIES, (600, 1000), (10, 30)))
OTHERS = ("compare.toml", "plan")  # no scenarios: the name of a file, and of a folder
FILES = sorted(path for path in SCENARIOS.rglob("*.toml") if not set(path.parts) & set(OTHERS))
STOP_AND_WAIT = ("static 4", "dynamic", "wc-dnn", "goodput", "best static")  # variants of the paper's table
WINDOWS = {"dynamic": "ladder", "wc-dnn": "wc-dnn", "goodput": "goodput", "adaptive": "adaptive"}
ROOM = {f"{setup.name}.json": setup.kv_tokens for setup in SHIPPED}


def read(path: Path) -> Scenario:
    """The scenario of a file, without its sweep."""
    return scenario_of({key: value for key, value in read_toml(path).items() if key != "sweep"}, path)


def profiles_of(scenario: Scenario) -> list[str]:
    """Profiles that a scenario names, relative to its file."""
    beside = [part.draft_profile for part in scenario.cloud]
    named = [part.profile for part in (*scenario.edge, *scenario.cloud)]
    return [name for name in (*named, *beside) if name is not None]


def share_of(guesses: MarkovGuesses) -> float:
    """Share of right guesses in the long run."""
    easy = guesses.to_easy / (guesses.to_easy + guesses.to_hard)
    return easy * guesses.easy + (1 - easy) * guesses.hard


# --- all that ship ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_scenario_that_ships_reads_and_names_files_that_are_there(path: Path) -> None:
    scenario = read(path)
    named = profiles_of(scenario)
    workload = scenario.workload
    file = workload.file if isinstance(workload, Trace) else workload.lengths.file
    for name in [*named, *([file] if file is not None else [])]:
        assert (path.parent / name).is_file(), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_caches_are_no_larger_than_the_memory_beside_the_weights(path: Path) -> None:
    for part in read(path).cloud:
        if part.profile is not None and Path(part.profile).name in ROOM:
            assert part.kv_tokens <= ROOM[Path(part.profile).name], part.profile


def test_the_rooflines_that_ship_are_those_that_scenarios_name() -> None:
    named = {Path(name).name for path in FILES for name in profiles_of(read(path))}
    assert set(ROOM) == {name for name in named if name.startswith("roofline-")}


# --- the paper's table ------------------------------------------------------------------------------------------------


def test_there_are_the_papers_twelve_cells_and_no_others() -> None:
    expected = {f"{data}-{drafters}-{rtt}" for data, drafters, rtt in CELLS}
    assert {path.stem for path in PAPER.glob("*.toml")} == expected | {"compare"}
    assert len(expected) == 12


@pytest.mark.parametrize(("data", "drafters", "rtt"), CELLS)
def test_a_cell_is_what_its_name_says(data: str, drafters: int, rtt: int) -> None:
    scenario = read_scenario(PAPER / f"{data}-{drafters}-{rtt}.toml")
    workload = scenario.workload
    assert isinstance(workload, Closed)
    assert scenario.name == f"{data}-{drafters}-{rtt}"
    assert sum(edge.count for edge in scenario.edge) == drafters
    assert {edge.link.rtt_ms for edge in scenario.edge} == {rtt}
    assert sum(part.count for part in scenario.cloud) == 20
    assert workload.num_clients == drafters // 4
    assert workload.lengths.file == f"../lengths/{data}.json"


@pytest.mark.parametrize(("data", "drafters", "rtt"), CELLS)
def test_a_cell_has_the_papers_hardware_and_a_pair_of_one_family(data: str, drafters: int, rtt: int) -> None:
    scenario = read_scenario(PAPER / f"{data}-{drafters}-{rtt}.toml")
    profiles = [Path(part.profile or "").stem.split("-", 2) for part in (*scenario.edge, *scenario.cloud)]
    assert [device for _, device, _ in profiles] == ["a40", "v100", "a100x2", "h100x2", "a6000x4"]
    small, large = {model for *_, model in profiles[:2]}, {model for *_, model in profiles[2:]}
    assert len(small) == len(large) == 1
    assert all(model.startswith(FAMILIES[data]) for model in small | large)
    for edge in scenario.edge:
        assert isinstance(edge.guesses, MarkovGuesses)
        assert share_of(edge.guesses) == pytest.approx(RIGHT[data], abs=0.005)


def test_the_comparison_says_what_its_cells_assume() -> None:
    differs = read_toml(PAPER / "compare.toml")["differs"]
    assert any("0.80 for GSM8K, 0.84 for HumanEval, 0.70 for CNN/DailyMail" in sentence for sentence in differs)


def test_every_variant_of_the_comparison_is_what_its_name_says_in_every_cell() -> None:
    plan = read_comparison(PAPER / "compare.toml")
    assert len(plan.scenarios) == len(CELLS)
    for choice in plan.choices:
        policies = choice.cells[0].scenario.policies
        name = choice.variant.name
        kind = name.partition(",")[0]
        assert policies.drafting == (name != "cloud only")
        assert policies.choice.is_stop_and_wait == (kind in STOP_AND_WAIT)
        assert policies.choice.free_run == (kind not in STOP_AND_WAIT)
        assert policies.windows == WINDOWS.get(kind, "static")
        assert policies.batching == _batching_of(name)
        if kind in STOP_AND_WAIT and kind != "best static":
            assert policies.window == 4
        if kind.startswith("sliding"):
            assert policies.window == int(kind.removeprefix("sliding "))


def _batching_of(name: str) -> str:
    if name.endswith("LAB"):
        return "lab"
    return "fifo" if name.endswith("FIFO") or name in STOP_AND_WAIT else "worth"


def test_every_cell_runs_with_three_seeds_and_a_warm_up() -> None:
    plan = read_comparison(PAPER / "compare.toml")
    assert {tuple(cell.scenario.seed for cell in choice.cells) for choice in plan.choices} == {(1, 2, 3)}
    assert {cell.warm_up for cell in plan.cells} == {0.1}


def test_routing_is_compared_up_to_two_thousand_drafters_of_which_a_quarter_is_busy() -> None:
    plan = read_plan(PAPER / "routing" / "routing.toml")
    cells = [point.cell.scenario for point in plan.points]
    assert {cell.policies.routing for cell in cells} == {"random", "round-robin", "jsq"}
    assert {point.settings["workload.num_clients"] for point in plan.points} == {50, 150, 250, 500}
    assert {sum(edge.count for edge in cell.edge) for cell in cells} == {2000}


# --- crossover and capacity -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", PAIRS)
def test_a_crossover_goes_from_no_distance_to_200_ms_with_all_ways_of_serving(pair: str) -> None:
    plan = read_plan(SCENARIOS / "crossover" / f"crossover-{pair}.toml")
    cells = [point.cell.scenario for point in plan.points]
    assert plan.scenario == f"crossover-{pair}"
    assert {cell.edge[0].link.rtt_ms for cell in cells} >= {0, 50, 60, 200}
    ways = {(cell.policies.drafting, cell.policies.stop_and_wait, cell.policies.choice.free_run) for cell in cells}
    assert ways == {(False, False, True), (True, True, False), (True, False, False), (True, False, True)}


@pytest.mark.parametrize("pair", PAIRS)
def test_a_capacity_has_an_objective_and_the_cloud_alone_to_compare_with(pair: str) -> None:
    plan = read_plan(SCENARIOS / "capacity" / f"capacity-{pair}.toml")
    cells = [point.cell.scenario for point in plan.points]
    assert plan.scenario == f"capacity-{pair}"
    assert {cell.objective.tpot_ms for cell in cells} <= {20, 30, 50}
    assert {(cell.policies.drafting, cell.policies.colocated) for cell in cells} == {
        (False, False),
        (True, False),
        (True, True),
    }
    assert len({point.settings["workload.rate_per_s"] for point in plan.points}) >= 8
