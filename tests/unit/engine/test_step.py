"""The loss is the library's own, whatever the model does to its logits after the head, and wherever the head is."""

import pytest
import torch
import transformers as hf
from tiny import SIGLIP, TEXT

from vlmtune.engine.step import IGNORED, _chunked_sum, hidden_states
from vlmtune.estimate.allocator.peaks import phases_of
from vlmtune.estimate.simulate.record import Recorder
from vlmtune.plan.decide import BYTES_PER_LOGIT

VISION = {**SIGLIP, "model_type": "siglip_vision_model", "image_size": 28, "projection_dim": 64}
GEMMA2 = {"model_type": "gemma2", **TEXT, "vocab_size": 99, "final_logit_softcapping": 0.5, "query_pre_attn_scalar": 16}
QFORMER = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def capped() -> torch.nn.Module:
    """Gemma 2 caps its logits after the head."""
    config = hf.PaliGemmaConfig(
        text_config=GEMMA2, vision_config=VISION, projection_dim=64, image_token_index=98, attn_implementation="eager"
    )
    return hf.PaliGemmaForConditionalGeneration(config)


def head_inside_the_language_model() -> torch.nn.Module:
    """BLIP-2 has no `model` and no head of its own."""
    vision = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = hf.Blip2Config(
        vision_config={**vision, "image_size": 28},
        qformer_config={**QFORMER, "encoder_hidden_size": 64},
        text_config={"model_type": "llama", **TEXT, "vocab_size": 99},
        num_query_tokens=4,
        image_token_index=98,
    )
    return hf.Blip2ForConditionalGeneration(config)


@pytest.mark.parametrize("chunk_tokens", [3, 100])
@pytest.mark.parametrize("build", [capped, head_inside_the_language_model])
def test_loss_and_gradients_are_the_librarys(build, chunk_tokens):
    torch.manual_seed(0)
    model = build().eval()
    ids = torch.cat([torch.full((2, 4), 98), torch.randint(0, 90, (2, 9))], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(2, 3, 28, 28)}
    labels = ids.clone()
    labels[:, :8] = IGNORED
    hidden, head = hidden_states(model, inputs)
    learned = labels[:, 1:] != IGNORED
    ours = _chunked_sum(head, hidden[:, :-1][learned], labels[:, 1:][learned], chunk_tokens) / learned.sum()
    weight = model.get_output_embeddings().weight
    (own,) = torch.autograd.grad(ours, weight)
    logits = model(**inputs).logits
    plain = torch.nn.functional.cross_entropy(logits[:, :-1][learned], labels[:, 1:][learned])
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(own, torch.autograd.grad(plain, weight)[0], atol=1e-6, rtol=1e-4)


def test_a_logit_takes_8_bytes_forward_and_12_at_the_peak_of_the_backward_pass():
    """What BYTES_PER_LOGIT in plan/decide.py lies between; of all tokens no more than a chunk's logits are there."""
    num_words, num_tokens, chunk_tokens = 1024, 320, 64
    head = torch.nn.Linear(4, num_words, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    hidden = torch.ones(num_tokens, 4, dtype=torch.bfloat16, requires_grad=True)
    recorder = Recorder()
    recorder.log.begin("forward")
    with recorder:
        loss = _chunked_sum(head, hidden, torch.zeros(num_tokens, dtype=torch.long), chunk_tokens)
        recorder.log.begin("backward")
        loss.backward()
    recorder.stop()
    peaks = phases_of(recorder.log)
    bytes_per_logit = {name: phase.peak_allocated_bytes / (num_words * chunk_tokens) for name, phase in peaks.items()}
    assert bytes_per_logit == {"forward": pytest.approx(8, abs=0.5), "backward": pytest.approx(12, abs=0.5)}
    assert 8 < BYTES_PER_LOGIT < 12
