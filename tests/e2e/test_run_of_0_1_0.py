"""What vlmtune 0.1.0 left behind is evaluated, asked, merged and continued, and the numbers are those of 0.1.0."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vlmtune.runs.folder import RunFolder

MADE = Path(__file__).parent / "run-0.1.0"
EXPECTED = json.loads((MADE / "expected.json").read_text(encoding="utf-8"))
SHORT = ("--max-new-tokens", "12", "--json")
CLOSE = 1e-5
"""On the processor that made the run all is equal bit for bit, with the oldest versions too; with the kernels of older
processors losses differ by 5e-7 and weights by 1e-7."""


@pytest.fixture
def old(tmp_path, monkeypatch, run_cli):
    """A function that runs `vlmtune ARGS…` in a copy of the project and returns what it prints."""
    shutil.copytree(MADE / "project", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> dict:
        done = run_cli(*args)
        assert done.code == 0, done.stderr
        return json.loads(done.stdout)

    return run


def log_of(folder):
    """Step, epoch, rate and losses of every line; times differ between runs."""
    lines = [(line.step, line.epoch, line.learning_rate, line.loss, line.eval_loss) for line in folder.read_log()]
    return [[value for value in line if value is not None] for line in lines]


def test_a_finished_run_is_evaluated(old):
    found = old("evaluate", "runs/finished", *SHORT)
    assert found["loss"] == pytest.approx(EXPECTED["evaluate"]["loss"], rel=CLOSE)
    for answer, expected in zip(found["answers"], EXPECTED["evaluate"]["answers"], strict=True):
        assert answer.pop("images")[0].endswith(".png") and answer.pop("scores") == {"exact": float(expected["exact"])}
        others = {"loss": pytest.approx(expected["loss"], rel=CLOSE), "cut": True, "before": None}
        wanted = {**expected, "expected": [expected["expected"]], **others}
        assert answer == {key: value for key, value in wanted.items() if key != "exact"}


def test_a_finished_run_answers(old):
    asked = ("--image", "blue2.png", "--prompt", "What colour is this?")
    assert old("generate", "runs/finished", *asked, *SHORT) == {**EXPECTED["generate"], "thought": "", "cut": True}


def test_a_finished_run_is_merged(old):
    proof = old("merge", "runs/finished", "-o", "merged", "--json")
    assert proof["largest_logit"] == pytest.approx(EXPECTED["merge"]["largest_logit"], rel=CLOSE)
    assert proof["relative_difference"] < proof["bound"] == EXPECTED["merge"]["bound"]


def test_a_finished_run_has_nothing_to_do(old):
    shutil.rmtree("runs/interrupted")
    shutil.move("runs/finished", "runs/interrupted")
    assert old("train", "run.yaml", "--resume", "--json") == json.loads(
        (MADE / "project/runs/finished/report.json").read_text(encoding="utf-8")
    )


def test_an_interrupted_run_goes_on_as_it_would_have(old):
    report = old("train", "run.yaml", "--resume", "--json")
    resumed, expected = RunFolder(Path("runs/interrupted")), RunFolder(MADE / "project/runs/finished")
    assert report["status"] == "finished" and report["steps"] == 20
    assert [retry.words for retry in resumed.read_retries()] == [retry.words for retry in expected.read_retries()]
    assert len(log_of(resumed)) == len(log_of(expected))
    for line, of_0_1_0 in zip(log_of(resumed), log_of(expected), strict=True):
        assert line == pytest.approx(of_0_1_0, rel=CLOSE)
    weights, of_0_1_0 = (load_file(folder.adapter / "adapter_model.safetensors") for folder in (resumed, expected))
    assert weights.keys() == of_0_1_0.keys() and len(weights) == 28
    assert max((weights[name] - of_0_1_0[name]).abs().max().item() for name in weights) < CLOSE
