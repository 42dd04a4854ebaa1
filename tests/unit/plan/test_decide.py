"""Every value that the plan decides, for each method and device."""

import re
from pathlib import Path

import pytest
from tiny import TINY

from vlmtune.config.schema import TrainingConfig
from vlmtune.errors import VlmtuneError
from vlmtune.families import FAMILIES
from vlmtune.hub.source import ModelSource, open_model
from vlmtune.levers.lora.targets import lora_targets
from vlmtune.plan.decide import make_plan
from vlmtune.plan.file import TARGETS
from vlmtune.plan.types import Device, RunPlan

CPU = Device("cpu", "CPU", bf16=False)
NEW_GPU = Device("cuda", "RTX 4060", bf16=True, total_bytes=8 * 2**30)
OLD_GPU = Device("cuda", "RTX 2080", bf16=False, total_bytes=8 * 2**30)
LLAVA = {"model_type": "llava", "vision_config": {"image_size": 336, "patch_size": 14}, "text_config": {}}
QWEN = {"model_type": "qwen2_5_vl", "vision_config": {"patch_size": 14}, "vocab_size": 151_936}


def config(**sections) -> TrainingConfig:
    values = {"model": {"name": "org/model"}, "data": {"train_path": "rows.jsonl"}}
    return TrainingConfig.model_validate({**values, **sections})


def plan(device=CPU, model=LLAVA, **sections) -> RunPlan:
    return make_plan(config(**sections), ModelSource("org/model", model, {}), device, "digest")


def reasons(made: RunPlan) -> dict[str, str]:
    return {choice.key: f"{choice.value}: {choice.reason}" for choice in made.choices}


FORMATS = [
    # device, method, mixed_precision -> base, autocast, adapters, scaling
    (CPU, "qlora", "auto", ("fp32", None, "fp32", False)),
    (CPU, "lora", "bf16", ("bf16", None, "fp32", False)),
    (CPU, "full", "auto", ("fp32", None, None, False)),
    (CPU, "full", "bf16", ("fp32", "bf16", None, False)),
    (CPU, "qlora", "no", ("fp32", None, "fp32", False)),
    (NEW_GPU, "qlora", "auto", ("bf16", None, "fp32", False)),
    (NEW_GPU, "lora", "fp16", ("fp16", None, "fp32", True)),
    (NEW_GPU, "full", "auto", ("fp32", "bf16", None, False)),
    (NEW_GPU, "full", "no", ("fp32", None, None, False)),
    (OLD_GPU, "qlora", "auto", ("fp16", None, "fp32", True)),
    (OLD_GPU, "lora", "no", ("fp32", None, "fp32", False)),
    (OLD_GPU, "full", "auto", ("fp32", "fp16", None, True)),
]


@pytest.mark.parametrize(("device", "method", "wish", "expected"), FORMATS)
def test_number_formats(device, method, wish, expected):
    made = plan(device, training={"method": method}, hardware={"mixed_precision": wish})
    assert (made.base_dtype, made.autocast_dtype, made.adapter_dtype, made.loss_scaling) == expected
    assert ("hardware.mixed_precision" in reasons(made)) == (wish == "auto")


@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
@pytest.mark.parametrize(
    ("device", "wish", "message"),
    [(CPU, "fp16", "fp16 needs a GPU"), (OLD_GPU, "bf16", "bf16 is not computed by RTX 2080")],
)
def test_formats_that_the_device_does_not_have_are_refused(device, method, wish, message):
    with pytest.raises(VlmtuneError, match=message) as refused:
        plan(device, training={"method": method}, hardware={"mixed_precision": wish})
    assert refused.value.hint.startswith("use auto")


@pytest.mark.parametrize(
    ("device", "said"),
    [
        (CPU, "fp32: training runs on the CPU"),
        (NEW_GPU, "bf16: RTX 4060 computes bf16"),
        (OLD_GPU, "fp16: RTX 2080 has no bf16: fp16 with loss scaling"),
    ],
)
def test_it_says_which_format_and_why(device, said):
    assert reasons(plan(device))["hardware.mixed_precision"] == said


def test_optimizer():
    assert (plan(CPU).optimizer, plan(NEW_GPU).optimizer) == ("adamw", "paged_adamw_8bit")
    assert plan(NEW_GPU, training={"optim": "adamw"}).optimizer == "adamw"
    assert "training.optim" not in reasons(plan(NEW_GPU, training={"optim": "adamw"}))
    for optim in ("adamw_8bit", "paged_adamw_8bit"):
        assert plan(NEW_GPU, training={"optim": optim}).optimizer == optim
        with pytest.raises(VlmtuneError, match=f"training.optim: {optim} needs a GPU"):
            plan(CPU, training={"optim": optim})


