"""The training runs whose memory is measured on a GPU and estimated without one: one list for both.

Models have their real sizes and random weights; tokenizers are byte-level stand-ins, image processors are real.
"""

import json
import random
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import TINY
from tiny.packed import WEIGHTS
from transformers import ProcessorMixin

from vlmtune.compat.bitsandbytes import state_of
from vlmtune.config.schema import TrainingConfig
from vlmtune.data.samples import read_samples
from vlmtune.data.types import Sample
from vlmtune.families.standin import standin_processor
from vlmtune.hub.source import ModelSource, open_model
from vlmtune.models.build import weightless_base
from vlmtune.models.tiny import set_token_ids
from vlmtune.plan.decide import make_plan
from vlmtune.plan.types import Device


@dataclass(frozen=True)
class Case:
    """One training run."""

    name: str
    model: str
    """Folder name in the catalogue, such as `Qwen__Qwen3-VL-2B-Instruct`."""
    text_chars: int = 300
    """Characters of the longest row's question and answer together; one character is one token."""
    image_px: tuple[int, int] = (448, 336)
    expandable: bool = True
    settings: dict = field(default_factory=dict)
    """Config values by dotted key."""
    from_checkpoint: bool = False
    """Whether weights are loaded from files, as users' are, or made on the card."""
    packed: bool = False
    """Whether these files are in 4 bits already."""
    rows: int = 4
    mixed_images: bool = False
    """Whether images have half to all of `image_px`, or all have the same size."""
    even: bool = False
    """Whether all rows are as long as the longest."""


def config_of(case: Case, folder: Path) -> TrainingConfig:
    """Return the case as a config over the model and rows that `prepare` put into `folder`."""
    values = {
        "experiment_name": case.name,
        "output_dir": str(folder / "runs"),
        "model": {"name": str(folder / "model")},
        "data": {"train_path": str(folder / "rows.jsonl"), "max_length": 16_384},
        "training": {"max_steps": 3, "gradient_accumulation_steps": 2, "learning_rate": 1e-4, "save_steps": 1000},
        # Most were measured before there was a choice.
        "hardware": {
            "offload_embeddings": False,
            "lean_lora": False,
            "varlen_attention": False,
            "align_widths": False,
            "fused_norms": False,
            "fused_elementwise": False,
            "joined_constants": False,
        },
    }
    for key, value in case.settings.items():
        *parents, leaf = key.split(".")
        section = values
        for parent in parents:
            section = section.setdefault(parent, {})
        section[leaf] = value
    return TrainingConfig.model_validate(values)


