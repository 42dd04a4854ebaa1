"""Several processes train one model: what one does, in rounding; the same again after a resume, bit for bit."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from ranks import Scene, job_of, one, play
from safetensors.torch import load_file
from tiny.rows import colour_rows

from vlmtune.errors import VlmtuneError
from vlmtune.runs.folder import RunFolder

NUM_ROWS = 5
"""In steps of four: the second has one row, so all but the first process have none."""
LAYERS = 3
"""One more than fit into the buffers of shared ones."""
WITHOUT_IMAGES = (1, 3)
TRAINING = {
    "num_epochs": 2,
    "gradient_accumulation_steps": 4,
    "learning_rate": 0.01,
    "save_steps": 2,
    "lora": {"rank": 4, "alpha": 8, "vision_tower": True},
}
STEPS = [1, 2, 3, 4, 4]
"""The last is written again, with the evaluation."""
DROPOUT = "training.lora.dropout=0.1"
SHARDED = "hardware.shard=always"
ANSWERED = ("evaluation.generate_rows=1", "evaluation.metrics=[cer]")
"""One row for the first process, none for the second."""
PACKS = ("training.packing=true", "training.pack_tokens=128")


@pytest.fixture(scope="module")
def config(tmp_path_factory, models) -> Path:
    root = tmp_path_factory.mktemp("ranks")
    rows = [
        {"image": Path(row.images[0].path).name, "question": row.turns[0].text, "answer": row.answer}
        for row in colour_rows(root, NUM_ROWS)
    ]
    for number in WITHOUT_IMAGES:
        del rows[number]["image"]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": {"name": str(models("llava", LAYERS).folder)},
        "data": {"train_path": "rows.jsonl", "val_path": "rows.jsonl"},
    }
    (root / "run.yaml").write_text(yaml.safe_dump({**values, "training": TRAINING}))
    return root / "run.yaml"


@pytest.fixture(scope="module")
def folder(config) -> Path:
    """The run folders of all scenes: of one process, of two, of three, and of one again."""
    folder = config.parent / "scenes"
    folder.mkdir()
    alone = job_of(config, 1)
    assert one(Scene(alone, "alone"), folder) == "finished"
    two, dropped = job_of(config, 2, "hardware.num_workers=1", *ANSWERED), job_of(config, 2, DROPOUT)
    sharded = job_of(config, 2, SHARDED, *ANSWERED)
    scenes = [
        Scene(two, "two"),
        Scene(two, "stopped", stop_at=3),
        Scene(dropped, "dropped"),
        Scene(dropped, "dropped-resumed", begun="dropped"),
        Scene(two, "one-then-two", begun="alone"),
        Scene(sharded, "sharded", begun="two"),
        Scene(job_of(config, 3), "three", size=3),
        Scene(job_of(config, 3, SHARDED), "sharded-three", size=3, begun="three"),
    ]
    play(scenes, folder)
    assert one(Scene(alone, "two-then-one", begun="two"), folder) == "finished"
    return folder


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(RunFolder(folder / name).adapter / "adapter_model.safetensors")


def furthest(folder: Path, first: str, second: str) -> float:
    """The largest difference of the weights that two runs have learned."""
    here, there = weights(folder, first), weights(folder, second)
    assert here.keys() == there.keys() and any("vision" in name for name in here)
    return max((here[name] - there[name]).abs().max().item() for name in here)


@pytest.mark.parametrize("name", ["two", "three", "one-then-two", "two-then-one"])
def test_the_number_of_processes_changes_nothing_but_rounding(folder, name):
    assert 0 < furthest(folder, "alone", name) < 1e-5
    alone, several = (RunFolder(folder / one).read_log() for one in ("alone", name))
    assert [record.step for record in several] == [record.step for record in alone] == STEPS
    for here, there in zip(alone, several, strict=True):
        assert there.loss == pytest.approx(here.loss, rel=1e-5)
        assert there.grad_norm == pytest.approx(here.grad_norm, rel=1e-5)
    assert several[-1].eval_loss == pytest.approx(alone[-1].eval_loss, rel=1e-6)


@pytest.mark.slow
def test_packs_too(config):
    folder = config.parent / "packs"
    folder.mkdir()
    play([Scene(job_of(config, 2, *PACKS), "two"), Scene(job_of(config, 2, *PACKS, SHARDED), "sharded")], folder)
    assert one(Scene(job_of(config, 1, *PACKS), "alone"), folder) == "finished"
    assert furthest(folder, "alone", "two") < 1e-5
    assert furthest(folder, "two", "sharded") == 0.0


@pytest.mark.parametrize(("name", "whole"), [("sharded", "two"), ("sharded-three", "three")])
def test_shared_layers_learn_the_same_bit_for_bit_from_any_checkpoint(folder, name, whole):
    assert furthest(folder, whole, name) == 0.0
    here, there = (RunFolder(folder / run).read_log() for run in (name, whole))
    assert [record.eval_loss for record in here] == [record.eval_loss for record in there]
    assert [record.eval_metrics for record in here] == [record.eval_metrics for record in there]
    assert (whole == "two") == (here[-1].eval_metrics is not None)


def test_each_process_has_random_numbers_of_its_own_and_finds_them_again(folder):
    assert furthest(folder, "dropped", "dropped-resumed") == 0.0
    assert furthest(folder, "two", "dropped") > 1e-3


def test_all_stop_at_the_same_step_with_one_checkpoint(folder):
    stopped = RunFolder(folder / "stopped")
    report = json.loads(stopped.report_json.read_text())
    assert (report["status"], report["steps"]) == ("interrupted", 2)
    assert stopped.latest_checkpoint().name == "checkpoint-2" and not stopped.adapter.exists()


def test_the_report_counts_rows_and_tokens_of_all_and_says_that_they_agree(folder):
    alone, two = (json.loads(RunFolder(folder / name).report_json.read_text()) for name in ("alone", "two"))
    assert (two["gpus_agree"], alone["gpus_agree"]) == (True, None)
    for key in ("trained_tokens", "num_rows", "steps"):
        assert two[key] == alone[key]
    for record in RunFolder(folder / "two").read_log():
        assert len(record.gpus) == 2 and all(0 < gpu.waited_share <= 1 for gpu in record.gpus)
    assert RunFolder(folder / "alone").read_log()[0].gpus is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("hardware.num_gpus=5",), "hardware.num_gpus: 5 GPUs are asked for, none was found"),
        (("hardware.num_gpus=0",), "hardware.num_gpus"),
    ],
)
def test_more_gpus_than_there_are_is_one_error(config, run_cli, words, said):
    refused = run_cli("train", config, *(part for word in words for part in ("--set", word)))
    assert refused.code == 1 and said in refused.stderr


def test_more_gpus_than_rows_a_step_is_one_error(config):
    with pytest.raises(VlmtuneError, match="3 GPUs have nothing to share: an optimizer step has 2 rows"):
        job_of(config, 3, "training.gradient_accumulation_steps=2")


def test_rows_at_a_time_are_fewer_where_gpus_share_a_step(config):
    plan = job_of(config, 2, "training.gradient_accumulation_steps=1", "training.batch_size=4").plan
    assert (plan.batch_size, plan.gradient_accumulation_steps, plan.passes_per_step) == (2, 2, 1)
