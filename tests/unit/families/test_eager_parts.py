"""Parts for which transformers has no SDPA attend eagerly, and no others; the plan names them."""

from dataclasses import replace

import pytest
from transformers.models.gemma4 import modeling_gemma4 as gemma4

from vlmtune.config.schema import TrainingConfig
from vlmtune.families import generic
from vlmtune.hub.source import ModelSource
from vlmtune.models.config import attention_asked_for
from vlmtune.plan.decide import make_plan
from vlmtune.plan.types import Device, RunPlan

CARD = Device("cuda", "A100", bf16=True)
GEMMA_4_E = {"model_type": "gemma4", "text_config": {}, "vision_config": {}, "audio_config": {}}
GEMMA_2 = {
    "model_type": "paligemma",
    "vision_config": {"model_type": "siglip_vision_model"},
    "text_config": {"model_type": "gemma2"},
}
AUDIO, VISION, TEXT = "model.audio_tower", "model.vision_tower", "model.language_model"
CLASSES = {AUDIO: gemma4.Gemma4AudioModel, VISION: gemma4.Gemma4VisionModel, TEXT: gemma4.Gemma4TextModel}


@pytest.fixture
def without_sdpa(monkeypatch):
    """A function that says which parts of Gemma 4 have no SDPA, whatever the installed version says."""

    def say(*parts: str) -> None:
        for part, part_class in CLASSES.items():
            monkeypatch.setattr(part_class, "_supports_sdpa", part not in parts)

    generic._derived.cache_clear()
    yield say
    generic._derived.cache_clear()


def plan_of(config: dict, **training) -> RunPlan:
    values = {"model": {"name": "org/model"}, "data": {"train_path": "rows.jsonl"}, "training": training}
    wish = {"hardware": {"varlen_attention": True}}
    return make_plan(TrainingConfig.model_validate(values | wish), ModelSource("org/model", config, {}), CARD)


def said_of(plan: RunPlan, key: str) -> list[str]:
    return [f"{choice.value}: {choice.reason}" for choice in plan.choices if choice.key == key]


@pytest.mark.parametrize("parts", [(), (AUDIO,), (VISION,), (TEXT,), (TEXT, AUDIO)])
def test_parts_without_sdpa_are_found_and_the_plan_names_them(parts, without_sdpa):
    without_sdpa(*parts)
    family = generic.generic_family(GEMMA_4_E, "model")
    assert set(family.eager) == set(parts)
    plan = plan_of(GEMMA_4_E)
    words = f"sdpa, eager in {', '.join(family.eager)}: transformers has no other there: more memory"
    assert plan.attention == "sdpa"
    assert said_of(plan, "attention") == ([f"{words}, where that part is used"] if parts else [])


@pytest.mark.parametrize("parts", [(), (AUDIO,), (TEXT,)])
def test_the_varlen_kernel_stands_for_sdpa_of_the_language_model_alone(parts, without_sdpa):
    without_sdpa(*parts)
    plan = plan_of(GEMMA_4_E, packing=True)
    assert plan.pack_tokens and plan.varlen_attention == (TEXT not in parts)
    said = said_of(plan, "hardware.varlen_attention")
    assert [one.split(": ")[1] for one in said] == (
        ["transformers has only eager attention for the language model"] if TEXT in parts else []
    )


def test_what_lies_around_a_part_that_has_sdpa_is_not_named():
    """GOT-OCR 2's own class has none, its language model has."""
    family = generic.generic_family({"model_type": "got_ocr2"}, "model")
    assert (family.text, family.eager) == (TEXT, (VISION,))


def test_all_parts_attend_eagerly_where_scores_are_capped_and_in_plans_that_say_so():
    plan = plan_of(GEMMA_2)
    assert plan.attention == attention_asked_for(plan) == "eager"
    assert said_of(plan, "attention") == ["eager: the model caps its attention scores: slower, and more memory"]
    assert attention_asked_for(replace(plan, attention="sdpa")) is None
