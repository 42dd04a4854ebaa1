"""The varlen kernel, which no CPU has."""

import torch

from vlmtune.models.attention import varlen


class VarlenKernel:
    """Stands for it: a loop over rows. Knows the windows that it was given, and what was asked of it."""

    def __init__(self, monkeypatch) -> None:
        self.windows: list[tuple[int, int]] = []
        self.asked: list[torch.Tensor] = []
        self.real = varlen.longest_of
        monkeypatch.setattr(varlen, "varlen_attn", self)
        monkeypatch.setattr(varlen, "longest_of", self.longest_of)

    def longest_of(self, starts: torch.Tensor) -> int:
        self.asked.append(starts)
        return self.real(starts)

    def __call__(self, query, key, value, starts, _, longest, __, *, scale, window_size, enable_gqa=False):  # noqa: PLR0913
        self.windows.append(window_size)
        assert longest >= int(starts.diff().max())
        parts = []
        for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            rows = (tensor[begin:end].transpose(0, 1)[None] for tensor in (query, key, value))
            made = torch.nn.functional.scaled_dot_product_attention(
                *rows, is_causal=window_size == varlen.CAUSAL, scale=scale, enable_gqa=True
            )
            parts.append(made[0].transpose(0, 1))
        return torch.cat(parts)
