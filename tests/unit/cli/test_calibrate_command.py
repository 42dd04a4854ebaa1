"""`vlmtune calibrate` with a made-up measurement: what is printed and kept, and the error without a GPU."""

import json

import pytest
import torch

from vlmtune.hardware import at_hand
from vlmtune.hardware.calibration import Calibration, Figures, Setup, ShortRun, Speeds, kept_calibration
from vlmtune.hardware.cards import MIB
from vlmtune.workflow import calibrate as measuring

SETUP = Setup("NVIDIA GeForce RTX 4060", "aaaa-bbbb", "580.1", "2.11")
CHECK = ShortRun(404 * MIB, 400 * MIB, 297 * MIB, 300 * MIB)
SPEEDS = Speeds(25e12, 12e12, 240e9, 13.5e9, 21e-6)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """A function that decides what is measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(at_hand, "require_card", lambda: None)

    def decide(context_bytes):
        figures = Figures(context_bytes, ((32 * MIB, MIB), (32 * MIB,)))
        monkeypatch.setattr(measuring, "calibrate", lambda say: Calibration(SETUP, figures, CHECK, SPEEDS))
        return Calibration(SETUP, figures, CHECK, SPEEDS)

    return decide


def test_the_result_is_shown_and_kept(run_cli, measured):
    calibration = measured(226 * MIB)
    done = run_cli("calibrate")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert done.code == 0 and lines[0] == "NVIDIA GeForce RTX 4060, driver 580.1, torch 2.11"
    for line in (
        "CUDA context 226.0",
        "cuBLAS, forward pass 32.0 + 1.0",
        "cuBLAS, backward pass 32.0",
        "peak reserved 404.0 400.0 +1.00%",
        "peak allocated 297.0 300.0 -1.00%",
        "products of 16 bits 25.0 TFLOP/s",
        "its memory 240 GB/s",
        "main memory to it 13.5 GB/s",
        "the processor for a plain launch 21.0 µs",
    ):
        assert line in lines
    assert lines[-1].endswith("nvidia-geforce-rtx-4060-aaaa-bbb.json: estimates for this card use it")
    assert kept_calibration(SETUP) == calibration


def test_a_context_that_cannot_be_told_is_said(run_cli, measured):
    measured(None)
    assert "the driver does not tell" in run_cli("calibrate").stdout
    assert kept_calibration(SETUP).figures.context_bytes is None


def test_json_has_the_figures_and_the_file(run_cli, measured, tmp_path):
    measured(226 * MIB)
    answer = json.loads(run_cli("calibrate", "--json").stdout)
    assert answer["figures"] == {"context_bytes": 226 * MIB, "cublas_bytes": [[32 * MIB, MIB], [32 * MIB]]}
    assert answer["check"]["measured_reserved_bytes"] == 400 * MIB and answer["setup"]["driver"] == "580.1"
    assert answer["file"].startswith(str(tmp_path))


def test_a_folder_that_cannot_be_written_is_one_error(run_cli, measured, tmp_path):
    measured(226 * MIB)
    (tmp_path / "vlmtune").write_text("a file")
    done = run_cli("calibrate")
    assert done.code == 1 and "the result cannot be kept" in done.stderr and "Traceback" not in done.stderr


def test_without_a_gpu_there_is_one_error(run_cli, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = run_cli("calibrate")
    assert (done.code, done.stdout) == (1, "")
    assert "there is no GPU here that PyTorch can use" in done.stderr and "vlmtune doctor" in done.stderr