def prepare(case: Case, catalogue: Path, folder: Path) -> tuple[TrainingConfig, ModelSource, list[Sample]]:
    """Write the model's configs and the rows into `folder`; return what a plan and a run are made of."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_model(catalogue / case.model, folder / "model")
    _write_rows(case, folder)
    if case.packed:
        _name_packed_layers(config_of(replace(case, settings={}), folder))
    return opened(case, folder)


def opened(case: Case, folder: Path) -> tuple[TrainingConfig, ModelSource, list[Sample]]:
    """Return what a plan and a run are made of, of what `prepare` has written."""
    config = config_of(case, folder)
    return config, open_model(config.model.name, None, folder), read_samples(folder / "rows.jsonl").samples


def _write_model(source: Path, folder: Path) -> None:
    """The real config with the ids of a stand-in tokenizer, and the real processor around that."""
    model = open_model(str(source.resolve()), None, source)
    config = deepcopy(model.config)
    kind = config["model_type"]
    processor = _own_processor(config) if kind == "qwen" else standin_processor(config, model.preprocessor)
    set_token_ids(config, processor)
    _restore(config, model.config, ("vocab_size", "vocab_size_per_layer_input"))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    processor.save_pretrained(folder)
    (folder / WEIGHTS).touch()  # weights are made on the card


def _name_packed_layers(config: TrainingConfig) -> None:
    """Let config.json and the names of tensors tell of 4 bits: a plan asks for no more; measuring writes the rest."""
    folder = Path(config.model.name)
    plan = make_plan(config, open_model(config.model.name, None, folder), Device("cpu", "CPU", False))
    layers = [name for name, tensor in weightless_base(plan).named_parameters() if state_of(tensor) is not None]
    endings = ("quant_state.bitsandbytes__nf4", "nested_absmax")
    save_file({f"{name}.{ending}": torch.zeros(1) for name in layers for ending in endings}, folder / WEIGHTS)
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"] = {"load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(values))


def _own_processor(config: dict) -> ProcessorMixin:
    """Qwen-VL-Chat's, which is vlmtune's own and not among those of transformers."""
    _, _, processor = TINY["qwen"]()
    side = config["visual"]["image_size"]
    processor.image_processor.size = {"height": side, "width": side}
    config["visual"]["image_start_id"] = processor.tokenizer.convert_tokens_to_ids("<img>")
    return processor


def _restore(config: dict, real: dict, keys: tuple[str, ...]) -> None:
    for key, value in real.items():
        if isinstance(value, dict):
            _restore(config[key], value, keys)
        elif key in keys:
            config[key] = value


def _write_rows(case: Case, folder: Path) -> None:
    """Rows of growing length; the last is the longest, half of it answer."""
    rng = random.Random(0)
    lines = []
    for index in range(case.rows):
        picture = folder / f"{index}.png"
        share = rng.uniform(0.5, 1) if case.mixed_images else 1
        Image.effect_noise(tuple(round(side * share) for side in case.image_px), 64).convert("RGB").save(
            picture, compress_level=1
        )
        chars = case.text_chars if case.even else case.text_chars * (index + 1) // case.rows
        words = "".join(rng.choice("abcdefgh ") for _ in range(chars)).strip() or "ab"
        half = max(1, len(words) // 2)
        row = {"image": picture.name, "question": words[:half].strip() or "a", "answer": words[half:].strip() or "b"}
        lines.append(json.dumps(row))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


QWEN3_2B, QWEN3_4B, QWEN3_8B = (f"Qwen__Qwen3-VL-{size}-Instruct" for size in ("2B", "4B", "8B"))
QWEN25_3B, QWEN25_7B = (f"Qwen__Qwen2.5-VL-{size}-Instruct" for size in ("3B", "7B"))
LLAVA_7B, SMOL_2B = "llava-hf__llava-1.5-7b-hf", "HuggingFaceTB__SmolVLM2-2.2B-Instruct"
GEMMA_4B, PALI_3B = "google__gemma-3-4b-it", "google__paligemma-3b-pt-224"
UNSEEN = {
    "qwen-vl-chat": "Qwen__Qwen-VL-Chat",
    "instructblip-7b": "Salesforce__instructblip-vicuna-7b",
    "llava-13b": "llava-hf__llava-1.5-13b-hf",
    "llava-next-7b": "llava-hf__llava-v1.6-mistral-7b-hf",
    "onevision-7b": "llava-hf__llava-onevision-qwen2-7b-ov-hf",
    "internvl3-2b": "OpenGVLab__InternVL3-2B-hf",
    "internvl3-8b": "OpenGVLab__InternVL3-8B-hf",
    "idefics3-8b": "HuggingFaceM4__Idefics3-8B-Llama3",
    "mllama-11b": "meta-llama__Llama-3.2-11B-Vision-Instruct",
    "lfm2-vl-1.6b": "LiquidAI__LFM2-VL-1.6B",
    "qwen35-4b": "Qwen__Qwen3.5-4B",
    "granite-2b": "ibm-granite__granite-vision-3.2-2b",
    "qwen2-vl-2b": "Qwen__Qwen2-VL-2B-Instruct",
    "gemma4-e2b": "google__gemma-4-E2B-it",
    "gemma3n-e2b": "google__gemma-3n-E2B-it",
    "gemma-12b": "google__gemma-3-12b-it",
    "paligemma2-3b": "google__paligemma2-3b-pt-224",
    "fastvlm-0.5b": "KamilaMila__FastVLM-0.5B",
    "minicpm-v-1.3b": "openbmb__MiniCPM-V-4.6",
    "pixtral-12b": "mistral-community__pixtral-12b",
    "mistral-24b": "mistralai__Mistral-Small-3.1-24B-Instruct-2503",
}
"""Models that no rule was found on: their runs test the rules blind."""
EPOCHS = {
    "training.gradient_accumulation_steps": 4,
    "training.max_steps": 14,
}
"""More than two epochs of 24 rows."""
KEEP = {"hardware.gradient_checkpointing": False}
FP32_STATES = {"training.optim": "adamw"}
UNPAGED = {"training.optim": "adamw_8bit"}
TOWER_16BIT = {"training.quantization.quantize_vision_tower": False}

RANK_64 = {"training.lora.rank": 64, **FP32_STATES}
LONG = (
    Case("qwen3-2b-epochs", QWEN3_2B),
    Case("qwen3-2b-epochs-native", QWEN3_2B, expandable=False),
    Case("qwen3-2b-epochs-rank64", QWEN3_2B, settings=RANK_64),
    Case("qwen3-4b-epochs-batch2", QWEN3_4B, settings={"training.batch_size": 2}),
    Case("qwen25-3b-epochs-native", QWEN25_3B, expandable=False),
    Case("qwen25-7b-epochs", QWEN25_7B, settings=RANK_64),
    Case("llava-7b-epochs", LLAVA_7B),
    Case("llava-7b-epochs-native", LLAVA_7B, expandable=False, settings=RANK_64),
    Case("smol-2b-epochs", SMOL_2B),
    Case("gemma-4b-epochs", GEMMA_4B),
    Case("pali-3b-epochs", PALI_3B, settings={"training.gradient_accumulation_steps": 1}),
    Case("internvl3-2b-epochs-native", UNSEEN["internvl3-2b"], expandable=False),
)
"""Runs of some epochs over rows of many lengths."""

LORA = {"training.method": "lora"}
QWEN35_08B, SMOL_256M = "Qwen__Qwen3.5-0.8B", "HuggingFaceTB__SmolVLM-256M-Instruct"
ONE_TILE = {"data.image_size": 384}
DROPOUT_5, DROPOUT_10 = ({"training.lora.dropout": share} for share in (0.05, 0.1))
DROPOUT = (
    Case("qwen35-0.8b-dropout-batch3", QWEN35_08B, settings={**DROPOUT_5, "training.batch_size": 3}),
    Case("qwen3-2b-dropout", QWEN3_2B, settings=DROPOUT_10),
    Case("qwen3-2b-dropout-keep", QWEN3_2B, settings={**DROPOUT_10, **KEEP}),
    Case("qwen3-2b-dropout-lora-batch3", QWEN3_2B, settings={**DROPOUT_5, **LORA, "training.batch_size": 3}),
    Case("smol-2b-dropout-lora", SMOL_2B, settings={**DROPOUT_10, **LORA, **ONE_TILE}),
    Case("llava-7b-dropout", LLAVA_7B, settings=DROPOUT_5),
)
"""Adapters with dropout."""

FULL_TUNING = {"training.method": "full"}
WITH_TOWER = {"training.freeze_vision_tower": False, "training.freeze_projector": False}
FULL = (
    Case("smol-256m-full", SMOL_256M, settings=FULL_TUNING),
    Case("smol-256m-full-tower", SMOL_256M, settings={**FULL_TUNING, **WITH_TOWER}),
    Case("smol-256m-full-keep", SMOL_256M, settings={**FULL_TUNING, **KEEP, **ONE_TILE}),
    Case("smol-256m-full-fp32-states", SMOL_256M, settings={**FULL_TUNING, **FP32_STATES}),
    Case("smol-256m-full-native", SMOL_256M, expandable=False, settings=FULL_TUNING),
    Case("qwen2-vl-2b-full", UNSEEN["qwen2-vl-2b"], settings={**FULL_TUNING, **UNPAGED}),
    Case("qwen2-vl-2b-full-tower", UNSEEN["qwen2-vl-2b"], settings={**FULL_TUNING, **WITH_TOWER, **UNPAGED}),
)
"""All weights learn, in fp32 under autocast."""

SMOL_500M, ONEVISION_05B = "HuggingFaceTB__SmolVLM-500M-Instruct", "llava-hf__llava-onevision-qwen2-0.5b-ov-hf"
BLIND = (
    Case("pali-3b-dropout", PALI_3B, settings=DROPOUT_5),
    Case("qwen25-3b-dropout-batch2", QWEN25_3B, settings={**DROPOUT_10, "training.batch_size": 2}),
    Case("internvl3-2b-dropout-lora", UNSEEN["internvl3-2b"], settings={**DROPOUT_5, **LORA}),
    Case("smol-500m-full", SMOL_500M, settings=FULL_TUNING),
    Case("onevision-0.5b-full", ONEVISION_05B, settings=FULL_TUNING),
    Case("qwen3-2b-full", QWEN3_2B, settings={**FULL_TUNING, **UNPAGED}),
)
"""Dropout and full tuning again, measured after the rules for them were there, and none was changed for these."""

TWELVE_STEPS = {"training.max_steps": 12}
UNEVEN = (
    Case("llava-13b-uneven-native", UNSEEN["llava-13b"], expandable=False),
    Case("qwen25-7b-uneven-native", QWEN25_7B, expandable=False),
    Case("gemma-4b-uneven-native", GEMMA_4B, expandable=False),
    Case("internvl3-8b-uneven-native", UNSEEN["internvl3-8b"], expandable=False),
)
"""Native segments, 12 steps of two batches over 24 rows of many lengths; seen while the rules for them were made."""
BLIND_UNEVEN = (
    Case("qwen3-4b-uneven-native", QWEN3_4B, expandable=False),
    Case("onevision-7b-uneven-native", UNSEEN["onevision-7b"], expandable=False),
    Case("qwen2-vl-2b-uneven-native", UNSEEN["qwen2-vl-2b"], expandable=False, settings={"training.batch_size": 2}),
    Case("idefics3-8b-uneven-native", UNSEEN["idefics3-8b"], expandable=False, settings=ONE_TILE),
    Case("pali-3b-uneven-native", PALI_3B, expandable=False, settings=FP32_STATES),
    Case("granite-2b-uneven-native", UNSEEN["granite-2b"], expandable=False),
    Case("qwen3-8b-uneven-native", QWEN3_8B, expandable=False, settings=RANK_64),
    Case("qwen25-3b-uneven-keep-native", QWEN25_3B, expandable=False, settings=KEEP),
)
"""Uneven rows over native segments again, measured after the rules for them were there, and none was changed."""


CACHED = {"data.cache_features": True}
CACHED_FEATURES = (
    Case("qwen3-2b-features", QWEN3_2B, settings=CACHED, from_checkpoint=True),
    Case("qwen3-2b-features-batch4", QWEN3_2B, settings={**CACHED, "training.batch_size": 4}, from_checkpoint=True),
    Case("qwen3-2b-features-native", QWEN3_2B, expandable=False, settings=CACHED, from_checkpoint=True),
    Case("qwen25-3b-features-large-image", QWEN25_3B, image_px=(1120, 840), settings=CACHED, from_checkpoint=True),
    Case("llava-7b-features", LLAVA_7B, settings=CACHED, from_checkpoint=True),
    Case("gemma-4b-features", GEMMA_4B, settings=CACHED, from_checkpoint=True),
    Case("smol-2b-features", SMOL_2B, settings={**CACHED, **TOWER_16BIT}, from_checkpoint=True),
    Case("qwen-vl-chat-features", UNSEEN["qwen-vl-chat"], settings=CACHED, from_checkpoint=True),
    Case("gemma3n-e2b-features", UNSEEN["gemma3n-e2b"], settings=CACHED, from_checkpoint=True),
    Case("internvl3-2b-features", UNSEEN["internvl3-2b"], settings={**CACHED, **LORA}, from_checkpoint=True),
)
"""Images are encoded before the language model loads; weights lie in files, whose numbers name the features."""
EMBEDDINGS_AWAY = {"hardware.offload_embeddings": True}
ACTIVATIONS_AWAY = {"hardware.offload_activations": True}
AWAY = {**EMBEDDINGS_AWAY, **ACTIVATIONS_AWAY}
QWEN25_32B = "Qwen__Qwen2.5-VL-32B-Instruct"
GEMMA4_E4B, GEMMA3N_E4B = "google__gemma-4-E4B-it", "google__gemma-3n-E4B-it"
NO_DOUBLE = {"training.quantization.bnb_4bit_use_double_quant": False}


def _streamed(number: int) -> dict:
    return {"hardware.streamed_layers": number}


ONE_MEMORY_LEVER = (
    Case("qwen25-7b-embeddings", QWEN25_7B, settings=EMBEDDINGS_AWAY),
    Case("qwen3-8b-embeddings-native", QWEN3_8B, expandable=False, settings=EMBEDDINGS_AWAY),
    Case("gemma4-e4b-embeddings", GEMMA4_E4B, settings=EMBEDDINGS_AWAY),
    Case("gemma3n-e4b-embeddings", GEMMA3N_E4B, settings=EMBEDDINGS_AWAY),
    Case("smol-2b-embeddings-files", SMOL_2B, from_checkpoint=True, settings=EMBEDDINGS_AWAY),
    Case("qwen25-7b-offload-long", QWEN25_7B, text_chars=1200, settings=ACTIVATIONS_AWAY),
    Case("qwen3-2b-offload-some", QWEN3_2B, settings={**ACTIVATIONS_AWAY, "hardware.checkpointed_layers": 14}),
    Case("qwen25-3b-streamed", QWEN25_3B, settings=_streamed(36)),
    Case("qwen3-4b-streamed-keep-native", QWEN3_4B, expandable=False, settings={**_streamed(12), **KEEP}),
    Case("llava-7b-streamed-files", LLAVA_7B, settings=_streamed(15), from_checkpoint=True),
    Case("llava-13b-streamed", UNSEEN["llava-13b"], settings=_streamed(12)),
    Case("llava-13b-streamed-native", UNSEEN["llava-13b"], expandable=False, settings=_streamed(40)),
    Case("mistral-24b-streamed", UNSEEN["mistral-24b"], settings=_streamed(30)),
    Case("qwen25-32b-streamed", QWEN25_32B, settings=_streamed(60)),
    Case("gemma-12b-streamed-constants", UNSEEN["gemma-12b"], settings={**_streamed(25), **NO_DOUBLE}),
)
"""Each memory lever alone, measured after its rules were there, and none was changed for these."""
SEVERAL_MEMORY_LEVERS = (
    Case("llava-13b-away", UNSEEN["llava-13b"], settings=AWAY),
    Case("qwen-vl-chat-away-streamed", UNSEEN["qwen-vl-chat"], settings={**AWAY, **_streamed(16)}),
    Case("qwen25-7b-away-streamed-native", QWEN25_7B, expandable=False, settings={**AWAY, **_streamed(28)}),
    Case("qwen3-8b-embeddings-streamed", QWEN3_8B, settings={**EMBEDDINGS_AWAY, **_streamed(20)}),
    Case("llava-next-7b-embeddings-streamed", UNSEEN["llava-next-7b"], settings={**EMBEDDINGS_AWAY, **_streamed(9)}),
    Case("idefics3-8b-away-streamed", UNSEEN["idefics3-8b"], settings={**AWAY, **_streamed(12), **ONE_TILE}),
    Case("pixtral-12b-embeddings-streamed", UNSEEN["pixtral-12b"], settings={**EMBEDDINGS_AWAY, **_streamed(30)}),
    Case("mistral-24b-activations-streamed", UNSEEN["mistral-24b"], settings={**ACTIVATIONS_AWAY, **_streamed(38)}),
    Case("qwen25-32b-away-streamed", QWEN25_32B, settings={**AWAY, **_streamed(62)}),
    Case("mllama-11b-away-streamed", UNSEEN["mllama-11b"], settings={**AWAY, **_streamed(20)}),
    Case("gemma4-e4b-embeddings-streamed", GEMMA4_E4B, settings={**EMBEDDINGS_AWAY, **_streamed(21)}),
    Case("gemma3n-e4b-away", GEMMA3N_E4B, settings=AWAY),
    Case("gemma-12b-activations-streamed", UNSEEN["gemma-12b"], settings={**ACTIVATIONS_AWAY, **_streamed(30)}),
    Case("pali-3b-activations-streamed", PALI_3B, settings={**ACTIVATIONS_AWAY, **_streamed(9), **RANK_64}),
    Case("smol-2b-away-streamed", SMOL_2B, settings={**AWAY, **_streamed(24), **ONE_TILE}),
    Case("qwen35-4b-activations-streamed", UNSEEN["qwen35-4b"], settings={**ACTIVATIONS_AWAY, **_streamed(16)}),
    Case("granite-2b-activations-streamed", UNSEEN["granite-2b"], settings={**ACTIVATIONS_AWAY, **_streamed(20)}),
    Case("onevision-7b-away-batch2", UNSEEN["onevision-7b"], settings={**AWAY, "training.batch_size": 2}),
)
LONG_MEMORY_LEVERS = (
    Case("llava-7b-epochs-away", LLAVA_7B, settings=AWAY),
    Case("internvl3-8b-epochs-streamed", UNSEEN["internvl3-8b"], settings={**ACTIVATIONS_AWAY, **_streamed(14)}),
)
"""Several together, the last over many lengths, measured likewise."""


HEAD_8BIT, KEPT = {"training.quantization.quantize_head": "8bit"}, {"model.cache_quantized": True}
HEADS_AND_FILES = (
    Case("qwen25-7b-head8", QWEN25_7B, settings=HEAD_8BIT),
    Case("qwen25-7b-head8-native", QWEN25_7B, expandable=False, settings=HEAD_8BIT),
    Case("qwen25-7b-head8-long", QWEN25_7B, text_chars=1200, settings=HEAD_8BIT),
    Case("llava-13b-head8", UNSEEN["llava-13b"], settings=HEAD_8BIT),
    Case("qwen3-8b-head8-batch2", QWEN3_8B, settings={**HEAD_8BIT, "training.batch_size": 2}),
    Case("smol-2b-head8-keep", SMOL_2B, settings={**HEAD_8BIT, **KEEP, **ONE_TILE}),
    Case("qwen25-7b-head8-files", QWEN25_7B, settings=HEAD_8BIT, from_checkpoint=True),
    Case("qwen3-2b-packed", QWEN3_2B, from_checkpoint=True, packed=True),
    Case("qwen25-3b-packed-native", QWEN25_3B, expandable=False, from_checkpoint=True, packed=True),
    Case("qwen25-7b-packed-head8", QWEN25_7B, settings=HEAD_8BIT, from_checkpoint=True, packed=True),
    Case("llava-7b-packed", LLAVA_7B, from_checkpoint=True, packed=True),
    Case("qwen3-4b-kept", QWEN3_4B, settings=KEPT, from_checkpoint=True),
    Case("qwen25-7b-head8-away", QWEN25_7B, settings={**HEAD_8BIT, **AWAY}),
    Case("qwen-vl-chat-head8-embeddings", UNSEEN["qwen-vl-chat"], settings={**HEAD_8BIT, **EMBEDDINGS_AWAY}),
    Case("pixtral-12b-head8-streamed", UNSEEN["pixtral-12b"], settings={**HEAD_8BIT, **AWAY, **_streamed(20)}),
    Case(
        "qwen25-7b-packed-streamed",
        QWEN25_7B,
        settings={**HEAD_8BIT, **EMBEDDINGS_AWAY, **_streamed(14)},
        from_checkpoint=True,
        packed=True,
    ),
)
"""Heads in 8 bits and files in 4. A kept base is quantised by the run that is measured: nothing is there before."""


LEAN = {"hardware.lean_lora": True}
PACKS = {"training.packing": True, "training.gradient_accumulation_steps": 8}
SPEED_LEVERS = (
    Case("qwen3-2b-lean", QWEN3_2B, settings=LEAN),
    Case("qwen25-3b-lean-native", QWEN25_3B, expandable=False, settings=LEAN),
    Case("qwen25-3b-lean-large-image", QWEN25_3B, image_px=(1120, 840), settings=LEAN),
    Case("qwen25-7b-lean", QWEN25_7B, settings=LEAN),
    Case("qwen3-8b-lean-rank64", QWEN3_8B, settings={**LEAN, **RANK_64}),
    Case("llava-7b-lean-batch2", LLAVA_7B, settings={**LEAN, "training.batch_size": 2}),
    Case("smol-2b-lean-keep", SMOL_2B, settings={**LEAN, **KEEP, **ONE_TILE}),
    Case("gemma-4b-lean", GEMMA_4B, settings=LEAN),
    Case("pali-3b-lean-lora", PALI_3B, settings={**LEAN, "training.method": "lora", "training.lora.rank": 32}),
    Case("qwen25-3b-packs", QWEN25_3B, rows=8, settings=PACKS),
    Case("qwen25-3b-packs-lean", QWEN25_3B, rows=8, settings={**PACKS, **LEAN}),
    Case("llava-7b-packs-lean", LLAVA_7B, rows=8, settings={**PACKS, **LEAN, "training.pack_tokens": 3072}),
)
"""Lean adapters and packs; measured likewise, after their rules."""
VARLEN = {**LEAN, "hardware.varlen_attention": True}
VARLEN_ATTENTION = (
    Case("qwen25-3b-varlen", QWEN25_3B, settings=VARLEN),
    Case("qwen25-3b-varlen-large-image", QWEN25_3B, image_px=(1120, 840), settings=VARLEN),
    Case("qwen25-3b-varlen-batch4-native", QWEN25_3B, expandable=False, settings={**VARLEN, "training.batch_size": 4}),
    Case("qwen25-7b-varlen", QWEN25_7B, settings=VARLEN),
    Case("qwen2-vl-2b-varlen-batch2", UNSEEN["qwen2-vl-2b"], settings={**VARLEN, "training.batch_size": 2}),
    Case("qwen3-4b-varlen-large-image", QWEN3_4B, image_px=(800, 600), settings={**VARLEN, "training.batch_size": 2}),
    Case("qwen25-3b-packs-varlen", QWEN25_3B, rows=8, settings={**PACKS, **VARLEN}),
    Case("llava-7b-packs-varlen", LLAVA_7B, rows=8, settings={**PACKS, **VARLEN, "training.pack_tokens": 3072}),
    Case("smol-2b-packs-varlen", SMOL_2B, rows=8, settings={**PACKS, **VARLEN, **ONE_TILE}),
    Case("qwen3-2b-packs-varlen-native", QWEN3_2B, rows=8, expandable=False, settings={**PACKS, **VARLEN}),
)
"""One attention call for all windows, images and rows; measured likewise."""


def _uneven(case: Case, settings: dict) -> Case:
    return replace(case, rows=24, text_chars=600, mixed_images=True, settings={**settings, **case.settings})


FUSED = {
    **VARLEN,
    "hardware.align_widths": True,
    "hardware.fused_norms": True,
    "hardware.fused_elementwise": True,
    "hardware.joined_constants": True,
}
JOINED = {**LEAN, "hardware.joined_constants": True}
BATCH_2 = {"training.batch_size": 2}
PACKS_3072 = {**PACKS, "training.pack_tokens": 3072}
TOGETHER = (
    Case("qwen3-2b-fused-packs-activations", QWEN3_2B, rows=8, settings={**FUSED, **PACKS, **ACTIVATIONS_AWAY}),
    Case("qwen3-4b-fused-streamed-native", QWEN3_4B, expandable=False, settings={**FUSED, **_streamed(18)}),
    Case("qwen3-8b-fused-head8-away", QWEN3_8B, settings={**FUSED, **HEAD_8BIT, **AWAY}),
    Case(
        "qwen25-3b-fused-packs-features",
        QWEN25_3B,
        rows=8,
        settings={**FUSED, **PACKS, **CACHED},
        from_checkpoint=True,
    ),
    Case(
        "qwen25-7b-fused-packs-streamed-native",
        QWEN25_7B,
        rows=8,
        expandable=False,
        settings={**FUSED, **PACKS, **_streamed(20)},
    ),
    Case("qwen25-7b-joined-away-batch2-native", QWEN25_7B, expandable=False, settings={**JOINED, **AWAY, **BATCH_2}),
    Case("qwen25-32b-fused-away-streamed", QWEN25_32B, settings={**FUSED, **AWAY, **_streamed(60)}),
    Case("llava-7b-fused-packs-streamed", LLAVA_7B, rows=8, settings={**FUSED, **PACKS_3072, **_streamed(10)}),
    Case("llava-13b-fused-streamed-native", UNSEEN["llava-13b"], expandable=False, settings={**FUSED, **_streamed(25)}),
    Case("llava-next-7b-fused-away", UNSEEN["llava-next-7b"], settings={**FUSED, **AWAY}),
    Case(
        "smol-2b-fused-packs-away-native",
        SMOL_2B,
        rows=8,
        expandable=False,
        settings={**FUSED, **PACKS, **AWAY, **ONE_TILE},
    ),
    Case("gemma-4b-joined-streamed", GEMMA_4B, settings={**JOINED, **_streamed(17), **ACTIVATIONS_AWAY}),
    Case(
        "gemma-12b-joined-activations-streamed-native",
        UNSEEN["gemma-12b"],
        expandable=False,
        settings={**JOINED, **ACTIVATIONS_AWAY, **_streamed(36)},
    ),
    Case("pali-3b-joined-activations-native", PALI_3B, expandable=False, settings={**JOINED, **ACTIVATIONS_AWAY}),
    Case(
        "internvl3-2b-fused-packs-activations",
        UNSEEN["internvl3-2b"],
        rows=8,
        settings={**FUSED, **PACKS, **ACTIVATIONS_AWAY},
    ),
    Case(
        "internvl3-8b-joined-head8-streamed", UNSEEN["internvl3-8b"], settings={**JOINED, **HEAD_8BIT, **_streamed(9)}
    ),
    Case("onevision-7b-fused-packs-away", UNSEEN["onevision-7b"], rows=8, settings={**FUSED, **PACKS_3072, **AWAY}),
    Case(
        "idefics3-8b-joined-away-native",
        UNSEEN["idefics3-8b"],
        expandable=False,
        settings={**JOINED, **AWAY, **ONE_TILE},
    ),
    Case("pixtral-12b-fused-streamed", UNSEEN["pixtral-12b"], settings={**FUSED, **_streamed(24)}),
    Case(
        "mistral-24b-fused-activations-streamed",
        UNSEEN["mistral-24b"],
        settings={**FUSED, **ACTIVATIONS_AWAY, **_streamed(32)},
    ),
    Case("mllama-11b-joined-activations", UNSEEN["mllama-11b"], settings={**JOINED, **ACTIVATIONS_AWAY}),
    Case("granite-2b-fused-packs", UNSEEN["granite-2b"], rows=8, settings={**FUSED, **PACKS_3072}),
    Case(
        "qwen2-vl-2b-fused-packs-native", UNSEEN["qwen2-vl-2b"], rows=8, expandable=False, settings={**FUSED, **PACKS}
    ),
    Case(
        "qwen35-4b-joined-activations-batch2", UNSEEN["qwen35-4b"], settings={**JOINED, **ACTIVATIONS_AWAY, **BATCH_2}
    ),
    Case(
        "gemma4-e2b-fused-packs-embeddings",
        UNSEEN["gemma4-e2b"],
        rows=8,
        settings={**FUSED, **PACKS, **EMBEDDINGS_AWAY},
    ),
    Case("gemma4-e4b-joined-away-streamed", GEMMA4_E4B, settings={**JOINED, **AWAY, **_streamed(30)}),
    Case("gemma3n-e4b-joined-embeddings-batch2", GEMMA3N_E4B, settings={**JOINED, **EMBEDDINGS_AWAY, **BATCH_2}),
    Case(
        "qwen-vl-chat-joined-away-streamed-native",
        UNSEEN["qwen-vl-chat"],
        expandable=False,
        settings={**JOINED, **AWAY, **_streamed(20)},
    ),
    Case("fastvlm-0.5b-fused-activations", UNSEEN["fastvlm-0.5b"], settings={**FUSED, **ACTIVATIONS_AWAY}),
    Case("lfm2-vl-1.6b-joined-activations", UNSEEN["lfm2-vl-1.6b"], settings={**JOINED, **ACTIVATIONS_AWAY}),
)
"""Levers of memory and of speed together."""
LONG_TOGETHER = (
    Case("qwen3-2b-epochs-fused-native", QWEN3_2B, expandable=False, settings=FUSED),
    Case("qwen25-3b-epochs-fused-packs", QWEN25_3B, settings={**FUSED, **PACKS}),
    Case("llava-7b-epochs-fused-streamed-native", LLAVA_7B, expandable=False, settings={**FUSED, **_streamed(16)}),
)
"""The same over many lengths. Like the former predicted before they were measured."""

GRAPHED = {**FUSED, "hardware.cuda_graphs": True}
WITH_GRAPHS = (
    Case("qwen3-2b-graphs", QWEN3_2B, rows=8, settings={**GRAPHED, **PACKS}),
    Case("qwen3-4b-graphs-native", QWEN3_4B, rows=8, expandable=False, settings={**GRAPHED, **PACKS_3072}),
    Case("qwen25-3b-graphs-features", QWEN25_3B, rows=8, settings={**GRAPHED, **PACKS, **CACHED}, from_checkpoint=True),
    Case("qwen25-7b-graphs-streamed", QWEN25_7B, rows=8, settings={**GRAPHED, **PACKS, **_streamed(20)}),
    Case(
        "llava-7b-graphs-some", LLAVA_7B, rows=8, settings={**GRAPHED, **PACKS_3072, "hardware.checkpointed_layers": 24}
    ),
    Case("smol-2b-graphs-embeddings", SMOL_2B, rows=8, settings={**GRAPHED, **PACKS, **EMBEDDINGS_AWAY, **ONE_TILE}),
    Case(
        "internvl3-2b-graphs-rank64-native",
        UNSEEN["internvl3-2b"],
        rows=8,
        expandable=False,
        settings={**GRAPHED, **PACKS, **RANK_64},
    ),
    Case("granite-2b-graphs-head8", UNSEEN["granite-2b"], rows=8, settings={**GRAPHED, **PACKS_3072, **HEAD_8BIT}),
)
"""Layers as CUDA graphs. Like those below predicted before they were measured."""
LONG_WITH_GRAPHS = (
    Case("qwen3-4b-epochs-graphs", QWEN3_4B, settings={**GRAPHED, **PACKS_3072}),
    Case(
        "llava-7b-epochs-graphs-streamed-native",
        LLAVA_7B,
        expandable=False,
        settings={**GRAPHED, **PACKS_3072, **_streamed(16)},
    ),
)
GRAPHS = (*WITH_GRAPHS, *(_uneven(case, EPOCHS) for case in LONG_WITH_GRAPHS))
"""The same over many lengths too. No part of CASES: of another day, and the estimate is less exact (docs/levers.md)."""

LEVERS = (
    *ONE_MEMORY_LEVER,
    *SEVERAL_MEMORY_LEVERS,
    *(_uneven(case, EPOCHS) for case in LONG_MEMORY_LEVERS),
    *CACHED_FEATURES,
    *HEADS_AND_FILES,
    *SPEED_LEVERS,
    *VARLEN_ATTENTION,
    *TOGETHER,
    *(_uneven(case, EPOCHS) for case in LONG_TOGETHER),
)
"""Measured first after the rules for them were there, and none was changed for these."""

CASES = (
    Case("qwen3-2b", QWEN3_2B),
    Case("qwen3-2b-native", QWEN3_2B, expandable=False),
    Case("qwen3-2b-long", QWEN3_2B, text_chars=2000),
    Case("qwen3-2b-large-image", QWEN3_2B, image_px=(1280, 960)),
    Case("qwen3-2b-batch4", QWEN3_2B, settings={"training.batch_size": 4}),
    Case("qwen3-2b-keep", QWEN3_2B, settings=KEEP),
    Case("qwen3-2b-rank64", QWEN3_2B, settings=RANK_64),
    Case("qwen3-2b-lora", QWEN3_2B, settings={"training.method": "lora"}),
    Case("qwen3-4b", QWEN3_4B),
    Case("qwen3-4b-native", QWEN3_4B, expandable=False, settings=UNPAGED),
    Case("qwen3-4b-tower16", QWEN3_4B, settings=TOWER_16BIT),
    Case("qwen3-4b-long", QWEN3_4B, text_chars=1500, image_px=(800, 600)),
    Case("qwen3-8b", QWEN3_8B),
    Case("qwen3-8b-native", QWEN3_8B, expandable=False),
    Case("qwen3-8b-rank8", QWEN3_8B, settings={"training.lora.rank": 8, **UNPAGED}),
    Case("qwen25-3b", QWEN25_3B),
    Case("qwen25-3b-native", QWEN25_3B, expandable=False),
    Case("qwen25-3b-large-image", QWEN25_3B, image_px=(1120, 840)),
    Case("qwen25-3b-keep", QWEN25_3B, settings=KEEP),
    Case("qwen25-3b-tower16", QWEN25_3B, settings=TOWER_16BIT),
    Case("qwen25-7b", QWEN25_7B),
    Case("qwen25-7b-native", QWEN25_7B, expandable=False, settings=FP32_STATES),
    Case("qwen25-7b-long", QWEN25_7B, text_chars=1200),
    Case("llava-7b", LLAVA_7B),
    Case("llava-7b-native", LLAVA_7B, expandable=False),
    Case("llava-7b-rank64", LLAVA_7B, settings={"training.lora.rank": 64, **UNPAGED}),
    Case("llava-7b-batch2", LLAVA_7B, settings={"training.batch_size": 2}),
    Case("llava-7b-tower16", LLAVA_7B, settings=TOWER_16BIT),
    Case("smol-2b", SMOL_2B),
    Case("smol-2b-native", SMOL_2B, expandable=False),
    Case("smol-2b-one-tile", SMOL_2B, settings={"data.image_size": 384}),
    Case("smol-2b-keep", SMOL_2B, text_chars=800, settings={**KEEP, "data.image_size": 384}),
    Case("smol-2b-batch4", SMOL_2B, settings={"training.batch_size": 4, "data.image_size": 384}),
    Case("gemma-4b", GEMMA_4B),
    Case("gemma-4b-native", GEMMA_4B, expandable=False),
    Case("gemma-4b-long", GEMMA_4B, text_chars=1500),
    Case("gemma-4b-fp32-states", GEMMA_4B, settings=FP32_STATES),
    Case("pali-3b", PALI_3B),
    Case("pali-3b-native", PALI_3B, expandable=False),
    Case("pali-3b-long", PALI_3B, text_chars=1200),
    Case("pali-3b-tower16", PALI_3B, settings=TOWER_16BIT),
    Case("pali-3b-lora", PALI_3B, settings={"training.method": "lora", "training.lora.rank": 32}),
    Case("qwen3-2b-files", QWEN3_2B, from_checkpoint=True),
    Case("qwen3-2b-files-native", QWEN3_2B, expandable=False, from_checkpoint=True),
    Case("qwen25-3b-files-native", QWEN25_3B, expandable=False, from_checkpoint=True),
    Case("smol-2b-files-native", SMOL_2B, expandable=False, from_checkpoint=True),
    Case("pali-3b-files", PALI_3B, from_checkpoint=True),
    Case("qwen3-4b-files", QWEN3_4B, settings={"training.optim": "adamw"}, from_checkpoint=True),
    *(Case(name, model) for name, model in UNSEEN.items()),
    *(_uneven(case, EPOCHS) for case in LONG),
    *DROPOUT,
    *FULL,
    *BLIND,
    *(_uneven(case, TWELVE_STEPS) for case in (*UNEVEN, *BLIND_UNEVEN)),
    *LEVERS,
)

TWENTY_STEPS = {"training.max_steps": 20, "training.gradient_accumulation_steps": 1, "training.lora.rank": 8}
SMALL_CARD = (
    Case("small-qwen-vl-chat", UNSEEN["qwen-vl-chat"], settings={**TWENTY_STEPS, **EMBEDDINGS_AWAY}),
    Case("small-llava-13b", UNSEEN["llava-13b"], settings={**TWENTY_STEPS, **EMBEDDINGS_AWAY, **_streamed(12)}),
    Case("small-gemma4-e4b", GEMMA4_E4B, settings={**TWENTY_STEPS, **EMBEDDINGS_AWAY}),
    Case("small-mistral-24b", UNSEEN["mistral-24b"], settings={**TWENTY_STEPS, **ACTIVATIONS_AWAY, **_streamed(30)}),
    Case("small-qwen25-32b", QWEN25_32B, settings={**TWENTY_STEPS, **AWAY, **_streamed(60)}),
)
"""Models for which a small card is too small without levers: 20 steps each (small_card.py)."""


def without_memory_levers(case: Case) -> Case:
    """Return the same run with all of the model on the card."""
    return replace(case, name=f"{case.name}-whole", settings=TWENTY_STEPS)


SMALL = (*SMALL_CARD, *map(without_memory_levers, SMALL_CARD))
