"""Which kernels an operation launches on a card, about: made of its name and shapes alone."""

from collections import Counter
from functools import cache
from math import prod

import torch
from torch import Tensor

from vlmtune.compat import torch as borrowed
from vlmtune.compat.bitsandbytes import GEMM_4BIT
from vlmtune.estimate.simulate.attention import FLOPS_OF_ATTENTION
from vlmtune.estimate.simulate.outputs import storage_address, tensors_in
from vlmtune.estimate.timing.convolutions import convolution, convolution_backward
from vlmtune.estimate.timing.kernels import Kernel, Kernels, Launched
from vlmtune.estimate.timing.products import format_of, product, product_4bit
from vlmtune.estimate.timing.varlen import varlen, varlen_backward

aten = torch.ops.aten
PRODUCTS = {
    aten.mm: (0, 1),
    aten.bmm: (0, 1),
    aten.addmm: (1, 2),
    aten.addmm_: (1, 2),
    aten.baddbmm: (1, 2),
}
"""Products and the places of their two factors."""
PRODUCT_4BIT = GEMM_4BIT.get()
BACKWARD_ATTENTION = {name.get() for name in borrowed.ATTENTION_BACKWARD}
VARLEN, VARLEN_BACKWARD = (
    borrowed.OVERLOAD_PACKET.read(borrowed.CUSTOM_OPERATION.read(name.get()))
    for name in (borrowed.VARLEN_ATTENTION, borrowed.VARLEN_ATTENTION_BACKWARD)
)
COPIES = ("clone", "copy_", "_to_copy")
ATTENTION_KINDS = ("attention", "attention backward")
OLD_ATTENTION = {borrowed.EFFICIENT_ATTENTION.get(), borrowed.EFFICIENT_ATTENTION_BACKWARD.get()}
GATHERS = {aten.embedding, aten.index, aten.gather, aten.index_select}
OURS = "vlmtune."
"""What stands for kernels written here: they work out little for each number, and are as fast as memory."""
ONE_PASS = ("sum", "mean", "norm", "softmax", "amax", "argmax", "max", "min", "cumsum", "var", "logsumexp", "nll_loss")
"""What reads numbers and writes few, or reads them twice: by the word that stands in its name."""
NOTHING = ("empty", "new_empty", "detach", "lift_fresh", "alias", "set_", "resize_", "_local_scalar", "_is_all_true")
"""Operations that launch none: memory alone, or a value that the program waits for."""
CHUNK_BLOCKS, CHUNK_NUMBERS, CHUNK_TENSORS = 320, 65_536, {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
"""ForeachFunctors.cuh and MultiTensorApply.cuh: how much of lists of tensors one launch takes, by lists."""
BICUBIC_THREADS = 1024
"""UpSampleBicubic2d.cu: how many threads of a block stretch a picture, one for each place, through all channels."""
FLASH_MAX_HEAD = 256
"""sdp_utils.cpp: wider heads have the kernel for masks, with one or without."""


class Ledger:
    """Counts the kernels of the operations that it is told of; what a shape launches is worked out once."""

    def __init__(self) -> None:
        self.launched = Launched(Counter(), Counter(), Counter())
        self.kernels: Kernels = self.launched.tokens
        self._known: dict[tuple, tuple[Kernel, ...]] = {}

    def note(self, operation, args: tuple, tensors: list[Tensor], out: object, flops: int) -> None:
        """Count what an operation launched: `tensors` are those in its arguments, `flops` what it was counted as."""
        if _launches_nothing(operation):
            return
        key = (operation, flops, *[(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors])
        kernels = self._known.get(key)
        if kernels is None:
            kernels = self._known[key] = tuple(kernels_of(operation, args, tensors, tensors_in(out), flops))
        for kernel in kernels:
            self.kernels[kernel] += 1

    def add(self, kernel: Kernel) -> None:
        """Count a kernel that no operation stands for."""
        self.kernels[kernel] += 1

    def enter(self, is_of_images: bool) -> None:
        """Say whether what follows is of images."""
        self.kernels = self.launched.images if is_of_images else self.launched.tokens

    def goes_on(self, launched: Launched) -> None:
        """Count on from what was counted before."""
        self.launched = launched
        self.enter(False)

    def repeat(self, recorded: Kernels) -> None:
        """Count the launch of a graph, and the kernels in it."""
        self.add(Kernel("graph", 0))
        self.launched.recorded.update(recorded)

    def taken(self) -> Launched:
        """Return what was counted since the last call."""
        taken, self.launched = self.launched, Launched(Counter(), Counter(), Counter())
        self.enter(False)
        return taken


@cache
def _packet(operation):
    return borrowed.OVERLOAD_PACKET.read(operation)


@cache
def _launches_nothing(operation) -> bool:
    schema = borrowed.OPERATION_SCHEMA.read(operation)
    name = _name(operation)
    is_view = not schema.is_mutable and schema.returns and all(value.alias_info for value in schema.returns)
    return bool(is_view) or name.startswith(NOTHING)


@cache
def _name(operation) -> str:
    """`aten._foreach_add_.List` → `_foreach_add_`."""
    return str(operation).split(".")[1]


def kernels_of(operation, args: tuple, tensors: list[Tensor], made: list[Tensor], flops: int) -> list[Kernel]:
    """Return the kernels that an operation launches, about, given and made these tensors."""
    packet, name = _packet(operation), _name(operation)
    if packet in PRODUCTS:
        left, right = (args[place] for place in PRODUCTS[packet])
        return [product(left, right)]
    if packet is PRODUCT_4BIT:
        return product_4bit(args, made[0])
    if packet in (VARLEN, VARLEN_BACKWARD):
        return _varlen(operation, args, tensors, made)
    if packet in FLOPS_OF_ATTENTION:
        return [_attention(operation, args, tensors, made, flops)]
    if name == "convolution":
        return convolution(*args[:3], made[0])
    if name == "convolution_backward":
        return convolution_backward(*args[:3], made)
    if name.startswith("upsample_bicubic2d"):
        return [_bicubic(name, tensors[0], made[0])]
    if name.startswith("dequantize"):
        return [Kernel("unpack", _bytes(tensors) + _bytes(made), made[0].numel())]
    if name.startswith(("_foreach", "_fused_adam")):
        return _of_lists(name, args, tensors, made)
    return _over_numbers(packet, name, operation, tensors, made)


def _attention(operation, args: tuple, tensors: list[Tensor], made: list[Tensor], flops: int) -> Kernel:
    packet = _packet(operation)
    query, key = args[1:3] if packet in BACKWARD_ATTENTION else args[:2]
    if _is_causal(operation, args):  # the other half is never computed
        flops //= 2
    sizes = (query.shape[0] * query.shape[1], query.shape[2], key.shape[2], query.shape[-1])
    is_masked = packet in OLD_ATTENTION or query.shape[-1] > FLASH_MAX_HEAD
    kind = ("masked " if is_masked else "") + ATTENTION_KINDS[packet in BACKWARD_ATTENTION]
    return Kernel(kind, _bytes(_numbers(tensors, made)), 0, format_of(query.dtype), flops, sizes, old=is_masked)


def _varlen(operation, args: tuple, tensors: list[Tensor], made: list[Tensor]) -> list[Kernel]:
    num_bytes, is_causal = _bytes(_numbers(tensors, made)), _is_causal(operation, args)
    if _packet(operation) is VARLEN:
        return varlen(*args[:2], args[3], is_causal, num_bytes)
    return varlen_backward(*args[1:3], args[6], is_causal, num_bytes)


def _numbers(tensors: list[Tensor], made: list[Tensor]) -> list[Tensor]:
    return [tensor for tensor in (*tensors, *made) if tensor.is_floating_point()]


def _is_causal(operation, args: tuple) -> bool:
    place = [argument.name for argument in borrowed.OPERATION_SCHEMA.read(operation).arguments].index("is_causal")
    return place < len(args) and args[place]


def _bicubic(name: str, given: Tensor, made: Tensor) -> Kernel:
    """Blocks of threads over the places of the larger picture, which backward goes through too."""
    larger = max(given, made, key=Tensor.numel)
    channels, blocks = prod(larger.shape[:2]), -(-prod(larger.shape[2:]) // BICUBIC_THREADS)
    numbers = channels * blocks * BICUBIC_THREADS
    kind = "bicubic backward" if name.endswith("backward") else "bicubic"
    return Kernel(kind, given.nbytes + made.nbytes, numbers, sizes=(blocks,))


def _of_lists(name: str, args: tuple, tensors: list[Tensor], made: list[Tensor]) -> list[Kernel]:
    """Launches over lists of tensors, so many tensors and pieces of them each."""
    lists = [value for value in args if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor)]
    pieces = sum(-(-tensor.numel() // CHUNK_NUMBERS) for tensor in lists[0])
    most = CHUNK_TENSORS[min(5, max(1, len(lists)))]
    launches = max(-(-pieces // CHUNK_BLOCKS), -(-len(lists[0]) // most))
    written = made or lists[0]
    read = tensors if "copy" not in name else lists[1]
    numbers = sum(tensor.numel() for tensor in lists[0])
    return [Kernel("lists", (_bytes(read) + _bytes(written)) // launches, numbers // launches)] * launches


def _over_numbers(packet, name: str, operation, tensors: list[Tensor], made: list[Tensor]) -> list[Kernel]:
    """One pass over the numbers of an operation: each is read once, each result is written once."""
    given = {storage_address(tensor.untyped_storage()) for tensor in tensors}
    written = made or tensors[:1]
    if not borrowed.OPERATION_SCHEMA.read(operation).is_mutable and written:
        if all(storage_address(tensor.untyped_storage()) in given for tensor in written):
            return []  # a view that does not say so
    if not any(tensor.numel() for tensor in (*tensors, *written)):
        return []
    numbers = max(tensor.numel() for tensor in (*tensors, *written))
    if packet in GATHERS:
        return [Kernel("gather", 2 * _bytes(written) + _bytes(tensors[1:]), written[0].numel())]
    moved = _bytes(tensors if name != "copy_" else tensors[1:]) + _bytes(written)
    if name in COPIES and _is_plain_copy(tensors[-1], written[0]):
        return [Kernel("copy", moved)]
    kind = "ours" if str(operation).startswith(OURS) else _kind_of_pass(name, tensors, written)
    return [Kernel(kind, moved, numbers)]


def _kind_of_pass(name: str, tensors: list[Tensor], written: list[Tensor]) -> str:
    if name == "cat":
        return "cat"
    if "solve_triangular" in name:
        return "solve"
    if any(word in name for word in ONE_PASS):
        return "reduce"
    if not _in_one_order([tensor for tensor in (*tensors, *written) if tensor.dim()]):
        return "transposed" if _is_turned((*tensors, *written)) else "strided"
    return "widen" if name in COPIES and written[0].itemsize > tensors[-1].itemsize else "pass"


def _is_turned(tensors: tuple[Tensor, ...]) -> bool:
    """Whether numbers that lie side by side in one tensor do not in another; small and repeated ones do not matter."""
    numbers = max(tensor.numel() for tensor in tensors)
    large = [tensor for tensor in tensors if tensor.numel() == numbers and 0 not in tensor.stride()]
    return len({_side_by_side(tensor) for tensor in large}) > 1


def _side_by_side(tensor: Tensor) -> int | None:
    """Return the dimension, from the end, along which numbers lie next to each other, or nearest."""
    steps = [(step, place - tensor.dim()) for place, step in enumerate(tensor.stride()) if tensor.shape[place] > 1]
    return min(steps)[1] if steps else None


def _is_plain_copy(source: Tensor, target: Tensor) -> bool:
    """Whether bytes are copied as they lie: the driver does it, no kernel of torch."""
    same = source.dtype == target.dtype and source.shape == target.shape and source.stride() == target.stride()
    return same and target.is_contiguous()


def _in_one_order(tensors: list[Tensor]) -> bool:
    """Whether all tensors have their numbers in the same order, one number for each: no index is worked out."""
    first = tensors[0] if tensors else None
    return all(tensor.shape == first.shape and tensor.stride() == first.stride() for tensor in tensors)


def _bytes(tensors: list[Tensor]) -> int:
    """Return the bytes that are read or written of tensors; a number that is repeated is read from nearby."""
    return sum(min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in tensors)


def updates_of(optimizer, seen: Kernels) -> Kernels:
    """Return what an update launches once its states exist; `seen` is what was recorded of it, making them included.

    bitsandbytes' own kernels are out of sight: one for each parameter, which reads its numbers, gradients and two
    states, and writes all but the gradients.
    """
    if isinstance(optimizer, torch.optim.AdamW):
        return Counter({kernel: times for kernel, times in seen.items() if kernel.kind == "lists"})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = [optimizer.state[parameter] for parameter in parameters]
    bytes_a_number = [12 + 4 * state["state1"].element_size() for state in states]
    return Counter(
        Kernel("optimizer", parameter.numel() * num_bytes, parameter.numel())
        for parameter, num_bytes in zip(parameters, bytes_a_number, strict=True)
    )
