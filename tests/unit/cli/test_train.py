"""`vlmtune train`: its words."""

import pytest

from vlmtune.cli.train import with_what_to_resume


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (["--resume", "run.yaml"], ["--resume=newest", "run.yaml"]),
        (["run.yaml", "--resume"], ["run.yaml", "--resume=newest"]),
        (["--resume", "--json", "run.yaml"], ["--resume=newest", "--json", "run.yaml"]),
        (["--resume", "auto", "run.yaml"], ["--resume", "auto", "run.yaml"]),
        (["--resume=auto", "--set", "a=b"], ["--resume=auto", "--set", "a=b"]),
    ],
)
def test_resume_may_stand_alone(words, read):
    assert with_what_to_resume(words) == read


def test_what_cannot_be_resumed_is_a_wrong_command_line(run_cli):
    refused = run_cli("train", "run.yaml", "--resume=oldest")
    assert refused.code == 2 and "newest" in refused.stderr and "auto" in refused.stderr
