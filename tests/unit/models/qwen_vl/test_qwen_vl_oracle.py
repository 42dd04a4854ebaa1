"""The model computes what the original code computed."""

import PIL
import pytest
import torch

from vlmtune.models.qwen_vl.vision import sine_places

# Pillow before 13 resizes to pictures that are up to two grey levels off those that the oracle was given.
IS_AS_GIVEN = int(PIL.__version__.partition(".")[0]) >= 13
TOLERANCE = 1e-4 if IS_AS_GIVEN else 1e-2
GREY_LEVEL = 1 / 255 / 0.26
"""In the numbers that the model sees, at most."""


def close(found, expected):
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=0, atol=TOLERANCE)


def test_pixels(oracle):
    off = (oracle.two_pixels[:2, :, ::7, ::7] - oracle.pixel_values).abs().max()
    assert off <= (0 if IS_AS_GIVEN else 2 * GREY_LEVEL)


@torch.no_grad()
def test_vision_tower_stage_by_stage(model, oracle):
    visual, seen = model.model.visual, {}
    for name in ("ln_pre", "transformer", "attn_pool"):
        visual.get_submodule(name).register_forward_hook(lambda m, a, out, name=name: seen.update({name: out}))
    features = model.get_image_features(oracle.two_pixels[:2]).pooler_output
    close(seen["ln_pre"][0, ::16], oracle.vit_after_ln_pre)
    close(seen["transformer"][0, ::16], oracle.vit_after_blocks)
    close(seen["attn_pool"][0, ::8], oracle.vit_after_resampler)
    assert features.shape == (2, 256, 256)
    close(features[:, ::4], oracle.vision_out)


@torch.no_grad()
def test_text_only(model, oracle):
    output = model(input_ids=oracle.text_ids, output_hidden_states=True)
    close(output.logits, oracle.text_logits)
    close(torch.cat(output.hidden_states), oracle.text_hidden)


@torch.no_grad()
def test_one_image(model, oracle):
    close(model(input_ids=oracle.one_ids, pixel_values=oracle.one_pixels).logits[:, ::8], oracle.one_logits)
    other = model(input_ids=oracle.one_ids, pixel_values=oracle.two_pixels[1:2]).logits[:, ::8]
    assert (other - oracle.one_logits).abs().max() > 0.1, "the image must matter"


@torch.no_grad()
def test_two_images_and_right_padding(model, oracle):
    logits = model(oracle.two_ids, attention_mask=oracle.two_mask, pixel_values=oracle.two_pixels).logits[:, ::8]
    seen = oracle.two_mask[:, ::8].bool()
    close(logits[seen], oracle.two_logits[seen])
    swapped = model(oracle.two_ids, attention_mask=oracle.two_mask, pixel_values=oracle.two_pixels.flip(0)).logits
    assert (swapped[:, ::8][seen] - oracle.two_logits[seen]).abs().max() > 0.1, "the order of images must matter"


@pytest.mark.parametrize("training", [False, True])
def test_loss(model, oracle, training):
    output = model.train(training)(
        input_ids=oracle.two_ids,
        attention_mask=oracle.two_mask,
        pixel_values=oracle.two_pixels,
        labels=oracle.train_labels,
    )
    close(output.loss.double(), oracle.train_loss)


def test_fixed_places_of_the_resampler(oracle, model):
    close(sine_places(256, 256)[::16], oracle.pos_embed_sincos)
    close(sine_places(256, 256), model.model.visual.attn_pool.pos_embed.detach())
