"""Every image is encoded once, before anything else; what cannot be done is said before the tower is loaded."""

from dataclasses import replace

import pytest
import torch
from tiny.rows import picture, sample

from vlmtune.data.features import encode, prepare, store
from vlmtune.data.features.store import features_folder
from vlmtune.errors import VlmtuneError
from vlmtune.units import GIB


@pytest.fixture
def no_tower(monkeypatch):
    """The tower may not be encoded with."""

    def refuse(*args) -> None:
        raise AssertionError("the tower was loaded")

    monkeypatch.setattr(prepare, "encode_into", refuse)


def test_the_next_run_encodes_what_is_new(models, rows, featured, told, monkeypatch):
    encoded = []
    real = encode.features_of_batch
    monkeypatch.setattr(encode, "features_of_batch", lambda *args: encoded.extend(args[1]) or real(*args))
    first = featured(models("llava"), rows[:3])
    assert len(encoded) == 3 and len(told) == 1
    assert told[0].startswith("3 images of 3 are encoded before training: at most 0.00 GiB into ")
    again = featured(models("llava"), rows)  # the fifth row's picture is the first's
    assert len(encoded) == 4 and told[1].startswith("1 image of 4 are")
    assert torch.equal(first.of_row(0), again.of_row(4))
    featured(models("llava"), rows)
    assert len(encoded) == 4 and len(told) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"base_dtype": "bf16"},
        {"image_size": 30},
        {"quant_type": None},
        {"unquantized": ("model.vision_tower",)},
        {"align_widths": True},
        {"fused_norms": True},
        {"fused_elementwise": True},
        {"varlen_attention": True},
    ],
)
def test_what_decides_a_feature_decides_where_it_is(models, changes):
    model = models("qwen2_5_vl")
    plans = [model.plan, replace(model.plan, **changes)]
    one, other = (prepare.made_of(plan, model.source, model.processor) for plan in plans)
    assert one != other
    irrelevant = replace(model.plan, lora_rank=3, max_length=77, seed=1, batch_size=4, num_workers=1)
    assert prepare.made_of(irrelevant, model.source, model.processor) == one


def test_which_layer_of_the_tower_is_read_decides_too(models):
    model = models("llava")
    other = replace(model.source, config={**model.source.config, "vision_feature_layer": -1})
    one, another = (prepare.made_of(model.plan, source, model.processor) for source in (model.source, other))
    assert one != another


def test_other_weights_of_the_tower_make_other_features(tmp_path):
    from safetensors.torch import load_file, save_file
    from tiny.rows import TinyModel

    model = TinyModel("gemma3", tmp_path)
    made_of = prepare.made_of(model.plan, model.source, model.processor)
    path = model.folder / "model.safetensors"
    for part, changes in (("language_model", False), ("vision_tower", True)):
        tensors = load_file(path)
        name = next(name for name in tensors if part in name and "layers.1" in name)
        tensors[name] += 1e-3
        save_file(tensors, path, {"format": "pt"})
        assert (prepare.made_of(model.plan, model.source, model.processor) != made_of) == changes


def test_batches_hold_images_that_can_be_joined_up_to_a_limit(models, tmp_path, featured, monkeypatch):
    sizes = [(40, 60)] * 3 + [(90, 40)] * 2
    rows = [
        sample("?", "!", picture(tmp_path, f"p{number}", size, f"#00{number:02}00"))
        for number, size in enumerate(sizes)
    ]
    batches, real = [], encode.features_of_batch
    monkeypatch.setattr(encode, "features_of_batch", lambda *args: batches.append(len(args[1])) or real(*args))
    featured(models("gemma3"), rows)
    assert batches == [5]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setattr(encode, "NUMBERS_AT_ONCE", 2 * 3 * 56 * 56)
    featured(models("gemma3"), rows)
    assert batches[1:] == [2, 2, 1]


@pytest.mark.parametrize("name", ["smolvlm", "qwen3_vl", "gemma3", "llava"])
def test_a_batch_makes_of_each_image_what_it_makes_alone(name, models, rows, featured, tmp_path, monkeypatch):
    """But for rounding: products of other sizes are summed in another order."""
    together = featured(models(name), rows)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setattr(encode, "NUMBERS_AT_ONCE", 1)
    alone = featured(models(name), rows)
    for row in range(len(rows)):
        torch.testing.assert_close(together.of_row(row), alone.of_row(row), rtol=1e-5, atol=1e-6)


def test_too_small_a_budget_is_said_first(models, rows, featured, no_tower):
    with pytest.raises(VlmtuneError) as raised:
        featured(models("llava"), rows, cache_features_gib=1e-9)
    assert raised.value.message.startswith("data.cache_features_gib: 1e-09 GiB, but the features of 4 images take ")
    assert not features_folder().exists()


def test_too_small_a_disk_is_said_first(models, rows, featured, no_tower, monkeypatch):
    monkeypatch.setattr(prepare, "free_bytes", lambda: 100)
    with pytest.raises(VlmtuneError, match=r"the disk is full: 0.0 GiB are needed, 0.0 GiB can be spared"):
        featured(models("llava"), rows)


def test_a_folder_that_cannot_be_written_is_said_first(models, rows, featured, no_tower, monkeypatch):
    monkeypatch.setattr(prepare, "free_bytes", lambda: None)
    with pytest.raises(VlmtuneError, match="cannot be written"):
        featured(models("llava"), rows)


def test_a_cache_that_can_only_be_read_is_read(models, rows, featured, no_tower, monkeypatch):
    with monkeypatch.context() as allowed:
        allowed.setattr(prepare, "encode_into", encode.encode_into)
        expected = featured(models("llava"), rows)
    monkeypatch.setattr(store.os, "utime", lambda path: (_ for _ in ()).throw(PermissionError()))
    monkeypatch.setattr(prepare, "free_bytes", lambda: None)
    assert torch.equal(featured(models("llava"), rows).of_row(1), expected.of_row(1))


def test_the_features_of_another_model_make_room_and_it_is_told(models, rows, featured, told, monkeypatch):
    featured(models("llava"), rows)
    used = sum(path.stat().st_size for path in features_folder().rglob("*") if path.is_file())
    featured(models("gemma3"), rows, cache_features_gib=(used + 4000) / GIB)
    assert "make room" in told[1] and len(list(features_folder().iterdir())) == 1


def test_features_that_are_not_one_a_token_are_refused(models, rows, featured, monkeypatch):
    real = encode.encode_images
    monkeypatch.setattr(encode, "encode_images", lambda *args: (real(*args)[0][:, :-1], "l"))
    with pytest.raises(VlmtuneError, match=r"makes \d+ features of images with \d+ tokens: they cannot be cached"):
        featured(models("llava"), rows)
