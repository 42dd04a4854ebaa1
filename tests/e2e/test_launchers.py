"""`vlmtune train` under launchers, and in the environment that they and accelerate's configuration leave."""

import json
import os
import subprocess
import sys

import pytest

TWO_STEPS = ("training.max_steps=2",)
OF_TORCHRUN = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "RANK", "WORLD_SIZE")
OF_ACCELERATE = {
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_DYNAMO_BACKEND": "inductor",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_USE_FSDP": "true",
}


@pytest.fixture
def plain(project):
    """A run in the environment of the tests."""
    assert project.train("plain", *TWO_STEPS).code == 0
    return project.run("plain")


def torchrun(project, name, num_processes, **variables):
    words = [str(word) for word in project._arguments(name, TWO_STEPS, resume=False)]
    return launched(project, words, num_processes, **variables)


def launched(project, words, num_processes, **variables):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    command = [sys.executable, *launcher, "-m", "vlmtune", *words]
    return subprocess.run(
        command, cwd=project.root, env=os.environ | variables, capture_output=True, text=True, timeout=120
    )


def test_what_one_launcher_leaves_and_another_sets_changes_nothing_and_is_named(
    project, plain, assert_same_weights, monkeypatch
):
    of_one_process = dict(zip(OF_TORCHRUN, "0101", strict=True))
    for name, value in (OF_ACCELERATE | of_one_process).items():
        monkeypatch.setenv(name, value)
    done = project.train("launched", *TWO_STEPS)
    assert done.code == 0, done.stderr
    names = ", ".join(sorted((*OF_ACCELERATE, *OF_TORCHRUN)))
    said = f"not followed: {names}; vlmtune is one process, and its config decides"
    assert said in done.stderr.splitlines()
    assert said in json.loads(project.run("launched").report_json.read_text())["notes"]
    assert_same_weights(plain, project.run("launched"))


@pytest.mark.slow
def test_torchrun_with_two_processes_trains_one_run(project, plain, weights):
    done = torchrun(project, "launched", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 2/2") == 1 and "not followed" not in done.stderr
    assert json.loads(project.run("launched").report_json.read_text())["gpus_agree"]
    alone, shared = weights(plain), weights(project.run("launched"))
    assert max((alone[name] - shared[name]).abs().max().item() for name in alone) < 1e-5


def test_errors_under_torchrun_are_said_once(project):
    (project.root / "rows.jsonl").unlink()
    done = torchrun(project, "launched", 2)
    assert done.returncode != 0 and not project.run("launched").path.exists()
    assert done.stderr.count("rows.jsonl") == 1 and "vlmtune/" not in done.stderr


@pytest.mark.parametrize(
    "words", [["evaluate", "run"], ["merge", "run", "-o", "m"], ["generate", "run", "--prompt", "?"]]
)
def test_a_command_for_one_process_says_so_once_under_torchrun(project, words):
    done = launched(project, words, 2)
    assert done.returncode != 0 and done.stderr.count("error: ") == 1
    assert "error: WORLD_SIZE=2: this command is one process on one GPU" in done.stderr


def test_processes_of_a_launcher_without_places_are_refused_before_anything_is_read(project, run_cli, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    (project.root / "rows.jsonl").unlink()
    refused = project.train("launched")
    assert refused.code == 1 and not project.run("launched").path.exists()
    assert refused.stderr.startswith("error: OMPI_COMM_WORLD_SIZE=2: this command is one process on one GPU")


def test_commands_that_load_a_run_are_refused_too(plain, run_cli, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for command in (["evaluate", "--data", "rows.jsonl"], ["generate", "--prompt", "?"], ["merge", "--out", "merged"]):
        refused = run_cli(command[0], plain.path, *command[1:])
        assert refused.code == 1
        assert refused.stderr.startswith("error: WORLD_SIZE=2: this command is one process on one GPU")
