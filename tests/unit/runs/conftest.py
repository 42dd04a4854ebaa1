"""A record, a report and a run folder, for all that is tested of them."""

import dataclasses

import pytest

from vlmtune.runs.folder import RunFolder
from vlmtune.runs.records import LongestRow, StepRecord, TrainReport
from vlmtune.units import GIB


@pytest.fixture
def a_record():
    """A function that returns the record of a step with some changes."""

    def make(step=1, **changes):
        record = StepRecord(
            step=step, total_steps=10, epoch=0.5, loss=1.5, learning_rate=1e-4, grad_norm=0.7, tokens_per_s=100.0,
            samples_per_s=2.0, data_wait_share=0.1, elapsed_s=5.0, eta_s=45.0, gpu_memory_bytes=5 * GIB,
            gpu_peak_bytes=6 * GIB, gpu_limit_bytes=8 * GIB, gpu_temperature_c=60,
        )  # fmt: skip
        return dataclasses.replace(record, **changes)

    return make


@pytest.fixture
def a_report():
    """A function that returns a report with some changes."""

    def make(**changes):
        report = TrainReport(
            experiment_name="digits", model="org/model", method="qlora", status="finished", steps=10,
            train_loss_first=2.5, train_loss_last=0.4, eval_loss=0.5, num_rows=100, num_skipped_rows=1,
            skipped=["train.jsonl:7: the answer is empty"], num_cut_rows=2, num_cut_tokens=30, text_tokens=1000,
            image_tokens=20000, trained_tokens=300, longest_row=LongestRow("train.jsonl:9", 412),
            trainable_parameters=1000, total_parameters=100_000, seconds=192.0, samples_per_s=2.0, tokens_per_s=100.0,
            data_wait_share=0.1, peak_allocated_bytes=5 * GIB, peak_reserved_bytes=6 * GIB, gpu="a card",
            precision="bf16", versions={"vlmtune": "0.1.0"}, notes=["a note"],
        )  # fmt: skip
        return dataclasses.replace(report, **changes)

    return make


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "runs" / "digits")
