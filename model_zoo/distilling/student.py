"""A student: the target with layers dropped, which training turns into a draft.

Invariant: a student shares the target's tokenizer, embedding and head, so its guesses are the target's token ids, and
it is a model of the target's own architecture that every tool for the target reads.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from model_zoo.errors import UnusableModel


def layers_of(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The name and the list of a model's decoder layers: the one list of their number that is nested least. Raises
    UnusableModel."""
    depth = model.config.get_text_config().num_hidden_layers
    found = [
        (name, each) for name, each in model.named_modules() if isinstance(each, nn.ModuleList) and len(each) == depth
    ]
    outermost = min((name.count(".") for name, _ in found), default=0)
    found = [(name, each) for name, each in found if name.count(".") == outermost]
    if len(found) != 1:
        raise UnusableModel(
            f"{type(model).__name__} has {len(found)} lists of {depth} layers: its layers are not known"
        )
    return found[0]


def without_layers(target: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A copy of the target, in float32, that has only the layers `kept`, in their order."""
    prefix, layers = layers_of(target)
    config = copy.deepcopy(target.config)
    text = config.get_text_config()
    for name, value in text.to_dict().items():
        if isinstance(value, list) and len(value) == len(layers):  # one entry for each layer, as layer_types has
            setattr(text, name, [value[i] for i in kept])
    text.num_hidden_layers = len(kept)
    student: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=torch.float32
    )
    place = {str(old): str(new) for new, old in enumerate(kept)}
    weights = {}
    for name, value in target.state_dict().items():
        number, _, rest = name.removeprefix(f"{prefix}.").partition(".")
        if not name.startswith(f"{prefix}."):
            weights[name] = value
        elif number in place:
            weights[f"{prefix}.{place[number]}.{rest}"] = value
    student.load_state_dict(weights)
    return student


def evenly(depth: int, number: int) -> list[int]:
    """`number` layers of `depth` with equal gaps, the first and the last among them."""
    return [round(i * (depth - 1) / max(number - 1, 1)) for i in range(number)]


@torch.no_grad()
def most_influential(target: PreTrainedModel, texts: Sequence[Sequence[int]], number: int) -> list[int]:
    """The layers that turn the hidden states most: 1 - the mean cosine of a layer's input and output.

    Block influence, Men and others, ShortGPT, arXiv 2403.03853, section 3.
    """
    _, layers = layers_of(target)
    turned = [0.0] * len(layers)

    def watch(index: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
            after = output if isinstance(output, Tensor) else output[0]
            turned[index] += 1 - float(functional.cosine_similarity(inputs[0].float(), after.float(), dim=-1).mean())

        return hook

    handles = [layer.register_forward_hook(watch(index)) for index, layer in enumerate(layers)]
    try:
        for text in texts:
            target(input_ids=torch.tensor([list(text)], device=target.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return sorted(sorted(range(len(layers)), key=turned.__getitem__, reverse=True)[:number])


def with_head_of(model: PreTrainedModel, token_ids: Sequence[int]) -> None:
    """Lets a model compute the logits of these tokens only, and freezes embedding and head.

    Logits then have the order of `token_ids`. Whatever the architecture does to logits after the head stays.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    rows = torch.tensor(list(token_ids), device=head.weight.device)
    has_bias = getattr(head, "bias", None) is not None
    reduced = nn.Linear(head.weight.shape[1], len(token_ids), bias=has_bias, dtype=head.weight.dtype)
    with torch.no_grad():
        reduced.weight.copy_(head.weight[rows])
        if has_bias:
            reduced.bias.copy_(head.bias[rows])
    model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False
    model.set_output_embeddings(reduced.to(head.weight.device))  # type: ignore[no-untyped-call]
    model.get_input_embeddings().requires_grad_(False)
    reduced.requires_grad_(False)
