"""CPU kernels between the matrix products of a pass, compiled by numba: attention, norms, activations, candidates.

Invariant: a token's result depends on its own inputs, its session's KV cache and its position alone. Each row is
computed by the same operations in the same order, whatever rows are computed with it.

For passes of few tokens, calling torch's operators takes longer than computing (docs/performance.md). Addresses point
to CPU tensors that are contiguous in the last dimension. Strides count elements. `like` gives the storage type
(lanes.py). Arguments are not checked.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import carray, njit  # type: ignore[attr-defined]
from numpy.typing import NDArray
from torch import Tensor

from services.cloud_verifier.torch_engine.lanes import (
    COLUMNS,
    LANES,
    POSITIONS,
    ROWS,
    add_product,
    add_squares,
    numbers_at,
    rotate_lanes,
    scale_lanes,
    silu_lanes,
    to_float,
    to_stored,
    weigh,
)
from shared.runtime.compiled import keep_compiled

MOST_ROWS = 48  # of attention at once: their scores and sums fit the CPU's L1 or L2 cache
BLOCK_IDS = 256  # vocabulary block of the search for candidates
NOT_FINITE = 0x7F80  # bfloat16 bits without sign: infinity; NaN is greater
UNBOUND = 1 << 40

_LIKE: dict[torch.dtype, NDArray[np.float32] | NDArray[np.uint16]] = {
    torch.float32: np.empty(0, np.float32),
    torch.bfloat16: np.empty(0, np.uint16),
}


def like(dtype: torch.dtype) -> NDArray[np.float32] | NDArray[np.uint16]:
    """The `like` array of lanes.py for a dtype."""
    return _LIKE[dtype]


def rows_of(x: Tensor) -> Tensor:
    """x, copied if its last dimension is not contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


compiled = njit(nogil=True, error_model="numpy", cache=keep_compiled())


