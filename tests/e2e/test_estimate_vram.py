"""`vlmtune estimate-vram` through the command line, on tiny models: the answer's shape, sums, exit codes, errors."""

import json
import shutil

import pytest
import torch
from PIL import Image
from tiny import TINY, save_tiny

from vlmtune.hardware import sensors
from vlmtune.levers.speed.graphs import RECORDED_LAUNCH_BYTES

pytestmark = pytest.mark.usefixtures("kept_estimates")
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
    "config",
    "gpu_name",
    "gpu_from",
    "budget_from",
    "without_worst",
    "phases",
    "fast",
    "main_memory",
    "main_memory_available_bytes",
    "main_memory_here",
    "streamed_bytes_per_step",
}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """No GPU here, whatever machine the tests run on."""
    monkeypatch.setattr(sensors, "has_driver", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny("llava", tmp_path_factory.mktemp("estimate") / "llava")


def test_the_answer_has_every_key_and_its_parts_sum_to_the_total(run_cli, folder):
    done = run_cli("estimate-vram", "--model", folder, "--gpu", "rtx-4060", "--json")
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) >= KEYS
    assert (report["gpu_name"], report["gpu_from"]) == ("NVIDIA GeForce RTX 4060", "--gpu")
    assert report["fits"] is True and report["preset"] == "8gb" and report["gpu"] == "rtx-4060"
    assert sum(share["bytes"] for share in report["breakdown"]) == report["device_total_bytes"]
    assert report["peak_allocated_bytes"] <= report["peak_reserved_bytes"] < report["device_total_bytes"]
    assert report["tokens"] == {"text": 512, "image": 4, "total": 516}
    assert sum(report["parts"].values()) == report["peak_allocated_bytes"] and min(report["parts"].values()) >= 0
    assert report["peak_at"]["phase"].startswith("step ")
    need = report["main_memory"]
    assert sum(part["bytes"] for part in need["parts"]) == need["peak_bytes"] >= need["loading_bytes"] > 0
    assert report["main_memory_available_bytes"] is None, "the card is another machine's"
    assert 0 < report["main_memory_here"]["available_bytes"] < report["main_memory_here"]["total_bytes"]


def test_main_memory_is_said(run_cli, folder):
    done = run_cli("estimate-vram", "--model", folder, "--gpu", "rtx-4060")
    words = " ".join(done.stdout.split())
    assert "main memory 2.1" in words and "GiB (CUDA 1.00, libraries 0.98, " in words
    assert "GiB are available" in words


@pytest.mark.parametrize("model_type", sorted(TINY))
def test_every_family_can_be_estimated_without_weights(run_cli, tmp_path, model_type):
    model = save_tiny(model_type, tmp_path / model_type)
    (model / "model.safetensors").unlink()
    done = run_cli("estimate-vram", "--model", model, "--set", "data.max_length=64", "--fast", "--json")
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


@pytest.mark.parametrize("with_rows", [False, True])
def test_a_model_edited_in_its_place_is_estimated_anew(run_cli, folder, tmp_path, with_rows):
    model = shutil.copytree(folder, tmp_path / "model")
    config = tmp_path / "run.yaml"
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "Who?", "answer": "me"}))
    data = "rows.jsonl" if with_rows else "none.jsonl"
    config.write_text(f"preset: 8gb\nmodel: {{name: model}}\ndata: {{train_path: {data}}}\n")

    def peak() -> int:
        return json.loads(run_cli("estimate-vram", config, "--fast", "--json").stdout)["peak_allocated_bytes"]

    before = peak()
    assert peak() == before
    values = json.loads((model / "config.json").read_text())
    values["text_config"]["num_hidden_layers"] = 8
    (model / "config.json").write_text(json.dumps(values))
    assert peak() > before, "8 layers in place of a few"