def test_what_is_quantised():
    made = plan(training={"quantization": {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}})
    assert (made.quant_type, made.double_quant, made.unquantized) == ("fp4", False, ("lm_head",))
    tower = plan(training={"quantization": {"quantize_vision_tower": False}})
    assert tower.unquantized == ("lm_head", "model.vision_tower", "model.multi_modal_projector")
    for method in ("lora", "full"):
        made = plan(training={"method": method})
        assert (made.quant_type, made.double_quant, made.unquantized) == (None, False, ())


def test_a_head_of_its_own_may_be_quantised_and_the_embedding_may_not():
    wish = {"quantization": {"quantize_head": True}}
    assert plan(training=wish).unquantized == ()
    assert "training.quantization.quantize_head" not in reasons(plan(training=wish))
    tied = plan(training=wish, model={**QWEN, "tie_word_embeddings": True})
    assert tied.unquantized == ("lm_head",)
    assert reasons(tied)["training.quantization.quantize_head"].startswith("false: the head shares")
    in_8 = {"quantization": {"quantize_head": "8bit"}}
    assert (plan(training=in_8).unquantized, plan(training=in_8).head_8bit) == (("lm_head",), True)
    tied = plan(training=in_8, model={**QWEN, "tie_word_embeddings": True})
    assert not tied.head_8bit
    assert reasons(tied)["training.quantization.quantize_head"].startswith("false: the head shares")


def test_layers_in_main_memory():
    assert plan().streamed_layers == 0
    assert plan(hardware={"streamed_layers": 32}).streamed_layers == 32
    with pytest.raises(VlmtuneError, match="33 are wanted, but the language model of org/model has 32 layers"):
        plan(hardware={"streamed_layers": 33})
    with pytest.raises(VlmtuneError, match="1 saves nothing"):
        plan(hardware={"streamed_layers": 1})
    with pytest.raises(VlmtuneError, match="method full has no 4-bit layers"):
        plan(hardware={"streamed_layers": 40}, training={"method": "full"})


def test_layers_that_recompute():
    assert plan().checkpointed_layers is None
    assert plan(hardware={"checkpointed_layers": 5}).checkpointed_layers == 5
    assert plan(hardware={"checkpointed_layers": 32}).checkpointed_layers is None, "all of them is the default"
    with pytest.raises(VlmtuneError, match="33 are wanted, but the language model of org/model has 32 layers"):
        plan(hardware={"checkpointed_layers": 33})
    with pytest.raises(ValueError, match="no layer recomputes"):
        config(hardware={"checkpointed_layers": 3, "gradient_checkpointing": False})
    with pytest.raises(ValueError, match="method lora quantises nothing"):
        config(training={"method": "lora", "quantization": {"quantize_head": True}})


def test_what_layers_recompute_from_leaves_the_card_where_there_is_one():
    wish = {"offload_activations": True}
    assert plan(NEW_GPU, hardware=wish).offload_activations and not plan(NEW_GPU).offload_activations
    on_cpu = plan(CPU, hardware=wish)
    assert not on_cpu.offload_activations
    assert reasons(on_cpu)["hardware.offload_activations"].startswith("false: training runs on the CPU")
    with pytest.raises(ValueError, match="hardware.offload_activations: no layer recomputes"):
        config(hardware={**wish, "gradient_checkpointing": False})


EMBEDDINGS = "hardware.offload_embeddings"
TIED = {**QWEN, "tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("device", "model", "method", "offloads", "said"),
    [
        (NEW_GPU, LLAVA, "qlora", True, "true: no output head shares the embeddings: only the rows"),
        (OLD_GPU, LLAVA, "lora", True, "true: no output head shares"),
        (NEW_GPU, LLAVA, "full", False, "false: method full trains the embeddings"),
        (NEW_GPU, TIED, "qlora", False, "false: the output head shares the embeddings' weights"),
        (CPU, LLAVA, "qlora", False, "false: training runs on the CPU"),
    ],
)
def test_embeddings_leave_the_card_wherever_they_can(device, model, method, offloads, said):
    made = plan(device, model, training={"method": method})
    assert made.offload_embeddings is offloads
    assert reasons(made)[EMBEDDINGS].startswith(said)


def test_embeddings_stay_where_that_is_wished_and_a_wish_that_cannot_be_granted_is_refused():
    stays, leaves = ({"offload_embeddings": wish} for wish in (False, True))
    for made in (plan(NEW_GPU, hardware=stays), plan(NEW_GPU, TIED, hardware=stays)):
        assert not made.offload_embeddings and EMBEDDINGS not in reasons(made)
    assert plan(NEW_GPU, hardware=leaves).offload_embeddings and plan(CPU, hardware=leaves).offload_embeddings
    for model, method, why in ((TIED, "qlora", "the output head shares"), (LLAVA, "full", "method full trains")):
        with pytest.raises(VlmtuneError, match=f"{EMBEDDINGS}: true is not possible with org/model: {why}") as refused:
            plan(NEW_GPU, model, training={"method": method}, hardware=leaves)
        assert refused.value.hint == f"leave {EMBEDDINGS} out"


