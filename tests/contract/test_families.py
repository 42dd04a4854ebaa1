"""What every family must hold, on a tiny random model of each `model_type`, through the code that trains."""

import dataclasses
import pickle

import pytest
import torch
from PIL import Image
from tiny import TINY
from tiny.rows import TinyModel, colour_rows, picture, sample, tiny_plan
from transformers import PretrainedConfig

from vlmtune.data.collate import WHERE, collate
from vlmtune.data.dataset import TuneDataset
from vlmtune.data.encode import IGNORED, encode
from vlmtune.data.run_data import MeasuredRows
from vlmtune.data.types import ImageRef, Sample, Turn
from vlmtune.engine.step import forward_loss
from vlmtune.errors import VlmtuneError
from vlmtune.families import FAMILIES
from vlmtune.models.build import base_of, build_model, build_tuned
from vlmtune.models.inventory import inventory

MODEL_TYPES = [model_type for family in FAMILIES for model_type in family.model_types]
IMAGE_SIZES_PX = [(56, 56), (200, 80), (90, 310), (640, 480), (33, 47), (500, 499)]


def test_every_model_type_has_a_tiny_model():
    assert sorted(TINY) == sorted(MODEL_TYPES)
    assert len(MODEL_TYPES) >= 8


@pytest.fixture(scope="session", params=MODEL_TYPES)
def tiny(request, tmp_path_factory) -> TinyModel:
    return TinyModel(request.param, tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def batch(tiny, tmp_path):
    rows = list(TuneDataset(colour_rows(tmp_path), tiny.processor, tiny.family, tiny.plan))
    return collate(rows, tiny.processor.tokenizer.pad_token_id)


def model_inputs(batch):
    return {key: value for key, value in batch.items() if key != WHERE}


def learned_text(tiny, row) -> str:
    return tiny.processor.tokenizer.decode(row.labels[row.labels != IGNORED])


def test_processes_that_read_images_can_be_sent_families(tiny):
    assert pickle.loads(pickle.dumps(tiny.family)).name == tiny.family.name


def test_labels_are_the_answer_and_its_end_token(tiny, tmp_path):
    image = picture(tmp_path, "a", (60, 60), "red")
    row = encode(sample("What colour?", "deep red", image), [Image.open(image.path)], tiny.processor, tiny.family)
    end = tiny.processor.tokenizer.convert_ids_to_tokens(int(row.labels[row.labels != IGNORED][-1]))
    assert learned_text(tiny, row).strip() == f"deep red{end}"
    assert end in ("</s>", "<|im_end|>", "<end_of_utterance>", "<end_of_turn>", "<eos>")


def test_every_answer_of_a_conversation_is_learned_and_nothing_else(tiny, tmp_path):
    image = picture(tmp_path, "a", (60, 60), "red")
    turns = (
        Turn("user", (image, "one?")),
        Turn("assistant", ("first",)),
        Turn("user", ("two?",)),
        Turn("assistant", ("second",)),
    )
    if tiny.family.one_answer:
        with pytest.raises(Exception, match="one question and one answer a row"):
            encode(Sample(turns, "rows.jsonl:1"), [Image.open(image.path)], tiny.processor, tiny.family)
        return
    row = encode(Sample(turns, "rows.jsonl:1"), [Image.open(image.path)], tiny.processor, tiny.family)
    end = tiny.processor.tokenizer.convert_ids_to_tokens(int(row.labels[row.labels != IGNORED][-1]))
    assert learned_text(tiny, row).replace(" ", "") == f"first{end}second{end}"


@pytest.mark.parametrize("size_px", IMAGE_SIZES_PX)
def test_image_tokens_are_those_of_the_processor(tiny, size_px):
    image = Image.new("RGB", size_px, "red")
    text_and_image = Sample(
        (Turn("user", (ImageRef(path="in memory"), "q")), Turn("assistant", ("a",))), "rows.jsonl:1"
    )
    row = encode(text_and_image, [image], tiny.processor, tiny.family)
    assert tiny.family.image_tokens(tiny.source.config, tiny.source.preprocessor, *size_px) == row.num_image_tokens


def test_measured_rows_are_the_encoded_rows(tiny, tmp_path):
    samples = colour_rows(tmp_path)
    measured = MeasuredRows(samples).lengths(tiny.processor, tiny.family, tiny.plan, tiny.source)
    encoded = list(TuneDataset(samples, tiny.processor, tiny.family, tiny.plan))
    assert measured.image.tolist() == [row.num_image_tokens for row in encoded]
    assert measured.total.tolist() == pytest.approx([row.labels.shape[1] for row in encoded], abs=2)


def test_parts_cover_the_model_and_adapters_sit_in_the_language_model_only(tiny):
    model = build_model(tiny.plan)
    rows = inventory(model, tiny.family)
    assert {row.part for row in rows} >= {"text", "vision", "projector", "adapter:text"}
    assert {row.part for row in rows if row.trainable} == {"adapter:text"}
    assert any(row.dtype == "nf4" for row in rows if row.part == "text")
    assert any(row.dtype == "nf4" for row in rows if row.part == "vision")
    head = base_of(model).get_output_embeddings()
    assert type(head) is torch.nn.Linear, "the head must stay unquantised"


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"method": "lora"},
        {"method": "full"},
        {"quantization": {"bnb_4bit_use_double_quant": False, "quantize_vision_tower": False}},
        {"lora": {"vision_tower": True, "rank": 4}},
    ],
    ids=str,
)
def test_the_model_without_storage_is_the_model(tiny, training):
    plan = tiny_plan(tiny.folder, training=training)
    loaded, weightless = build_model(plan), build_model(plan, weights="none")
    assert inventory(weightless, tiny.family) == inventory(loaded, tiny.family)


