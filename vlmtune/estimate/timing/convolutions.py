"""Convolutions: the products that they are, or of each channel with itself; what puts their tensors into order."""

from math import prod

from torch import Tensor

from vlmtune.estimate.timing.kernels import Kernel
from vlmtune.estimate.timing.products import ALIGNED_BYTES, product_of

PLACE_TAPS = 15
"""As many taps of a window as it takes to work out where the window lies: torch's own kernel, which computes depthwise
convolutions in bf16, divides three times for each output."""
UNROLLED_SIDES, UNROLLED_TAP = (1, 3, 5), 1 / 3
"""DepthwiseConv2d.cu: sides of square windows for which it has loops without counting, and what a tap of them takes."""
BACKWARD_TAP = 1.4
"""What a tap takes on the way back, where each asks whether an output was made of it: no window is quicker there."""


def convolution(inputs: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> list[Kernel]:
    """Return what convolves, behind what puts its input into order; biases of depthwise ones are in their kernel."""
    if _is_depthwise(inputs, weight):
        is_unrolled = weight.dim() == 4 and weight.shape[2] == weight.shape[3] in UNROLLED_SIDES
        tap = UNROLLED_TAP if is_unrolled else 1
        return [*_in_order(inputs), _depthwise(inputs, weight, out, out.numel(), tap)]
    added = [] if bias is None else [Kernel("strided", 2 * out.nbytes + bias.nbytes, out.numel())]
    return [*_in_order(inputs), *_as_product(inputs, weight, out), *added]


def convolution_backward(gradient: Tensor, inputs: Tensor, weight: Tensor, made: list[Tensor]) -> list[Kernel]:
    """Return what makes gradients, for each as much as forward."""
    if _is_depthwise(inputs, weight):
        one = [_depthwise(inputs, weight, gradient, inputs.numel(), BACKWARD_TAP)]
    else:
        one = _as_product(inputs, weight, gradient)
    return [*_in_order(gradient), *one * len(made)]


def _is_depthwise(inputs: Tensor, weight: Tensor) -> bool:
    return weight.shape[1] == 1 and inputs.shape[1] > 1


def _depthwise(inputs: Tensor, weight: Tensor, out: Tensor, numbers: int, tap: float) -> Kernel:
    taps = PLACE_TAPS + tap * prod(weight.shape[1:])
    return Kernel("depthwise", inputs.nbytes + weight.nbytes + out.nbytes, round(numbers * taps))


def _as_product(inputs: Tensor, weight: Tensor, out: Tensor) -> list[Kernel]:
    """The product that a convolution is: outputs × channels out × numbers of a window.

    Of windows of one place it is a product as any other. Wider ones are convolved channel behind channel of each place:
    cuDNN turns texts and pictures into that order and the result back (`nchwToNhwcKernel` in profiles), videos not.
    """
    outputs, of_one = out.numel() // out.shape[1], prod(weight.shape[1:])
    is_point, is_video = of_one == weight.shape[1], weight.dim() == 5
    num_bytes = inputs.nbytes + weight.nbytes + out.nbytes
    aligned = is_point and all(size * inputs.element_size() % ALIGNED_BYTES == 0 for size in (outputs, of_one))
    product = product_of((1, outputs, weight.shape[0], of_one), inputs.dtype, num_bytes, not aligned)
    turned = [] if is_point or is_video else [inputs, out]
    return [product, *(Kernel("strided", 2 * tensor.nbytes, tensor.numel()) for tensor in turned)]


def _in_order(tensor: Tensor) -> list[Kernel]:
    """What copies a tensor that does not lie in order, which no operation shows: convolutions do it themselves."""
    if tensor.is_contiguous():
        return []
    kind = "strided" if tensor.stride(-1) == 1 else "transposed"
    return [Kernel(kind, 2 * tensor.nbytes, tensor.numel())]
