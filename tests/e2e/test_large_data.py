"""Training on a file that counts as large: the run is that of a small one, and a second start reads nothing again."""

import hashlib
import json
from pathlib import Path

import pytest

from vlmtune.data import samples
from vlmtune.data.measure import counting
from vlmtune.data.table import make


@pytest.fixture
def done(monkeypatch) -> list[str]:
    """What of the long work was done: reading into a table, counting tokens, digesting the data file."""
    work = []

    def noting(what: str, real):
        return lambda *words, **more: work.append(what) or real(*words, **more)

    monkeypatch.setattr(make, "_write", noting("read", make._write))
    monkeypatch.setattr(counting, "_counted", noting("counted", counting._counted))
    digest = hashlib.file_digest

    def noting_data(file, name):
        work.extend(["digested"] * (Path(file.name).name == "rows.jsonl"))
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", noting_data)
    return work


def losses(folder) -> list[float]:
    return [json.loads(line)["loss"] for line in folder.log.read_text().splitlines()]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_large_file_trains_as_a_small_one_and_is_read_once(workers, project, monkeypatch, done):
    settings = (f"hardware.num_workers={workers}", "training.max_steps=4")
    assert project.train("small", *settings).code == 0
    monkeypatch.setattr(samples, "LARGE_BYTES", 0)
    monkeypatch.setattr(make, "PIECE_BYTES", 200)
    assert [project.train(name, *settings).code for name in ("first", "second")] == [0, 0]
    small, first, second = (project.run(name) for name in ("small", "first", "second"))
    assert losses(small) == losses(first) == losses(second) and len(losses(small)) == 4
    facts = [json.loads(folder.report_json.read_text()) for folder in (small, first, second)]
    for key in ("num_rows", "text_tokens", "image_tokens", "longest_row", "notes"):
        assert facts[0][key] == facts[1][key] == facts[2][key]
    assert done.count("read") == 1
    assert done.count("digested") == 1, "the plan's digest and the table's are one"
    in_memory = 2  # held-out rows, of which there are none, and the small file's
    assert done.count("counted") == in_memory + 2 + 1


def test_bad_rows_of_a_large_file_are_named_or_skipped(project, monkeypatch):
    monkeypatch.setattr(samples, "LARGE_BYTES", 0)
    project.write_rows([*project.rows, {"image": "gone.png", "question": "q", "answer": "a"}])
    refused = project.train("refused")
    assert refused.code == 1
    assert f"rows.jsonl:8: image {project.root}/gone.png does not exist" in refused.stderr
    assert project.train("skipped", "data.on_bad_row=skip", "training.max_steps=1").code == 0
    report = json.loads(project.run("skipped").report_json.read_text())
    assert report["num_rows"] == 7 and report["num_skipped_rows"] == 1
    assert report["skipped"] == [f"rows.jsonl:8: image {project.root}/gone.png does not exist"]