@compiled
def _filled(num_rows):
    """num_rows rounded up to the rows of one matrix product."""
    return -(-num_rows // ROWS) * ROWS


@compiled
def _put_keys(new, head, offset, strides, cached, start, num_tokens, dim):
    """Writes a segment's keys of one head into its tiles."""
    for token in range(num_tokens):
        tile, place = divmod(start + token, POSITIONS)
        source, target = head * strides[0] + (offset + token) * strides[1], tile * dim * POSITIONS + place
        for d in range(dim):
            cached[target + d * POSITIONS] = new[source + d]


@compiled
def _put_values(new, head, offset, strides, cached, start, num_tokens, dim):
    width = -(-dim // COLUMNS) * COLUMNS
    for token in range(num_tokens):
        source, target = head * strides[0] + (offset + token) * strides[1], (start + token) * width
        for d in range(dim):
            cached[target + d] = new[source + d]


@compiled
def _add_products(left, matrix, stride, like, num, sums, num_rows):
    """sums += left[:, :num] @ matrix for the first num_rows rows, rounded up to ROWS.

    matrix: address of [num, columns of sums], with row stride `stride`.
    """
    for row in range(0, num_rows, ROWS):
        factors = left.ctypes.data + 4 * row * left.shape[1]
        for column in range(0, sums.shape[1], COLUMNS):
            into = sums.ctypes.data + 4 * (row * sums.shape[1] + column)
            add_product(factors, left.shape[1], matrix + column * like.itemsize, stride, like, num, into, sums.shape[1])


@compiled
def _read_queries(queries, strides, first, num, head, group, scale, rows):
    """Reads the scaled queries of one key head: `group` rows for each of `num` tokens."""
    for row in range(num * group):
        source = (head * group + row % group) * strides[0] + (first + row // group) * strides[1]
        for d in range(rows.shape[1]):
            rows[row, d] = to_float(queries[source + d]) * scale


@compiled
def _weigh_rows(scores, sums, totals, peaks, num, group, position, window):
    """Online softmax of a tile: turns scores into weights and rescales the sums and totals of earlier tiles.

    num: tokens; position: of the first token, relative to the start of the tile.
    """
    for row in range(num * group):
        own = position + row // group
        seen, hidden = min(own + 1, POSITIONS), max(own - window + 1, 0)
        if hidden >= seen:
            scores[row] = 0
            continue
        into, peak = scores.ctypes.data + 4 * row * POSITIONS, peaks.ctypes.data + 4 * row
        fade = weigh(into, hidden, seen, peak, totals.ctypes.data + 4 * row * LANES)
        for d in range(sums.shape[1]):
            sums[row, d] *= fade


@compiled
def _store_quotients(sums, totals, row, output, target, like, num):
    """Divides a row's weighted sums by the sum of its weights."""
    total = np.float32(0)
    for lane in range(LANES):
        total += totals[row, lane]
    for d in range(num):
        output[target + d] = to_stored(sums[row, d] / total, like)


@compiled
def attend(
    queries,  # address of [query_heads, tokens, head_dim]
    query_strides,  # of heads and of tokens
    keys,  # address of [kv_heads, tokens, head_dim]
    key_strides,
    values,
    value_strides,
    outputs,  # address of [tokens, query_heads, head_dim]
    like,
    segments,  # [segments, 4]: start, num_tokens, offset, capacity, as in attention.Segment
    caches,  # [segments, 2]: addresses of tiled keys and values (kv.py)
    shape,  # key heads, query heads per key head, head_dim
    scale,
    window,  # positions that a token attends to, its own included
    jobs,  # [first, end); job = segment * key heads + key head
):
    """Writes a pass's keys and values to the caches. Computes causal softmax((scale queries) keys^T) values in float32,
    over each segment's cache."""
    kv_heads, group, dim = shape
    width = -(-dim // COLUMNS) * COLUMNS
    tokens_at_once = max(min(MOST_ROWS // group, segments[:, 1].max()), 1)
    num_rows = _filled(tokens_at_once * group)
    tile_keys, tile_values = dim * POSITIONS, POSITIONS * width
    all_queries = carray(numbers_at(queries, like), UNBOUND)
    new_keys, new_values = carray(numbers_at(keys, like), UNBOUND), carray(numbers_at(values, like), UNBOUND)
    output = carray(numbers_at(outputs, like), UNBOUND)
    rows = np.zeros((num_rows, dim), np.float32)
    scores = np.zeros((num_rows, POSITIONS), np.float32)
    sums = np.zeros((num_rows, width), np.float32)
    totals, peaks = np.zeros((num_rows, LANES), np.float32), np.zeros(num_rows, np.float32)
    for job in range(jobs[0], jobs[1]):
        segment, head = job // kv_heads, job % kv_heads
        start, num_tokens, offset, capacity = segments[segment]
        key_cache = caches[segment, 0] + head * capacity * dim * like.itemsize
        value_cache = caches[segment, 1] + head * capacity * width * like.itemsize
        cached_keys = carray(numbers_at(key_cache, like), UNBOUND)
        cached_values = carray(numbers_at(value_cache, like), UNBOUND)
        _put_keys(new_keys, head, offset, key_strides, cached_keys, start, num_tokens, dim)
        _put_values(new_values, head, offset, value_strides, cached_values, start, num_tokens, dim)
        for first in range(0, num_tokens, tokens_at_once):
            num = min(tokens_at_once, num_tokens - first)
            _read_queries(all_queries, query_strides, offset + first, num, head, group, scale, rows)
            sums[:] = 0
            totals[:] = 0
            peaks[:] = -np.inf
            position = start + first
            begin = max(position - window + 1, 0) // POSITIONS
            end = (position + num - 1) // POSITIONS + 1
            for tile in range(begin, end):
                num_seen = min(position + num - tile * POSITIONS, POSITIONS)  # later positions are undefined
                scores[: _filled(num * group)] = 0
                tile_at = key_cache + tile * tile_keys * like.itemsize
                _add_products(rows, tile_at, POSITIONS, like, dim, scores, num * group)
                _weigh_rows(scores, sums, totals, peaks, num, group, position - tile * POSITIONS, window)
                tile_at = value_cache + tile * tile_values * like.itemsize
                _add_products(scores, tile_at, width, like, num_seen, sums, num * group)
            for row in range(num * group):
                token, query_head = offset + first + row // group, head * group + row % group
                target = (token * kv_heads * group + query_head) * dim
                _store_quotients(sums, totals, row, output, target, like, dim)


@compiled
def rms_norm(rows, weight, outputs, like, num_rows, width, epsilon):
    """LlamaRMSNorm: outputs = weight * (rows / sqrt(mean(rows^2) + epsilon)). The bracketed term is rounded too.

    rows, outputs: [num_rows, width]; weight: [width].
    """
    given, factors = carray(numbers_at(rows, like), (num_rows, width)), carray(numbers_at(weight, like), width)
    output = carray(numbers_at(outputs, like), (num_rows, width))
    sums = np.empty(LANES, np.float32)
    num_whole = width // LANES * LANES
    for row in range(num_rows):
        line = row * width * like.itemsize
        sums[:] = 0
        for column in range(0, num_whole, LANES):
            add_squares(rows + line + column * like.itemsize, like, sums.ctypes.data)
        for column in range(num_whole, width):
            sums[column - num_whole] += to_float(given[row, column]) ** 2
        total = np.float32(0)
        for lane in range(LANES):
            total += sums[lane]
        factor = np.float32(1) / np.sqrt(total / np.float32(width) + epsilon)
        for column in range(0, num_whole, LANES):
            place = column * like.itemsize
            scale_lanes(rows + line + place, weight + place, outputs + line + place, like, factor)
        for column in range(num_whole, width):
            normed = to_float(to_stored(to_float(given[row, column]) * factor, like))
            output[row, column] = to_stored(to_float(factors[column]) * normed, like)


@compiled
def rotate(heads, cos, sin, like, shape):
    """Rotary embedding in place, of the first heads of each token: x cos + swap_halves(x) sin, each product rounded.

    heads: [tokens, heads, head_dim]; cos, sin: [tokens, head_dim], first half of sin negated; shape: tokens, rotated
    heads, heads, head_dim.
    """
    num_tokens, num_turned, num_heads, dim = shape
    half = dim // 2
    num_whole = half // LANES * LANES
    given = carray(numbers_at(heads, like), (num_tokens, num_heads, dim))
    cosines, sines = carray(numbers_at(cos, like), (num_tokens, dim)), carray(numbers_at(sin, like), (num_tokens, dim))
    for token in range(num_tokens):
        angles = token * dim * like.itemsize
        for head in range(num_turned):
            line = heads + (token * num_heads + head) * dim * like.itemsize
            for start in range(0, num_whole, LANES):
                place = start * like.itemsize
                first, second = line + place, line + place + half * like.itemsize
                rotate_lanes(first, second, cos + angles + place, sin + angles + place, half * like.itemsize, like)
            for d in range(num_whole, half):
                x, y = to_float(given[token, head, d]), to_float(given[token, head, d + half])
                for place, own, other in ((d, x, y), (d + half, y, x)):
                    turned = to_float(to_stored(own * to_float(cosines[token, place]), like))
                    turned += to_float(to_stored(other * to_float(sines[token, place]), like))
                    given[token, head, place] = to_stored(turned, like)


@compiled
def silu(numbers, factors, outputs, like, num):
    """outputs = factors * silu(numbers), each [num], where silu(x) = x / (1 + exp(-x)) is rounded too."""
    num_whole = num // LANES * LANES
    for start in range(0, num_whole, LANES):
        place = start * like.itemsize
        silu_lanes(numbers + place, factors + place, outputs + place, like)
    if num_whole < num:
        rest, times = np.zeros(LANES, like.dtype), np.zeros(LANES, like.dtype)
        rest[: num - num_whole] = carray(numbers_at(numbers, like), num)[num_whole:]
        times[: num - num_whole] = carray(numbers_at(factors, like), num)[num_whole:]
        silu_lanes(rest.ctypes.data, times.ctypes.data, rest.ctypes.data, like)
        carray(numbers_at(outputs, like), num)[num_whole:] = rest[: num - num_whole]


@compiled
def block_peaks(logits, num_rows, vocab_size, peaks):
    """peaks [num_rows, blocks] float32 = the highest of each BLOCK_IDS bfloat16 logits [num_rows, vocab_size].

    NaN for all blocks of a row with infinity or NaN.
    """
    like = np.empty(0, np.int16)
    all_bits = carray(numbers_at(logits, like), (num_rows, vocab_size))
    for row in range(num_rows):
        greatest = np.int16(0)
        for block in range(peaks.shape[1]):
            peak = np.int16(-0x8000)
            for column in range(block * BLOCK_IDS, min((block + 1) * BLOCK_IDS, vocab_size)):
                bits = all_bits[row, column]
                size = np.int16(bits & 0x7FFF)
                greatest = max(greatest, size)
                # With the lower bits of negative numbers flipped, integers have the order of the floats.
                peak = max(peak, np.int16(bits ^ ((bits >> 15) & 0x7FFF)))
            stored = np.uint16(peak ^ ((peak >> 15) & 0x7FFF))
            peaks[row, block] = to_float(stored)
        if greatest >= NOT_FINITE:
            peaks[row, :] = np.nan


@compiled
def candidates(logits, num_rows, vocab_size, peaks, lowest):
    """Rows and ids, each [candidates], of bfloat16 logits >= lowest [num_rows] float32, in the order of (row, id)."""
    like = np.empty(0, np.uint16)
    all_logits = carray(numbers_at(logits, like), (num_rows, vocab_size))
    rows, token_ids = [], []
    for row in range(num_rows):
        for block in range(peaks.shape[1]):
            if peaks[row, block] >= lowest[row]:
                for column in range(block * BLOCK_IDS, min((block + 1) * BLOCK_IDS, vocab_size)):
                    if to_float(all_logits[row, column]) >= lowest[row]:
                        rows.append(row)
                        token_ids.append(column)
    return np.array(rows, np.int64), np.array(token_ids, np.int64)
