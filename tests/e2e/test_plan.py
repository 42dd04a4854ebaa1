"""`vlmtune plan` through the command line, on tiny models: what it says, what it writes, and that the file trains."""

import json
import re

import pytest
import yaml
from tiny import save_tiny

from vlmtune.config.load import load_config

pytestmark = pytest.mark.usefixtures("kept_estimates")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return save_tiny("qwen3_vl", tmp_path_factory.mktemp("plan") / "qwen3-vl")


def needed_gib(run_cli, model, *settings) -> float:
    words = [word for setting in settings for word in ("--set", setting)]
    done = run_cli("estimate-vram", "--model", model, "--gpu", "8gb", "--preset", "24gb", "--json", *words)
    return json.loads(done.stdout)["peak_reserved_bytes"] / 2**30


def reserve_for(run_cli, budget_gib: float, model) -> str:
    """The reserve that leaves so much."""
    done = run_cli("estimate-vram", "--model", model, "--gpu", "8gb", "--reserve-gib", "0", "--json")
    return str(json.loads(done.stdout)["budget_bytes"] / 2**30 - budget_gib)


def test_with_room_it_buys_speed_and_writes_a_config_that_validates(run_cli, qwen, tmp_path):
    out = tmp_path / "run.yaml"
    done = run_cli("plan", "--model", qwen, "--gpu", "8gb", "-o", out)
    assert done.code == 0, done.stderr
    # So small a model waits for launches.
    assert "fits: " in done.stdout and "hardware.cuda_graphs: true" in done.stdout
    text = out.read_text()
    assert "preset: 8gb" in text and "# auto by default: memory is left: rows in packs" in text
    assert re.search(r"# Estimated, not measured: a peak of \d\.\d\d of \d\.\d\d GiB", text)
    loaded = load_config(out)
    assert loaded.config.hardware.cuda_graphs is True
    training = loaded.config.training
    assert training.packing is True and training.pack_tokens == 8192  # of the default's 32 rows a step
    assert training.batch_size == 1 and training.gradient_accumulation_steps is None
    assert loaded.resolve_path(loaded.config.model.name).resolve() == qwen.resolve()
    (tmp_path / "train.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    assert run_cli("validate", out).code == 0
    assert max(map(len, text.splitlines())) <= 120


def test_with_room_a_model_that_no_card_records_keeps_its_activations(run_cli, tmp_path):
    gemma, out = save_tiny("gemma3", tmp_path / "gemma3"), tmp_path / "run.yaml"
    done = run_cli("plan", "--model", gemma, "--gpu", "8gb", "-o", out)
    assert done.code == 0, done.stderr
    assert "hardware.gradient_checkpointing: false" in done.stdout and "cuda_graphs" not in done.stdout
    assert "# true in preset 8gb: memory is left: every activation is kept" in out.read_text()
    assert load_config(out).config.hardware.gradient_checkpointing is False


def test_with_little_room_it_gives_up_what_it_must_and_says_so(run_cli, qwen):
    exact = ("hardware.offload_activations=true", "training.batch_size=1", "training.gradient_accumulation_steps=32")
    full = needed_gib(run_cli, qwen, *exact)
    least = needed_gib(run_cli, qwen, *exact, "data.max_length=128", "data.image_size=224", "training.lora.rank=4")
    budget = (0.2 * full + 0.8 * least) / 0.96
    reserve = reserve_for(run_cli, budget, qwen)
    arguments = ("--model", qwen, "--gpu", "8gb", "--preset", "24gb", "--reserve-gib", reserve)
    plan = json.loads(run_cli("plan", *arguments, "--json").stdout)
    assert plan["fits"] is True and plan["report"]["fast"] is False and plan["changes"]
    assert plan["report"]["peak_reserved_bytes"] <= 0.97 * plan["report"]["budget_bytes"]
    words = [word for change in plan["changes"] for word in change["words"]]
    assert words == plan["words"] and any(word.startswith(("data.", "training.lora.")) for word in words)
    asked = run_cli("estimate-vram", *arguments, "--json", *(part for word in words for part in ("--set", word)))
    assert json.loads(asked.stdout)["peak_reserved_bytes"] == plan["report"]["peak_reserved_bytes"]


def test_several_cards_are_planned_beside_one(run_cli, qwen, tmp_path):
    out = tmp_path / "run.yaml"
    done = run_cli("plan", "--model", qwen, "--gpu", "8gb", "--gpus", "2", "-o", out)
    assert done.code == 0, done.stderr
    beside = re.findall(r"^preset 8gb on (.*): fits, (\S+) of \S+ GiB a card, (\S+) rows a second$", done.stdout, re.M)
    assert [name for name, *_ in beside] == ["1 GPU", "2 GPUs", "2 GPUs, layers shared"]
    (alone_gib, alone), (gib, fast), _ = ([*map(float, numbers)] for _, *numbers in beside)
    assert fast > 1.5 * alone and gib - alone_gib > 0.3  # NCCL's
    assert load_config(out).config.hardware.num_gpus == 2 and "the other GPUs" in done.stdout


def test_when_nothing_fits_it_says_by_how_much_and_writes_nothing(run_cli, qwen, tmp_path):
    out = tmp_path / "run.yaml"
    reserve = reserve_for(run_cli, 0.01, qwen)
    done = run_cli("plan", "--model", qwen, "--gpu", "8gb", "--reserve-gib", reserve, "-o", out)
    assert done.code == 3 and not out.exists()
    assert "nothing fits" in done.stderr and "with everything given up" in done.stderr
    assert "a card of 4 GB would hold that" in done.stderr
    as_json = run_cli("plan", "--model", qwen, "--gpu", "8gb", "--reserve-gib", reserve, "--json")
    assert as_json.code == 3 and json.loads(as_json.stdout)["fits"] is False


def test_a_file_is_never_overwritten_unasked(run_cli, qwen, tmp_path):
    out = tmp_path / "run.yaml"
    out.write_text("mine")
    done = run_cli("plan", "--model", qwen, "--gpu", "8gb", "-o", out)
    assert done.code == 1 and "exists already" in done.stderr and out.read_text() == "mine"
    assert run_cli("plan", "--model", qwen, "--gpu", "8gb", "-o", out, "--force").code == 0
    assert yaml.safe_load(out.read_text())["preset"] == "8gb"


def test_with_data_the_longest_row_decides_and_the_file_trains(project, qwen, run_cli, tmp_path):
    folder = tmp_path / "configs"
    folder.mkdir()
    done = run_cli("plan", "--model", qwen, "--gpu", "8gb", "--data", "rows.jsonl", "-o", folder / "my-run.yaml")
    assert done.code == 0, done.stderr
    assert "rows.jsonl:" in done.stdout and f"vlmtune train {folder / 'my-run.yaml'}" in done.stdout
    config = load_config(folder / "my-run.yaml").config
    assert config.data.train_path == "../rows.jsonl"
    trained = run_cli("train", folder / "my-run.yaml", "--set", "training.max_steps=1")
    assert trained.code == 0, trained.stderr
    assert "adapter, log and report.html in runs/my-run\n" in trained.stdout, "the run has the file's name"


def test_the_largest_models_that_fit_are_named():
    from vlmtune.catalog.stored import stored
    from vlmtune.cli.plan import _models_that_fit

    named = _models_that_fit("8gb", 5 * 2**30)
    assert named[:2] == ["google/gemma-4-E4B-it", "Salesforce/instructblip-vicuna-7b"]
    assert all(stored(model).peaks["8gb"].most_bytes <= 5 * 2**30 for model in named)
    assert _models_that_fit("8gb", 0) == []


@pytest.mark.parametrize(
    ("gpu", "preset"), [("8gb", "8gb"), ("11gb", "8gb"), ("4gb", "6gb"), ("a100-80gb", "48gb"), ("rtx-3090", "24gb")]
)
def test_the_preset_is_that_of_the_cards_size(gpu, preset):
    from vlmtune.config.presets import for_card
    from vlmtune.hardware.cards import find_card

    assert for_card(find_card(gpu).nominal_bytes) == preset


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "org/none", "--gpu", "8gb"], "--model: org/none is not in the local cache"),
        (["--model", "Qwen/Qwen3-VL-2B-Instruct", "--gpu", "rtx-4061"], "did you mean"),
        (["--model", "Qwen/Qwen3-VL-2B-Instruct", "--gpu", "8gb", "--preset", "9gb"], "preset 9gb is unknown"),
        (["--model", "Qwen/Qwen3-VL-2B-Instruct", "--gpu", "8gb", "--data", "no.jsonl"], "no.jsonl"),
    ],
)
def test_wrong_input_is_one_error(run_cli, arguments, words):
    done = run_cli("plan", *arguments)
    assert done.code == 1
    assert words in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr


def test_without_the_hub_a_known_model_is_planned_for_rows_by_a_guess_that_is_told(run_cli, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    row = {"question": "What do you see here? " * 3, "answer": "Nothing."}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "run.yaml").write_text(
        "preset: 8gb\nmodel: {name: HuggingFaceTB/SmolVLM-256M-Instruct}\ndata: {train_path: rows.jsonl}\n"
    )
    done = run_cli("estimate-vram", tmp_path / "run.yaml", "--gpu", "8gb", "--fast", "--json")
    assert done.code == 0, done.stderr
    assert "text tokens are guessed, one for 3 bytes; image tokens are counted" in done.stderr
    report = json.loads(done.stdout)
    assert report["worst_row"] == "rows.jsonl:1, text guessed"
    assert 22 + 3 <= report["tokens"]["text"] < 22 + 3 + 30
    other = run_cli("plan", "--model", "org/none", "--gpu", "8gb", "--data", tmp_path / "rows.jsonl")
    assert other.code == 1 and "is not in the local cache" in other.stderr
