"""Plans of models whose files are in 4 bits: they take what the files have, and written wishes must not contradict."""

from dataclasses import replace

import pytest

from vlmtune import levers
from vlmtune.config.load import preset_config
from vlmtune.errors import VlmtuneError
from vlmtune.families.facts import Prequantised
from vlmtune.hub.source import ModelSource
from vlmtune.plan.decide import make_plan
from vlmtune.plan.prequantised import refuse_other_bits
from vlmtune.plan.types import Device

CPU = Device("cpu", "CPU", bf16=False)
CONFIG = {"model_type": "llava", "vision_config": {"image_size": 336}, "text_config": {}}
FILES = Prequantised("fp4", False, ("language_model.model.layers.0.mlp.up_proj",))
SOURCE = ModelSource("org/model-bnb-4bit", CONFIG, {}, prequantised=FILES)
BITS = "training.quantization"


def loaded(*words: str):
    return preset_config("org/model-bnb-4bit", "8gb", words)


def plan(source: ModelSource = SOURCE, *words: str):
    return make_plan(loaded(*words).config, source, CPU)


def test_the_plan_takes_what_the_files_have_and_says_so():
    made = plan()
    assert (made.prequantised, made.quant_type, made.double_quant) == (True, "fp4", False)
    said = {choice.key: f"{choice.value}: {choice.reason}" for choice in made.choices}
    assert said[f"{BITS}.bnb_4bit_quant_type"].startswith("fp4: so are 1 layers in the model's files")
    assert said[f"{BITS}.bnb_4bit_use_double_quant"].startswith("false: as in the model's files")
    assert said[f"{BITS}.quantize_vision_tower"].startswith("false: as in the model's files")
    assert f"{BITS}.quantize_head" not in said, "the preset wants it as it is"
    head = replace(SOURCE, prequantised=replace(FILES, packed=(*FILES.packed, "language_model.lm_head")))
    assert (f"{BITS}.quantize_head", "true") in {(choice.key, choice.value) for choice in plan(head).choices}


def test_a_model_in_16_bits_is_quantised_as_before():
    made = plan(replace(SOURCE, prequantised=None))
    assert (made.prequantised, made.quant_type, made.unquantized) == (False, "nf4", ("lm_head",))


def test_files_in_4_bits_are_not_kept_once_more():
    made = plan(SOURCE, "model.cache_quantized=true")
    assert not made.cache_quantized
    assert ("model.cache_quantized", "false") in {(choice.key, choice.value) for choice in made.choices}
    assert plan(replace(SOURCE, prequantised=None), "model.cache_quantized=true").cache_quantized


@pytest.mark.parametrize("method", ["lora", "full"])
def test_methods_that_need_16_bits_are_refused(method):
    with pytest.raises(VlmtuneError, match=f"training.method: {method} trains on weights in 16 bits") as error:
        plan(SOURCE, f"training.method={method}")
    assert "use training.method: qlora" in error.value.hint


@pytest.mark.parametrize(
    "word", ["bnb_4bit_quant_type=nf4", "bnb_4bit_use_double_quant=true", "quantize_vision_tower=true"]
)
def test_a_written_wish_that_contradicts_is_an_error(word):
    key, _, value = word.partition("=")
    with pytest.raises(VlmtuneError) as error:
        refuse_other_bits(loaded(f"{BITS}.{word}"), SOURCE.facts("org/model"))
    assert error.value.message.startswith(f"{BITS}.{key}: {value}, and the files of org/model, in 4 bits already, have")
    assert error.value.message.endswith("(--set)")


def test_what_agrees_and_what_a_preset_says_is_none():
    agreeing = (f"{BITS}.bnb_4bit_quant_type=fp4", f"{BITS}.quantize_vision_tower=false", f"{BITS}.quantize_head=false")
    refuse_other_bits(loaded(*agreeing), SOURCE.facts("org/model"))
    refuse_other_bits(loaded(f"{BITS}.bnb_4bit_quant_type=nf4"), replace(SOURCE, prequantised=None).facts("org/model"))


def test_all_contradictions_are_told():
    words = (f"{BITS}.bnb_4bit_quant_type=nf4", f"{BITS}.bnb_4bit_use_double_quant=true")
    with pytest.raises(VlmtuneError) as error:
        refuse_other_bits(loaded(*words), SOURCE.facts("org/model"))
    assert len(error.value.problems) == 2


def offered(source: ModelSource, *words: str) -> list[dict]:
    """What levers offer that is about bits."""
    config, facts = loaded(*words).config, source.facts("org/model")
    steps = [step for _, saving in levers.savings() for step in saving.steps(config, facts, 512)]
    steps += levers.more_memory(config, facts)
    assert len(steps) >= 10
    return [values for values in steps if any(key.startswith(BITS) for key in values)]


def test_levers_offer_no_other_bits_but_a_head_in_8():
    in_8 = {f"{BITS}.quantize_head": "8bit"}
    assert offered(SOURCE) == [in_8]
    assert offered(SOURCE, f"{BITS}.quantize_head=8bit") == [{f"{BITS}.quantize_head": False}]
    head = replace(FILES, packed=(*FILES.packed, "language_model.lm_head"))
    assert offered(replace(SOURCE, prequantised=head)) == []


def test_a_head_that_the_files_leave_in_16_bits_may_be_in_8():
    refuse_other_bits(loaded(f"{BITS}.quantize_head=8bit"), SOURCE.facts("org/model"))
    made = plan(SOURCE, f"{BITS}.quantize_head=8bit")
    assert made.head_8bit and f"{BITS}.quantize_head" not in {choice.key for choice in made.choices}
    in_4 = replace(SOURCE, prequantised=replace(FILES, packed=("lm_head",)))
    with pytest.raises(VlmtuneError, match="quantize_head: 8bit, and the files of org/model"):
        refuse_other_bits(loaded(f"{BITS}.quantize_head=8bit"), in_4.facts("org/model"))
    assert not plan(in_4, f"{BITS}.quantize_head=8bit").head_8bit
