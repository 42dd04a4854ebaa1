"""What a run trains on and what it leaves behind."""

import json
import time
from pathlib import Path

import pytest
import torch
from tiny.rows import picture

from vlmtune.engine import trainer

NAMES = ("experiment_name", "steps", "num_rows")


def report_of(folder):
    return json.loads(folder.report_json.read_text())


def rows_of_steps(monkeypatch):
    """The rows of each optimizer step of every run after this, as `rows.jsonl:N`."""
    steps = []
    real = trainer.TuneTrainer.get_batch_samples

    def fetch(self, *args):
        batches, num_items = real(self, *args)
        steps.append([where for batch in batches for where in batch["where"]])
        return batches, num_items

    monkeypatch.setattr(trainer.TuneTrainer, "get_batch_samples", fetch)
    return steps


@pytest.mark.parametrize("method", ["lora", "full"])
def test_accumulation_equals_a_larger_batch(project, monkeypatch, weights, method):
    """In fp32, after 4 steps of AdamW at 1e-3: sums in another order differ by less than 1e-5."""
    project.write_rows(project.rows * 3)
    steps = rows_of_steps(monkeypatch)
    settings = (f"training.method={method}", "training.learning_rate=1e-3", "training.max_steps=4")
    project.train("one", *settings, "training.batch_size=1", "training.gradient_accumulation_steps=4")
    project.train("four", *settings, "training.batch_size=4", "training.gradient_accumulation_steps=1")
    assert len(steps) == 8 and [set(step) for step in steps[:4]] == [set(step) for step in steps[4:]]
    one, four = weights(project.run("one")), weights(project.run("four"))
    assert max((one[name] - four[name]).abs().max().item() for name in one) < 1e-5
    assert any(value.abs().max() > 1e-4 for name, value in one.items() if "lora_B" in name or "lm_head" in name)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_longest_row_goes_first_and_every_row_once_an_epoch(project, monkeypatch, batch_size):
    project.rows[4]["answer"] += " and nothing else" * 3
    project.write_rows(project.rows)
    steps = rows_of_steps(monkeypatch)
    project.train("run", f"training.batch_size={batch_size}")
    assert steps[0][0] == "rows.jsonl:5"
    per_epoch = len(steps) // 2
    epochs = [sum(steps[start : start + per_epoch], []) for start in (0, per_epoch)]
    assert [sorted(epoch) for epoch in epochs] == [[f"rows.jsonl:{n}" for n in range(1, 8)]] * 2
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
def test_bf16_on_a_cpu(project, weights, method):
    done = project.train("bf16", f"training.method={method}", "hardware.mixed_precision=bf16", "training.max_steps=2")
    assert done.code == 0, done.stderr
    assert report_of(project.run("bf16"))["precision"] == "bf16"
    # Steps of 1e-5 vanish in bf16: what learns is kept in fp32.
    assert {value.dtype for name, value in weights(project.run("bf16")).items() if "vision" not in name} == {
        torch.float32
    }


def test_the_tower_and_projector_learn_when_asked(project, weights):
    settings = ("training.method=full", "training.max_steps=2", "training.warmup_ratio=0")
    project.train("frozen", *settings)
    project.train("free", *settings, "training.freeze_vision_tower=false", "training.freeze_projector=false")
    frozen, free = weights(project.run("frozen")), weights(project.run("free"))
    differing = {name.split(".")[0] for name in frozen if not torch.equal(frozen[name], free[name])}
    assert {"vision_tower", "multi_modal_projector"} <= differing


def test_text_over_the_limit_is_refused_by_name_before_the_model_loads(project, monkeypatch):
    monkeypatch.setattr("vlmtune.engine.train.build_model", None)
    refused = project.train("long", "data.max_length=60")
    assert refused.code == 1
    assert "2 of 7 rows have more than data.max_length: 60 text tokens" in refused.stderr
    assert "rows.jsonl:3: 66 text tokens" in refused.stderr and "rows.jsonl:6: 66 text tokens" in refused.stderr
    assert "set data.max_length: 66, or data.truncation: cut" in refused.stderr
    assert not project.run("long").path.exists()
    assert project.run_cli("validate", project.config, "--set", "data.max_length=66").code == 0


def test_text_over_the_limit_is_cut_and_counted(project):
    done = project.train("cut", "data.max_length=60", "data.truncation=cut", "training.num_epochs=1")
    assert done.code == 0 and "2 rows cut by 12 tokens in all (data.truncation: cut)\n" in done.stdout
    report = report_of(project.run("cut"))
    assert (report["num_cut_rows"], report["num_cut_tokens"]) == (2, 12)
    assert report["image_tokens"] == 7 * 4, "image tokens are never cut"
    project.train("whole", "training.num_epochs=1")
    assert report_of(project.run("whole"))["trained_tokens"] - report["trained_tokens"] == 12


