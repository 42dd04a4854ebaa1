"""Are the files those of the model, and is what lies in memory what the files hold? Before and after each load.

transformers 5 can write random numbers over loaded weights without a word (custom `_init_weights` that write in place),
so a sample of every kind of tensor is compared after loading. Names in files and in memory may differ; transformers'
own renaming is used. Tensors that it takes apart or puts together while loading are not compared.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlmtune.compat import transformers as borrowed
from vlmtune.compat.bitsandbytes import state_of
from vlmtune.errors import VlmtuneError
from vlmtune.families.base import Family
from vlmtune.hub.prequantised import refuse_silent
from vlmtune.hub.shards import StoredTensor, stored_in
from vlmtune.models.streaming import read_parameter
from vlmtune.runs.adapter import WEIGHTS

FLOATS = ("F64", "F32", "F16", "BF16")
"""What safetensors calls the formats of plain weights."""
SAMPLED_NUMBERS = 4096
QUANTISATION_ERROR = 0.2
"""Of a block's largest value. Half the widest gap is 0.14 (nf4) or 0.17 (fp4); constants in 8 bits add some."""


@dataclass(frozen=True)
class Comparison:
    """What a loaded model was compared by."""

    compared: tuple[str, ...]
    not_comparable: tuple[str, ...]
    """Made from several tensors of the file while loading."""


def refuse_other_tensors(model: PreTrainedModel, stored: dict[str, StoredTensor], where: Path) -> None:
    """Raise unless `stored` has every tensor of the weightless, unquantised `model`, in the model's shapes."""
    refuse_silent(stored, where)
    described = model.state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in described.items()}
    sources, converted = names_in_memory(model, stored)
    for source in (*(source for name, source in sources.items() if _is_float(described.get(name))), *converted):
        if not stored[source].packed and stored[source].dtype not in FLOATS:
            raise VlmtuneError(
                f"{stored[source].file} has {source} as {stored[source].dtype}, where the model has fractions",
                "weights are in 16 or 32 bits (F32, BF16, F16): download the model again",
            )
    wrong = [
        f"{name} (shape {list(stored[source].shape)} instead of {list(expected[name])})"
        for name, source in sources.items()
        if name in expected and stored[source].shape != expected[name]
    ]
    absent = [] if converted else sorted(set(expected) - set(sources) - _filled_otherwise(model, set(sources)))
    if wrong or absent:
        raise VlmtuneError(
            f"the files of {where} lack {len(wrong) + len(absent)} tensors of the model, "
            f"or have them in another shape, such as {(wrong + absent)[0]}",
            "download the model again: config.json and weights do not belong together",
        )


def refuse_other_numbers(model: PreTrainedModel, stored: dict[str, StoredTensor], where: Path) -> Comparison:
    """Compare one tensor of every kind with the files and return what was compared.

    Raises:
        VlmtuneError: a tensor in memory is not that of the file.
    """
    sources, converted = names_in_memory(model, stored)
    tensors = model.state_dict(keep_vars=True)
    samples = _one_of_each_kind([name for name in sources if name in tensors])
    for name in samples:
        if not _is_finite(stored[sources[name]], sources[name]):
            raise VlmtuneError(
                f"{stored[sources[name]].file}: {sources[name]} holds what is no number, or infinite",
                "training would end at its first step: download the model again",
            )
        if not _is_equal(read_parameter(model, tensors[name]), stored[sources[name]], sources[name]):
            raise VlmtuneError(
                f"{name} in memory is not what {where} holds: the library has replaced it while loading",
                "training would start from wrong numbers; please report the model and the output of vlmtune doctor",
            )
    return Comparison(tuple(samples), tuple(converted))


def refuse_other_base(base: nn.Module, adapter: Path, rank: int) -> None:
    """Raise when an adapter's tensors are not of this rank, or do not fit the modules of a base."""
    modules = dict(base.named_modules())
    for name, tensor in stored_in(adapter / WEIGHTS).items():
        path, _, half = name.removeprefix("base_model.model.").rpartition(".lora_")
        module, is_a = modules.get(path), half.startswith("A")
        wanted = getattr(module, "in_features" if is_a else "out_features", None)
        shape = (rank, wanted) if is_a else (wanted, rank)
        if tensor.shape != shape or tensor.dtype not in FLOATS:
            raise VlmtuneError(
                f"the adapter in {adapter} was trained on another model: its {path} is {list(tensor.shape)} of "
                f"{tensor.dtype}"
                + (f", that of this run {list(shape)}" if wanted else ", this base has no such layer"),
                "name the model that it was trained on, in the revision that versions.json is from",
            )


def sources_in(model: PreTrainedModel, stored: dict[str, StoredTensor], family: Family) -> list[str]:
    """Return the names in the files of what a model of some parts is loaded from."""
    parts = {family.part_of(name) for name in model.state_dict()}
    return [source for source, name, _ in _renamed(model, stored) if _part_or_none(name, family) in parts]


