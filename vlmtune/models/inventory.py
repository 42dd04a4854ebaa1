"""What a built model holds: rows of part, number format, bytes, trainable. The rows sum to the model."""

from collections import Counter
from dataclasses import dataclass

from torch import nn

from vlmtune.compat.bitsandbytes import state_of
from vlmtune.families.base import Family
from vlmtune.models.build import base_of


@dataclass(frozen=True)
class InventoryRow:
    """All parameters of one kind."""

    part: str
    """`text`, `vision`, `projector`, `head`; adapters carry `adapter:` before it."""
    dtype: str
    trainable: bool
    parameters: int
    """Numbers of the model as its author counts them: a 4-bit weight counts unpacked."""
    stored_bytes: int


def inventory(model: nn.Module, family: Family) -> list[InventoryRow]:
    """Return the model's parameters by part, format and trainability."""
    counts: Counter[tuple[str, str, bool]] = Counter()
    sizes: Counter[tuple[str, str, bool]] = Counter()
    for name, parameter in base_of(model).named_parameters():
        part = family.part_of(name)
        if ".lora_" in name:
            part = f"adapter:{part}"
        state = state_of(parameter)
        dtype = state.quant_type if state is not None else str(parameter.dtype).removeprefix("torch.")
        key = (part, dtype, parameter.requires_grad)
        counts[key] += state.shape.numel() if state is not None else parameter.numel()
        sizes[key] += _stored_bytes(parameter)
    rows = [InventoryRow(*key, counts[key], sizes[key]) for key in sorted(counts)]
    stored = sum(_stored_bytes(parameter) for parameter in model.parameters())
    total = sum(row.stored_bytes for row in rows)
    assert total == stored, f"inventory of {total} bytes, model of {stored}"
    return rows


def _stored_bytes(parameter: nn.Parameter) -> int:
    return parameter.numel() * parameter.element_size() + _constants_bytes(state_of(parameter))


def _constants_bytes(state) -> int:
    """Bytes of a 4-bit weight's constants, nested ones included."""
    if state is None:
        return 0
    tensors = [state.absmax, state.code, state.offset if state.nested else None]
    own = sum(t.numel() * t.element_size() for t in tensors if t is not None)
    return own + (_constants_bytes_nested(state.state2) if state.nested else 0)


def _constants_bytes_nested(state) -> int:
    return state.absmax.numel() * state.absmax.element_size() + state.code.numel() * state.code.element_size()
