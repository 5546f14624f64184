"""How much KV cache a session reserves: for its text and what is likely to follow, not for the longest answer.

Shared by the verifier's table and built-in engine, the gateway's placement and DSD-Sim, which compiles these very
lines. It needs no other library, because gateways have no numpy.
"""

from __future__ import annotations

KV_STEP = 64  # KV cache is reserved in multiples of this many tokens
KV_AHEAD = 256  # tokens of the answer that a session reserves KV cache for before it has them


def round_to_kv_step(num_tokens: int) -> int:
    """KV cache that holds a text of `num_tokens`, in tokens."""
    return -(-num_tokens // KV_STEP) * KV_STEP


def likely_kv_tokens(num_tokens: int, num_left: int) -> int:
    """KV cache that a session reserves for a text of `num_tokens` with at most `num_left` to come, in tokens."""
    return round_to_kv_step(num_tokens + min(num_left, KV_AHEAD))
