"""What loading leaves behind: where weights lie decides which holes the training step can use."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from vlmtune.compat.bitsandbytes import state_of
from vlmtune.estimate.main_memory import stored_format
from vlmtune.estimate.simulate.record import Recorder
from vlmtune.hub.source import open_model
from vlmtune.models.build import base_is_kept, base_of
from vlmtune.models.head import Head8bit
from vlmtune.models.streaming import stream_of
from vlmtune.plan.types import RunPlan

Load = Callable[[nn.Module, Recorder], None]
FP32_BYTES = 4
STATE_BYTES = 128
"""The JSON that a file has of a packed weight, 90 to 130 bytes: one block of the allocator."""
DYNAMIC_MAP_BYTES = 1024
"""bitsandbytes functional.py, `name2qmap`: its 8-bit code table, on the device from the first weight on."""


def loading_of(plan: RunPlan) -> Load:
    """Return what records how the base of a plan is loaded."""
    if base_is_kept(plan):
        return load_packed
    if not plan.prequantised:
        return load_checkpoint
    stored = stored_format(open_model(plan.model, plan.revision, Path("/")).config)
    return partial(load_packed, recast=stored not in (None, plan.base_dtype))


def load_checkpoint(model: nn.Module, recorder: Recorder) -> None:
    """Record what transformers allocates when it loads the model tensor by tensor, then PEFT's adapters.

    transformers core_model_loading.py: the order of the sorted names; modeling_utils.py, `caching_allocator_warmup`:
    first one block as large as all parameters, given back at once, so that they come to lie in it. Where layers are
    streamed there are their buffers instead, and their weights leave the card as soon as each is packed.
    """
    base = base_of(model)
    stored = _warmed_up(base, recorder)
    if any(_is_packed(tensor) for tensor in stored.values()):
        recorder.allocate(DYNAMIC_MAP_BYTES, "load", "create_dynamic_map")
    for name in sorted(stored, key=_natural):
        tensor = stored[name]
        if _is_packed(tensor):
            raw = recorder.allocate(_unpacked_bytes(tensor), "load", "to")
            leaving = quantise(tensor, "weights", recorder)
            recorder.free(raw)
            for handle in leaving:
                recorder.free(handle)
        else:
            recorder.add(tensor, "weights")
    _add_buffers(base, recorder)
    _add_head(base, recorder)
    add_adapters(model, recorder)


def load_packed(model: nn.Module, recorder: Recorder, *, recast: bool = False) -> None:
    """Record what transformers allocates when it loads a base whose files are in 4 bits, then PEFT's adapters.

    core_model_loading.py: every tensor of the files goes to the device as it is, and the constants are put together
    there (bitsandbytes functional.py, `QuantState.from_dict`); all of them at once, or where layers are streamed one
    weight after the other. `recast`: the files have another 16-bit format than the run, so that each plain weight is
    there twice for a moment (`packed.give_format`).
    """
    base = base_of(model)
    stored, one_by_one = _warmed_up(base, recorder), stream_of(base) is not None
    coming, raw = {}, {}
    for name in sorted(stored, key=_natural):
        tensor = stored[name]
        if _is_packed(tensor):
            coming[name] = _sent(tensor, recorder)
            if one_by_one:
                _put_together(tensor, coming.pop(name), recorder)
        elif recast and name.endswith(".weight"):  # of others, transformers changes the format itself
            raw[name] = recorder.allocate(tensor.untyped_storage().nbytes(), "load", "to")
        else:
            recorder.add(tensor, "weights")
    for name, handles in coming.items():
        _put_together(stored[name], handles, recorder)
    _add_buffers(base, recorder)
    for name, handle in raw.items():
        recorder.add(stored[name], "weights", "give_format")
        recorder.free(handle)
    _add_head(base, recorder)
    add_adapters(model, recorder)


def _sent(weight: Tensor, recorder: Recorder) -> list[int]:
    """Record a packed weight as files hold it; return what of it is there for a moment.

    That is the JSON, and of a streamed layer what then goes to main memory.
    """
    state, leaving = state_of(weight), []
    nested = [state.state2.absmax, state.state2.code] if state.nested else []
    for tensor in (weight, state.absmax, *nested, state.code):
        if recorder.has(tensor):
            leaving.append(recorder.allocate(tensor.nbytes, "load", "to"))
        else:
            recorder.add(tensor, "weights")
    return [recorder.allocate(STATE_BYTES, "load", "to"), *leaving]


def _put_together(weight: Tensor, passing: list[int], recorder: Recorder) -> None:
    if (state := state_of(weight)).nested:
        recorder.add(state.offset, "weights", "from_dict")
    for handle in passing:
        recorder.free(handle)


def _add_buffers(base: nn.Module, recorder: Recorder) -> None:
    for module in base.modules():
        for buffer in module.buffers(recurse=False) if not isinstance(module, Head8bit) else ():
            recorder.add(buffer, "weights")


def _add_head(base: nn.Module, recorder: Recorder) -> None:
    """Record a head in 8 bits: it is rounded in main memory, and comes to the device last."""
    for head in _heads_in_8_bits(base):
        for tensor in (head.weight, head.scale, *([] if head.bias is None else [head.bias])):
            recorder.add(tensor, "weights", "pack_head")


def _heads_in_8_bits(base: nn.Module) -> list[Head8bit]:
    """Return the head if it is one; a tower alone has none."""
    return [module for module in base.modules() if isinstance(module, Head8bit)]


def _warmed_up(base: nn.Module, recorder: Recorder) -> dict[str, Tensor]:
    """Record what comes before all weights, and return those that are loaded to the device, by their names.

    A block as large as all of them, which is given back at once; or what streamed or shared layers lie in.
    """
    packed = {tensor for head in _heads_in_8_bits(base) for tensor in head.parameters()}
    stored = {
        name: tensor
        for name, tensor in base.named_parameters()
        if ".lora_" not in name and tensor not in packed and not recorder.main_memory.holds(tensor)
    }
    if not add_stream_buffers(base, recorder):
        recorder.free(recorder.allocate(sum(t.untyped_storage().nbytes() for t in stored.values()), "load", "warm-up"))
    return stored


def add_stream_buffers(base: nn.Module, recorder: Recorder) -> bool:
    """Record what streamed or shared layers lie in, which comes before all weights; return whether there are any."""
    stream = stream_of(base)
    for tensor in stream.resident if stream else ():
        recorder.add(tensor, "weights", "streamed layers")
    return stream is not None


def _is_packed(tensor: Tensor) -> bool:
    return state_of(tensor) is not None


def _unpacked_bytes(tensor: Tensor) -> int:
    state = state_of(tensor)
    return state.shape.numel() * state.dtype.itemsize


def _natural(name: str) -> list[tuple]:
    """The order of the loader: layers by their numbers (core_model_loading.py, `dot_natural_key`)."""
    keys = []
    for part in name.split("."):
        text = part.rstrip("0123456789")
        keys.append((1, text, int(part[len(text) :] or -1)) if text else (0, int(part)))
    return keys


def quantise(weight: Tensor, kind: str, recorder: Recorder) -> list[int]:
    """Record what bitsandbytes allocates when it packs a 16-bit weight (functional.py, `quantize_4bit`).

    Returns what of it then goes to main memory: of a streamed layer, whose places in the buffers are recorded before.
    """
    state, leaving = state_of(weight), []

    def add(tensor: Tensor) -> None:
        if recorder.has(tensor):
            leaving.append(recorder.allocate(tensor.nbytes, "load", "quantize_4bit"))
        else:
            recorder.add(tensor, kind, "quantize_4bit")

    if not state.nested:
        for tensor in (state.absmax, weight, state.code):
            add(tensor)
        return leaving
    absmax_bytes = state.absmax.numel() * FP32_BYTES
    absmax = recorder.allocate(absmax_bytes, "load", "quantize_4bit")
    add(weight)
    add(state.code)
    scaled, largest = (recorder.allocate(num_bytes, "load", "get_4bit_type") for num_bytes in (64, FP32_BYTES))
    recorder.free(scaled)
    recorder.free(largest)
    add(state.offset)
    centred = recorder.allocate(absmax_bytes, "load", "quantize_4bit")
    for tensor in (state.state2.absmax, state.absmax, state.state2.code):
        add(tensor)
    recorder.free(centred)
    recorder.free(absmax)
    return leaving


def add_adapters(model: nn.Module, recorder: Recorder) -> None:
    """Record PEFT's adapters: made in fp32, taken to 16 bits, and all of them back to fp32 at the end."""
    adapters = [tensor for name, tensor in model.named_parameters() if ".lora_" in name]
    halves = []
    for pair in zip(adapters[::2], adapters[1::2], strict=True):
        made = [recorder.allocate(tensor.numel() * FP32_BYTES, "load", "lora") for tensor in pair]
        for tensor, handle in zip(pair, made, strict=True):
            halves.append(recorder.allocate(tensor.numel() * FP32_BYTES // 2, "load", "lora"))
            recorder.free(handle)
    for tensor, half in zip(adapters, halves, strict=True):
        recorder.add(tensor, "adapters", "lora")
        recorder.free(half)
