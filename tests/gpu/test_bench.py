"""What `bench.py` makes of the runs that it starts."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from gpu import bench

FIGURES = {"offer": {"batch": 4}, "rows_per_s": 2.0, "kernel_ms_per_row": 30.0, "launches_per_row": 400.0}


def measured(monkeypatch, tmp_path: Path, words: list[str], run=None) -> list[dict]:
    """Return what is written when each run gives the same figures, or `run` says what happens."""

    def fake(command, **how) -> SimpleNamespace:
        code = command[2]
        asked, result = eval(code[code.index("main(*") + 6 : -1])
        return (run or succeed)(json.loads(asked), Path(result), **how)

    def succeed(asked, result, **how) -> SimpleNamespace:
        result.write_text(json.dumps(FIGURES))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(bench, "write_weights", lambda folder, gpu: folder.mkdir())
    monkeypatch.setattr(bench, "prepared", lambda folder, models, sets: None)
    monkeypatch.setattr(subprocess, "run", fake)
    monkeypatch.setattr("sys.argv", ["bench.py", str(tmp_path / "out.json"), "--folder", str(tmp_path), *words])
    bench.measure(bench.arguments())
    return json.loads((tmp_path / "out.json").read_text())["runs"]


def test_the_weightiest_runs_come_first_and_every_tool_is_offered_its_largest_first(monkeypatch, tmp_path):
    order = []

    def run(asked, result, env, **how) -> SimpleNamespace:
        order.append((Path(asked["folder"]).name, asked["rows"], asked["tool"], asked["offers"][0], env["PYTHONPATH"]))
        result.write_text(json.dumps(FIGURES))
        return SimpleNamespace(returncode=0)

    words = ["--models", "llava-7b,qwen25-3b", "--sets", "docs", "--tools", "vlmtune,trl", "--peers", "trl=libraries"]
    measured(monkeypatch, tmp_path, [*words, "--set", "hardware.varlen_attention=false"], run)
    assert [one[:3] for one in order] == [
        ("qwen25-3b", "docs", "vlmtune"),
        ("qwen25-3b", "docs", "trl"),
        ("llava-7b", "docs", "vlmtune"),
        ("llava-7b", "docs", "trl"),
    ]
    assert order[0][3] == {
        "training.pack_tokens": 12_288,
        "training.packing": True,
        "hardware.varlen_attention": False,
    }
    assert order[1][3] == {"batch": 8}
    assert [one[4].startswith(str(Path("libraries").resolve())) for one in order] == [False, True, False, True]


def test_runs_of_an_earlier_call_are_kept_unless_they_are_made_again(monkeypatch, tmp_path):
    measured(monkeypatch, tmp_path, ["--models", "qwen25-3b", "--sets", "docs,short", "--tools", "trl"])

    def slower(asked, result, **how) -> SimpleNamespace:
        result.write_text(json.dumps(FIGURES | {"rows_per_s": 1.0}))
        return SimpleNamespace(returncode=0)

    found = measured(monkeypatch, tmp_path, ["--models", "qwen25-3b", "--sets", "docs", "--tools", "trl"], slower)
    assert [(run["rows"], run["rows_per_s"]) for run in found] == [("docs", 1.0), ("short", 2.0)]


def test_a_run_that_fails_or_takes_too_long_says_so_and_the_others_go_on(monkeypatch, tmp_path):
    def run(asked, result, stdout, timeout, **how) -> SimpleNamespace:
        if asked["tool"] == "vlmtune":
            raise subprocess.TimeoutExpired("python", timeout)
        print("no such layer", file=stdout)
        return SimpleNamespace(returncode=1)

    words = ["--models", "qwen25-3b", "--sets", "docs", "--tools", "vlmtune,trl", "--run-limit", "5"]
    trl, ours = measured(monkeypatch, tmp_path, words, run)
    assert trl["error"].startswith("exit code 1") and "no such layer" in trl["error"]
    assert ours["error"].startswith("not done after 5 s")


def test_no_run_begins_when_little_time_is_left(monkeypatch, tmp_path):
    words = ["--models", "qwen25-3b", "--sets", "docs", "--limit", str(bench.START_S - 1)]
    results = tmp_path / "out.json"
    results.write_text(json.dumps({"runs": []}))
    assert measured(monkeypatch, tmp_path, words) == []


@pytest.mark.parametrize("words", [["--models", "qwen"], ["--tools", "trl,unslot"], ["--sets", ""]])
def test_names_that_nobody_knows_are_refused(monkeypatch, capsys, words):
    monkeypatch.setattr("sys.argv", ["bench.py", "out.json", *words])
    with pytest.raises(SystemExit):
        bench.arguments()
    assert "are known" in capsys.readouterr().err


def test_vlmtune_in_little_memory_keeps_features_and_lets_layers_wait():
    offer, *others = bench.offers_of("vlmtune-small", "llava-7b", "docs", {"hardware.fused_norms": False})
    assert offer == {
        "training.pack_tokens": 5120,
        "training.packing": True,
        "hardware.varlen_attention": True,
        "hardware.fused_norms": False,
        "data.cache_features": True,
        "hardware.streamed_layers": 16,
        "hardware.offload_embeddings": True,
    }
    assert not others
    assert "hardware.offload_embeddings" not in bench.offers_of("vlmtune-small", "qwen3-4b", "docs", {})[0]


def test_vlmtune_at_its_quickest_is_asked_for_where_it_was_worked_out(monkeypatch, tmp_path):
    asked_for = []

    def run(asked, result, **how) -> SimpleNamespace:
        asked_for.append((Path(asked["folder"]).name, asked["offers"]))
        result.write_text(json.dumps(FIGURES))
        return SimpleNamespace(returncode=0)

    words = ["--models", "qwen25-3b,qwen3-4b", "--sets", "short", "--tools", "vlmtune-fast"]
    measured(monkeypatch, tmp_path, words, run)
    packed = {"training.pack_tokens": 4608, "training.packing": True, "hardware.varlen_attention": True}
    levers = {"hardware.cuda_graphs": True, "data.cache_features": True}
    assert asked_for == [("qwen3-4b", [packed | levers])]
