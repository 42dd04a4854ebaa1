"""Kernels in Triton, which comes with torch for CUDA on Linux: what the library computes by many, in one a direction.

Each reads its numbers once, computes in fp32 and rounds once, at the end. They are compiled when they are first called,
which takes a C compiler, and kept in Triton's cache. With TRITON_INTERPRET=1 a CPU computes them, slowly.

Shapes: B rows, T tokens, H heads, D numbers of a head.
"""

from math import pi

import torch
import triton
import triton.language as tl
from torch import Tensor

NUMBERS = 1024
"""That a program takes at once."""
GELU_SCALE, GELU_CUBE = tl.constexpr((2 / pi) ** 0.5), tl.constexpr(0.044715)


@triton.jit
def _activated(g, KIND: tl.constexpr):
    """Return an activation (gated.py says which is which number) and its derivative."""
    if KIND == 0:
        s = 1 / (1 + tl.exp(-g))
        return g * s, s * (1 + g * (1 - s))
    inner = GELU_SCALE * (g + GELU_CUBE * g * g * g)
    half = 1 / (1 + tl.exp(-2 * inner))  # (1 + tanh(inner)) / 2
    slope = GELU_SCALE * (1 + 3 * GELU_CUBE * g * g)
    return g * half, half + 2 * g * half * (1 - half) * slope


@triton.jit
def _gated(gate, up, y, num, KIND: tl.constexpr, NUM: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * NUM + tl.arange(0, NUM)
    there = at < num
    value, _ = _activated(tl.load(gate + at, mask=there, other=0).to(tl.float32), KIND)
    tl.store(y + at, value * tl.load(up + at, mask=there, other=0).to(tl.float32), mask=there)


@triton.jit
def _gated_backward(gradient, gate, up, of_gate, of_up, num, KIND: tl.constexpr, NUM: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * NUM + tl.arange(0, NUM)
    there = at < num
    d = tl.load(gradient + at, mask=there, other=0).to(tl.float32)
    value, slope = _activated(tl.load(gate + at, mask=there, other=0).to(tl.float32), KIND)
    u = tl.load(up + at, mask=there, other=0).to(tl.float32)
    tl.store(of_gate + at, d * u * slope, mask=there)
    tl.store(of_up + at, d * value, mask=there)


def gated(gate: Tensor, up: Tensor, kind: int) -> Tensor:
    """Return act(gate) * up; both are contiguous."""
    y, num = torch.empty_like(gate), gate.numel()
    _gated[(triton.cdiv(num, NUMBERS),)](gate, up, y, num, KIND=kind, NUM=NUMBERS)
    return y


def gated_backward(gradient: Tensor, gate: Tensor, up: Tensor, kind: int) -> tuple[Tensor, Tensor]:
    """Return the gradients of gate and up; all are contiguous."""
    of_gate, of_up, num = torch.empty_like(gate), torch.empty_like(up), gate.numel()
    _gated_backward[(triton.cdiv(num, NUMBERS),)](gradient, gate, up, of_gate, of_up, num, KIND=kind, NUM=NUMBERS)
    return of_gate, of_up


@triton.jit(do_not_specialize=["num", "tokens", "angles"])
def _turned(
    x,
    cos,
    sin,
    y,
    num,
    tokens,
    angles,
    x_row,
    x_token,
    x_head,
    BACK: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Two halves of a head turn by the angles of its token; gradients turn back."""
    head = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    pair = tl.arange(0, COLUMNS)[None, :]
    there = (head < num) & (pair < HALF)
    token = head // HEADS
    angle = (token % angles) * 2 * HALF + pair
    c1 = tl.load(cos + angle, mask=there, other=0).to(tl.float32)
    c2 = tl.load(cos + angle + HALF, mask=there, other=0).to(tl.float32)
    s1 = tl.load(sin + angle, mask=there, other=0).to(tl.float32)
    s2 = tl.load(sin + angle + HALF, mask=there, other=0).to(tl.float32)
    row = (token // tokens).to(tl.int64)
    at = row * x_row + (token % tokens).to(tl.int64) * x_token + (head % HEADS) * x_head + pair
    x1 = tl.load(x + at, mask=there, other=0).to(tl.float32)
    x2 = tl.load(x + at + HALF, mask=there, other=0).to(tl.float32)
    at = head.to(tl.int64) * 2 * HALF + pair
    if BACK:
        tl.store(y + at, x1 * c1 + x2 * s2, mask=there)
        tl.store(y + at + HALF, x2 * c2 - x1 * s1, mask=there)
    else:
        tl.store(y + at, x1 * c1 - x2 * s1, mask=there)
        tl.store(y + at + HALF, x2 * c2 + x1 * s2, mask=there)


def turned(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """Return x [B, T, H, D] turned forth, or gradients turned back.

    The numbers of a head lie behind each other; cos and sin [..., D] are contiguous, of all tokens or of a row's.
    """
    (rows, tokens, heads, size), y = x.shape, x.new_empty(x.shape)
    num, block = rows * tokens * heads, _block(size // 2)
    sizes = num, tokens, cos.numel() // size, *x.stride()[:3]
    grid = (triton.cdiv(num, block["ROWS"]),)
    _turned[grid](x, cos, sin, y, *sizes, BACK=back, HEADS=heads, HALF=size // 2, **block)
    return y


@triton.jit
def _add(one, other):
    return one + other


@triton.jit(do_not_specialize=["rows"])
def _norm(x, weight, y, scale, rows, eps, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    there = (row < rows) & (column < WIDTH)
    v = tl.load(x + row * WIDTH + column, mask=there, other=0).to(tl.float32)
    w = tl.load(weight + column, mask=column < WIDTH, other=0).to(tl.float32)
    s = tl.rsqrt(tl.reduce(v * v, 1, _add, keep_dims=True) / WIDTH + eps)
    tl.store(scale + row, s, mask=row < rows)
    tl.store(y + row * WIDTH + column, v * s * w, mask=there)


@triton.jit(do_not_specialize=["rows"])
def _norm_backward(
    gradient, x, weight, scale, of_x, rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    there = (row < rows) & (column < WIDTH)
    s = tl.load(scale + row, mask=row < rows, other=0)
    v = tl.load(x + row * WIDTH + column, mask=there, other=0).to(tl.float32) * s
    w = tl.load(weight + column, mask=column < WIDTH, other=0).to(tl.float32)
    g = tl.load(gradient + row * WIDTH + column, mask=there, other=0).to(tl.float32) * w
    mean = tl.reduce(g * v, 1, _add, keep_dims=True) / WIDTH
    tl.store(of_x + row * WIDTH + column, s * (g - v * mean), mask=there)


def norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x / rms * weight, and 1 / rms in fp32; x is contiguous."""
    width, y = len(weight), torch.empty_like(x)
    scale = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    rows, block = scale.numel(), _block(width)
    _norm[(triton.cdiv(rows, block["ROWS"]),)](x, weight, y, scale, rows, eps, WIDTH=width, **block)
    return y, scale


def norm_backward(gradient: Tensor, x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of x; gradient and x are contiguous."""
    width, of_x = len(weight), torch.empty_like(x)
    rows, block = scale.numel(), _block(width)
    _norm_backward[(triton.cdiv(rows, block["ROWS"]),)](gradient, x, weight, scale, of_x, rows, WIDTH=width, **block)
    return of_x


def _block(columns: int) -> dict[str, int]:
    """Return what of a matrix a program takes: whole rows, in powers of two."""
    padded = triton.next_power_of_2(columns)
    return {"ROWS": max(1, NUMBERS // padded), "COLUMNS": padded}
