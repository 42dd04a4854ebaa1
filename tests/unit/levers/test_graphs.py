"""Layers as CUDA graphs: as the user says, where packs, card and adapters allow it; else one line says why not."""

from dataclasses import replace

import pytest

from vlmtune.config.load import preset_config
from vlmtune.hub.source import ModelSource
from vlmtune.levers.speed import graphs
from vlmtune.plan.decide import make_plan
from vlmtune.plan.types import PACK_LENGTHS, Device, RunPlan

SOURCE = ModelSource("org/model", {"model_type": "llava", "vision_config": {"image_size": 336}, "text_config": {}}, {})
CARD = Device("cuda", "RTX 4090", bf16=True)
TURING, CPU = Device("cuda", "RTX 2080", bf16=False), Device("cpu", "CPU", bf16=False)
PACKS = ("training.packing=true", "training.pack_tokens=4096")


def plan_with(*values: str, device: Device = CARD) -> RunPlan:
    return make_plan(preset_config("org/model", "8gb", [*PACKS, *values]).config, SOURCE, device)


@pytest.mark.parametrize("auto", [False, True])
@pytest.mark.parametrize(("wish", "decided"), [("auto", None), ("true", True), ("false", False)])
def test_it_is_as_the_user_says(auto, wish, decided, monkeypatch):
    monkeypatch.setattr(graphs, "AUTO", auto)
    plan = plan_with(f"hardware.cuda_graphs={wish}")
    assert plan.cuda_graphs is (auto if decided is None else decided)
    assert plan.pack_step == (4096 // PACK_LENGTHS if plan.cuda_graphs else 1)
    assert [choice for choice in plan.choices if choice.key == graphs.KEY] == []


@pytest.mark.parametrize(
    ("values", "device", "reason"),
    [
        ((), CPU, "training runs on the CPU, for which nothing is launched"),
        (("training.packing=false", "training.pack_tokens=null"), CARD, "without training.packing: true"),
        (("hardware.varlen_attention=false",), CARD, "need hardware.varlen_attention"),
        ((), TURING, "need hardware.varlen_attention"),
        (("hardware.gradient_checkpointing=false",), CARD, "recompute from what stays on the card"),
        (("hardware.offload_activations=true",), CARD, "recompute from what stays on the card"),
        (("training.lora.dropout=0.1",), CARD, "adapters without dropout alone"),
        (("hardware.lean_lora=false",), CARD, "hardware.lean_lora alone adds gradients up"),
        (("training.method=full", "training.quantization.load_in_4bit=false"), CARD, "adapters without dropout alone"),
        (("hardware.num_gpus=2",), CARD, "several GPUs"),
        (("hardware.num_gpus=auto",), CARD, "several GPUs"),
        ((), replace(CARD, launched=True, num_gpus=2), "several GPUs"),
    ],
)
def test_where_it_cannot_be_one_line_says_why(values, device, reason):
    plan = plan_with("hardware.cuda_graphs=true", *values, device=device)
    [choice] = [choice for choice in plan.choices if choice.key == graphs.KEY]
    assert not plan.cuda_graphs and choice.value == "false" and reason in choice.reason
    quiet = plan_with("hardware.cuda_graphs=auto", *values, device=device)
    assert not quiet.cuda_graphs and not [choice for choice in quiet.choices if choice.key == graphs.KEY]


@pytest.mark.parametrize(
    ("values", "priced"),
    [
        ((), [{graphs.KEY: True}]),
        (("hardware.cuda_graphs=true",), []),
        (("hardware.cuda_graphs=false",), []),
        (("training.packing=false", "training.pack_tokens=null"), []),
        (("hardware.varlen_attention=false",), []),
        (("training.lora.dropout=0.1",), []),
    ],
)
def test_price_lists_have_it_where_packs_could_be_recorded(values, priced):
    config = preset_config("org/model", "8gb", [*PACKS, *values]).config
    assert graphs.GRAPHS.more(config, SOURCE.facts("org/model")) == priced
    assert graphs.GRAPHS.more(config, None) == []


def test_masks_of_pairs_of_tokens_are_not_recorded():
    config = {
        "model_type": "gemma3",
        "vision_config": {"image_size": 896},
        "text_config": {},
        "mm_tokens_per_image": 256,
    }
    loaded = preset_config("org/model", "8gb", [*PACKS, "hardware.cuda_graphs=true"])
    plan = make_plan(loaded.config, ModelSource("org/model", config, {}), CARD)
    [choice] = [choice for choice in plan.choices if choice.key == graphs.KEY]
    assert "images or prompts that see both ways" in choice.reason and plan.pack_step == 1
