"""What loading leaves behind: where weights lie decides which holes the training step can use."""

from torch import Tensor, nn

from vlmtune.compat.bitsandbytes import state_of
from vlmtune.estimate.simulate.record import Recorder
from vlmtune.models.build import base_of
from vlmtune.models.streaming import stream_of

FP32_BYTES = 4
DYNAMIC_MAP_BYTES = 1024
"""bitsandbytes functional.py, `name2qmap`: its 8-bit code table, on the device from the first weight on."""


def load_checkpoint(model: nn.Module, recorder: Recorder) -> None:
    """Record what transformers allocates when it loads the model tensor by tensor, then PEFT's adapters.

    transformers core_model_loading.py: the order of the sorted names; modeling_utils.py, `caching_allocator_warmup`:
    first one block as large as all parameters, given back at once, so that they come to lie in it. Where layers are
    streamed there are their buffers instead, and their weights leave the card as soon as each is packed.
    """
    base, away = base_of(model), recorder.main_memory
    stored = {
        name: tensor for name, tensor in base.named_parameters() if ".lora_" not in name and not away.holds(tensor)
    }
    if not add_stream_buffers(base, recorder):
        recorder.free(recorder.allocate(sum(t.untyped_storage().nbytes() for t in stored.values()), "load", "warm-up"))
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
    for _, buffer in base.named_buffers():
        recorder.add(buffer, "weights")
    add_adapters(model, recorder)


def add_stream_buffers(base: nn.Module, recorder: Recorder) -> bool:
    """Record the buffers of streamed layers, which come before all weights; return whether there are any."""
    stream = stream_of(base)
    for buffer in stream.buffers if stream else ():
        recorder.add(buffer, "weights", "streamed layers")
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
