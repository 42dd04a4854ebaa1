"""Records what a computation allocates and frees, with or without storage behind the tensors.

A dispatch mode sees every operation. Floats may live on the meta device (no storage, only shapes); integers and
booleans are always real, on the CPU, because models decide by their values: image grids, window indices, masks.
What dispatch cannot see (memory taken inside a kernel) comes from `hidden`, a table of rules by operation.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from math import prod

import torch
from torch import Tensor

from vlmtune.compat import torch as borrowed
from vlmtune.compat.bitsandbytes import GEMM_4BIT
from vlmtune.estimate.main_memory import Weights
from vlmtune.estimate.simulate.attention import FLOPS_OF_ATTENTION
from vlmtune.estimate.simulate.outputs import Outputs, tensors_in
from vlmtune.estimate.simulate.placement import TO_COPY, MainMemory, only_moves, placed
from vlmtune.estimate.timing.kernels import Kernel, Kernels, Launched
from vlmtune.estimate.timing.operations import Ledger

# Looked up once: they are called at every operation.
TorchDispatchMode = borrowed.DISPATCH_MODE.get()
current_graph_task_id = borrowed.CURRENT_GRAPH_TASK_ID.get()
storage_address = borrowed.STORAGE_ADDRESS.read
tensor_use_count = borrowed.TENSOR_USE_COUNT.get()
storage_use_count = borrowed.STORAGE_USE_COUNT.get()
is_dense = borrowed.IS_DENSE.get()
overload_packet = borrowed.OVERLOAD_PACKET.read

aten = torch.ops.aten
LOCAL_SCALAR_DENSE = borrowed.LOCAL_SCALAR_DENSE.get().default
IS_ALL_TRUE = borrowed.IS_ALL_TRUE.get().default
PRODUCT_4BIT = GEMM_4BIT.get()
BUFFER_TENSOR_USES, BUFFER_STORAGE_USES = 4, 2
"""How often a gradient that nothing else holds is counted when autograd adds to it and a dispatch mode looks on."""


@dataclass(frozen=True)
class Workspaces:
    """Bytes that an operation takes besides its outputs."""

    before: tuple[int, ...] = ()
    """Taken before the outputs are, free when the operation is done."""
    after: tuple[int, ...] = ()
    """Taken once the outputs are, free when the operation is done."""
    kept: tuple[int, ...] = ()
    """Taken once the outputs are, never given back."""


NO_WORKSPACES = Workspaces()

# Kinds of what a step allocates.
ACTIVATIONS, RECOMPUTED, GRADIENTS, LOSS = "saved activations", "recomputation", "gradients", "logits and loss"
DEQUANTISED, WORKSPACES = "dequantised weights", "workspaces"
INPUTS, OPTIMIZER, CHECKS = "inputs", "optimizer", "checks"
STREAMED, SHARES = "buffers of streamed layers", "shares of the layers"
Hidden = Callable[[object, tuple, dict], Workspaces]


def no_hidden(operation: object, args: tuple, kwargs: dict) -> Workspaces:
    """Return no workspaces: what a CPU's operations take."""
    return NO_WORKSPACES


@dataclass
class Log:
    """Allocations and frees in the order in which they happened."""

    events: list[tuple[int, int]] = field(default_factory=list)
    """(+handle, bytes) allocates, (-handle, 0) frees; `EMPTY_CACHE` and `RESET_PEAK` of the allocator."""
    tags: dict[int, tuple[str, str, str]] = field(default_factory=dict)
    """handle → (kind, operation, module)."""
    phases: list[tuple[str, int]] = field(default_factory=list)
    """Name of a phase and the index of its first event, in the order of the run."""
    flops: int = 0
    """Floating-point operations of matrix products and attention."""
    num_rows: int = 0
    """Rows that went through forward and backward."""
    weights: Weights | None = None
    """What of the model decides how much main memory a run takes; None: nobody asked."""
    num_batches: int = 0
    """Times that forward and backward ran."""
    answers_at_once: int | None = None
    """Held-out rows that are answered at once; None where none are."""
    streamed_bytes: int = 0
    """What came to the card in them, of layers that are streamed or shared."""
    batches: list[Launched] = field(default_factory=list)
    """What forward and backward launched, of each batch in turn; batches that were passed over repeat the last one."""
    updates: list[Kernels] = field(default_factory=list)
    """What clipping and the optimizer launched, of each step in turn."""

    def begin(self, phase: str) -> None:
        """Note that a phase begins here."""
        self.phases.append((phase, len(self.events)))


