"""The language model against its description: gradients, padding, text beyond the training length, generation."""

import pytest
import torch
import torch.nn.functional as F

from vlmtune.models.qwen_vl.language import ntk_alpha

SHORT = {"seq_length": 16}
"""A training length that small tests go beyond."""


@pytest.fixture
def short_model(model):
    """The oracle's model as if it had been trained on 16 tokens."""
    model.model.language_model.config.seq_length = SHORT["seq_length"]
    return model


def some_ids(length, rows=1, seed=0):
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(seed))


def close(found, expected, tolerance=1e-4):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_gradients_are_those_of_the_description(model, reference, oracle_folder):
    ids = some_ids(12)
    plain = reference(oracle_folder)
    for weight in plain.weights.values():
        weight.requires_grad_(True)
    logits = plain.logits(ids)
    F.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()
    model(input_ids=ids, labels=ids).loss.backward()
    layer, theirs = model.model.language_model.layers[1], plain.weights
    fused = [getattr(layer.self_attn, f"{part}_proj").weight.grad for part in "qkv"]
    close(torch.cat(fused), theirs["transformer.h.1.attn.c_attn.weight"].grad)
    close(layer.mlp.gate_proj.weight.grad, theirs["transformer.h.1.mlp.w2.weight"].grad)
    close(model.model.language_model.embed_tokens.weight.grad, theirs["transformer.wte.weight"].grad)
    assert layer.self_attn.q_proj.weight.grad.abs().max() > 1e-4, "too small to compare"


def test_gradients_reach_tower_and_resampler_but_not_the_fixed_places(model, oracle):
    model(input_ids=oracle.one_ids, pixel_values=oracle.one_pixels).logits.square().mean().backward()
    visual = dict(model.model.visual.named_parameters())
    without = [name for name, parameter in visual.items() if parameter.grad is None or not parameter.grad.any()]
    assert without == ["attn_pool.pos_embed"]


def test_checkpointing_changes_no_gradient(model, oracle):
    def gradients():
        model.zero_grad()
        model(input_ids=oracle.one_ids, pixel_values=oracle.one_pixels, labels=oracle.one_ids).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    calls = []
    model.model.language_model.layers[0].mlp.register_forward_pre_hook(lambda *a: calls.append("text"))
    model.model.visual.transformer.resblocks[0].mlp.register_forward_pre_hook(lambda *a: calls.append("vision"))
    plain = gradients()
    assert calls == ["vision", "text"]
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    for mine, other in zip(gradients(), plain, strict=True):
        close(mine, other, 1e-6)
    assert calls.count("text") == calls.count("vision") == 3, "each layer runs again in the backward pass"


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side(model, side):
    ids, short = some_ids(20), some_ids(13, seed=1)
    pad = torch.full((1, 7), 5)
    padded = torch.cat([pad, short] if side == "left" else [short, pad], 1)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, : 7 if side == "left" else None] = 0
    if side == "right":
        mask[1] = torch.tensor([1] * 13 + [0] * 7)
    logits = model(input_ids=torch.cat([ids, padded]), attention_mask=mask).logits
    close(logits[0], model(input_ids=ids).logits[0])
    close(logits[1][mask[1].bool()], model(input_ids=short).logits[0])


@torch.no_grad()
def test_left_padding_with_images(model, oracle):
    alone = model(input_ids=oracle.one_ids, pixel_values=oracle.one_pixels).logits[0]
    ids = torch.cat([torch.full((1, 9), 5), oracle.one_ids], 1)
    mask = (torch.arange(ids.shape[1]) >= 9).long()[None]
    close(model(input_ids=ids, attention_mask=mask, pixel_values=oracle.one_pixels).logits[0, 9:], alone)


@torch.no_grad()
def test_position_ids_are_not_used(model):
    ids = some_ids(9)
    close(model(input_ids=ids, position_ids=torch.arange(9)[None] + 100).logits, model(input_ids=ids).logits, 0)


@torch.no_grad()
@pytest.mark.parametrize("length", [16, 17, 32, 33, 70])
@pytest.mark.parametrize("training", [False, True])
def test_beyond_the_training_length(short_model, reference, oracle_folder, length, training):
    ids = some_ids(length)
    expected = reference(oracle_folder, **SHORT).logits(ids, training=training)
    close(short_model.train(training)(input_ids=ids).logits, expected)
    other = reference(oracle_folder, **SHORT).logits(ids, training=not training)
    assert (length > 16) == bool((other - expected).abs().max() > 1e-2), "inference and training differ beyond it"


