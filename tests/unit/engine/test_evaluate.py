"""How a model is asked."""

import torch

from vlmtune.engine.evaluate import greedy
from vlmtune.models.build import base_of, build_model


def test_an_answer_is_written_with_a_cache_whatever_the_config_says(models):
    model = build_model(models("smolvlm").plan).eval()
    model.generation_config.use_cache = False  # as SmolVLM's published config says
    read = []
    embeddings = base_of(model).get_input_embeddings()
    embeddings.register_forward_hook(lambda module, args, out: read.append(args[0].shape[1]))
    ids = torch.tensor([[5, 6, 7, 8]])
    prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    answered = greedy(model, prompt, max_new_tokens=3, min_new_tokens=3, pad_token_id=0)
    assert answered.shape == (1, 7)
    assert read == [4, 1, 1]
