"""Times what many kernels of the library make beside one kernel: `python tests/gpu/fused.py OUT.json`.

Norms, gated MLPs and rotary positions at the sizes of a pack, forward and backward, each by the library's code, by
torch's own kernel where there is one, and by Triton. Half a minute.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.profiled import milliseconds  # noqa: E402

from vlmtune.compat.torch import FUSED_RMS_NORM, FUSED_RMS_NORM_BACKWARD  # noqa: E402
from vlmtune.models.speed import kernels  # noqa: E402
from vlmtune.models.speed.gated import SILU  # noqa: E402
from vlmtune.runs.versions import library_versions  # noqa: E402

TOKENS = 12_288
NORMS = {"hidden of Qwen3-VL-4B": (1, 2560), "hidden of LLaVA": (1, 4096), "queries": (32, 128), "keys": (8, 128)}
WIDTHS = {"Qwen3-VL-4B": 9728, "Qwen2.5-VL-7B": 18_944}
HEADS = {"queries": (32, 128, False), "keys": (8, 128, False), "a tower's": (16, 64, True)}
Pass = Callable[[], object]


def took_ms(run: Pass) -> float:
    """Return what something takes on the card; without a card the processor's time."""
    return milliseconds(run) if torch.cuda.is_available() else seconds(run) * 1e3


def figures(name: str, size: str, how: str, forward: Pass, backward: Pass, compiled_s: float = 0.0) -> dict:
    """Return both times of one way."""
    shown = {"of": name, "size": size, "how": how, "compiled_s": round(compiled_s, 3)}
    return shown | {"forward_ms": took_ms(forward), "backward_ms": took_ms(backward)}


def seconds(run: Pass) -> float:
    """Return what the first call takes: Triton compiles."""
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def by_autograd(run: Callable[[], Tensor], gradient: Tensor, *of: Tensor) -> Pass:
    """Return a pass that is the backward one of what autograd has seen."""
    y = run()
    return lambda: torch.autograd.grad(y, of, gradient, retain_graph=True)


def norms(device: str, tokens: int, size: str):
    """Yield figures of a norm."""
    heads, width = NORMS[size]
    x = torch.randn(tokens, heads, width, device=device, dtype=torch.bfloat16).requires_grad_()
    gradient = torch.randn_like(x)
    module = LlamaRMSNorm(width).to(device, torch.bfloat16).requires_grad_(False)
    weight, eps = module.weight, module.variance_epsilon
    yield figures("norm", size, "library", lambda: module(x), by_autograd(lambda: module(x), gradient, x))
    with torch.no_grad():
        fused, fused_backward = FUSED_RMS_NORM.get(), FUSED_RMS_NORM_BACKWARD.get()
        if device == "cuda":
            _, scale = fused(x, (width,), weight, eps)
            back = lambda: fused_backward(gradient, x, (width,), scale, weight, [True, False])  # noqa: E731
            yield figures("norm", size, "torch", lambda: fused(x, (width,), weight, eps), back)
        _, scale = kernels.norm(x, weight, eps)
        back = lambda: kernels.norm_backward(gradient, x, scale, weight)  # noqa: E731
        took = seconds(back)
        yield figures("norm", size, "triton", lambda: kernels.norm(x, weight, eps), back, took)


def gates(device: str, tokens: int, size: str):
    """Yield figures of a gated MLP."""
    width = WIDTHS[size]
    gate, up = (torch.randn(tokens, width, device=device, dtype=torch.bfloat16).requires_grad_() for _ in range(2))
    gradient = torch.randn_like(up)
    library = lambda: F.silu(gate) * up  # noqa: E731
    yield figures("gated", size, "library", library, by_autograd(library, gradient, gate, up))
    with torch.no_grad():
        back = lambda: kernels.gated_backward(gradient, gate, up, SILU)  # noqa: E731
        took = seconds(back)
        yield figures("gated", size, "triton", lambda: kernels.gated(gate, up, SILU), back, took)


def rotary(device: str, tokens: int, size: str):
    """Yield figures of positions."""
    heads, width, in_tower = HEADS[size]
    x = torch.randn(tokens, heads, width, device=device, dtype=torch.bfloat16).requires_grad_()
    cos, sin = (torch.randn(tokens, width, device=device, dtype=torch.bfloat16) for _ in range(2))
    gradient = torch.randn_like(x)
    if in_tower:
        library = lambda: apply_rotary_pos_emb_vision(x, x[:, :1], cos, sin)[0]  # noqa: E731
    else:
        library = lambda: apply_rotary_pos_emb(x[None], x[None, :, :1], cos[None], sin[None], 2)[0][0]  # noqa: E731
    yield figures("rotary", size, "library", library, by_autograd(library, gradient, x))
    with torch.no_grad():
        took = seconds(lambda: kernels.turned(x[None], cos, sin, True))
        forth = lambda: kernels.turned(x[None], cos, sin, False)  # noqa: E731
        back = lambda: kernels.turned(gradient[None], cos, sin, True)  # noqa: E731
        yield figures("rotary", size, "triton", forth, back, took)


def main() -> None:
    """Measure all and write after each what is known."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    asked = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name(0) if device == "cuda" else "CPU"
    found: dict = {"gpu": name, "versions": library_versions(), "tokens": asked.tokens, "runs": []}
    ways = [(norms, size) for size in NORMS] + [(gates, size) for size in WIDTHS] + [(rotary, size) for size in HEADS]
    for way, size in ways:
        for run in way(device, asked.tokens, size):
            found["runs"].append(run)
            asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(*run.values(), flush=True)


if __name__ == "__main__":
    main()
