"""A student computes what the target's kept layers compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from model_zoo.distilling.student import evenly, layers_of, most_influential, with_head_of, without_layers
from tests.model_zoo.distilling.tiny import DEPTH, FAMILIES, VOCAB_SIZE, load, make_target

IDS = torch.arange(3, 23)[None]
pytestmark = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def target(family: str, tmp_path: Path) -> PreTrainedModel:
    return load(make_target(tmp_path / family, family))


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits[0]


def test_a_student_with_all_layers_is_the_target(target: PreTrainedModel) -> None:
    assert torch.equal(logits(without_layers(target, range(DEPTH)).eval()), logits(target))


def test_a_student_skips_the_layers_that_it_does_not_have(target: PreTrainedModel) -> None:
    student = without_layers(target, [0, 3]).eval()
    assert len(layers_of(student)[1]) == student.config.num_hidden_layers == 2
    if hasattr(target.config, "layer_types"):
        assert student.config.layer_types == [target.config.layer_types[i] for i in (0, 3)]
    for layer in layers_of(target)[1][1:3]:  # silenced: they add nothing to the hidden states
        for name, weight in layer.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")) or "dense" in name:
                weight.requires_grad_(False).zero_()
    torch.testing.assert_close(logits(student), logits(target))


def test_the_layers_that_change_nothing_go_first(target: PreTrainedModel) -> None:
    for name, weight in layers_of(target)[1][2].named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")) or "dense" in name:
            weight.requires_grad_(False).zero_()
    assert most_influential(target, [IDS[0].tolist()], DEPTH - 1) == [0, 1, 3]


def test_a_reduced_head_has_the_logits_of_its_tokens(target: PreTrainedModel) -> None:
    whole, kept = logits(target), list(range(0, VOCAB_SIZE, 3))
    student = without_layers(target, range(DEPTH)).eval()
    with_head_of(student, kept)
    torch.testing.assert_close(logits(student), whole[:, kept])
    frozen = {name for name, weight in student.named_parameters() if not weight.requires_grad}
    assert len(frozen) == 2, "embedding and head must be frozen, and nothing else"


def test_even_layers_begin_and_end_with_the_target(family: str) -> None:
    assert evenly(30, 10) == [0, 3, 6, 10, 13, 16, 19, 23, 26, 29]
    assert evenly(4, 1) == [0]
