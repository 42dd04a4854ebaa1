"""Autocast for tensors without storage: torch's own asks each tensor for its device, and does nothing on meta.

ATen/autocast_mode.h says which operations take their inputs in 16 bits and which in fp32. Casts happen before autograd
looks on, so that the backward pass keeps what they made; those of weights are kept until the outermost autocast ends.
A kernel for each of these operations is registered for a device type that nobody has, whose autocast is then on.
Attention is not among them: `attention.py` takes its inputs in 16 bits from here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from vlmtune.compat import torch as borrowed
from vlmtune.estimate.simulate.outputs import tensors_in

KEY = borrowed.DISPATCH_KEY.get()
KEY_ALONE = borrowed.DISPATCH_KEY_SET(KEY)
without_keys = borrowed.EXCLUDE_KEYS.get()  # looked up once: it is called at every operation
STATE = "cpu"
"""Labels are real and on the CPU, so the step turns on the autocast of that device type, and recomputation again."""

IN_16_BITS = """
_convolution.deprecated _convolution conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d.input
conv_transpose3d.input convolution prelu addmm addmv addr matmul einsum mm mv linalg_vecdot linear addbmm baddbmm bmm
chain_matmul linalg_multi_dot _thnn_fused_lstm_cell _thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
_scaled_dot_product_flash_attention scaled_dot_product_attention
""".split()
IN_FP32 = """
acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar pow.Tensor_Tensor
pow.Scalar softplus layer_norm native_layer_norm rms_norm group_norm frobenius_norm.dim nuclear_norm nuclear_norm.dim
cosine_similarity poisson_nll_loss cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss
smooth_l1_loss huber_loss mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss
multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp upsample_nearest1d
_upsample_nearest_exact1d upsample_nearest2d _upsample_nearest_exact2d upsample_nearest3d _upsample_nearest_exact3d
upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d upsample_bicubic2d
_upsample_bicubic2d_aa
""".split()
TO_FP32 = """
prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm linalg_matrix_norm
linalg_matrix_norm.str_ord sum sum.dim_IntList
""".split()
"""Their result is fp32, their inputs stay as they are."""
WIDEST = "addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add".split()
PADDED = ("conv1d.padding", "conv2d.padding", "conv3d.padding")
"""Autocast on a CPU knows them, which pixel values without a GPU would meet first; else what they call is known."""
NORMS = {"norm.Scalar": "norm.ScalarOpt_dtype", "norm.ScalarOpt_dim": "norm.ScalarOpt_dim_dtype"}


@contextmanager
def autocast_of(device: str) -> Iterator[None]:
    """Make `torch.autocast` act on tensors without storage as it does on `device` (`cuda` or `cpu`)."""
    casts = _Casts()
    here, everywhere = borrowed.LIBRARY("aten", "IMPL"), borrowed.LIBRARY("_", "IMPL")
    everywhere.fallback(borrowed.FALLTHROUGH.get(), KEY.name)
    for name, kernel in _kernels(casts).items():
        if name in PADDED or borrowed.HAS_KERNEL(f"aten::{name}", f"Autocast{device.upper()}"):
            here.impl(name, kernel, KEY.name)
    clear = torch.clear_autocast_cache

    def cleared() -> None:
        casts.kept.clear()
        clear()

    torch.set_autocast_enabled("privateuseone", True)
    try:
        with borrowed.CLEAR_AUTOCAST_CACHE.replaced(cleared), borrowed.INCLUDE_KEY(KEY):
            yield
    finally:
        torch.set_autocast_enabled("privateuseone", False)
        for library in (here, everywhere):
            borrowed.LIBRARY_DESTROY.read(library)()


def _off():
    return without_keys(KEY_ALONE)


def in_16_bits(*values) -> list:
    """Return tensors as an operation of `IN_16_BITS` takes them; others as they are. For tensors without storage."""
    if not torch.is_autocast_enabled(STATE):
        return list(values)
    with _off():
        return [_cast(value, partial(_to, torch.get_autocast_dtype(STATE))) for value in reversed(values)][::-1]


class _Casts:
    """Casts inputs, and keeps those of weights."""

    def __init__(self) -> None:
        self.kept: dict[Tensor, Tensor] = {}

    def lower(self, tensor: Tensor) -> Tensor:
        """Return the tensor in autocast's format."""
        dtype = torch.get_autocast_dtype(STATE)
        if not (_is_weight(tensor) and torch.is_autocast_cache_enabled()):
            return _to(dtype, tensor)
        if tensor not in self.kept:
            self.kept[tensor] = tensor.to(dtype)
        return self.kept[tensor]


def _is_weight(tensor: Tensor) -> bool:
    learns = tensor.dtype == torch.float32 and tensor.requires_grad and tensor.is_leaf
    return learns and not borrowed.IS_VIEW.read(tensor)()


def _kernels(casts: _Casts) -> dict[str, Callable]:
    """Return what runs in place of each operation."""
    rules = [((*IN_16_BITS, *PADDED), _inputs(casts.lower)), (IN_FP32, _inputs(partial(_to, torch.float32)))]
    rules += [(TO_FP32, _result_in_fp32), (WIDEST, _in_the_widest), (NORMS, _norm_in_fp32)]
    return {name: partial(_kernel, rule, name) for names, rule in rules for name in names}


def _kernel(rule: Callable, name: str, *args, **kwargs):
    with _off():
        return (rule if torch.is_autocast_enabled(STATE) else _run)(name, args, kwargs)


def _run(name: str, args: tuple, kwargs: dict):
    return _operation(name)(*args, **kwargs)


def _operation(name: str) -> Callable:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _inputs(cast: Callable[[Tensor], Tensor]) -> Callable:
    def rule(name: str, args: tuple, kwargs: dict):
        # As compiled, torch's own call makes its arguments from the last to the first, and drops them the other way.
        kwargs = {key: _cast(value, cast) for key, value in reversed(kwargs.items())}
        values = [_cast(value, cast) for value in reversed(args)]
        out = _run(name, tuple(reversed(values)), kwargs)
        while values:
            values.pop()
        return out

    return rule


def _result_in_fp32(name: str, args: tuple, kwargs: dict):
    place = [argument.name for argument in borrowed.OPERATION_SCHEMA.read(_operation(name)).arguments].index("dtype")
    given = args[place] if len(args) > place else kwargs.get("dtype")
    if given is None and _eligible(args[0]):
        return _run(name, args[:place], {**kwargs, "dtype": torch.float32})
    return _run(name, args, kwargs)


def _norm_in_fp32(name: str, args: tuple, kwargs: dict):
    dtype = torch.float32 if _eligible(args[0]) else args[0].dtype
    defaults = (2,) if name == "norm.Scalar" else (None, None, False)
    return _run(NORMS[name], (*args, *defaults[len(args) - 1 :]), {**kwargs, "dtype": dtype})


def _in_the_widest(name: str, args: tuple, kwargs: dict):
    lower = torch.get_autocast_dtype(STATE)
    has_fp32 = any(_eligible(tensor) and tensor.dtype == torch.float32 for tensor in tensors_in((args, kwargs)))
    return _inputs(partial(_to, torch.float32 if has_fp32 else lower))(name, args, kwargs)


def _cast(value, cast: Callable[[Tensor], Tensor]):
    if isinstance(value, Tensor):
        return cast(value)
    if isinstance(value, tuple | list):
        return type(value)(_cast(item, cast) for item in value)
    return value


def _to(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    return tensor.to(dtype) if _eligible(tensor) else tensor


def _eligible(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float64
