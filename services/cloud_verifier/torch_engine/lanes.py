"""Vector code for kernels.py in LLVM IR, where LLVM does not vectorise plain loops well.

Invariant: a row is computed by the same operations in the same order, whatever rows are computed with it.

Addresses are int64, in bytes. Strides count elements. `like` is an array whose dtype gives the storage type: float32,
or uint16 for bfloat16, the upper half of a float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from shared.policies.kv_cache import KV_STEP

ROWS = 4  # of one matrix product
LANES = 16
VECTORS = 2
COLUMNS = LANES * VECTORS  # of one matrix product: its sums fit the registers of most CPUs
POSITIONS = KV_STEP  # of a tile of keys and values

_INT32, _INT64, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
_FLOATS, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT32, LANES)
_HALVES = ir.VectorType(ir.IntType(16), LANES)

# exp(x) = 2^n exp(r), n = round(x / ln 2), r = x - n ln 2, with Cephes' expf polynomial for exp(r): error 1-2 ulp.
_LOWEST, _LOG2_E, _LN2_HIGH, _LN2_LOW = -87.0, 1.44269504088896341, 0.693359375, -2.12194440e-4
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_ROUNDER = 1.5 * 2.0**23  # adding it leaves the nearest integer in the lowest bits

Builder = Any
Value = Any


def _splat(b: Builder, number: Value) -> Value:
    none = ir.Constant(_FLOATS, ir.Undefined)
    first = b.insert_element(none, number, _INT32(0))
    return b.shuffle_vector(first, none, ir.Constant(_INTS, [0] * LANES))


def _constant(number: float) -> Value:
    return ir.Constant(_FLOATS, [number] * LANES)


def _fma(b: Builder, x: Value, y: Value, z: Value) -> Value:
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    fma = cgutils.get_or_insert_function(b.module, kind, f"llvm.fma.v{LANES}f32")  # type: ignore[no-untyped-call]
    return b.call(fma, [x, y, z])


def _pointer(b: Builder, address: Value, kind: Any) -> Value:
    return b.inttoptr(address, kind.as_pointer())


def _load(b: Builder, numbers: Value, index: Value, *, is_half: bool) -> Value:
    """LANES elements from an index on, as float32."""
    place = b.bitcast(b.gep(numbers, [index]), (_HALVES if is_half else _FLOATS).as_pointer())
    loaded = b.load(place)
    loaded.align = 2 if is_half else 4
    return _widened(b, loaded) if is_half else loaded


def _widened(b: Builder, halves: Value) -> Value:
    return b.bitcast(b.shl(b.zext(halves, _INTS), ir.Constant(_INTS, [16] * LANES)), _FLOATS)


def _narrowed(b: Builder, vector: Value) -> Value:
    """Rounds float32 to bfloat16, ties to even."""
    bits = b.bitcast(vector, _INTS)
    half, one = (ir.Constant(_INTS, [number] * LANES) for number in (16, 1))
    is_odd = b.and_(b.lshr(bits, half), one)
    rounded = b.lshr(b.add(b.add(bits, ir.Constant(_INTS, [0x7FFF] * LANES)), is_odd), half)
    is_nan = b.fcmp_unordered("uno", vector, vector)
    return b.trunc(b.select(is_nan, ir.Constant(_INTS, [0x7FC0] * LANES), rounded), _HALVES)


def _load_stored(b: Builder, address: Value, *, is_half: bool) -> Value:
    """LANES elements at an address, as float32."""
    return _load(b, _pointer(b, address, ir.IntType(16) if is_half else _FLOAT), _INT64(0), is_half=is_half)


def _store_stored(b: Builder, vector: Value, address: Value, *, is_half: bool) -> None:
    if is_half:
        b.store(_narrowed(b, vector), _pointer(b, address, _HALVES)).align = 2
    else:
        b.store(vector, _pointer(b, address, _FLOATS)).align = 4


def _store(b: Builder, vector: Value, numbers: Value, index: Value) -> None:
    b.store(vector, b.bitcast(b.gep(numbers, [index]), _FLOATS.as_pointer())).align = 4


def _exp(b: Builder, x: Value) -> Value:
    """exp(x) for x <= 0 or NaN; x < -87 gives exp(-87)."""
    lowest = _constant(_LOWEST)
    x = b.select(b.fcmp_ordered("<", x, lowest), lowest, x)  # keeps NaN
    shifted = _fma(b, x, _constant(_LOG2_E), _constant(_ROUNDER))
    n = b.fsub(shifted, _constant(_ROUNDER))
    x = _fma(b, n, _constant(-_LN2_HIGH), x)
    x = _fma(b, n, _constant(-_LN2_LOW), x)
    y = _constant(_EXP[0])
    for factor in _EXP[1:]:
        y = _fma(b, y, x, _constant(factor))
    y = b.fadd(_fma(b, b.fmul(y, x), x, x), _constant(1.0))
    bits = b.add(b.bitcast(shifted, _INTS), ir.Constant(_INTS, [127] * LANES))
    return b.fmul(y, b.bitcast(b.shl(bits, ir.Constant(_INTS, [23] * LANES)), _FLOATS))


def _is_half(like: Any) -> bool:
    return bool(like.dtype == types.uint16)


@intrinsic
def to_float(typing: Any, number: Any) -> tuple[Any, Callable[..., Any]]:
    """Converts a stored number to float32."""
    is_half = number == types.uint16

    def generate(context: Any, b: Builder, signature: Any, args: Any) -> Value:
        if not is_half:
            return args[0]
        return b.bitcast(b.shl(b.zext(args[0], _INT32), _INT32(16)), _FLOAT)

    return types.float32(number), generate


@intrinsic
def to_stored(typing: Any, number: Any, like: Any) -> tuple[Any, Callable[..., Any]]:
    """Converts a float32 to the storage type of `like`, ties to even."""

    def generate(context: Any, b: Builder, signature: Any, args: Any) -> Value:
        if not _is_half(like):
            return args[0]
        bits = b.bitcast(args[0], _INT32)
        is_odd = b.and_(b.lshr(bits, _INT32(16)), _INT32(1))
        rounded = b.lshr(b.add(b.add(bits, _INT32(0x7FFF)), is_odd), _INT32(16))
        is_nan = b.fcmp_unordered("uno", args[0], args[0])
        return b.trunc(b.select(is_nan, _INT32(0x7FC0), rounded), ir.IntType(16))

    return like.dtype(types.float32, like), generate


@intrinsic
def numbers_at(typing: Any, address: Any, like: Any) -> tuple[Any, Callable[..., Any]]:
    """Typed pointer for numba.carray."""

    def generate(context: Any, b: Builder, signature: Any, args: Any) -> Value:
        return b.inttoptr(args[0], context.get_value_type(signature.return_type))

    pointer: Any = types.CPointer(like.dtype)  # type: ignore[no-untyped-call]
    return pointer(types.int64, like), generate


@intrinsic
def add_product(
    typing: Any, a: Any, a_stride: Any, m: Any, m_stride: Any, like: Any, num: Any, sums: Any, stride: Any
) -> tuple[Any, Callable[..., Any]]:
    """sums[0:ROWS, 0:COLUMNS] += a[0:ROWS, 0:num] @ m[0:num, 0:COLUMNS], summed in the order of k; num > 0.

    a and sums are float32; m has the storage type of `like`.
    """
    is_half = _is_half(like)
    signature = types.void(*[types.int64] * 4, like, *[types.int64] * 3)

    def generate(context: Any, b: Builder, signature: Any, args: Any) -> Value:
        a, a_stride, m, m_stride, _, num, sums, stride = args
        a, sums = _pointer(b, a, _FLOAT), _pointer(b, sums, _FLOAT)
        m = _pointer(b, m, ir.IntType(16) if is_half else _FLOAT)
        places = [b.add(b.mul(stride, _INT64(row)), _INT64(LANES * v)) for row in range(ROWS) for v in range(VECTORS)]
        before = [_load(b, sums, place, is_half=False) for place in places]
        rows = [b.mul(a_stride, _INT64(row)) for row in range(ROWS)]
        entry, loop, end = b.block, b.append_basic_block(), b.append_basic_block()
        b.branch(loop)
        b.position_at_end(loop)
        k = b.phi(_INT64)
        k.add_incoming(_INT64(0), entry)
        totals = [b.phi(_FLOATS) for _ in before]
        for total, start in zip(totals, before, strict=True):
            total.add_incoming(start, entry)
        line = b.mul(k, m_stride)
        vectors = [_load(b, m, b.add(line, _INT64(LANES * v)), is_half=is_half) for v in range(VECTORS)]
        factors = [_splat(b, b.load(b.gep(a, [b.add(row, k)]))) for row in rows]
        terms = [(factor, vector) for factor in factors for vector in vectors]
        after = [_fma(b, *term, total) for term, total in zip(terms, totals, strict=True)]
        following = b.add(k, _INT64(1))
        k.add_incoming(following, loop)
        for total, new in zip(totals, after, strict=True):
            total.add_incoming(new, loop)
        b.cbranch(b.icmp_signed("<", following, num), loop, end)
        b.position_at_end(end)
        for place, total in zip(places, after, strict=True):
            _store(b, total, sums, place)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def weigh(typing: Any, scores: Any, first: Any, last: Any, peak: Any, totals: Any) -> tuple[Any, Callable[..., Any]]:
    """Online softmax of one row: replaces a tile of POSITIONS scores by weights relative to the highest score so far.

    Positions outside [first, last), which is not empty, get weight 0. peak: address of the highest score; totals: of
    LANES sums of weights. Both are updated. Returns the factor for earlier weights.
    """
    signature = types.float32(*[types.int64] * 5)
    num_vectors = POSITIONS // LANES

    def generate(context: Any, b: Builder, signature: Any, args: Any) -> Value:
        scores, first, last, peak, totals = args
        scores, peak, totals = (_pointer(b, each, _FLOAT) for each in (scores, peak, totals))
        vectors, are_inside = [], []
        for v in range(num_vectors):
            lane_ids = ir.Constant(_INTS, [LANES * v + lane for lane in range(LANES)])
            first_ids, last_ids = (
                b.bitcast(_splat(b, b.bitcast(b.trunc(each, _INT32), _FLOAT)), _INTS) for each in (first, last)
            )
            inside = b.and_(b.icmp_signed(">=", lane_ids, first_ids), b.icmp_signed("<", lane_ids, last_ids))
            loaded = _load(b, scores, _INT64(LANES * v), is_half=False)
            vectors.append(b.select(inside, loaded, _constant(float("-inf"))))
            are_inside.append(inside)
        greatest = vectors[0]
        for vector in vectors[1:]:
            greatest = b.select(b.fcmp_ordered(">", vector, greatest), vector, greatest)
        before = b.load(peak)
        now = before
        num_left = LANES
        while num_left > 1:
            num_left //= 2
            moved = [lane + num_left if lane < num_left else lane for lane in range(LANES)]
            other = b.shuffle_vector(greatest, ir.Constant(_FLOATS, ir.Undefined), ir.Constant(_INTS, moved))
            greatest = b.select(b.fcmp_ordered(">", other, greatest), other, greatest)
        found = b.extract_element(greatest, _INT32(0))
        now = b.select(b.fcmp_ordered(">", found, before), found, before)
        b.store(now, peak)
        peaks = _splat(b, now)
        fade = _exp(b, b.fsub(_splat(b, before), peaks))
        total = b.fmul(_load(b, totals, _INT64(0), is_half=False), fade)
        for v, (vector, inside) in enumerate(zip(vectors, are_inside, strict=True)):
            weights = b.select(inside, _exp(b, b.fsub(vector, peaks)), _constant(0.0))
            _store(b, weights, scores, _INT64(LANES * v))
            total = b.fadd(total, weights)
        _store(b, total, totals, _INT64(0))
        return b.extract_element(fade, _INT32(0))

    return signature, generate


@intrinsic
def add_squares(typing: Any, numbers: Any, like: Any, sums: Any) -> tuple[Any, Callable[..., Any]]:
    """sums [LANES] float32 += numbers^2, [LANES] stored."""
    is_half = _is_half(like)

    def generate(context: Any, b: Builder, signature: Any, args: Any) -> Value:
        numbers, _, sums = args
        vector, sums = _load_stored(b, numbers, is_half=is_half), _pointer(b, sums, _FLOAT)
        _store(b, _fma(b, vector, vector, _load(b, sums, _INT64(0), is_half=False)), sums, _INT64(0))
        return context.get_dummy_value()

    return types.void(types.int64, like, types.int64), generate


@intrinsic
def rotate_lanes(typing: Any, first: Any, second: Any, cos: Any, sin: Any, half: Any, like: Any) -> Any:
    """LANES pairs: first cos + second sin, and second cos' + first sin', with rounded products.

    cos' and sin' are `half` bytes after cos and sin; the values at `sin` are negated.
    """
    is_half = _is_half(like)

    def generate(context: Any, b: Builder, signature: Any, args: Any) -> Value:
        first, second, cos, sin, half, _ = args

        def product(x: Value, factor: Value) -> Value:
            exact = b.fmul(x, _load_stored(b, factor, is_half=is_half))
            return _widened(b, _narrowed(b, exact)) if is_half else exact

        x, y = _load_stored(b, first, is_half=is_half), _load_stored(b, second, is_half=is_half)
        turned = b.fadd(product(x, cos), product(y, sin))
        other = b.fadd(product(y, b.add(cos, half)), product(x, b.add(sin, half)))
        _store_stored(b, turned, first, is_half=is_half)
        _store_stored(b, other, second, is_half=is_half)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5, like), generate


@intrinsic
def scale_lanes(
    typing: Any, numbers: Any, factors: Any, outputs: Any, like: Any, factor: Any
) -> tuple[Any, Callable[..., Any]]:
    """outputs = factors * (numbers * factor), each [LANES] stored. The bracketed product is rounded too."""
    is_half = _is_half(like)

    def generate(context: Any, b: Builder, signature: Any, args: Any) -> Value:
        numbers, factors, outputs, _, factor = args
        scaled = b.fmul(_load_stored(b, numbers, is_half=is_half), _splat(b, factor))
        if is_half:
            scaled = _widened(b, _narrowed(b, scaled))
        _store_stored(b, b.fmul(_load_stored(b, factors, is_half=is_half), scaled), outputs, is_half=is_half)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3, like, types.float32), generate


@intrinsic
def silu_lanes(typing: Any, numbers: Any, factors: Any, outputs: Any, like: Any) -> tuple[Any, Callable[..., Any]]:
    """outputs = factors * silu(numbers), each [LANES], where silu(x) = x / (1 + exp(-x)) is rounded too."""
    is_half = _is_half(like)

    def generate(context: Any, b: Builder, signature: Any, args: Any) -> Value:
        numbers, factors, outputs, _ = args
        x = _load_stored(b, numbers, is_half=is_half)
        is_positive = b.fcmp_ordered(">", x, _constant(0.0))
        size = b.select(is_positive, b.fsub(_constant(-0.0), x), x)  # -|x|
        power = b.select(b.fcmp_ordered("<", size, _constant(_LOWEST)), _constant(0.0), _exp(b, size))
        share = b.fdiv(b.select(is_positive, _constant(1.0), power), b.fadd(_constant(1.0), power))
        y = b.fmul(x, share)
        if is_half:
            y = _widened(b, _narrowed(b, y))
        _store_stored(b, b.fmul(y, _load_stored(b, factors, is_half=is_half)), outputs, is_half=is_half)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3, like), generate
