"""InstructBLIP from the config to the merged model: a processor with two tokenizers, and no chat template."""

import json

import pytest
import torch
from tiny import save_tiny
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlmtune.engine import trainer


@pytest.fixture
def blip(project):
    """The project with InstructBLIP as its model."""
    save_tiny("instructblip", project.root / "instructblip")
    project.write_rows(project.rows[:2], "held-out.jsonl")
    return project


MODEL = "model.name=instructblip"
SHORT = ("--max-new-tokens", 8)


class Killed(BaseException):
    """Stands for a kill where no code may run afterwards: nothing catches it."""


def test_train_evaluate_generate_merge(blip):
    done = blip.train("run", MODEL, "data.val_path=held-out.jsonl", "training.eval_steps=4", "training.batch_size=2")
    assert done.code == 0, done.stderr
    folder = blip.run("run")
    report = json.loads(folder.report_json.read_text())
    assert report["image_tokens"] == 7 * 4 and report["train_loss_last"] < report["train_loss_first"]
    assert (folder.adapter / "qformer_tokenizer" / "tokenizer.json").is_file()

    evaluated = blip.run_cli("evaluate", folder.path, *SHORT, "--json")
    assert evaluated.code == 0, evaluated.stderr
    found = json.loads(evaluated.stdout)
    assert found["rows"] == 2 and found["loss"] == pytest.approx(report["eval_loss"], rel=1e-5)
    assert blip.run_cli("evaluate", folder.path, *SHORT, "--base").code == 0

    row = blip.rows[0]
    asked = ("generate", folder.path, "--prompt", row["question"], "--image", blip.root / row["image"])
    answer = blip.run_cli(*asked, *SHORT, "--json")
    assert answer.code == 0, answer.stderr
    assert json.loads(answer.stdout)["answer"] == found["answers"][0]["answer"]
    refused = blip.run_cli("generate", folder.path, "--prompt", "what?")
    assert refused.code == 1 and "--prompt: this model needs an image in every row" in refused.stderr

    merged = blip.run_cli("merge", folder.path, "-o", blip.root / "merged")
    assert merged.code == 0, merged.stderr
    assert AutoProcessor.from_pretrained(blip.root / "merged").num_query_tokens == 4
    assert AutoModelForImageTextToText.from_pretrained(blip.root / "merged").config.image_token_index == 261


def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(blip, monkeypatch, assert_same_weights):
    """The Q-Former's dropout draws no random numbers; the adapters' does."""
    settings = (MODEL, "training.lora.dropout=0.3", "training.max_steps=4")
    assert blip.train("straight", *settings).code == 0
    real, calls = trainer.forward_loss, []

    def die_in_the_seventh_batch(*args, **kwargs):
        calls.append(args)
        if len(calls) == 7:
            raise Killed
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "forward_loss", die_in_the_seventh_batch)
        with pytest.raises(Killed):
            blip.train("killed", *settings)
    resumed = blip.train("killed", *settings, resume=True)
    assert resumed.code == 0 and "checkpoint-3" in resumed.stderr + resumed.stdout
    assert_same_weights(blip.run("straight"), blip.run("killed"))


def test_rows_it_cannot_take_are_refused_before_the_model_loads(blip, monkeypatch):
    monkeypatch.setattr("vlmtune.engine.train.build_model", None)
    one, two = (row["image"] for row in blip.rows[:2])
    blip.write_rows(
        [
            *blip.rows[:1],
            {"images": [one, two], "question": "same?", "answer": "no"},
            {"question": "why?", "answer": "so"},
        ]
    )
    refused = blip.train("refused", MODEL)
    assert refused.code == 1 and "2 of 3 rows do not fit the model" in refused.stderr
    assert "rows.jsonl:2: this model takes one image a row, here are 2" in refused.stderr
    assert "rows.jsonl:3: this model needs an image in every row" in refused.stderr
    assert not blip.run("refused").path.exists()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_other_methods(blip, method, weights):
    done = blip.train("run", MODEL, f"training.method={method}", "training.max_steps=2")
    assert done.code == 0, done.stderr
    assert all(torch.isfinite(value).all() for value in weights(blip.run("run")).values())
    assert blip.run_cli("evaluate", blip.run("run").path, "--data", blip.root / "held-out.jsonl", *SHORT).code == 0
