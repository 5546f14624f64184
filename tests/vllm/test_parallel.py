"""Tensor parallelism over two processes: the texts of one process, but for near-ties."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.edge_drafter.model import DraftModel
from services.gateway.text.tokenizer import TargetTokenizer
from shared.bus.memory_bus import MemoryNetwork
from shared.protocol.messages import Sampling
from tests.e2e.harness import running
from tests.e2e.ways import Request, Way, answers
from tests.e2e.yardstick import PlainModel
from tests.vllm import tiny
from tests.vllm.conftest import EAGER, Report, loaded
from tests.vllm.driver import Driver, answer_of, opening
from tests.vllm.near_ties import differences

NUM_REQUESTS, LEAST_EQUAL, NEAR_TIE = 50, 48, 1e-3
WAYS = (Way(0, num_at_once=8), Way(8, stop_and_wait=True, num_at_once=8))

pytestmark = pytest.mark.timeout(1800)


def test_a_tiny_model_gives_the_same_texts_on_two_processes(tmp_path: Path) -> None:
    folder = tiny.save(tiny.llama(), tmp_path)
    requests = [opening(seed, range(3, 40 + seed), sampling=Sampling(0.9, seed=seed)) for seed in range(4)]
    with loaded(folder, vllm_args=tiny.FLAGS) as engine:
        expected = Driver(engine).answers(*requests)
    with loaded(folder, vllm_args=f"{tiny.FLAGS} --tensor-parallel-size 2") as engine:
        driver = Driver(engine)
        slots = [driver.opens(request) for request in requests]
        driver.finish(*slots, right=expected)
    assert [answer_of(slot) for slot in slots] == expected


@pytest.mark.long
async def test_the_default_target_gives_the_same_texts_on_two_processes_but_for_near_ties(
    default_models: Path,
    tmp_path: Path,
    drafts: dict[str, DraftModel],
    prompts: list[list[int]],
    tokenizer: TargetTokenizer,
    plain: PlainModel,
    report: Report,
) -> None:
    folder = pad_heads(default_models / "target", tmp_path)
    samplings = (Sampling(), Sampling(0.8, top_p=0.95, seed=20))
    requests: list[Request] = [(prompt, sampling) for sampling in samplings for prompt in prompts][:NUM_REQUESTS]
    texts = []
    for flags, way in zip(("", "--tensor-parallel-size 2"), WAYS, strict=True):
        with loaded(folder, vllm_args=f"{EAGER} {flags}") as engine:
            async with running(MemoryNetwork().connect, [engine], [drafts["int8"]], drafter_lease_s=300.0) as cell:
                found, _ = await answers(cell, requests, tokenizer.stop_ids, way)
        texts.append(found)
    different = differences(plain, requests, *texts)
    report(f"{NUM_REQUESTS - len(different)} of {NUM_REQUESTS} answers are equal on one process and two")
    for each in different:
        report(str(each))
    assert NUM_REQUESTS - len(different) >= LEAST_EQUAL
    assert all(each.gap < NEAR_TIE for each in different)


def pad_heads(source: Path, folder: Path) -> Path:
    """The default target with 12 query and 4 key heads in place of 9 and 3. The new ones are zero, so it computes the
    same, and two processes can share it."""
    heads, head_dim = {"q_proj": 12, "k_proj": 4, "v_proj": 4}, 64
    tensors = load_file(source / "model.safetensors")
    for name, tensor in tensors.items():
        layer = name.split(".")[-2]
        if layer in heads:
            missing = heads[layer] * head_dim - tensor.shape[0]
            tensors[name] = torch.cat([tensor, tensor.new_zeros(missing, tensor.shape[1])]).contiguous()
        elif layer == "o_proj":
            missing = heads["q_proj"] * head_dim - tensor.shape[1]
            tensors[name] = torch.cat([tensor, tensor.new_zeros(tensor.shape[0], missing)], dim=1).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config |= {"num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": head_dim}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (source / name).is_file():
            (folder / name).write_bytes((source / name).read_bytes())
    return folder
