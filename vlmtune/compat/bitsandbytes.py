"""Names of bitsandbytes: 4-bit weights that are made or read without its kernels, and its optimizers on no device."""

from typing import Any

from vlmtune.compat.borrowed import Attribute, Name
from vlmtune.compat.libraries import BITSANDBYTES

PARAMS_4BIT = Name(
    BITSANDBYTES,
    "bitsandbytes.nn.Params4bit",
    "a packed weight without numbers is made of it; the documentation knows them as loading makes them.",
    takes="data, *, requires_grad, quant_state, blocksize, compress_statistics, quant_type, bnb_quantized",
)
QUANT_STATE = Name(
    BITSANDBYTES,
    "bitsandbytes.functional.QuantState",
    "the constants of a packed weight without numbers; its attributes have the names of its arguments.",
    takes="*, absmax, shape, code, blocksize, quant_type, dtype, offset, state2",
)
QUANT_STATE_IS_NESTED = Attribute(
    BITSANDBYTES, "bitsandbytes.functional.QuantState", "nested", "whether its constants are packed too.", plain=True
)
WEIGHT_STATE = Attribute(
    BITSANDBYTES,
    "bitsandbytes.nn.Params4bit",
    "quant_state",
    "the constants of a packed weight; other tensors lack it.",
)
LAYER_STATE = Attribute(
    BITSANDBYTES, "bitsandbytes.nn.Linear4bit", "quant_state", "the layer keeps its weight's constants too."
)
COMPUTE_TYPE_IS_SET = Attribute(
    BITSANDBYTES,
    "bitsandbytes.nn.Linear4bit",
    "compute_type_is_set",
    "else the first forward pass chooses a number format by the input's values, which a weightless one lacks.",
)
AVX512_FOR_CPU = Attribute(
    BITSANDBYTES,
    "bitsandbytes.nn.Linear4bit",
    "support_avx512bf16_for_cpu",
    "while it is true, evaluating on a CPU packs weights into a format that has no gradient.",
)

UPDATE_8BIT = Name(
    BITSANDBYTES,
    "bitsandbytes.functional.optimizer_update_8bit_blockwise",
    "its kernel runs on real tensors only, and takes no memory.",
    read_by="bitsandbytes.optim.optimizer.Optimizer2State.update_step",
)
UPDATE_32BIT = Name(
    BITSANDBYTES,
    "bitsandbytes.functional.optimizer_update_32bit",
    "its kernel runs on real tensors only, and takes no memory.",
    read_by="bitsandbytes.optim.optimizer.Optimizer2State.update_step",
)
GET_STATE_BUFFER = Name(
    BITSANDBYTES,
    "bitsandbytes.optim.optimizer.Optimizer8bit.get_state_buffer",
    "it makes an optimizer's state, in managed memory when that is paged; without a device there is none.",
    takes="p, dtype",
    read_by="bitsandbytes.optim.optimizer.Optimizer2State.init_state",
)
SYNC_GPU = Name(
    BITSANDBYTES,
    "bitsandbytes.optim.optimizer.sync_gpu",
    "its optimizers wait for the card after every parameter, and only who reads their states has to.",
    takes="t",
    read_by="bitsandbytes.optim.optimizer.Optimizer8bit.step",
)
IS_PAGED = Attribute(
    BITSANDBYTES,
    "bitsandbytes.optim.optimizer.Optimizer8bit",
    "is_paged",
    "whether its states lie in managed memory.",
    plain=True,
)

GEMM_4BIT = Name(
    BITSANDBYTES,
    "torch.ops.bitsandbytes.gemm_4bit",
    "the product with a packed weight: what it takes besides its result follows from its arguments.",
    takes="A, B, shapeB, absmax, blocksize, quant_type, bias, absmax_8bit",
)
NATIVE_LIBRARY = Name(
    BITSANDBYTES, "bitsandbytes.cextension.lib", "the loaded kernels, or a stand-in that says why they are not."
)
NATIVE_LIBRARY_ERROR = Attribute(
    BITSANDBYTES,
    "bitsandbytes.cextension.ErrorHandlerMockBNBNativeLibrary",
    "error_msg",
    "what the stand-in says.",
)


def state_of(weight: Any) -> Any:
    """Return the constants of a packed weight (a QuantState), None for any other tensor."""
    return WEIGHT_STATE.read_or_none(weight)
