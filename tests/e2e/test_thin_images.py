"""Images much longer than high, such as a cut-out line of text: trained, or refused by name before the model loads."""

import json

from tiny.rows import picture

from vlmtune.engine import train


def write_lines(project, *sizes_px) -> None:
    for number, size_px in enumerate(sizes_px):
        picture(project.root, f"line{number}", size_px, "white")
    rows = [{"image": f"line{n}.png", "question": "Read.", "answer": f"no. {n}"} for n in range(len(sizes_px))]
    project.write_rows(rows)


def test_thin_lines_of_text_are_trained(project, models):
    write_lines(project, (640, 13), (200, 12))
    trained = project.train("run", f"model.name={models('qwen2_5_vl').folder}", "training.max_steps=2")
    assert trained.code == 0, trained.stderr
    longest = json.loads(project.run("run").report_json.read_text())["longest_row"]
    assert longest["where"] == "rows.jsonl:1"
    assert longest["tokens"] == 15 + 33  # the processor's image tokens for 640×13 px, and a token a letter or mark


def test_lines_that_the_processor_refuses_are_named_before_the_model_loads(project, models, monkeypatch):
    monkeypatch.setattr(train, "build_model", None)
    write_lines(project, (640, 13), (402, 2), (5, 1200))
    refused = project.train("run", f"model.name={models('qwen2_5_vl').folder}")
    assert refused.code == 1
    assert "2 of 3 rows do not fit the model" in refused.stderr
    for named in ("rows.jsonl:2: this model takes no image with one side", "402×2 px", "rows.jsonl:3: ", "5×1200 px"):
        assert named in refused.stderr
    assert "download" not in refused.stderr
