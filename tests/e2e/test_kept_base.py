"""Runs whose quantised base is kept: the second start reads it, whatever the first one was for."""

from vlmtune.files import cache_folder
from vlmtune.plan.file import load_plan

KEEP = "model.cache_quantized=true"
KEPT, TAKEN = "keeping the base in 4 bits for the next start", "the base in 4 bits comes from"


def test_all_commands_use_it_and_the_weights_are_those_of_a_run_without(project, assert_same_weights):
    assert project.train("without").code == 0
    first, second = project.train("first", KEEP), project.train("second", KEEP)
    assert first.code == second.code == 0
    assert KEPT in first.stdout and TAKEN not in first.stdout
    assert TAKEN in second.stdout and KEPT not in second.stdout
    assert_same_weights(project.run("without"), project.run("first"))
    assert_same_weights(project.run("without"), project.run("second"))
    folder = project.run("second").path
    evaluated = project.run_cli("evaluate", folder, "--data", project.root / "rows.jsonl", "--json")
    assert evaluated.code == 0 and TAKEN in evaluated.stderr
    merged = project.run_cli("merge", folder, "-o", "merged")
    assert merged.code == 0 and "in 4 bits" not in merged.stdout, "merged into the original weights"


def test_a_run_goes_on_with_it_that_began_without_and_the_other_way_round(project, assert_same_weights):
    project.train("whole")
    without = "model.cache_quantized=false"
    for name, began, goes_on in (("with", KEEP, without), ("then", without, KEEP)):
        project.train_killed(name, began)
        resumed = project.train(name, goes_on, resume=True)
        assert resumed.code == 0, resumed.stderr
        assert_same_weights(project.run("whole"), project.run(name))
    assert load_plan(project.run("then").plan).cache_quantized


def test_a_method_that_quantises_nothing_keeps_nothing(project):
    done = project.train("run", KEEP, "training.method=lora")
    assert done.code == 1 and not (cache_folder() / "bases").exists()
    assert "model.cache_quantized: method lora quantises nothing" in " ".join(done.stderr.split())
