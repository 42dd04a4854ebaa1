"""`vlmtune models check` as a user meets it."""

import json


def test_a_model_that_holds(run_cli):
    result = run_cli("models", "check", "OpenGVLab/InternVL3-1B-hf", "--json")
    said = json.loads(result.stdout)
    assert (result.code, said["model_type"], said["holds"]) == (0, "internvl", True)
    assert {point["name"] for point in said["points"]} >= {"trains and reloads", "generates", "estimate"}
    assert all(point["holds"] for point in said["points"])


def test_a_model_that_does_not(run_cli):
    result = run_cli("models", "check", "florence-community/Florence-2-base")
    assert result.code == 1
    assert "family and processor  no" in result.stdout and "encoder-decoder" in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
