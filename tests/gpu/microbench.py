"""Times single kernels on the GPU at hand, by which the rules of predicted time were made: `make gpu-microbench`.

Milliseconds by name: products of M×N×K (TN as in a forward pass, NN as for the gradient of the input, grad w as for the
weight's), unpacking of 4-bit weights, passes over numbers, attention (B batch, H heads, T tokens, D head size; in packs
R rows, H heads of queries and of keys), convolutions (channels, sizes, windows, groups) and stretched tables of places;
copies over the bus in GB/s; what a launch, and an update of so many parameters, takes of the processor.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import bitsandbytes
import torch
import torch.nn.functional as F
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.profiled import milliseconds  # noqa: E402

from vlmtune.models.attention.varlen import SAYS_GROUPED, varlen_attn  # noqa: E402

CARD = "cuda"
FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp32 tf32": torch.float32}
PRODUCTS = (
    *((64, 2048, 2048), (256, 2048, 2048), (300, 2048, 2048), (300, 11008, 2048), (300, 2048, 11008)),
    *((1024, 2048, 2048), (1600, 2048, 2048), (1600, 11008, 2048), (1600, 2048, 11008)),
    *((4096, 4096, 4096), (4096, 11008, 4096), (8192, 8192, 8192), (1600, 151936, 2048), (96, 151936, 2048)),
    *((1600, 16, 2048), (1600, 64, 4096), (1600, 2048, 16), (1600, 11008, 16), (16, 2048, 1600), (16, 11008, 1600)),
    *((300, 16, 2048), (6400, 3420, 1280), (6400, 1280, 3420), (6400, 3424, 1280), (6400, 1280, 3424)),
    *((6400, 3456, 1280), (6400, 1280, 3456), (6400, 1280, 1280), (6400, 3840, 1280), (1200, 3420, 1280)),
    *((1200, 1280, 3420), (577, 1024, 1024), (577, 4096, 1024), (1, 2048, 2048)),
)
WEIGHTS = ((2048, 2048), (11008, 2048), (4096, 4096), (14336, 4096), (256, 2048), (5120, 27648))
NUMBERS = (1 << 16, 1 << 20, 1 << 22, 1 << 24, 1 << 26, 1 << 28)
TOKENS = ((300, 2048), (1600, 2048), (1600, 3584), (6400, 1280))
FP32_MASK = "fp32 mask"
ATTENTION = (
    *((1, 16, 300, 128, True), (1, 16, 1600, 128, True), (1, 28, 1600, 128, True), (1, 32, 1600, 128, True)),
    *((4, 16, 300, 128, True), (1, 16, 4096, 128, True), (1, 16, 64, 80, False), (1, 16, 1200, 80, False)),
    *((1, 16, 6400, 80, False), (1, 16, 577, 64, False), (1, 16, 729, 72, False), (16, 16, 576, 64, False)),
    *((1, 8, 1600, 256, True), (1, 16, 1600, 128, "mask"), (4, 16, 1600, 128, "mask")),
    *((1, 8, 590, 256, "mask"), (1, 8, 590, 512, True), (1, 12, 2520, 64, FP32_MASK)),
)
PACKS = (
    *(
        (16, 16, 2, 300, 128, True),
        (8, 16, 2, 1480, 128, True),
        (4, 32, 32, 856, 128, True),
        (3, 32, 8, 250, 128, True),
    ),
    *(
        (2, 28, 4, 1480, 128, True),
        (1, 32, 8, 4096, 128, True),
        (8, 16, 16, 3640, 64, False),
        (16, 16, 16, 560, 64, False),
    ),
    *((600, 16, 16, 64, 80, False), (8, 16, 16, 4800, 80, False)),
)
"""Rows, heads of queries and of keys, tokens of a row, head size, whether causal: of language models and of towers."""
CONVOLUTIONS = (
    *((384, 384, (64, 64), (7, 7), 384), (384, 384, (64, 64), (3, 3), 384), (192, 192, (128, 128), (7, 7), 192)),
    *((192, 192, (128, 128), (3, 3), 192), (8192, 8192, (461,), (4,), 8192), (2048, 2048, (463,), (3,), 2048)),
    *((384, 1536, (64, 64), (1, 1), 1), (1536, 384, (64, 64), (1, 1), 1), (3, 96, (512, 512), (3, 3), 1)),
)
"""Channels in and out, sizes of pictures or texts, of windows, groups: FastVLM's tower, layers of Qwen3.5 and LFM2."""
STRETCHED = (("bicubic", 1664), ("bicubic", 4096), ("bilinear", 1152))
"""How tables of 16 by 16 places are stretched, and their channels."""
COPIED_BYTES = 1 << 28
PARAMETERS = (10, 250, 500)
Found = dict[str, float | str]


