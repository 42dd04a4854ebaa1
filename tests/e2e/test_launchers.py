"""`vlmtune train` under launchers, and in the environment that they and accelerate's configuration leave."""

import json
import os
import subprocess
import sys

import pytest

TWO_STEPS = ("training.max_steps=2",)
OF_TORCHRUN = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
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


def test_what_launchers_leave_changes_nothing_and_is_named(project, plain, assert_same_weights):
    variables = OF_TORCHRUN | OF_ACCELERATE
    driver = f"import os; os.environ.update({variables!r})"
    done = project.train_elsewhere(driver, "launched", *TWO_STEPS)
    assert done.returncode == 0, done.stderr
    names = ", ".join(sorted(name for name in variables if not name.startswith("MASTER_")))
    said = f"not followed: {names}; vlmtune is one process, and its config decides"
    assert done.stderr.splitlines()[0] == said
    assert said in json.loads(project.run("launched").report_json.read_text())["notes"]
    assert_same_weights(plain, project.run("launched"))


def torchrun(project, name, num_processes):
    words = [str(word) for word in project._arguments(name, TWO_STEPS, resume=False)]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    command = [sys.executable, *launcher, "-m", "vlmtune", *words]
    return subprocess.run(command, cwd=project.root, env=os.environ, capture_output=True, text=True, timeout=120)


def test_torchrun_with_one_process_trains_as_without_it(project, plain, assert_same_weights):
    done = torchrun(project, "launched", 1)
    assert done.returncode == 0, done.stderr
    assert "not followed: LOCAL_RANK, LOCAL_WORLD_SIZE, RANK, WORLD_SIZE;" in done.stderr
    assert_same_weights(plain, project.run("launched"))


def test_torchrun_with_two_processes_is_refused_before_anything_is_read(project):
    (project.root / "rows.jsonl").unlink()
    done = torchrun(project, "launched", 2)
    assert done.returncode != 0 and not project.run("launched").path.exists()
    assert "error: WORLD_SIZE=2: this command is one process on one GPU" in done.stderr
    assert "hint:  start vlmtune without a launcher, or unset WORLD_SIZE;" in done.stderr
    assert "rows.jsonl" not in done.stderr


def test_commands_that_load_a_run_are_refused_too(plain, run_cli, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for command in (["evaluate", "--data", "rows.jsonl"], ["generate", "--prompt", "?"], ["merge", "--out", "merged"]):
        refused = run_cli(command[0], plain.path, *command[1:])
        assert refused.code == 1
        assert refused.stderr.startswith("error: WORLD_SIZE=2: this command is one process on one GPU")