def _flops_of_product(*args, out_val: Tensor, **kwargs) -> int:
    """torch's own formula takes as long as the rest of the operation."""
    return 2 * out_val.numel() * tensors_in(args)[-1].shape[-2]


def _flops_of_4bit_product(rows: Tensor, packed: Tensor, weight_shape, *args, **kwargs) -> int:
    """Two operations for each number of the weight and each row that meets it."""
    return 2 * (rows.numel() // rows.shape[-1]) * prod(weight_shape)


# torch's FlopCounterMode would count the same, but it keeps every module's tensors alive for its own bookkeeping.
FLOPS_OF = {
    **borrowed.FLOP_REGISTRY.get(),
    **dict.fromkeys((aten.mm, aten.bmm, aten.addmm, aten.addmm_, aten.baddbmm), _flops_of_product),
    **FLOPS_OF_ATTENTION,
    PRODUCT_4BIT: _flops_of_4bit_product,
}


class Recorder(TorchDispatchMode):
    """Fills a Log while active. Tensors that existed before are added with `add`, or are in `main_memory`."""

    def __init__(self, hidden: Hidden = no_hidden) -> None:
        super().__init__()
        self.log = Log()
        self.hidden = hidden
        self.kind = ACTIVATIONS
        self.module = ""
        self.vocabulary: int | None = None
        """Width of logits: what has it belongs to the loss."""
        self.main_memory = MainMemory()
        self._live: dict[int, weakref.ref] = {}
        self._handles: dict[int, int] = {}
        self._count = 0
        self._outputs = Outputs()
        self.ledger = Ledger()
        self.follows_images: Callable[[str], bool] = lambda module: False
        """Whether the work of a module follows the images, and not the tokens."""

    def add(self, tensor: Tensor, kind: str, operation: str = "load") -> None:
        """Record a tensor that already exists, such as a weight, or say anew of which kind a recorded one is.

        What is in main memory is passed over.
        """
        if self.main_memory.holds(tensor):
            return
        handle = self._handles.get(storage_address(tensor.untyped_storage()))
        if handle is None:
            self._track(tensor, operation, kind)
        else:
            self.log.tags[handle] = (kind, *self.log.tags[handle][1:])

    def has(self, tensor: Tensor) -> bool:
        """Return whether the memory that a tensor lies in is recorded."""
        return storage_address(tensor.untyped_storage()) in self._handles

    def allocate(self, num_bytes: int, kind: str, operation: str) -> int:
        """Record an allocation that no tensor stands for; free it with `free`."""
        self._count += 1
        self.log.events.append((self._count, num_bytes))
        self.log.tags[self._count] = (kind, operation, self.module)
        return self._count

    def allocate_again(self, handle: int, num_bytes: int) -> int:
        """Record an allocation like an earlier one; free it with `free`."""
        self._count += 1
        self.log.events.append((self._count, num_bytes))
        self.log.tags[self._count] = self.log.tags[handle]
        return self._count

    def stop(self) -> None:
        """Record no longer what becomes of the tensors."""
        self._live.clear()

    def free(self, handle: int) -> None:
        """Record that an allocation ended."""
        self.log.events.append((-handle, 0))

    def _track(self, tensor: Tensor, operation: str, kind: str | None = None) -> None:
        # Views share a storage, and its end alone gives memory back.
        storage = tensor.untyped_storage()
        key = storage_address(storage)
        if key in self._live or storage.nbytes() == 0:
            return
        handle = self._handles[key] = self.allocate(storage.nbytes(), kind or self._kind_of(tensor), operation)

        def gone(_: weakref.ref) -> None:
            # The next storage may come to lie at the same address.
            self._live.pop(key, None)
            self._handles.pop(key, None)
            self.free(handle)

        self._live[key] = weakref.ref(storage, gone)

    def _kind_of(self, tensor: Tensor) -> str:
        if self.vocabulary is not None and tensor.dim() >= 2 and tensor.shape[-1] == self.vocabulary:
            return LOSS
        # Checkpointing runs the forward pass anew inside the backward pass, with gradients on.
        return RECOMPUTED if self.kind == GRADIENTS and torch.is_grad_enabled() else self.kind

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        """Run the operation where its tensors are, and record what it made on the card."""
        kwargs = dict(kwargs or {})
        tensors = tensors_in((args, kwargs))
        if self.main_memory.takes_part(operation, kwargs, tensors):
            return self._run_in_main_memory(operation, args, kwargs)
        return self._run(operation, args, kwargs, tensors)

    def _run(self, operation, args: tuple, kwargs: dict, tensors: list[Tensor]):
        """Run the operation, its tensors moved to one place, and record what it made."""
        if operation is TO_COPY and only_moves(args[0], kwargs):
            return args[0].view_as(args[0])
        given = args  # with the values of whole numbers
        args, kwargs = placed(operation, args, kwargs, tensors)
        if operation is LOCAL_SCALAR_DENSE and args[0].device.type == "meta":
            # There is no value. `generate` is who asks, whether all answers have ended: zero is its no.
            return torch.zeros((), dtype=args[0].dtype).item()
        if operation is IS_ALL_TRUE and args[0].device.type == "meta":
            return torch.tensor(True)  # a model's own check of its inputs, which training runs on real values
        if operation is aten.add.Tensor and _adds_in_place(args):
            self.ledger.note(aten.add_.Tensor, args, tensors, args[0], 0)
            return args[0].add_(args[1])
        name = name_of(operation)
        spaces = self.hidden(operation, args, kwargs)
        temporary = [self.allocate(size, _kind_of_workspace(name), name) for size in spaces.before]
        if operation is aten.index_put.default and _in_backward():
            # The gradient of indexing: written into fresh zeros in place, except under a dispatch mode, where
            # autograd copies them first (torch/csrc/autograd/FunctionsManual.cpp, index_backward).
            operation = aten.index_put_.default
        out = self._outputs.of(operation, args, kwargs)
        formula = _formula_of(operation)
        flops = formula(*given, **kwargs, out_val=out) if formula else 0
        self.log.flops += flops
        self.ledger.note(operation, given, tensors, out, flops)
        made = tensors_in(out)
        # Dropout.cu makes the mask before the result.
        for tensor in reversed(made) if operation is aten.native_dropout.default else made:
            self._track(tensor, name)
        for size in spaces.kept:
            self.allocate(size, WORKSPACES, name)
        temporary += [self.allocate(size, WORKSPACES, name) for size in spaces.after]
        for handle in temporary:
            self.free(handle)
        return out

    def _run_in_main_memory(self, operation, args: tuple, kwargs: dict):
        """Run an operation there and record what it brings to the card."""
        out, on_card = self.main_memory.run(operation, args, kwargs)
        if operation in (TO_COPY, aten.copy_.default):
            self.ledger.add(Kernel("bus", sum(tensor.nbytes for tensor in tensors_in(out))))
        for tensor in tensors_in(out) if on_card else ():
            self._track(tensor, name_of(operation), RECOMPUTED if self.kind == GRADIENTS else self.kind)
        return out


def _kind_of_workspace(operation: str) -> str:
    return DEQUANTISED if operation == name_of(PRODUCT_4BIT.default) else WORKSPACES


def _adds_in_place(args: tuple) -> bool:
    """Return whether autograd adds one gradient into another's memory, which it never does under a dispatch mode.

    torch/csrc/autograd/input_buffer.cpp: the first one is dense, and nothing else holds it or its storage. Under a
    mode each tensor counts as one of a subclass (ATen/TensorSubclassLikeUtils.h), and the sum gets memory of its own,
    which training does not take.
    """
    first, second = args[:2]
    if not _in_backward() or not isinstance(second, Tensor):
        return False
    return (
        first.shape == second.shape
        and first.dtype == second.dtype
        and is_dense(first)
        and tensor_use_count(first) <= BUFFER_TENSOR_USES
        and storage_use_count(storage_address(first.untyped_storage())) <= BUFFER_STORAGE_USES
    )


def _in_backward() -> bool:
    """Return whether autograd computes gradients now; recomputing a forward pass does not count."""
    return current_graph_task_id() != -1 and not torch.is_grad_enabled()


@cache
def _formula_of(operation) -> Callable[..., int] | None:
    return FLOPS_OF.get(overload_packet(operation))


@cache
def name_of(operation: object) -> str:
    """Return an operation's name, made once: it is asked for each time that the operation runs."""
    return str(operation)
