"""What the original code computed from a tiny random checkpoint, and the written description in plain torch."""

import json
import lzma
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from vlmtune.models.qwen_vl import QwenVLForConditionalGeneration, QwenVLImageProcessor
from vlmtune.models.qwen_vl.tokenizer import build_tokenizer

ORACLE = Path(__file__).parent / "oracle"
EPSILON = 1e-6


class Reference:
    """The language model, straight from the description and the published names."""

    def __init__(self, folder: Path, **changes) -> None:
        self.config = {**json.loads((folder / "config.json").read_text()), **changes}
        self.weights = load_file(folder / "model.safetensors")

    def logits(self, ids: Tensor, mask: Tensor | None = None, *, training: bool = False) -> Tensor:
        """Logits [B, T, V] of ids [B, T] without images; mask [B, T] is 0 at padding."""
        w, config = self.weights, self.config
        hidden = w["transformer.wte.weight"][ids]
        length = ids.shape[1]
        allowed = torch.ones(length, length).tril().bool()[None]
        if mask is not None:
            allowed = allowed & mask.bool()[:, None]
        for layer in range(config["num_hidden_layers"]):
            name = f"transformer.h.{layer}."
            hidden = hidden + self._attention(self._norm(hidden, name + "ln_1"), name + "attn.", allowed, training)
            inner = self._norm(hidden, name + "ln_2")
            up, gate = F.linear(inner, w[name + "mlp.w1.weight"]), F.linear(inner, w[name + "mlp.w2.weight"])
            hidden = hidden + F.linear(up * F.silu(gate), w[name + "mlp.c_proj.weight"])
        return F.linear(self._norm(hidden, "transformer.ln_f"), w["lm_head.weight"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON) * self.weights[name + ".weight"]

    def _attention(self, x: Tensor, name: str, allowed: Tensor, training: bool) -> Tensor:
        config, w = self.config, self.weights
        heads, longest, length = config["num_attention_heads"], config["seq_length"], x.shape[1]
        size = config["hidden_size"] // heads
        fused = F.linear(x, w[name + "c_attn.weight"], w[name + "c_attn.bias"])
        q, k, v = (t.unflatten(-1, (heads, size)).transpose(1, 2) for t in fused.chunk(3, -1))
        alpha = 1.0
        if not training and config["use_dynamic_ntk"]:
            alpha = max(2 ** math.ceil(math.log(length / longest, 2) + 1) - 1, 1)
        base = config["rotary_emb_base"] * alpha ** (size / (size - 2))
        angles = torch.outer(torch.arange(length).float(), base ** (-torch.arange(0, size, 2).float() / size))
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        q, k = (t * cos + torch.cat([-t[..., size // 2 :], t[..., : size // 2]], -1) * sin for t in (q, k))
        if not training and config["use_logn_attn"]:
            q = q * torch.tensor([math.log(i, longest) if i > longest else 1.0 for i in range(1, length + 1)])[:, None]
        scores = (q @ k.transpose(-1, -2) / math.sqrt(size)).masked_fill(~allowed[:, None], torch.finfo(q.dtype).min)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return F.linear(mixed, w[name + "c_proj.weight"])


@pytest.fixture(scope="session")
def oracle_folder() -> Path:
    """The checkpoint, with names and config of the published one."""
    return ORACLE


@pytest.fixture(scope="session")
def oracle() -> SimpleNamespace:
    """Inputs and results of the original code; ids of an image's name are replaced by slots."""
    values = {key: torch.from_numpy(value) for key, value in np.load(ORACLE / "oracle.npz").items()}
    start = json.loads((ORACLE / "config.json").read_text())["visual"]["image_start_id"]
    for key in ("one_ids", "two_ids"):
        for row, column in (values[key] == start).nonzero().tolist():
            values[key][row, column + 1 : column + 257] = start + 2
    images = [Image.open(ORACLE / f"img_{name}.png") for name in "ab"]
    a, b = QwenVLImageProcessor()(images, return_tensors="pt")["pixel_values"]
    return SimpleNamespace(**values, one_pixels=torch.stack([a]), two_pixels=torch.stack([a, b, b]))


@pytest.fixture
def model(oracle_folder) -> QwenVLForConditionalGeneration:
    """The checkpoint, loaded."""
    return QwenVLForConditionalGeneration.from_pretrained(oracle_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def reference() -> type[Reference]:
    """The description in plain torch: `reference(folder, **config).logits(ids, mask, training=)`."""
    return Reference


@pytest.fixture(scope="session")
def tiktoken_file(tmp_path_factory) -> Path:
    """The vocabulary as published."""
    path = tmp_path_factory.mktemp("vocabulary") / "qwen.tiktoken"
    path.write_bytes(lzma.decompress((ORACLE / "qwen.tiktoken.xz").read_bytes()))
    return path


@pytest.fixture(scope="session")
def qwen_tokenizer(tiktoken_file):
    """The tokenizer built from it."""
    return build_tokenizer(tiktoken_file)


@pytest.fixture(scope="session")
def cases() -> dict:
    """Texts and conversations with the ids and labels of the original tokenizer and training script."""
    return json.loads((ORACLE / "tokenizer_cases.json").read_text(encoding="utf-8"))
