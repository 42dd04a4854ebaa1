"""The vision side of Qwen-VL: a ViT without class token, and a resampler that makes 256 features of any image.

Shapes: B images, P patches, W width of the tower, Q queries, E width of the language model.
Parameter names are those of the published files.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlmtune.compat.transformers import GRADIENT_CHECKPOINTING_LAYER
from vlmtune.models.qwen_vl.configuration import HEAD_DIM_OF_RESAMPLER, NUM_QUERIES, QwenVLConfig

GradientCheckpointingLayer = GRADIENT_CHECKPOINTING_LAYER.get()

NORM_EPSILON = 1e-6


class QwenVLVisionAttention(nn.Module):
    """Attention among all patches; the rows of `in_proj` are ordered head by head: its q, its k, its v."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden_BPW: Tensor) -> Tensor:
        batch, patches, width = hidden_BPW.shape
        heads = self.in_proj(hidden_BPW).view(batch, patches, self.num_heads, 3, width // self.num_heads)
        query, key, value = heads.permute(3, 0, 2, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, patches, width))


class QwenVLVisionMLP(nn.Module):
    """Two layers with the exact GELU between them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, inner)
        self.c_proj = nn.Linear(inner, width)

    def forward(self, hidden_BPW: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(hidden_BPW)))


class QwenVLVisionBlock(GradientCheckpointingLayer):
    """One layer of the tower."""

    def __init__(self, visual: dict) -> None:
        super().__init__()
        width = visual["width"]
        self.ln_1 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.ln_2 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.attn = QwenVLVisionAttention(width, visual["heads"])
        self.mlp = QwenVLVisionMLP(width, int(width * visual["mlp_ratio"]))

    def forward(self, hidden_BPW: Tensor) -> Tensor:
        hidden_BPW = hidden_BPW + self.attn(self.ln_1(hidden_BPW))
        return hidden_BPW + self.mlp(self.ln_2(hidden_BPW))


class QwenVLVisionLayers(nn.Module):
    """The stack of layers; a module of its own because the published names have one."""

    def __init__(self, visual: dict) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(QwenVLVisionBlock(visual) for _ in range(visual["layers"]))

    def forward(self, hidden_BPW: Tensor) -> Tensor:
        for block in self.resblocks:
            hidden_BPW = block(hidden_BPW)
        return hidden_BPW


class QwenVLResamplerAttention(nn.Module):
    """Attention of the queries to the patches; rows of `in_proj` are all of q, all of k, all of v."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads = width // HEAD_DIM_OF_RESAMPLER
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query_QE: Tensor, key_BPE: Tensor, value_BPE: Tensor) -> Tensor:
        batch = key_BPE.shape[0]
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query, key, value = (
            F.linear(tensor, weight, bias).unflatten(-1, (self.num_heads, HEAD_DIM_OF_RESAMPLER)).transpose(-3, -2)
            for tensor, weight, bias in zip((query_QE, key_BPE, value_BPE), weights, biases, strict=True)
        )
        mixed = F.scaled_dot_product_attention(query.expand(batch, -1, -1, -1), key, value)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class QwenVLResampler(nn.Module):
    """Cross-attention of 256 learned queries to the patches. Keys know their place in the image, values do not."""

    def __init__(self, visual: dict) -> None:
        super().__init__()
        width = visual["output_dim"]
        # Computed once and stored in the file; never trained.
        self.pos_embed = nn.Parameter(torch.empty(NUM_QUERIES, width), requires_grad=False)
        self.query = nn.Parameter(torch.empty(NUM_QUERIES, width))
        self.kv_proj = nn.Linear(visual["width"], width, bias=False)
        self.attn = QwenVLResamplerAttention(width)
        self.ln_q = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.ln_kv = nn.LayerNorm(width, eps=NORM_EPSILON)

    def forward(self, hidden_BPW: Tensor) -> Tensor:
        places_QE = self.pos_embed.detach()
        values_BPE = self.ln_kv(self.kv_proj(hidden_BPW))
        keys_BPE = values_BPE + resized_places(places_QE, hidden_BPW.shape[1])
        return self.attn(self.ln_q(self.query) + places_QE, keys_BPE, values_BPE)


class QwenVLVisionTower(nn.Module):
    """Pixels [B, 3, H, W] → states of the patches [B, P, W], and features [B, 256, E] as `pooler_output`."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        visual = config.visual
        width, out, patch = visual["width"], visual["output_dim"], visual["patch_size"]
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.positional_embedding = nn.Parameter(torch.empty(NUM_QUERIES, width))
        self.ln_pre = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.transformer = QwenVLVisionLayers(visual)
        self.attn_pool = QwenVLResampler(visual)
        self.ln_post = nn.LayerNorm(out, eps=NORM_EPSILON)
        self.proj = nn.Parameter(torch.empty(out, out))

    def forward(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        patches_BPW = self.conv1(pixel_values.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        places_PW = resized_places(self.positional_embedding, patches_BPW.shape[1])
        hidden_BPW = self.transformer(self.ln_pre(patches_BPW + places_PW))
        features_BQE = self.ln_post(self.attn_pool(hidden_BPW)) @ self.proj
        return BaseModelOutputWithPooling(last_hidden_state=hidden_BPW, pooler_output=features_BQE)


def resized_places(places: Tensor, num_patches: int) -> Tensor:
    """Return the embeddings of a square grid [n², C], stretched to a square grid of `num_patches`."""
    side, wanted = math.isqrt(places.shape[0]), math.isqrt(num_patches)
    if side == wanted:
        return places
    grid = places.float().view(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(wanted, wanted), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).flatten(0, 2).to(places.dtype)


def sine_places(num_places: int, channels: int) -> Tensor:
    """Return the fixed embeddings of a square grid: sines and cosines of the column, then of the row."""
    side, quarter = math.isqrt(num_places), channels // 4
    omega = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * omega
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = waves.repeat(side, 1), waves.repeat_interleave(side, 0)
    return torch.cat([columns, rows], dim=1).float()
