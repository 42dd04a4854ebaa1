"""What is stored of the catalogue's models is what the code says; `make catalogue` renews it."""

import importlib.util
import json
from pathlib import Path

import pytest

from vlmtune.catalog import catalog, find_entry
from vlmtune.catalog.stored import FILE, IMAGE_SIZES_PX, Peak, read_lines, stored
from vlmtune.config.presets import names
from vlmtune.families import find_family
from vlmtune.hub.source import open_model
from vlmtune.runs.versions import LIBRARIES, library_versions

SCRIPT = Path(__file__).parents[3] / "docs" / "catalogue.py"
WITHIN = 0.005
PACE_WITHIN = 0.03
"""Rules of time change more often than those of memory."""
NEEDS_TIMM = {"gemma3n", "fast_vlm"}
PINNED = dict(
    line.split("==")
    for line in (SCRIPT.parents[1] / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line.partition("==")[0] in LIBRARIES
)
IN_EVERY_RUN = {
    ("HuggingFaceTB/SmolVLM-256M-Instruct", "8gb"),
    ("llava-hf/llava-1.5-7b-hf", "24gb"),
}
TUNABLE = [entry for entry in catalog() if entry.family]
PAIRS = [
    pytest.param(
        entry.model_id,
        preset,
        id=f"{entry.model_id}-{preset}",
        marks=() if (entry.model_id, preset) in IN_EVERY_RUN else pytest.mark.slow,
    )
    for entry in TUNABLE
    for preset in stored(entry.model_id).peaks
]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("catalogue_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_versions_are_pinned():
    assert set(PINNED) == set(LIBRARIES)


def test_every_entry_has_a_line_and_every_line_an_entry():
    assert list(read_lines()) == [entry.model_id for entry in catalog()]


@pytest.mark.parametrize("entry", catalog(), ids=lambda entry: entry.model_id)
def test_a_line_holds_every_preset_or_why_the_model_cannot_be_tuned(entry):
    known = stored(entry.model_id)
    assert {name: known.versions[name] for name in LIBRARIES} == PINNED, "run `make catalogue`"
    if entry.family is None:
        assert known.problem and not known.peaks
        return
    assert known.problem is None
    assert list(known.peaks) == list(names())
    assert list(known.image_tokens) == list(IMAGE_SIZES_PX)
    for peak in known.peaks.values():
        assert peak.reserved_bytes >= peak.allocated_bytes > entry.num_parameters / 2
        assert peak.image_tokens > 0 and peak.text_tokens > 0


@pytest.mark.parametrize(("model_id", "preset"), PAIRS)
def test_stored_estimates_are_those_of_the_code(script, model_id, preset, tmp_path):
    if any(library_versions()[name] != version for name, version in PINNED.items()):
        pytest.skip("made with other versions: make test")
    if find_entry(model_id).model_type in NEEDS_TIMM:
        pytest.importorskip("timm")
    source = open_model(model_id, None, tmp_path, offline_catalog=True)
    made, kept = script.peak_of(model_id, preset, source), stored(model_id).peaks[preset]
    assert (made.method, made.text_tokens, made.image_tokens) == (kept.method, kept.text_tokens, kept.image_tokens)
    for size in ("reserved_bytes", "allocated_bytes", "load_bytes"):
        assert getattr(kept, size) == pytest.approx(getattr(made, size), rel=WITHIN), size
    assert kept.rows_per_s is None or kept.rows_per_s == pytest.approx(made.rows_per_s, rel=PACE_WITHIN)


@pytest.mark.parametrize("entry", [entry for entry in TUNABLE if entry.family != "generic"], ids=lambda e: e.model_id)
def test_stored_image_tokens_are_those_of_the_family(script, entry, tmp_path):
    source = open_model(entry.model_id, None, tmp_path, offline_catalog=True)
    counted = {side_px: script.image_tokens(source, entry, side_px) for side_px in IMAGE_SIZES_PX}
    assert stored(entry.model_id).image_tokens == counted


def test_known_image_tokens():
    assert set(stored("llava-hf/llava-1.5-7b-hf").image_tokens.values()) == {576}
    assert stored("Qwen/Qwen3-VL-4B-Instruct").image_tokens == {336: 100, 448: 196, 672: 441, 1024: 1024}


def test_measured_runs_are_stored_with_what_they_were():
    (run,) = stored("Qwen/Qwen3-VL-4B-Instruct").measured
    assert (run.method, run.rank, run.versions["torch"]) == ("qlora", 16, "2.11.0")
    assert run.gpu.startswith("NVIDIA H200") and run.reserved_bytes > run.allocated_bytes
    assert stored("Qwen/Qwen3.5-9B").measured == ()


def test_loading_may_need_more_than_training():
    assert Peak("lora", 5, 4, 7, 1, 1).most_bytes == 7
    assert Peak("lora", 8, 4, 7, 1, 1).most_bytes == 8


@pytest.mark.parametrize("entry", TUNABLE, ids=lambda entry: entry.model_id)
def test_loading_takes_no_more_of_the_card_than_training(entry):
    for preset, peak in stored(entry.model_id).peaks.items():
        assert peak.load_bytes <= peak.allocated_bytes, preset


def test_a_line_is_replaced_in_its_place_and_the_others_stay(script, monkeypatch, tmp_path):
    file = tmp_path / "estimates.jsonl"
    file.write_text(FILE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(script, "FILE", file)
    entry = find_entry("florence-community/Florence-2-large")
    made = script.stored_of(entry)
    assert made.problem == "florence2 is an encoder-decoder"
    script.write_line(entry.model_id, made)
    before = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    after = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [line["model"] for line in after] == [line["model"] for line in before]
    changed = [line["model"] for line, old in zip(after, before, strict=True) if line["checked"] != old["checked"]]
    assert set(changed) <= {entry.model_id}
    assert {line["model"]: line for line in after}[entry.model_id]["checked"] == made.checked


def test_only_the_models_named_are_made_and_a_failure_is_told(script, monkeypatch, capsys):
    from vlmtune.errors import VlmtuneError

    made = []

    def stored_of(entry):
        if entry.model_id.startswith("Qwen"):
            raise VlmtuneError("a library is missing")
        return entry.model_id

    monkeypatch.setattr(script, "stored_of", stored_of)
    monkeypatch.setattr(script, "write_line", lambda model_id, line: made.append(model_id))
    monkeypatch.setattr("sys.argv", ["catalogue.py", "Qwen/Qwen3.5-4B", "llava-hf/llava-1.5-7b-hf"])
    with pytest.raises(SystemExit) as done:
        script.main()
    assert done.value.code == 1
    assert made == ["llava-hf/llava-1.5-7b-hf"]
    assert "Qwen/Qwen3.5-4B: a library is missing" in capsys.readouterr().err


def test_a_model_whose_family_is_missing_in_the_index_is_told(script, tmp_path):
    from vlmtune.errors import VlmtuneError

    entry = find_entry("llava-hf/llava-1.5-7b-hf")
    source = open_model(entry.model_id, None, tmp_path, offline_catalog=True)
    assert find_family(source.config, entry.model_id)
    with pytest.raises(VlmtuneError, match="has a family"):
        script.problem_of(source, entry)