def test_the_model_without_storage_has_the_number_formats_of_the_model(tiny):
    """On a card without bf16, the library keeps some tensors in fp32."""
    plan = dataclasses.replace(tiny.plan, base_dtype="fp16")
    loaded, weightless = build_model(plan), build_model(plan, weights="none")
    assert inventory(weightless, tiny.family) == inventory(loaded, tiny.family)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_all_parts_attend_as_the_plan_says(tiny, attention):
    plan = dataclasses.replace(tiny.plan, attention=attention)
    for weights in ("checkpoint", "none"):
        configs = [getattr(part, "config", None) for part in base_of(build_model(plan, weights=weights)).modules()]
        attending = [config._attn_implementation for config in configs if isinstance(config, PretrainedConfig)]
        assert len(attending) > 2 and set(attending) == {attention}


def test_the_vision_tower_stays_unquantised_when_asked(tiny):
    plan = tiny_plan(tiny.folder, training={"quantization": {"quantize_vision_tower": False}})
    rows = inventory(build_model(plan), tiny.family)
    assert {row.dtype for row in rows if row.part in ("vision", "projector")} == {"float32"}
    assert any(row.dtype == "nf4" for row in rows if row.part == "text")


def test_adapters_reach_the_vision_tower_when_asked(tiny):
    plan = tiny_plan(tiny.folder, training={"lora": {"vision_tower": True}})
    rows = inventory(build_model(plan), tiny.family)
    assert {row.part for row in rows if row.trainable} == {"adapter:text", "adapter:vision"}


def test_full_tuning_trains_the_language_model_only(tiny):
    rows = inventory(build_model(tiny_plan(tiny.folder, training={"method": "full"})), tiny.family)
    assert {row.part for row in rows if row.trainable} <= {"text", "head"}
    assert {row.part for row in rows if not row.trainable} == {"vision", "projector"}


def test_full_tuning_computes_in_16_bits(tiny, batch):
    """Image features in bf16 meet embeddings in fp32."""
    plan = tiny_plan(tiny.folder, training={"method": "full"}, hardware={"mixed_precision": "bf16"})
    assert plan.autocast_dtype == "bf16"
    model = build_model(plan).train()
    forward_loss(model, model_inputs(batch), plan, num_items=1).backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())


def test_frozen_tower_and_projector_stay_outside_autograd(tiny, batch):
    model = build_model(tiny.plan).train()
    seen = []
    modules = dict(base_of(model).named_modules())
    for path in (tiny.family.vision, *tiny.family.projector):
        if path in modules:
            modules[path].register_forward_hook(lambda module, args, output: seen.append(output))
    forward_loss(model, model_inputs(batch), tiny.plan).backward()
    outputs = [[output] if isinstance(output, torch.Tensor) else output.values() for output in seen]
    tensors = [value for values in outputs for value in values]
    assert tensors and not any(value.requires_grad for value in tensors if isinstance(value, torch.Tensor))