def test_a_data_file_that_is_not_there_is_said(run_cli, folder, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(f"preset: 8gb\nmodel: {{name: {folder}}}\ndata: {{train_path: rows.jsonl}}\n")
    done = run_cli("estimate-vram", config, "--fast")
    assert done.code == 0
    assert f"there is no data file {tmp_path / 'rows.jsonl'}: estimated for the largest row" in done.stderr
    assert "no data file" not in run_cli("estimate-vram", "--model", folder, "--fast").stderr


def test_leaving_out_the_longest_rows_is_priced(run_cli, folder, tmp_path):
    rows = [{"question": "Who?", "answer": "me " * (2000 if index == 7 else 50)} for index in range(100)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    config = config_file(tmp_path / "run.yaml", folder, data={"train_path": "rows.jsonl", "max_length": 9000})
    report = json.loads(run_cli("estimate-vram", config, "--json").stdout)
    assert report["worst_row"] == "rows.jsonl:8" and report["tokens"]["text"] > 6000
    saved = report["without_worst"]
    assert saved["num_rows"] == 1 and saved["longest_tokens"] < 200
    assert 0 < saved["saved_bytes"] < report["peak_reserved_bytes"]
    words = " ".join(run_cli("estimate-vram", config).stdout.split())
    assert f"without the longest 1 row: {saved['saved_bytes'] / 2**30:.2f} GiB less" in words


def test_fast_is_near(run_cli, folder):
    arguments = ("estimate-vram", "--model", folder, "--set", "data.max_length=4096", "--json")
    full, fast = (json.loads(run_cli(*arguments, *more).stdout) for more in ((), ("--fast",)))
    assert (full["fast"], fast["fast"]) == (False, True)
    assert fast["peak_allocated_bytes"] == pytest.approx(full["peak_allocated_bytes"], rel=0.01)


def test_more_text_takes_more_memory(run_cli, folder):
    def peak(max_length: int) -> int:
        done = run_cli("estimate-vram", "--model", folder, "--set", f"data.max_length={max_length}", "--json")
        return json.loads(done.stdout)["peak_allocated_bytes"]

    assert peak(64) < peak(512) < peak(4096)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A model with layers enough to be streamed."""
    return save_tiny("llava", tmp_path_factory.mktemp("deep") / "llava", layers=5)


def test_levers_are_priced_by_simulating_them(run_cli, deep):
    arguments = ("--model", deep, "--set", "data.max_length=4096", "--fast", "--explain")
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
    streamed = [one for one in report["levers"] if one["words"][0].startswith("hardware.streamed_layers")]
    assert sorted(one["words"] for one in streamed) == [["hardware.streamed_layers=4"], ["hardware.streamed_layers=5"]]
    assert all(one["streamed_bytes_per_step"] and one["work"] == 1 for one in streamed)


def test_streamed_layers_leave_the_card_and_their_bytes_are_told(run_cli, deep):
    plain, streamed = (
        run_cli("estimate-vram", "--model", deep, "--set", f"hardware.streamed_layers={number}", "--json", *words)
        for number, words in ((0, ["--fast"]), (4, []))
    )
    before, after = json.loads(plain.stdout), json.loads(streamed.stdout)
    # Of each linear layer half a byte a number and a byte a block of 64, from where an allocation may begin.
    sizes = [64 * 64] * 2 + [64 * 32] * 2 + [64 * 128] * 3
    layer_bytes = sum(-(-size // 512) * 512 for numbers in sizes for size in (numbers // 2, numbers // 64))
    assert before["streamed_bytes_per_step"] == 0
    assert after["streamed_bytes_per_step"] == 32 * 2 * (4 - 2) * layer_bytes
    assert after["peak_allocated_bytes"] < before["peak_allocated_bytes"]
    shown = run_cli("estimate-vram", "--model", deep, "--set", "hardware.streamed_layers=4").stdout
    assert "streamed     0.00 GiB a step come from main memory" in shown


def test_what_does_not_fit_exits_with_3(run_cli, folder):
    done = run_cli("estimate-vram", "--model", folder, "--gpu", "8gb", "--reserve-gib", "7.38")
    assert done.code == 3
    assert "does not fit" in done.stdout


def test_people_get_a_bar_and_a_table(run_cli, folder):
    done = run_cli("estimate-vram", "--model", folder)
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert lines[1] == "on 8 GB card, as NVIDIA GeForce RTX 4060 (preset 8gb)"
    bar, peak_gib, _, budget_gib, _ = lines[3].split()
    assert set(bar) <= {"█", "░"} and len(bar) == 48 and float(peak_gib) < float(budget_gib) == 7.01
    spare_gib = float(lines[4].removeprefix("fits, ").removesuffix(" GiB to spare"))
    assert spare_gib == pytest.approx(7.01 - float(peak_gib), abs=0.011), "three numbers, each rounded"
    assert lines[6] == "budget       7.01 GiB = 7.62 of the card - 0.22 CUDA context - 0.39 others"
    assert lines[7] == "longest row  512 text + 4 image = 516 tokens (largest row allowed)"
    assert lines[8].startswith("peak at      step ")
    assert lines[9].startswith("             model.") and lines[10].startswith("allocated    load 0.00, step 1 0.0")
    assert ", later steps 0.0" in lines[10] and "step 2 0" not in lines[10]
    assert "CUDA context" in done.stdout and lines[-1].startswith("total on the device")
    assert max(map(len, lines[1:])) <= 80


def test_what_is_too_large_sticks_out(run_cli, folder):
    done = run_cli("estimate-vram", "--model", folder, "--reserve-gib", "7.38")
    assert "▶" in done.stdout and "does not fit, 0." in done.stdout and "GiB too much" in done.stdout


def config_file(path, folder, **settings):
    """Write a config of the tiny model; without `data` it has no rows."""
    values = {"model": {"name": str(folder)}, "data": {"train_path": "none.jsonl"}, **settings}
    path.write_text(json.dumps(values))
    return path


def test_plans_stand_side_by_side(run_cli, folder, tmp_path):
    one = config_file(tmp_path / "a.yaml", folder, preset="8gb")
    other = config_file(tmp_path / "b.yaml", folder, preset="6gb", training={"lora": {"rank": 64}})
    same_card = ("--gpu", "8gb", "--set", "data.max_length=100")
    done = run_cli("estimate-vram", one, "--compare", other, *same_card, "--json")
    assert done.code == 0, done.stderr
    compared = json.loads(done.stdout)
    assert compared["differences"]["training.lora.rank"] == [8, 64]
    assert "data.max_length" not in compared["differences"] and "data.train_path" not in compared["differences"]
    first, second = compared["plans"]
    assert (first["config"], second["config"]) == (str(one), str(other))
    assert second["peak_allocated_bytes"] > first["peak_allocated_bytes"]
    alone = json.loads(run_cli("estimate-vram", other, *same_card, "--json").stdout)
    of_the_moment = {"seconds": 0, "main_memory_here": {}}
    assert {**second, **of_the_moment} == {**alone, **of_the_moment}


def test_people_get_differences_in_columns(run_cli, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, rank in (("a", 8), ("b", 64), ("c", 8)):
        config_file(tmp_path / f"{name}.yaml", folder, training={"lora": {"rank": rank}})
    done = run_cli("estimate-vram", "--compare", "a.yaml", "b.yaml", "c.yaml", "--set", "data.max_length=100")
    assert done.code == 0, done.stderr
    settings, verdicts, parts = ([line.split() for line in part.splitlines()] for part in done.stdout.split("\n\n")[:3])
    assert settings[0] == ["value", "a.yaml", "b.yaml", "c.yaml"]
    assert settings[2:] == [["training.lora.rank", "8", "64", "8"]]
    assert verdicts[0] == ["a.yaml", "b.yaml", "change", "c.yaml", "change"]
    assert ["fits", "yes", "yes", "yes"] in verdicts and ["text", "tokens", "100", "100", "100"] in verdicts
    assert parts[0] == ["part,", "MiB", "a.yaml", "b.yaml", "change", "c.yaml", "change"]
    first, second, change, third = next(row[1:] for row in parts if row[:1] == ["other"])
    assert first == third and float(change) == pytest.approx(float(second) - float(first), abs=0.11)
    assert float(change) > 0 and "total on the device" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--model", "org/none", "--gpu", "8gb"], 1, "--model: org/none is not in the local cache"),
        (["--gpu", "8gb"], 2, "give either CONFIG or --model"),
        (["a.yaml", "--compare"], 2, "give two or more CONFIGs to compare"),
        (["a.yaml", "b.yaml"], 2, "several CONFIGs need --compare"),
        (["a.yaml", "b.yaml", "--compare", "--explain"], 2, "the levers are those of one CONFIG"),
        (["--model", "Qwen/Qwen3-VL-2B-Instruct", "--gpu", "here"], 1, "there is no GPU here that PyTorch can use"),
        (["--model", "Qwen/Qwen3-VL-2B-Instruct", "--gpu", "rtx-4061"], 1, "did you mean"),
        (["--model", "Qwen/Qwen3-VL-2B-Instruct", "--preset", "9gb"], 1, "preset 9gb is unknown"),
        (["--model", "Qwen/Qwen3-VL-2B-Instruct", "--set", "training.lora.rnak=3"], 1, "training.lora.rank"),
    ],
)
def test_wrong_input_is_one_error(run_cli, arguments, code, words):
    done = run_cli("estimate-vram", *arguments)
    assert done.code == code
    assert words in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr


def test_shared_layers_are_estimated_where_one_card_does_not_hold_all(run_cli, models):
    several = ("--set", "hardware.num_gpus=2", "--set", "training.gradient_accumulation_steps=2")

    def estimate(shard: str, reserve_gib: float) -> dict:
        words = ("--fast", "--json", "--reserve-gib", reserve_gib, *several, "--set", f"hardware.shard={shard}")
        return json.loads(run_cli("estimate-vram", "--model", models("llava", 5).folder, "--gpu", "8gb", *words).stdout)

    whole, shared = estimate("never", 0), estimate("always", 0)
    assert estimate("auto", 0)["gathered_bytes_per_step"] == whole["gathered_bytes_per_step"] == 0
    assert estimate("auto", 7.7)["gathered_bytes_per_step"] == shared["gathered_bytes_per_step"] > 0
    parts, whole_parts = ({one["name"]: one["bytes"] for one in report["breakdown"]} for report in (shared, whole))
    assert parts["NCCL"] > whole_parts["NCCL"] > 0
    assert shared["peak_allocated_bytes"] < whole["peak_allocated_bytes"]
    assert "Layers in main memory" not in [one["name"] for one in shared["main_memory"]["parts"]]


def test_recorded_graphs_are_counted_beside_pytorchs_memory(run_cli, models):
    def estimate(graphs: str) -> dict:
        words = ("--fast", "--json", "--set", "training.packing=true", "--set", f"hardware.cuda_graphs={graphs}")
        folder = models("qwen3_vl").folder
        return json.loads(run_cli("estimate-vram", "--model", folder, "--gpu", "rtx-4090", *words).stdout)

    without, recorded = estimate("false"), estimate("true")
    parts = {one["name"]: one["bytes"] for one in recorded["breakdown"]}
    assert without["recorded_bytes"] == without["recorded_launches"] == 0
    assert recorded["recorded_launches"] > 100
    # No rows are known yet: packs may have all of the 16 lengths.
    kept_bytes = 16 * recorded["recorded_launches"] * RECORDED_LAUNCH_BYTES
    assert parts["recorded CUDA graphs"] == recorded["recorded_bytes"] == kept_bytes
    assert sum(parts.values()) == recorded["device_total_bytes"]
