"""How a model is asked, and how its loss on held-out rows is taken."""

from dataclasses import replace

import torch
from tiny.rows import colour_rows

from vlmtune.config.words import NOT_HERE
from vlmtune.data.collate import Collator
from vlmtune.data.dataset import TuneDataset
from vlmtune.engine.evaluate import generated, row_losses
from vlmtune.models.build import base_of, build_model


def test_an_answer_is_written_with_a_cache_whatever_the_config_says(models):
    model = build_model(models("smolvlm").plan).eval()
    model.generation_config.use_cache = False  # as SmolVLM's published config says
    read = []
    embeddings = base_of(model).get_input_embeddings()
    embeddings.register_forward_hook(lambda module, args, out: read.append(args[0].shape[1]))
    ids = torch.tensor([[5, 6, 7, 8]])
    prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    answered = generated(model, prompt, max_new_tokens=3, min_new_tokens=3, pad_token_id=0)
    assert answered.shape == (1, 7)
    assert read == [4, 1, 1]


def test_the_loss_is_taken_of_one_row_at_a_time_whatever_the_batch_size(models, tmp_path):
    tiny = models("llava")
    plan = replace(tiny.plan, batch_size=2)
    rows = TuneDataset(colour_rows(tmp_path, 3), tiny.processor, tiny.family, plan)
    collator, sizes = Collator(tiny.processor), []
    row_losses(build_model(plan), rows, lambda batch: sizes.append(len(batch)) or collator(batch), plan)
    assert sizes == [1, 1, 1]
    assert "one row at a time" in NOT_HERE["per_device_eval_batch_size"]
