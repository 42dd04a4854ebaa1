"""`vlmtune estimate-vram` through the command line, on tiny models: the answer's shape, sums, exit codes, errors."""

import json

import pytest
from PIL import Image
from tiny import TINY, save_tiny

KEYS = {
    "model",
    "preset",
    "gpu",
    "fits",
    "peak_reserved_bytes",
    "peak_allocated_bytes",
    "device_total_bytes",
    "budget_bytes",
    "breakdown",
    "parts",
    "peak_at",
    "tokens",
    "worst_row",
    "flops_per_row",
    "seconds",
    "versions",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny("llava", tmp_path_factory.mktemp("estimate") / "llava")


def test_the_answer_has_every_key_and_its_parts_sum_to_the_total(run_cli, folder):
    done = run_cli("estimate-vram", "--model", folder, "--gpu", "rtx-4060", "--json")
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) == KEYS
    assert report["fits"] is True and report["preset"] == "8gb" and report["gpu"] == "rtx-4060"
    assert sum(share["bytes"] for share in report["breakdown"]) == report["device_total_bytes"]
    assert report["peak_allocated_bytes"] <= report["peak_reserved_bytes"] < report["device_total_bytes"]
    assert report["tokens"] == {"text": 512, "image": 4, "total": 516}
    assert sum(report["parts"].values()) == report["peak_allocated_bytes"] and min(report["parts"].values()) >= 0
    assert report["peak_at"]["phase"].startswith("step ")


@pytest.mark.parametrize("model_type", sorted(TINY))
def test_every_family_can_be_estimated_without_weights(run_cli, tmp_path, model_type):
    model = save_tiny(model_type, tmp_path / model_type)
    (model / "model.safetensors").unlink()
    done = run_cli("estimate-vram", "--model", model, "--set", "data.max_length=64", "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["fits"] is True


def test_with_data_the_longest_row_decides_and_is_named(run_cli, folder, tmp_path):
    for name, size_px in (("a", 40), ("b", 90)):
        Image.new("RGB", (size_px, size_px), "red").save(tmp_path / f"{name}.png")
    rows = [
        {"image": "a.png", "question": "What?", "answer": "red"},
        {"image": "b.png", "question": "What colour is this picture?", "answer": "it is all red"},
        {"question": "Who?", "answer": "me"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {{name: {folder}}}\ndata: {{train_path: rows.jsonl}}\n")
    done = run_cli("estimate-vram", config, "--json")
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["worst_row"] == "rows.jsonl:2" and report["preset"] is None
    assert report["tokens"]["image"] == 4 and report["tokens"]["total"] == 4 + report["tokens"]["text"]


def test_more_text_takes_more_memory(run_cli, folder):
    def peak(max_length: int) -> int:
        done = run_cli("estimate-vram", "--model", folder, "--set", f"data.max_length={max_length}", "--json")
        return json.loads(done.stdout)["peak_allocated_bytes"]

    assert peak(64) < peak(512) < peak(4096)


def test_levers_are_priced_by_simulating_them(run_cli, folder):
    arguments = ("--model", folder, "--set", "data.max_length=4096", "--explain")
    report = json.loads(run_cli("estimate-vram", *arguments, "--json").stdout)
    levers = {lever["words"][0]: lever for lever in report["levers"]}
    keep, rank = levers["hardware.gradient_checkpointing=false"], levers["training.lora.rank=4"]
    assert keep["saved_bytes"] < 0, "keeping activations costs memory"
    assert 0.6 < keep["work"] < 0.9, "no recomputation: about a quarter less work"
    assert rank["saved_bytes"] >= 0 and rank["work"] < 1
    saved = [lever["saved_bytes"] for lever in report["levers"]]
    assert saved == sorted(saved, reverse=True) and len(saved) >= 6
    alone = run_cli("estimate-vram", *arguments[:-1], "--set", "training.lora.rank=4", "--json")
    saved_by_rank = report["peak_reserved_bytes"] - json.loads(alone.stdout)["peak_reserved_bytes"]
    assert rank["saved_bytes"] == saved_by_rank


def test_what_does_not_fit_exits_with_3(run_cli, folder):
    done = run_cli("estimate-vram", "--model", folder, "--gpu", "8gb", "--reserve-gib", "7.38")
    assert done.code == 3
    assert "does not fit" in done.stdout


def test_people_get_a_bar_and_a_table(run_cli, folder):
    done = run_cli("estimate-vram", "--model", folder)
    lines = done.stdout.splitlines()
    assert lines[0].endswith("on 8 GB card, as NVIDIA GeForce RTX 4060: fits")
    assert lines[1].startswith("█") or lines[1].startswith("░")
    assert lines[2] == "longest row: 512 text + 4 image = 516 tokens (largest row allowed)"
    assert "CUDA context" in done.stdout and lines[-1].startswith("total on the device")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--model", "org/none", "--gpu", "8gb"], 1, "is not in the local cache"),
        (["--gpu", "8gb"], 2, "give either CONFIG or --model"),
        (["--model", "Qwen/Qwen3-VL-2B-Instruct", "--gpu", "rtx-4061"], 1, "did you mean"),
        (["--model", "Qwen/Qwen3-VL-2B-Instruct", "--preset", "9gb"], 1, "preset 9gb is unknown"),
        (["--model", "Qwen/Qwen3-VL-2B-Instruct", "--set", "training.lora.rnak=3"], 1, "training.lora.rank"),
    ],
)
def test_wrong_input_is_one_error(run_cli, arguments, code, words):
    done = run_cli("estimate-vram", *arguments)
    assert done.code == code
    assert words in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr
