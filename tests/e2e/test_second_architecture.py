"""Another family passes the same check to the bit: a tiny random Qwen3 (norms on queries and keys, an untied head) and
its 4-bit copy as the draft."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers.models.qwen3 import Qwen3Config

from model_zoo.exporting.onnx_export import export_draft
from services.cloud_verifier.torch_engine.model import TargetModel, load_target
from services.edge_drafter.model import DraftModel, load_draft
from shared.bus.memory_bus import MemoryNetwork
from shared.protocol.messages import Sampling, Tally
from tests.e2e.harness import running
from tests.e2e.test_bits import check_bits
from tests.e2e.ways import NUM_TOKENS, SAMPLINGS, SLIDING, STOP_AND_WAIT
from tests.verifier.torch_engine.test_target_model import check_bits as check_logits
from tests.verifier.torch_engine.tiny_models import save_model

VOCAB_SIZE = 512
MAX_CONTEXT = 1024
PROMPT_LENGTHS = (
    3,
    9,
    30,
    63,
    64,
    65,
    140,
    480,
)  # around a prefill's chunk, up to the cache's next step
STOP_IDS = range(6)  # about half of the texts draw one of them


@dataclass(frozen=True)
class Folders:
    """A pair on disk."""

    target: Path
    draft: Path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    root = tmp_path_factory.mktemp("qwen3")
    folders = Folders(save_model(config, root / "target"), root / "draft")
    export_draft(folders.target, folders.draft, "int4")
    return folders


@pytest.fixture(scope="module")
def tiny_target(folders: Folders) -> TargetModel:
    """In bfloat16 where the CPU has it."""
    return load_target(str(folders.target), "cpu", "auto", 1)


@pytest.fixture(scope="module")
def tiny_draft(folders: Folders) -> DraftModel:
    return load_draft(str(folders.draft), 1)


@pytest.fixture(scope="module")
def tiny_prompts() -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(len(STOP_IDS), VOCAB_SIZE) for _ in range(length)] for length in PROMPT_LENGTHS]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
async def test_the_draft_is_right_more_often_than_not_but_not_always(
    tiny_target: TargetModel, tiny_draft: DraftModel, tiny_prompts: list[list[int]], sampling: Sampling
) -> None:
    """Else the check below would show little. Stop-and-wait: every guess is judged, none comes late."""
    async with running(MemoryNetwork().connect, [tiny_target], [tiny_draft]) as cell:
        drafter_id, verifier_id = cell.drafter_id(), cell.verifier_id()
        await cell.client.decide(drafter_id, verifier_id, 3, 3, False)
        answers = [
            await cell.client.generate(
                prompt, verifier_id=verifier_id, drafter_id=drafter_id, sampling=sampling, free_run=False
            )
            for prompt in tiny_prompts
        ]
    tallies: list[Tally] = [answer.tally for answer in answers]
    num_accepted, num_rejected = (sum(getattr(tally, fate) for tally in tallies) for fate in ("accepted", "rejected"))
    assert 0.5 < num_accepted / (num_accepted + num_rejected) < 0.99, tallies
    assert sum(len(set(answer.token_ids)) for answer in answers) > 0.2 * NUM_TOKENS * len(answers), "monotone texts"


@pytest.mark.timeout(600)
async def test_speculation_changes_no_token_of_another_family(
    tiny_target: TargetModel, tiny_draft: DraftModel, tiny_prompts: list[list[int]]
) -> None:
    ways = SLIDING + STOP_AND_WAIT
    num_compared = await check_bits(tiny_target, {"int4": tiny_draft}, tiny_prompts, STOP_IDS, ways)
    longest = NUM_TOKENS * len(tiny_prompts) * len(SAMPLINGS) * len(ways)
    assert longest / 3 < num_compared < longest, "no text ends at a stop id, or too many do"


def test_logits_of_another_family_have_the_same_bits_in_every_pass(tiny_target: TargetModel) -> None:
    check_logits(tiny_target, length=100, chunks=[1, 3, 8, 16, 64], num_mixed=12, threads=[1])