@pytest.mark.parametrize("key", ["data.train_path", "data.val_path"])
def test_rows_that_a_cut_leaves_without_an_answer_are_all_named_before_the_model_loads(project, monkeypatch, key):
    monkeypatch.setattr("vlmtune.engine.train.build_model", None)
    row = {"question": "why " * 30 + "?", "answer": "so"}
    project.write_rows([project.rows[0], row, row], "long.jsonl")
    refused = project.train("cut", "data.max_length=70", "data.truncation=cut", f"{key}=long.jsonl")
    assert refused.code == 1 and "leaves no answer in 2 rows" in refused.stderr
    assert "long.jsonl:2: the answer begins after 138 text tokens" in refused.stderr
    assert "long.jsonl:3" in refused.stderr and "long.jsonl:1" not in refused.stderr


@pytest.mark.parametrize("answer_tokens_kept", [0, 1])
def test_the_check_of_a_cut_agrees_with_the_cut(project, answer_tokens_kept):
    """ "USER: ? ASSISTANT:" and what stands between are the 138 tokens of the question above."""
    project.write_rows([{"question": "why " * 30 + "?", "answer": "so"}])
    done = project.train("cut", f"data.max_length={138 + answer_tokens_kept}", "data.truncation=cut")
    assert done.code == (0 if answer_tokens_kept else 1)
    assert ("the answer begins after 138" in done.stderr) == (not answer_tokens_kept)


def test_bad_rows_are_refused_or_skipped(project):
    bad = [{"image": "absent.png", "question": "q", "answer": "a"}, {"question": "q", "answer": ""}]
    project.write_rows([*project.rows[:3], *bad, *project.rows[3:]])
    refused = project.train("bad")
    assert refused.code == 1 and "rows.jsonl:4" in refused.stderr and "rows.jsonl:5" in refused.stderr
    assert not project.run("bad").path.exists()
    skipped = project.train("skip", "data.on_bad_row=skip", "training.max_steps=1")
    assert skipped.code == 0 and "skipping 2 rows" in skipped.stderr
    report = report_of(project.run("skip"))
    assert (report["num_rows"], report["num_skipped_rows"]) == (7, 2)
    assert [line.split(": ")[0] for line in report["skipped"]] == ["rows.jsonl:4", "rows.jsonl:5"]


def test_text_only_rows_and_several_images_mixed(project):
    names = [picture(project.root, name, (50, 50), name).path for name in ("red", "lime")]
    project.write_rows(
        [
            *project.rows[:2],
            {"question": "two plus two?", "answer": "four"},
            {"images": names, "question": "<image> and <image>?", "answer": "red and lime"},
            {"question": "and three?", "answer": "five"},
        ]
    )
    for batch_size in (1, 5):
        done = project.train(f"mixed{batch_size}", f"training.batch_size={batch_size}", "training.num_epochs=1")
        assert done.code == 0, done.stderr
        assert report_of(project.run(f"mixed{batch_size}"))["image_tokens"] == 4 * 4


def test_the_held_out_loss_is_the_mean_over_tokens(project, llava):
    from vlmtune.data.encode import encode
    from vlmtune.data.images import open_image
    from vlmtune.data.samples import read_samples
    from vlmtune.models.build import build_tuned, family_of
    from vlmtune.models.processor import load_processor
    from vlmtune.plan.file import load_plan

    project.write_rows(project.rows[:3], "held-out.jsonl")
    settings = ("data.val_path=held-out.jsonl", "training.eval_steps=2", "training.max_steps=3")
    done = project.train("run", *settings)
    assert "evaluation loss" in done.stdout
    folder = project.run("run")
    lines = [json.loads(line) for line in folder.log.read_text().splitlines()]
    assert [line["step"] for line in lines if line["eval_loss"] is not None] == [2, 3]

    plan = load_plan(folder.plan)
    model, processor = build_tuned(plan, str(folder.adapter)), load_processor(plan)
    total, tokens = 0.0, 0
    for sample in read_samples(project.root / "held-out.jsonl").samples:
        row = encode(sample, [open_image(ref, None) for ref in sample.images], processor, family_of(plan))
        with torch.no_grad():
            logits = model(**row.tensors).logits[0, :-1]
        for position, label in enumerate(row.labels[0, 1:].tolist()):
            if label != -100:
                total -= torch.log_softmax(logits[position].double(), 0)[label].item()
                tokens += 1
    assert report_of(folder)["eval_loss"] == pytest.approx(total / tokens, rel=1e-5)


