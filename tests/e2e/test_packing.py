"""A packed run is the run without packs, within rounding."""

import json

import pytest

from vlmtune.models.attention.packs import num_rows

ROWS = "training.gradient_accumulation_steps=3"
PACKED = (ROWS, "training.packing=true", "training.pack_tokens=150")


def losses(folder) -> list[float]:
    return [json.loads(line)["loss"] for line in folder.log.read_text().splitlines()]


def test_a_packed_run_learns_what_it_learns_without_packs(project, monkeypatch):
    from vlmtune.engine import trainer

    rows, real = [], trainer.forward_loss

    def counted(model, batch, *args):
        rows.append(num_rows(batch))
        return real(model, batch, *args)

    monkeypatch.setattr(trainer, "forward_loss", counted)
    project.rows[2]["question"] = "Which colour? " * 15
    project.write_rows(project.rows)
    plain = project.train("plain", ROWS)
    assert plain.code == 0 and rows == [1] * 14
    rows.clear()
    packed = project.train("packed", *PACKED)
    assert packed.code == 0, packed.stderr
    assert sum(rows) == 14 and max(rows) > 1
    assert "training.pack_tokens: 150: 1 row of 7; each is a pack of its own" in " ".join(packed.stdout.split())
    assert losses(project.run("packed")) == pytest.approx(losses(project.run("plain")), rel=1e-4)
    assert len(losses(project.run("packed"))) == 6
    report = json.loads(project.run("packed").report_json.read_text())
    assert (report["num_rows"], report["steps"]) == (7, 6)
