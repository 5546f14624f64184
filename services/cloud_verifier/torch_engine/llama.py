"""A fast implementation of the Llama family.

Invariant: its logits are bit-identical to TransformersNetwork's over the same model: the same operations in the same
order. Queries, keys and values come from one matrix product and are rotated together, and no module code is called.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.models.llama import LlamaForCausalLM

from services.cloud_verifier.torch_engine import kernels
from services.cloud_verifier.torch_engine.attention import Attention, Heads
from services.cloud_verifier.torch_engine.head import BestToken, Float32Head
from services.cloud_verifier.torch_engine.kernels import like
from services.cloud_verifier.torch_engine.network import ComputedLogits, Outputs
from services.cloud_verifier.torch_engine.packed import (
    CompiledSilu,
    PackedLinear,
    PlainLinear,
    RowRules,
    compiled_module,
    limit_rows,
    probe_max_rows,
    silu_product,
)

ANGLE_ROWS = 64  # of one call: torch computes these in one thread, entirely in vector code


class LlamaNetwork:
    """Consumes a LlamaForCausalLM: packs and frees its weights layer by layer."""

    def __init__(self, model: PreTrainedModel, *, packed: bool) -> None:
        body: Any = model.model
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self._embed = body.embed_tokens
        self._angles = body.rotary_emb
        self._layers, rules = [], RowRules()
        for index in range(len(body.layers)):
            self._layers.append(_Layer(body.layers[index], index, rules, packed=packed))
            body.layers[index] = nn.Identity()
        self._norm = compiled_module(body.norm) if head.weight.device.type == "cpu" else body.norm
        self._head = Float32Head(head.weight, head.bias, packed=packed)
        rounded = self._head.rounded
        self._best_token = None if rounded is None else BestToken(head.weight, head.bias, rounded)
        rule = rules.strictest
        max_rows = min(rule.max_rows, probe_max_rows(head.weight, packed=packed), self._head.row_rule.max_rows)
        self.row_rule = replace(rule, max_rows=max_rows)
        limit_rows((self._head, *(linear for layer in self._layers for linear in layer.linears)), max_rows)

    def __call__(self, token_ids: Tensor, positions: Tensor, drawing: Tensor, attention: Attention) -> Outputs:
        hidden = self._embed(token_ids)
        cos, sin = self._cos_and_sin(hidden, positions)
        for layer in self._layers:
            hidden = layer(hidden, cos, sin, attention)
        hidden = self._norm(hidden[drawing])
        if self._best_token is None:
            return ComputedLogits(self._head(hidden[None])[0])
        return _HiddenStates(hidden, self._head, self._best_token)

    def _cos_and_sin(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Each [tokens, 1, head_dim]; the first half of sin is negated, as rotate_half negates the second half of x."""
        num_tokens = len(positions)
        padded = pad(positions, (0, -num_tokens % ANGLE_ROWS))
        parts = [self._angles(hidden, rows[None]) for rows in torch.split(padded, ANGLE_ROWS)]
        cos, sin = (torch.cat(kind, dim=1)[0, :num_tokens, None] for kind in zip(*parts, strict=True))
        first, second = torch.chunk(sin, 2, dim=-1)
        return cos, torch.cat((-first, second), dim=-1)


class _HiddenStates:
    """Outputs that compute logits on request."""

    def __init__(self, hidden: Tensor, head: Float32Head, best_token: BestToken) -> None:
        self._hidden, self._head, self._best_token = hidden, head, best_token

    def logits(self, rows: Tensor) -> Tensor:
        logits: Tensor = self._head(self._hidden[rows][None])[0]
        return logits

    def best(self, rows: Tensor) -> Tensor:
        return self._best_token(self._hidden[rows])


def is_llama(model: PreTrainedModel) -> bool:
    """Whether LlamaNetwork supports this model. Subclasses may compute something else."""
    return type(model) is LlamaForCausalLM


class _Layer:
    def __init__(self, layer: Any, index: int, rules: RowRules, *, packed: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        rest = [attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        self._index = index
        self._head_dim, self._scaling = attention.head_dim, attention.scaling
        self._num_kv_heads = attention.k_proj.out_features // attention.head_dim
        self._num_rotated = attention.q_proj.out_features // attention.head_dim + self._num_kv_heads
        kind = PackedLinear if packed else PlainLinear
        qkv_bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
        qkv_weight = torch.cat([part.weight for part in parts])
        self.linears = [kind(qkv_weight, qkv_bias), *(kind(part.weight, part.bias) for part in rest)]
        self._qkv, self._out, self._gate, self._up, self._down = self.linears
        modules: tuple[nn.Module, ...] = mlp.act_fn, layer.input_layernorm, layer.post_attention_layernorm
        is_cpu = qkv_weight.device.type == "cpu"
        self._activation, self._norm_in, self._norm_mlp = map(compiled_module, modules) if is_cpu else modules
        for linear, weight in zip(self.linears, (qkv_weight, *(part.weight for part in rest)), strict=True):
            rules.probe(linear, weight)

    def __call__(self, hidden: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        """[tokens, hidden size]"""
        heads = self._qkv(self._norm_in(hidden)).view(len(hidden), -1, self._head_dim)
        rotated = _rotated(heads, self._num_rotated, cos, sin).transpose(0, 1)
        query, key = rotated[: -self._num_kv_heads], rotated[-self._num_kv_heads :]
        value = heads[:, self._num_rotated :].transpose(0, 1)
        attended = attention.layer(self._index, Heads(query, key, value, self._scaling, None))
        hidden = hidden + self._out(attended.view(len(hidden), -1))
        x = self._norm_mlp(hidden)
        output: Tensor = hidden + self._down(self._product(self._gate(x), self._up(x)))
        return output

    def _product(self, gate: Tensor, up: Tensor) -> Tensor:
        if isinstance(self._activation, CompiledSilu):
            return silu_product(gate, up)
        product: Tensor = self._activation(gate) * up
        return product


def _rotated(heads: Tensor, num: int, cos: Tensor, sin: Tensor) -> Tensor:
    """The first `num` heads of each token, rotated: [tokens, num, head_dim]; in place on the CPU.

    heads: [tokens, heads, head_dim]; cos, sin: [tokens, 1, head_dim].
    """
    first = heads[:, :num]
    if not heads.is_cpu:
        return first * cos + torch.roll(first, heads.shape[-1] // 2, dims=-1) * sin
    num_tokens, num_heads, head_dim = heads.shape
    shape = num_tokens, num, num_heads, head_dim
    kernels.rotate(heads.data_ptr(), cos.data_ptr(), sin.data_ptr(), like(heads.dtype), shape)
    return first