def test_frozen_parts_rest_in_training_and_others_do_not(tiny):
    model = build_model(tiny.plan)
    model.eval()
    model.train()
    modules = dict(base_of(model).named_modules())
    frozen = [modules[path] for path in (tiny.family.vision, *tiny.family.projector) if path in modules]
    assert frozen and not any(inner.training for module in frozen for inner in module.modules())
    assert all(inner.training for inner in base_of(model).get_submodule(tiny.family.text).modules())
    adapted = build_model(tiny_plan(tiny.folder, training={"lora": {"vision_tower": True}})).train()
    assert base_of(adapted).get_submodule(tiny.family.vision).training


@pytest.mark.parametrize("chunk_tokens", [8, 10_000])
def test_loss_and_gradients_equal_the_librarys_own(tiny, batch, chunk_tokens):
    plan = dataclasses.replace(tiny.plan, loss_chunk_tokens=chunk_tokens)
    model = build_model(plan).eval()
    adapters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    _randomise(adapters)
    ours = forward_loss(model, model_inputs(batch), plan)
    own = torch.autograd.grad(ours, adapters.values())
    plain = model(**model_inputs(batch), use_cache=False).loss
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    for name, mine, theirs in zip(adapters, own, torch.autograd.grad(plain, adapters.values()), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_what_cards_compute_in_one_kernel_is_what_the_library_computes(tiny, batch):
    fused = dataclasses.replace(tiny.plan, fused_norms=True, fused_elementwise=True)
    with torch.no_grad():
        ours, plain = (forward_loss(build_model(plan).eval(), model_inputs(batch), plan) for plan in (fused, tiny.plan))
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_padding_changes_no_loss(tiny, tmp_path):
    rows = list(TuneDataset(colour_rows(tmp_path), tiny.processor, tiny.family, tiny.plan))
    pad = tiny.processor.tokenizer.pad_token_id
    model = build_model(tiny.plan).eval()
    num_items = sum(int((row.labels != IGNORED).sum()) for row in rows)
    with torch.no_grad():
        together = forward_loss(model, model_inputs(collate(rows, pad)), tiny.plan, num_items)
        alone = sum(forward_loss(model, model_inputs(collate([row], pad)), tiny.plan, num_items) for row in rows)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_text_only_rows_may_stand_among_image_rows(tiny, tmp_path):
    mixed = [*colour_rows(tmp_path, 2), sample("What is two plus two?", "four")]
    if tiny.family.needs_image:
        with pytest.raises(Exception, match="needs an image in every row"):
            list(TuneDataset(mixed, tiny.processor, tiny.family, tiny.plan))
        return
    rows = list(TuneDataset(mixed, tiny.processor, tiny.family, tiny.plan))
    model = build_model(tiny.plan).train()
    pad = tiny.processor.tokenizer.pad_token_id
    for some in (rows, rows[2:]):
        loss = forward_loss(model, model_inputs(collate(some, pad)), tiny.plan)
        loss.backward()
        assert torch.isfinite(loss)


def test_several_images_in_a_row(tiny, tmp_path):
    images = [picture(tmp_path, str(i), (60 + 40 * i, 60), "red") for i in range(2)]
    rows = [sample("compare", "same", *images), sample("one", "red", images[0])]
    if tiny.family.qformer:
        with pytest.raises(VlmtuneError, match="rows.jsonl:1: this model takes one image a row, here are 2"):
            TuneDataset(rows, tiny.processor, tiny.family, tiny.plan)[0]
        return
    encoded = list(TuneDataset(rows, tiny.processor, tiny.family, tiny.plan))
    batch = collate(encoded, tiny.processor.tokenizer.pad_token_id)
    loss = forward_loss(build_model(tiny.plan), model_inputs(batch), tiny.plan)
    assert torch.isfinite(loss)


def test_twelve_steps_lower_the_loss_and_touch_adapters_only(tiny, batch, tmp_path):
    model = build_model(tiny.plan).train()
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    adapters = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(12):
        loss = forward_loss(model, model_inputs(batch), tiny.plan)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert [name for name, value in adapters.items() if torch.equal(after[name], value)] == []

    model.eval()
    with torch.no_grad():
        expected = model(**model_inputs(batch)).logits
        model.save_pretrained(tmp_path / "adapter")
        reloaded = build_tuned(tiny.plan, str(tmp_path / "adapter"))
        assert torch.equal(reloaded(**model_inputs(batch)).logits, expected)


def _randomise(adapters) -> None:
    """LoRA starts with B = 0, where half of the gradients are zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.values():
            parameter.normal_(std=0.05)
