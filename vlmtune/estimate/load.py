"""What loading leaves behind: where weights lie decides which holes the training step can use."""

from torch import Tensor, nn

from vlmtune.estimate.record import Recorder

FP32_BYTES = 4
DYNAMIC_MAP_BYTES = 1024
"""bitsandbytes functional.py, `name2qmap`: its 8-bit code table, on the device from the first weight on."""


def quantise(weight: Tensor, kind: str, recorder: Recorder) -> None:
    """Record what bitsandbytes allocates when it packs a 16-bit weight (functional.py, `quantize_4bit`)."""
    state = weight.quant_state
    if not state.nested:
        for constant in (state.absmax, weight, state.code):
            recorder.add(constant, kind, "quantize_4bit")
        return
    absmax_bytes = state.absmax.numel() * FP32_BYTES
    absmax = recorder.allocate(absmax_bytes, "load", "quantize_4bit")
    recorder.add(weight, kind, "quantize_4bit")
    recorder.add(state.code, kind, "quantize_4bit")
    recorder.add(state.offset, kind, "quantize_4bit")
    centred = recorder.allocate(absmax_bytes, "load", "quantize_4bit")
    for constant in (state.state2.absmax, state.absmax, state.state2.code):
        recorder.add(constant, kind, "quantize_4bit")
    recorder.free(centred)
    recorder.free(absmax)


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