@pytest.mark.parametrize("wish", [True, None])
def test_a_table_for_each_layer_leaves_though_the_head_shares_the_other_one(wish):
    catalogued = open_model("google/gemma-4-E2B-it", None, Path(), offline_catalog=True)
    made = plan(NEW_GPU, dict(catalogued.config), hardware={"offload_embeddings": wish})
    assert made.offload_embeddings
    if wish is None:
        assert reasons(made)[EMBEDDINGS].startswith("true: no output head shares the embeddings of the layers")


def test_what_learns():
    assert plan().trainable_parts == () and plan().lora_targets.startswith("model.language_model")
    assert "vision" not in plan().lora_targets
    full = plan(training={"method": "full"})
    assert (full.lora_targets, full.trainable_parts) == (None, ("text", "head"))
    free = plan(training={"method": "full", "freeze_vision_tower": False, "freeze_projector": False})
    assert set(free.trainable_parts) == {"text", "head", "vision", "projector"}


def test_workers():
    assert (plan(CPU).num_workers, plan(NEW_GPU).num_workers) == (0, 2)
    assert plan(NEW_GPU, hardware={"num_workers": 0}).num_workers == 0


def test_image_size_has_no_effect_on_a_fixed_input_and_that_is_said():
    made = plan(data={"train_path": "r", "image_size": 448})
    assert reasons(made)["data.image_size"] == "448: has no effect: every image becomes 336×336 px"
    assert made.image_overrides == {}
    assert "data.image_size" not in reasons(plan(data={"train_path": "r", "image_size": 336}))


def test_image_size_caps_the_pixels_where_the_model_takes_any():
    made = plan(model=QWEN, data={"train_path": "r", "image_size": 448})
    assert made.image_overrides == {"size": {"shortest_edge": 3136, "longest_edge": 448 * 448}}
    tiny = plan(model=QWEN, data={"train_path": "r", "image_size": 28})
    assert tiny.image_overrides["size"]["longest_edge"] == 3136
    assert "enlarged" in reasons(tiny)["data.image_size"]


def test_the_loss_is_cut_by_the_vocabulary():
    small, large = plan().loss_chunk_tokens, plan(model=QWEN).loss_chunk_tokens
    assert small > large >= 32 and large % 32 == 0
    assert large * 151_936 * 10 <= 256 * 2**20


def test_a_wrong_model_type_is_said():
    wrong = make_plan(config(model={"name": "m/m", "type": "llava"}), ModelSource("m/m", QWEN, {}), CPU)
    assert wrong.family == "qwen2_vl" and "llava is not used" in reasons(wrong)["model.type"]
    for right in ("qwen2_vl", "qwen2_5_vl"):
        fine = make_plan(config(model={"name": "m/m", "type": right}), ModelSource("m/m", QWEN, {}), CPU)
        assert "model.type" not in reasons(fine)


def test_an_absolute_folder_is_named_by_its_last_part(tmp_path):
    made = make_plan(config(model={"name": str(tmp_path / "mine")}), ModelSource("x", LLAVA, {}), CPU)
    assert made.model_name == "mine"


@pytest.fixture(scope="module")
def linear_names():
    """The linear layers of every tiny model, without storage."""
    import torch

    found = {}
    for model_type, builder in TINY.items():
        model_class, model_config, _ = builder()
        with torch.device("meta"):
            model = model_class(model_config)
        linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        found[model_type] = linear
    return found


@pytest.mark.parametrize("model_type", TINY)
@pytest.mark.parametrize("with_vision", [False, True])
def test_adapters_go_to_every_linear_layer_of_their_parts(linear_names, model_type, with_vision):
    family = next(family for family in FAMILIES if model_type in family.model_types)
    pattern = lora_targets(family, with_vision)
    assert TARGETS.fullmatch(pattern)
    parts = {"text", "vision"} if with_vision else {"text"}
    expected = [name for name in linear_names[model_type] if family.part_of(name) in parts]
    assert [name for name in linear_names[model_type] if re.fullmatch(pattern, name)] == expected
    assert len(expected) >= 14 + 4 * with_vision


def test_a_service_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("vlmtune.plan.decide.find_spec", lambda name: None if name == "wandb" else object())
    with pytest.raises(VlmtuneError, match="training.report_to: wandb is not installed") as caught:
        plan(training={"report_to": ("wandb", "tensorboard")})
    assert caught.value.hint == "pip install wandb"
