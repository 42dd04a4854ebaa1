"""The estimate inside `train`: one line before the model loads, a refusal, and computed changes after an OOM.

There is no GPU: the card at hand is made up, and so are most estimates.
"""

import dataclasses
import gc
import json
import weakref

import pytest
import torch

from vlmtune.data.measure import lengths
from vlmtune.engine import runtime, trainer
from vlmtune.engine import train as engine_run
from vlmtune.errors import ExitCode, VlmtuneError
from vlmtune.estimate import run as estimate_run
from vlmtune.estimate.report import MainMemoryNeed, MemoryReport, PeakAt, Share, would_swap
from vlmtune.estimate.simulate import simulation
from vlmtune.hardware import main_memory, sensors
from vlmtune.hardware.cards import Target, find_card
from vlmtune.hardware.sensors import GpuProcess, GpuReading
from vlmtune.runs.memory import Memory
from vlmtune.units import GIB
from vlmtune.workflow import launch

LIBRARIES = Share("libraries", 3 * GIB)
NAMES = {"model": "llava", "gpu": "8gb", "worst_row": "rows.jsonl:6", "versions": {}, "preset": None}


def a_report(needed_gib: float, target: Target) -> MemoryReport:
    needed, budget_bytes = int(needed_gib * GIB), target.budget_bytes
    main_memory = MainMemoryNeed(4 * GIB, 3 * GIB, (LIBRARIES, Share("batches", GIB)))
    values = dict.fromkeys(field.name for field in dataclasses.fields(MemoryReport)) | NAMES
    values |= {
        "fits": needed <= budget_bytes and not would_swap(main_memory, target.main_memory_bytes),
        "main_memory": main_memory,
        "main_memory_available_bytes": target.main_memory_bytes,
        "peak_reserved_bytes": needed,
        "peak_allocated_bytes": needed - GIB // 4,
        "budget_bytes": budget_bytes,
        "parts": {"weights and adapters": GIB, "optimizer and workspaces": GIB, "step": needed - 9 * GIB // 4},
        "peak_at": PeakAt("step 1", "aten.mm", ""),
        "tokens": {"text": 66, "image": 4, "total": 70},
        "flops_per_row": 1.0,
        "breakdown": (),
        "phases": (),
        "encoding_reserved_bytes": 0,
        "communication_bytes": 0,
        "recorded_bytes": 0,
    }
    return MemoryReport(**values)


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A function that makes up a card with so many GiB to reserve, on which a run needs what `needs(plan)` says."""

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def put(budget_gib: float, needs=None, main_memory_gib: float | None = None) -> list:
        main_memory_bytes = None if main_memory_gib is None else int(main_memory_gib * GIB)
        target = Target(find_card("8gb"), int(budget_gib * GIB), True, main_memory_bytes)
        monkeypatch.setattr(launch, "target_of", lambda plan: target)
        asked = []

        def estimate_plan(plan, source, rows, target, *, fast=False):
            asked.append((plan, target.budget_bytes))
            return a_report(needs(plan), target)

        if needs:
            monkeypatch.setattr(estimate_run, "estimate_plan", estimate_plan)
        return asked

    return put


def from_estimate(shown: str) -> str:
    """What is shown from the line with the estimate on: before it the steps are told."""
    told, line, rest = shown.partition("estimate: ")
    assert all(" step" in before for before in told.splitlines())
    return line + rest


def by_batch(plan) -> float:
    """2 GiB, and for each row of a forward pass one more, or two where nothing is recomputed."""
    return 2 + plan.batch_size * (1 if plan.gradient_checkpointing else 2)


def test_one_line_before_the_model_loads(project, card, monkeypatch):
    asked = card(7.4, by_batch)
    real = engine_run.build_model
    monkeypatch.setattr(engine_run, "build_model", lambda plan, **how: print("the model loads") or real(plan, **how))
    done = project.train("run", "training.max_steps=1")
    assert done.code == 0, done.stderr
    lines = from_estimate(done.stdout).splitlines()
    assert lines[0] == "estimate: 3.00 of 7.40 GiB (41%), longest row rows.jsonl:6"
    assert lines.index("the model loads") > 0
    assert len(asked) == 1 and asked[0][0].data_sha256, "the plan of the run itself"
    kept = json.loads(project.run("run").estimate.read_text())
    assert kept["peak_reserved_bytes"] == 3 * GIB and kept["tokens"]["total"] == 70


def test_on_a_cpu_nothing_is_estimated_and_nothing_said(project):
    done = project.train("run", "training.max_steps=1")
    assert "estimate" not in done.stdout + done.stderr and not project.run("run").estimate.exists()


def test_what_cannot_fit_is_refused_with_the_changes_that_make_it_fit(project, card, monkeypatch):
    card(7.4, by_batch)
    monkeypatch.setattr(engine_run, "build_model", None)
    refused = project.train("run", "training.batch_size=4", "hardware.gradient_checkpointing=false")
    assert refused.code == ExitCode.DOES_NOT_FIT
    assert from_estimate(refused.stdout) == "estimate: 10.00 of 7.40 GiB (135%), longest row rows.jsonl:6\n"
    note, error, hint = refused.stderr.splitlines()
    assert note == "looking for changes that fit ..."
    assert error.startswith("error: it does not fit: 10.00 GiB are needed, 7.40 GiB can be reserved on 8 GB card")
    assert hint == (
        "hint:  would fit: --set hardware.gradient_checkpointing=true; or "
        "--set training.batch_size=2 --set training.gradient_accumulation_steps=4; --force tries it all the same"
    )
    assert not project.run("run").path.exists()


def test_layers_are_shared_where_one_gpu_does_not_hold_the_run(project, card, monkeypatch):
    card(7.4, lambda plan: 5 if plan.sharded else 9)
    real = runtime.probe_device
    monkeypatch.setattr(runtime, "probe_device", lambda: dataclasses.replace(real(), num_gpus=2))
    words = ("hardware.num_gpus=2", "training.gradient_accumulation_steps=2")
    shared = project.train("run", *words, flags=("--dry-run",))
    assert shared.code == 0, shared.stderr
    assert shared.stdout.splitlines()[-3:] == [
        "estimate: 9.00 of 7.40 GiB (122%), longest row rows.jsonl:6",
        "one GPU does not hold this: the GPUs share the language model's layers (hardware.shard)",
        "estimate: 5.00 of 7.40 GiB (68%), longest row rows.jsonl:6",
    ]
    assert json.loads(project.train("run", *words, flags=("--dry-run", "--json")).stdout)["sharded"] is True
    for apart in (("hardware.shard=never",), ("training.method=lora",)):
        refused = project.train("run", *words, *apart, flags=("--dry-run",))
        assert refused.code == ExitCode.DOES_NOT_FIT and "the GPUs share" not in refused.stdout


def test_of_several_cards_the_fullest_decides_and_is_named(monkeypatch, capsys):
    busy = GpuReading("RTX 4060", 8 * GIB, 5 * GIB, None, None, "580", "13.0", (GpuProcess(42, "firefox", None),))
    free = dataclasses.replace(busy, used_bytes=GIB // 4, processes=())
    target = Target(find_card("8gb"), 7 * GIB, True)
    context_bytes = target.card.context_bytes
    monkeypatch.setattr(sensors, "read_gpus", lambda names: [free, busy])
    assert launch.with_room_of(target, ("1", "2")).budget_bytes == 3 * GIB - context_bytes
    said = capsys.readouterr().err
    assert said == f"GPU 2 has less room: {3 - context_bytes / GIB:.2f} GiB of RTX 4060, used by firefox (pid 42)\n"


def test_a_run_that_would_swap_is_refused(project, card, monkeypatch):
    card(7.4, by_batch, main_memory_gib=3.9)
    monkeypatch.setattr(engine_run, "build_model", None)
    refused = project.train("run")
    assert refused.code == ExitCode.DOES_NOT_FIT
    assert refused.stdout.endswith(", longest row rows.jsonl:6, 4.0 of 3.9 GiB of main memory\n")
    assert refused.stderr == (
        "error: it does not fit: 4.00 GiB of main memory are needed, 3.90 GiB are available "
        "(the most takes: libraries 3.00, batches 1.00 GiB)\n"
        "hint:  close other programs, or raise the container's limit; --force tries it all the same\n"
    )
    assert not project.run("run").path.exists()


def test_force_trains_although_it_may_swap(project, card):
    card(7.4, by_batch, main_memory_gib=3.9)
    done = project.train("run", "training.max_steps=1", flags=("--force",))
    assert done.code == 0, done.stderr


def test_on_a_cpu_too_a_run_that_would_swap_is_refused(project, monkeypatch):
    monkeypatch.setattr(main_memory, "available_to_this_process", lambda: GIB // 2)
    monkeypatch.setattr(engine_run, "build_model", None)
    for flags in ((), ("--dry-run",)):
        refused = project.train("run", flags=flags)
        assert refused.code == ExitCode.DOES_NOT_FIT
        assert "GiB of main memory are needed, 0.50 GiB are available (the most takes: libraries 0.98" in refused.stderr


def test_no_change_makes_it_fit(project, card):
    card(1.0, by_batch)
    refused = project.train("run")
    assert (
        refused.code == 3
        and "hint:  no change of the config is known to make it fit; --force tries it all the same" in refused.stderr
    )


def test_force_trains_all_the_same(project, card):
    card(1.0, by_batch)
    done = project.train("run", "training.max_steps=1", flags=("--force",))
    assert done.code == 0 and from_estimate(done.stdout).startswith("estimate: 3.00 of 1.00 GiB (300%)")


CANNOT_TELL = VlmtuneError("no kernel", "a hint", code=ExitCode.CANNOT_TELL)


def failing(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def test_an_estimate_that_cannot_be_made_stops_nothing(project, card):
    card(7.4, failing(CANNOT_TELL))
    done = project.train("run", "training.max_steps=1")
    assert done.code == 0 and from_estimate(done.stdout).startswith(
        "estimate: none, the run goes on without it: no kernel\n"
    )
    assert not project.run("run").estimate.exists()


def test_a_step_that_cannot_be_run_without_storage_stops_nothing(project, card, monkeypatch):
    card(7.4)
    monkeypatch.setattr(simulation, "forward_loss", lambda model, *rest, **more: next(model.parameters()).unique())
    done = project.train("run", "training.max_steps=1")
    assert done.code == 0
    first, second = from_estimate(done.stdout).splitlines()[:2]
    assert first.startswith("estimate: none, the run goes on without it: cannot tell: the step of ")
    assert " cannot be run without storage (aten::_unique2: attempted to run this operator with Meta tensors" in first
    assert "Meta" not in second


@pytest.mark.parametrize("error", [RuntimeError("a bug"), NotImplementedError("a bug")])
def test_a_bug_in_an_estimate_keeps_its_traceback(project, card, monkeypatch, error):
    card(7.4)
    monkeypatch.setattr(simulation, "forward_loss", failing(error))
    with pytest.raises(type(error), match="a bug"):
        project.train("run", "training.max_steps=1")


def test_a_row_that_is_refused_is_refused_before_the_model_loads(project, card, monkeypatch):
    card(7.4)
    monkeypatch.setattr(engine_run, "build_model", None)
    refused = project.train("run", "data.max_length=16")
    assert refused.code == 1 and "have more than data.max_length: 16 text tokens" in refused.stderr
    assert not project.run("run").path.exists()


def test_the_real_estimate_of_the_runs_own_plan(project, card):
    card(7.4)
    shown = project.train("run", flags=("--dry-run", "--json"))
    assert shown.code == 0, shown.stderr
    values = json.loads(shown.stdout)
    assert values["lora_rank"] == 4 and values["estimate"]["worst_row"].startswith("rows.jsonl:")
    assert 0 < values["estimate"]["peak_reserved_bytes"] < GIB
    assert from_estimate(shown.stderr).startswith("estimate: 0.")


def test_dry_run_prints_the_estimate_and_refuses_as_the_run_would(project, card):
    card(7.4, by_batch)
    shown = project.train("run", flags=("--dry-run",))
    assert shown.code == 0 and "\nestimate: 3.00 of 7.40 GiB (41%), longest row rows.jsonl:6\n" in shown.stdout
    assert project.train("run", "training.batch_size=8", flags=("--dry-run",)).code == 3
    assert not (project.root / "runs").exists()


@pytest.fixture
def fail_at(monkeypatch):
    """A function that makes calls of the loss run out of memory, on a card with so many GiB left for us."""

    def put(*numbers, available_gib=7.5):
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 7 * GIB)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 7 * GIB)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int((available_gib - 7) * GIB), 8 * GIB))
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: 1.0)
        properties = type("Properties", (), {"total_memory": 8 * GIB})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        real, count = trainer.forward_loss, iter(range(1, 10_000))

        def call(*args, **kwargs):
            if next(count) in numbers:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.20 GiB.")
            return real(*args, **kwargs)

        monkeypatch.setattr(trainer, "forward_loss", call)

    return put


def test_out_of_memory_names_the_changes_that_would_have_fitted(project, card, fail_at, monkeypatch):
    built, alive = [], []
    real = engine_run.build_model

    def build(plan, **how):
        built.append(weakref.ref(model := real(plan, **how)))
        return model

    def needs(plan):
        alive.append(sum(model() is not None for model in built))
        return by_batch(plan)

    monkeypatch.setattr(engine_run, "build_model", build)
    asked = card(12, needs)
    fail_at(1, available_gib=7.25)
    gc.disable()
    try:
        stopped = project.train("oom", "training.batch_size=8")
    finally:
        gc.enable()
    assert stopped.code == 1
    note, error, hint = stopped.stderr.splitlines()
    assert error.startswith("error: out of GPU memory at rows.jsonl:6 and ")
    assert hint == "hint:  would have fitted: --set training.batch_size=4 --set training.gradient_accumulation_steps=4"
    assert {budget for _, budget in asked[1:]} == {int(7.25 * GIB)}, "what the card really had"
    assert len(alive) > 2 and not any(alive), "the model is freed before anything is computed"


def test_an_estimate_that_was_too_low_is_not_believed_again(project, card, fail_at):
    """3.00 of 7.40 GiB were estimated: only what is clearly less may be named."""
    asked = card(7.4, by_batch)
    fail_at(1)
    stopped = project.train("oom")
    assert stopped.code == 1 and "--set" not in stopped.stderr and "smaller pictures" in stopped.stderr
    assert {budget for _, budget in asked[1:]} == {int(3 * GIB * 0.95)}


def test_changes_that_cannot_be_computed_leave_the_short_hint(project, card, fail_at):
    def needs(plan):
        if plan.batch_size < 8:
            raise CANNOT_TELL
        return 6

    card(7.4, needs)
    fail_at(1)
    stopped = project.train("oom", "training.batch_size=8")
    assert stopped.code == 1 and stopped.stderr.splitlines()[-1].startswith("hint:  smaller pictures")


def test_a_retry_takes_the_weakest_change_that_would_have_fitted(project, card, fail_at):
    card(12, by_batch)
    fail_at(1, available_gib=4.5)
    done = project.train("retried", "hardware.on_oom=retry", "training.batch_size=8", "training.max_steps=1")
    assert done.code == 0, done.stderr
    assert "from the start on: training.batch_size=2, training.gradient_accumulation_steps=8" in done.stdout
    assert done.stdout.count("estimate: ") == 2 and "estimate: 4.00 of 12.00 GiB" in done.stdout
    assert json.loads(project.run("retried").estimate.read_text())["peak_reserved_bytes"] == 4 * GIB


def test_rows_are_measured_once_for_the_estimates_and_all_tries(project, card, fail_at, monkeypatch):
    project.write_rows(project.rows[:2], "val.jsonl")
    measured, real = [], lengths.measure
    monkeypatch.setattr(lengths, "measure", lambda rows, *rest: measured.append(len(rows)) or real(rows, *rest))
    card(12)
    fail_at(1, 3)
    settings = ("hardware.on_oom=retry", "training.batch_size=4", "training.max_steps=1", "data.val_path=val.jsonl")
    done = project.train("retried", *settings)
    assert done.code == 0, done.stderr
    assert done.stdout.count("out of GPU memory") == 2 and done.stdout.count("estimate: ") == 3
    assert measured == [7, 2]


def test_the_last_lines_have_what_was_estimated_and_what_was_measured(project, card, monkeypatch):
    real = engine_run.train

    def measured(plan, source, data, folder, view, *, resume):
        report = real(plan, source, data, folder, view, resume=resume)
        parts = {"weights and adapters": GIB, "optimizer and workspaces": GIB // 2, "step": 3 * GIB // 2}
        return dataclasses.replace(
            report, memory_estimated=folder.read_estimate(), memory_measured=Memory(13 * GIB // 4, 3 * GIB, parts)
        )

    card(7.4, by_batch)
    monkeypatch.setattr(engine_run, "train", measured)
    done = project.train("run", "training.max_steps=1")
    lines = [line.split() for line in done.stdout.splitlines()]
    start = lines.index(["memory,", "GiB", "estimated", "measured"])
    assert lines[start + 2 : start + 7] == [
        ["peak", "reserved", "3.00", "3.25"],
        ["peak", "allocated", "2.75", "3.00"],
        ["weights", "and", "adapters", "1.00", "1.00"],
        ["optimizer", "and", "workspaces", "1.00", "0.50"],
        ["step", "0.75", "1.50"],
    ]
    assert "adapter, log and report.html in runs/run\n" in done.stdout