def products(found: Found) -> None:
    """Time matrix products of each format and shape."""
    for name, dtype in FORMATS.items():
        torch.backends.cuda.matmul.allow_tf32 = "tf32" in name
        for m, n, k in PRODUCTS:
            x, w, g = (torch.randn(*shape, device=CARD, dtype=dtype) for shape in ((m, k), (n, k), (m, n)))
            kind = f"gemm {name} {m}x{n}x{k}"
            found[f"{kind} TN"] = milliseconds(lambda x=x, w=w: x @ w.T, 10)
            if name in ("bf16", "fp32"):
                found[f"{kind} NN(grad x)"] = milliseconds(lambda g=g, w=w: g @ w, 10)
                found[f"{kind} grad w"] = milliseconds(lambda g=g, x=x: g.T @ x, 10)
    torch.backends.cuda.matmul.allow_tf32 = False


def unpacking(found: Found) -> None:
    """Time weights that are unpacked, whose constants are packed too or not."""
    for shape in WEIGHTS:
        for nested in (True, False):
            weight = torch.randn(*shape, device=CARD, dtype=torch.bfloat16)
            packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=nested)
            found[f"dequant {shape} nested={nested}"] = milliseconds(lambda p=packed, s=state: dequantize_4bit(p, s))


def passes(found: Found) -> None:
    """Time operations over many numbers, and those of layers over tokens."""
    for number in NUMBERS:
        x, y = (torch.randn(number, device=CARD, dtype=torch.bfloat16) for _ in range(2))
        f, out = torch.empty(number, device=CARD), torch.empty_like(x)
        runs = {
            "add bf16": lambda x=x, y=y, out=out: torch.add(x, y, out=out),
            "copy bf16->fp32": lambda x=x, f=f: f.copy_(x),
            "mul fp32": lambda f=f: f.mul_(1.01),
            "copy bf16": lambda x=x, out=out: out.copy_(x),
            "silu bf16": lambda x=x: F.silu(x),
            "sum fp32": lambda f=f: f.sum(),
            "zero fp32": lambda f=f: f.zero_(),
        }
        found |= {f"{name} {number}": milliseconds(run) for name, run in runs.items()}
    for tokens, width in TOKENS:
        found |= {f"{name} {tokens}x{width}": milliseconds(run) for name, run in _of_layers(tokens, width).items()}
    logits = torch.randn(96, 151936, device=CARD, dtype=torch.bfloat16)
    labels, wide = torch.randint(0, 151936, (96,), device=CARD), logits.float()
    found["float logits"] = milliseconds(logits.float)
    found["cross entropy fp32 96x151936"] = milliseconds(lambda: F.cross_entropy(wide, labels))


def _of_layers(tokens: int, width: int) -> dict[str, Callable[[], object]]:
    x, w = (torch.randn(*shape, device=CARD, dtype=torch.bfloat16) for shape in ((tokens, width), (width,)))
    f, half, order = x.float(), width // 2, torch.arange(tokens, device=CARD)
    return {
        "mean last fp32": lambda: f.pow(2).mean(-1, keepdim=True),
        "bcast mul fp32": lambda: f * f[:, :1],
        "weight mul bf16": lambda: w * x,
        "cat halves": lambda: torch.cat((-x[:, half:], x[:, :half]), -1),
        "neg strided": lambda: -x[:, half:],
        "layer_norm": lambda: F.layer_norm(x, (width,), w, w),
        "rms_norm": lambda: F.rms_norm(x, (width,), w, 1e-6),
        "softmax fp32": lambda: f.softmax(-1),
        "transpose contiguous": lambda: x.T.contiguous(),
        "index": lambda: x[order],
        "gelu tanh": lambda: F.gelu(x, approximate="tanh"),
    }


def attention(found: Found) -> None:
    """Time attention and its backward pass: causal, over everything, and with a mask, in fp32 too."""
    for batch, heads, tokens, size, causal in ATTENTION:
        shape = (batch, tokens, heads, size)
        dtype = torch.float32 if causal == FP32_MASK else torch.bfloat16
        q, k, v = (torch.randn(*shape, device=CARD, dtype=dtype).transpose(1, 2).requires_grad_() for _ in "qkv")
        how = {"is_causal": causal is True}
        if causal in ("mask", FP32_MASK):
            how = {"attn_mask": torch.ones(batch, 1, tokens, tokens, device=CARD, dtype=torch.bool).tril()}
        kind = f"sdpa B{batch} H{heads} T{tokens} D{size} {causal}"
        with torch.no_grad():
            found[f"{kind} fwd"] = milliseconds(
                lambda q=q, k=k, v=v, how=how: F.scaled_dot_product_attention(q, k, v, **how)
            )
        out = F.scaled_dot_product_attention(q, k, v, **how)
        given = torch.randn_like(out)
        found[f"{kind} bwd"] = milliseconds(
            lambda out=out, q=q, k=k, v=v, given=given: torch.autograd.grad(out, (q, k, v), given, retain_graph=True)
        )