def test_the_time_left_counts_evaluations(project, monkeypatch):
    monkeypatch.setattr(trainer, "row_losses", lambda *args: time.sleep(0.5) or [(1.0, 1)])
    settings = ("data.val_path=rows.jsonl", "training.eval_steps=2", "training.max_steps=7")
    done = project.train("run", *settings)
    assert done.stdout.count("evaluating rows: 0 of 7") == 4  # at 2, 4, 6 and 7
    log = project.run("run").read_log()
    left = [sum(at > r.step or (at == r.step and r.eval_loss is None) for at in (2, 4, 6, 7)) for r in log]
    timed = [(record, number) for record, number in zip(log, left, strict=True) if number < 4]
    assert [number for _, number in timed] == [3, 3, 3, 2, 2, 2, 1, 1, 0]
    assert all(record.eta_s >= number * 0.5 for record, number in timed)
    assert log[-1].eta_s == 0.0


def test_before_the_first_evaluation_a_row_of_it_counts_a_third_of_a_trained_one(project):
    project.write_rows(project.rows * 40, "many.jsonl")
    project.train("run", "data.val_path=many.jsonl", "training.max_steps=2")
    first = project.run("run").read_log()[0]
    assert first.eta_s == pytest.approx(first.elapsed_s * (1 + 280 / 2 / 3), rel=0.2)


def test_evaluation_and_logging_intervals_need_not_agree(project):
    settings = ("data.val_path=rows.jsonl", "training.eval_steps=3", "training.logging_steps=4", "training.max_steps=7")
    project.train("run", *settings)
    lines = [json.loads(line) for line in project.run("run").log.read_text().splitlines()]
    assert [(line["step"], line["eval_loss"] is not None) for line in lines] == [
        (3, False),
        (3, True),
        (4, False),
        (6, False),
        (6, True),
        (7, False),
        (7, True),
    ]


def test_workers_read_the_same_rows(project, monkeypatch, assert_same_weights):
    project.train("alone", "training.max_steps=2")
    project.train("workers", "training.max_steps=2", "hardware.num_workers=2")
    assert_same_weights(project.run("alone"), project.run("workers"))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_vanishes_during_the_run_names_its_row(project, monkeypatch, workers):
    real = trainer.TuneTrainer.get_train_dataloader

    def remove_images_first(self):
        for path in project.root.glob("*.png"):
            path.unlink()
        return real(self)

    monkeypatch.setattr(trainer.TuneTrainer, "get_train_dataloader", remove_images_first)
    stopped = project.train("gone", f"hardware.num_workers={workers}")
    assert stopped.code == 1
    error, hint = stopped.stderr.splitlines()
    assert error.startswith("error: rows.jsonl:") and error.endswith(".png does not exist") and hint.startswith("hint:")


def test_tensorboard(project):
    pytest.importorskip("tensorboard")
    done = project.train("board", "training.report_to=[tensorboard]", "training.max_steps=2")
    assert done.code == 0, done.stderr
    events = list(project.run("board").tensorboard.glob("events.out.tfevents.*"))
    assert len(events) == 1
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(events[0]))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2]


def test_dry_run_prints_the_plan_and_does_nothing(project, monkeypatch):
    monkeypatch.setattr("vlmtune.engine.train.train", None)
    project.config = Path("run.yaml")
    monkeypatch.setenv("COLUMNS", "120")
    shown = project.train("dry", flags=("--dry-run",))
    assert shown.code == 0 and "training runs on the CPU" in shown.stdout
    lines = shown.stdout.splitlines()
    told = {line.split()[0]: line.split()[1:3] for line in lines if len(line.split()) > 2}
    assert told["training.lora.rank"][0] == "4" and told["training.lora.rank"][1].startswith("run.yaml:")
    assert told["hardware.mixed_precision"] == ["fp32", "training"]
    assert "the run would go into runs/dry" in lines and "8 steps of 2 rows: 2 epochs over 7 rows" in lines
    for ours in ("lora_rank", "lora_targets", "data_sha256", "loss_chunk_tokens", "training.max_grad_norm"):
        assert ours not in shown.stdout, "names of the program, and defaults that say nothing"
    as_json = project.train("dry", flags=("--dry-run", "--json"))
    plan = json.loads(as_json.stdout)
    assert (plan["lora_rank"], plan["base_dtype"]) == (4, "fp32")
    assert not (project.root / "runs").exists()


def test_json_prints_the_report_alone(project):
    done = project.train("run", "training.max_steps=1", flags=("--json",))
    assert json.loads(done.stdout) == report_of(project.run("run"))
    assert "step 1/1" in done.stderr
