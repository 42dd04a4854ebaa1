"""4-bit layers without storage: what quantising leaves of a weight, in shapes alone."""

import torch
from bitsandbytes.nn import Linear4bit
from transformers import BitsAndBytesConfig

from vlmtune.compat import bitsandbytes as bnb


def quantise_nothing(module: Linear4bit, quantization: BitsAndBytesConfig) -> None:
    """Give a weightless layer the packed weight and the constants that quantising would have made."""

    def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    numbers = module.out_features * module.in_features
    blocks = -(-numbers // 64)
    nested = quantization.bnb_4bit_use_double_quant
    constants = bnb.QUANT_STATE(
        absmax=empty(-(-blocks // 256), dtype=torch.float32),
        code=empty(256, dtype=torch.float32),
        blocksize=256,
        dtype=torch.float32,
    )
    state = bnb.QUANT_STATE(
        absmax=empty(blocks, dtype=torch.uint8 if nested else torch.float32),
        shape=torch.Size((module.out_features, module.in_features)),
        dtype=quantization.bnb_4bit_compute_dtype,
        blocksize=64,
        code=empty(16, dtype=torch.float32),
        quant_type=quantization.bnb_4bit_quant_type,
        offset=empty(dtype=torch.float32) if nested else None,
        state2=constants if nested else None,
    )
    module.weight = bnb.PARAMS_4BIT(
        empty((numbers + 1) // 2, 1, dtype=torch.uint8),
        requires_grad=False,
        quant_state=state,
        blocksize=64,
        compress_statistics=nested,
        quant_type=quantization.bnb_4bit_quant_type,
        bnb_quantized=True,
    )
    bnb.LAYER_STATE.write(module, state)
    bnb.COMPUTE_TYPE_IS_SET.write(module, True)