@torch.no_grad()
@pytest.mark.parametrize("off", [("use_dynamic_ntk",), ("use_logn_attn",), ("use_dynamic_ntk", "use_logn_attn")])
def test_each_rule_can_be_switched_off(short_model, reference, oracle_folder, off):
    ids = some_ids(40)
    changes = dict.fromkeys(off, False)
    for key in off:
        setattr(short_model.model.language_model.config, key, False)
    close(short_model(input_ids=ids).logits, reference(oracle_folder, **SHORT, **changes).logits(ids))


@torch.no_grad()
def test_padding_counts_as_length(short_model, reference, oracle_folder):
    ids, mask = some_ids(40), torch.ones(1, 40, dtype=torch.long)
    mask[:, :30] = 0
    found = short_model(input_ids=ids, attention_mask=mask).logits[:, 30:]
    close(found, reference(oracle_folder, **SHORT).logits(ids, mask)[:, 30:])


@torch.no_grad()
def test_a_long_evaluation_does_not_change_later_training(short_model):
    ids = some_ids(20)
    before = short_model.train()(input_ids=ids).logits
    short_model.eval()(input_ids=some_ids(64))
    assert torch.equal(short_model.train()(input_ids=ids).logits, before)


@pytest.mark.parametrize(
    ("length", "alpha"), [(1, 1), (2048, 1), (2049, 3), (4096, 3), (4097, 7), (8192, 7), (8193, 15)]
)
def test_ntk_alpha(length, alpha):
    assert ntk_alpha(length, 2048) == alpha


@torch.no_grad()
@pytest.mark.parametrize("length", [5, 30, 12], ids=["short", "beyond", "across the training length"])
def test_generation_with_and_without_cache(short_model, length):
    ids = some_ids(length)
    options = {"max_new_tokens": 25, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    cached = short_model.generate(ids, use_cache=True, **options)
    plain = short_model.generate(ids, use_cache=False, **options)
    assert cached.sequences.shape == (1, length + 25)
    assert torch.equal(cached.sequences, plain.sequences)
    close(torch.stack(cached.logits), torch.stack(plain.logits))


@torch.no_grad()
def test_generation_with_an_image_and_left_padding(model, oracle):
    ids = oracle.one_ids
    padded = torch.cat([torch.full((1, 6), 5), ids], 1)
    mask = (torch.arange(padded.shape[1]) >= 6).long()[None]
    options = {"max_new_tokens": 8, "do_sample": False, "pixel_values": oracle.one_pixels}
    outputs = [model.generate(ids, use_cache=cache, **options)[0, ids.shape[1] :] for cache in (True, False)]
    outputs.append(model.generate(padded, attention_mask=mask, **options)[0, padded.shape[1] :])
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


@torch.no_grad()
def test_a_cache_continues_a_text(short_model):
    """Tokens given one by one get the factor of the first pass, as their keys have it."""
    ids = some_ids(40)
    short_model.model.language_model.config.use_logn_attn = False
    whole = short_model(input_ids=ids).logits
    begun = short_model(input_ids=ids[:, :35], use_cache=True)
    more = short_model(input_ids=ids[:, 35:], past_key_values=begun.past_key_values, use_cache=True)
    close(more.logits, whole[:, 35:])


def test_images_and_slots_must_agree(model, oracle):
    with pytest.raises(ValueError, match="the ids hold 256 image tokens, and 3 images need 768"):
        model(input_ids=oracle.one_ids, pixel_values=oracle.two_pixels)
    with pytest.raises(ValueError, match="pixel_values need input_ids"):
        model(inputs_embeds=torch.zeros(1, 3, 256), pixel_values=oracle.one_pixels)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()


@torch.no_grad()
def test_logits_of_the_last_token_only(model):
    ids = some_ids(9)
    close(model(input_ids=ids, logits_to_keep=1).logits, model(input_ids=ids).logits[:, -1:], 1e-6)


@torch.no_grad()
def test_eager_attention_computes_the_same(model, oracle):
    expected = model(oracle.two_ids, attention_mask=oracle.two_mask, pixel_values=oracle.two_pixels).logits
    model.set_attn_implementation("eager")
    assert model.model.language_model.config._attn_implementation == "eager"
    found = model(oracle.two_ids, attention_mask=oracle.two_mask, pixel_values=oracle.two_pixels).logits
    close(found[oracle.two_mask.bool()], expected[oracle.two_mask.bool()])