def packs(found: Found) -> None:
    """Time attention of rows in one call."""
    for rows, heads, shared, tokens, size, causal in PACKS:
        starts = torch.arange(
            0, (rows + 1) * tokens, tokens, dtype=torch.int32, device="cuda" if CARD == "cuda" else "cpu"
        )
        q, k, v = (
            torch.randn(rows * tokens, number, size, device=CARD, dtype=torch.bfloat16).requires_grad_()
            for number in (heads, shared, shared)
        )
        how = {"window_size": (-1, 0) if causal else (-1, -1)} | ({"enable_gqa": True} if SAYS_GROUPED else {})

        def run(q=q, k=k, v=v, starts=starts, tokens=tokens, how=how) -> torch.Tensor:
            return varlen_attn(q, k, v, starts, starts, tokens, tokens, **how)

        kind = f"varlen R{rows} H{heads},{shared} T{tokens} D{size} {causal}"
        with torch.no_grad():
            found[f"{kind} fwd"] = milliseconds(run)
        out = run()
        given = torch.randn_like(out)
        found[f"{kind} bwd"] = milliseconds(
            lambda out=out, q=q, k=k, v=v, given=given: torch.autograd.grad(out, (q, k, v), given, retain_graph=True)
        )


def convolutions(found: Found) -> None:
    """Time convolutions and what backward makes of their inputs: depthwise ones, and those that are products."""
    for channels, made, sizes, window, groups in CONVOLUTIONS:
        x = torch.randn(1, channels, *sizes, device=CARD, dtype=torch.bfloat16).requires_grad_()
        w = torch.randn(made, channels // groups, *window, device=CARD, dtype=torch.bfloat16)
        convolve = F.conv1d if len(sizes) == 1 else F.conv2d
        how = {"padding": window[-1] // 2 if len(sizes) == 2 else window[0] - 1, "groups": groups}
        _both_ways(found, f"conv {channels}->{made} {sizes} {window} G{groups}", x, partial(convolve, x, w, **how))


def stretching(found: Found) -> None:
    """Time tables of places that are stretched, as they lie in memory: channel behind channel of each place."""
    for mode, channels in STRETCHED:
        x = torch.randn(1, 16, 16, channels, device=CARD).permute(0, 3, 1, 2).requires_grad_()
        for finer in (False, True):
            how = {"size": (32, 32), "mode": mode, "antialias": finer}
            _both_ways(found, f"stretch {mode} antialias={finer} {channels}", x, partial(F.interpolate, x, **how))


def _both_ways(found: Found, kind: str, x: torch.Tensor, run: Callable[[], torch.Tensor]) -> None:
    with torch.no_grad():
        found[f"{kind} fwd"] = milliseconds(run)
    out = run()
    given = torch.randn_like(out)
    found[f"{kind} bwd"] = milliseconds(lambda: torch.autograd.grad(out, x, given, retain_graph=True))


def bus(found: Found) -> None:
    """Time copies between main memory and the card."""
    pinned = torch.empty(COPIED_BYTES, pin_memory=True, dtype=torch.uint8)
    plain, there = (
        torch.empty(COPIED_BYTES, dtype=torch.uint8),
        torch.empty(COPIED_BYTES, device=CARD, dtype=torch.uint8),
    )

    def gb_s(run: Callable[[], object], times: int) -> float:
        return COPIED_BYTES / milliseconds(run, times) / 1e6

    found["h2d pinned GB/s"] = gb_s(lambda: there.copy_(pinned, non_blocking=True), 5)
    found["d2h pinned GB/s"] = gb_s(lambda: pinned.copy_(there, non_blocking=True), 5)
    found["h2d pageable GB/s"] = gb_s(lambda: there.copy_(plain), 3)


def processor(found: Found) -> None:
    """Time what launching takes, and updates of adapters' parameters."""
    one, rows = torch.zeros(1, device=CARD), torch.randn(4, 2048, device=CARD, dtype=torch.bfloat16)
    weight = torch.randn(2048, 2048, device=CARD, dtype=torch.bfloat16)
    found["launch us (add_)"] = 1e6 * _by_the_wall_s(lambda: one.add_(1), 20_000)
    found["launch us (matmul)"] = 1e6 * _by_the_wall_s(lambda: rows @ weight, 5_000)
    for number in PARAMETERS:
        parameters = [torch.nn.Parameter(torch.randn(16, 2048, device=CARD)) for _ in range(number)]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizers = {
            "bnb adamw8bit": bitsandbytes.optim.AdamW8bit(parameters, lr=1e-4),
            "bnb paged8": bitsandbytes.optim.PagedAdamW8bit(parameters, lr=1e-4),
            "torch foreach": torch.optim.AdamW(parameters, lr=1e-4, foreach=True),
            "torch fused": torch.optim.AdamW(parameters, lr=1e-4, fused=True),
        }
        for name, optimizer in optimizers.items():
            optimizer.step()  # makes the states
            found[f"optimizer {name} {number} tensors wall ms"] = 1e3 * _by_the_wall_s(optimizer.step, 5)


def _by_the_wall_s(run: Callable[[], object], times: int) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(times):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / times


def main(out: Path) -> None:
    """Write all to `out`."""
    found: Found = {}
    for measure in (products, unpacking, passes, attention, packs, convolutions, stretching, bus, processor):
        measure(found)
    found |= {"gpu": torch.cuda.get_device_name(0), "torch": torch.__version__}
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