def _is_float(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.is_floating_point()


def _part_or_none(name: str, family: Family) -> str | None:
    """Files may hold what the model does not have."""
    try:
        return family.part_of(name)
    except ValueError:
        return None


def names_in_memory(model: PreTrainedModel, stored: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return name in memory → name in the files, and the names in the files that loading takes apart or joins."""
    sources, converted = {}, []
    for source, name, is_converted in _renamed(model, stored):
        if is_converted:
            converted.append(source)
        else:
            sources[name] = source
    return sources, converted


def _renamed(model: PreTrainedModel, stored: Iterable[str]) -> Iterator[tuple[str, str, bool]]:
    """Yield each name in the files, the name in memory, and whether loading takes apart or joins what it stands for."""
    mapping = borrowed.GET_MODEL_CONVERSION_MAPPING(model)
    renaming, converter = borrowed.WEIGHT_RENAMING.get(), borrowed.WEIGHT_CONVERTER.get()
    renamings = [entry for entry in mapping if isinstance(entry, renaming)]
    converters = [entry for entry in mapping if isinstance(entry, converter)]
    rename_source_key = borrowed.RENAME_SOURCE_KEY.get()
    expected = model.state_dict()
    for source in stored:
        name, pattern = rename_source_key(source, renamings, converters, model.base_model_prefix, expected)
        if name not in expected and source in expected:
            name, pattern = rename_source_key(source, [], [], model.base_model_prefix, expected)
        yield source, name, pattern is not None


def _filled_otherwise(model: PreTrainedModel, found: set[str]) -> set[str]:
    """Return the tensors that are the same as one that was found, or that the model says it can do without."""
    places: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), set()).add(name)
    shared = {name for names in places.values() if names & found for name in names}
    optional = borrowed.OPTIONAL_TENSORS.read_or_none(model) or ()
    return shared | {name for name in model.state_dict() if any(re.search(pattern, name) for pattern in optional)}


def _one_of_each_kind(names: list[str]) -> list[str]:
    """Return one name for each name without its numbers: the middle layer's."""
    kinds: dict[str, list[str]] = {}
    for name in sorted(names):
        kinds.setdefault(re.sub(r"\d+", "N", name), []).append(name)
    return [names[len(names) // 2] for names in kinds.values()]


def _is_finite(source: StoredTensor, name: str) -> bool:
    return source.packed is not None or bool(_first_numbers(source.file, name).isfinite().all())


def _is_equal(tensor: Tensor, source: StoredTensor, name: str) -> bool:
    """Return whether the first numbers of a tensor are those of the file, as far as their formats can say."""
    state = state_of(tensor)
    if source.packed:
        return state is not None and _is_same_4bit(tensor, source.packed, name)
    expected = _first_numbers(source.file, name)
    if state is None:
        found = tensor.detach().reshape(-1)[: len(expected)].cpu()
        return torch.equal(found, expected.to(found.dtype))
    expected = expected[: len(expected) // state.blocksize * state.blocksize].float()
    limit = expected.view(-1, state.blocksize).abs().amax(1) * QUANTISATION_ERROR
    error = (_dequantised(tensor, len(expected)) - expected).view(-1, state.blocksize).abs().amax(1)
    return bool((error <= limit + 1e-6).all())


def _is_same_4bit(tensor: Tensor, files: Mapping[str, Path], name: str) -> bool:
    """Return whether a packed weight begins with the very bytes of the file, and its constants do."""
    state = state_of(tensor)
    parts = {name: tensor, f"{name}.absmax": state.absmax, f"{name}.quant_map": state.code}
    if state.nested:
        parts |= {f"{name}.nested_absmax": state.state2.absmax, f"{name}.nested_quant_map": state.state2.code}
    return all(
        torch.equal(part.detach().reshape(-1)[:SAMPLED_NUMBERS].cpu(), _first_numbers(files[part_name], part_name))
        for part_name, part in parts.items()
    )


def _first_numbers(path: Path, name: str) -> Tensor:
    """Read as many whole rows as hold SAMPLED_NUMBERS, and no more of the file."""
    with safe_open(path, framework="pt") as file:
        shape = file.get_slice(name).get_shape()
        if not shape:
            return file.get_tensor(name).reshape(-1)
        row = max(1, torch.Size(shape[1:]).numel())
        return file.get_slice(name)[: -(-SAMPLED_NUMBERS // row)].reshape(-1)[:SAMPLED_NUMBERS]


def _dequantised(tensor: Tensor, num: int) -> Tensor:
    """Return the first `num` numbers of a 4-bit weight; bitsandbytes would unpack all of it, on the card."""
    state = state_of(tensor)
    blocks = num // state.blocksize
    packed = tensor.detach().reshape(-1)[: num // 2].cpu()
    absmax = state.absmax[:blocks].cpu()
    if state.nested:
        outer = state.state2
        scale = outer.absmax[: -(-blocks // outer.blocksize)].cpu().repeat_interleave(outer.blocksize)[:blocks]
        absmax = outer.code.cpu()[absmax.int()] * scale + state.offset.cpu()
    nibbles = torch.stack((packed >> 4, packed & 15), 1).reshape(-1).int()
    return (state.code.cpu()[nibbles].view(blocks, -1) * absmax[:, None].float()).reshape(-1)
