"""`vlmtune models list` and `models show`, from a catalogue file with sizes that the tests choose."""

import json

import pytest

from vlmtune.catalog import catalog, stored
from vlmtune.units import GIB

FIT, LARGER_FIT, MISS, FAR_MISS, LOAD_MISS, NONE = (
    "Qwen/Qwen3-VL-4B-Instruct",
    "Qwen/Qwen2.5-VL-7B-Instruct",
    "mistral-community/pixtral-12b",
    "llava-hf/llava-1.5-13b-hf",
    "Qwen/Qwen3-VL-8B-Instruct",
    "florence-community/Florence-2-base",
)
PEAKS_GIB = {FIT: 3, LARGER_FIT: 6.5, MISS: 9, FAR_MISS: 10, LOAD_MISS: 5}
VERSIONS = {"torch": "2.15.0", "transformers": "5.23.0", "peft": "0.21.2", "bitsandbytes": "0.50.2"}


def line(model: str) -> dict:
    """A model's line: twice the memory at every other preset than at 8gb, as much at 12gb."""
    size = PEAKS_GIB.get(model, 1)
    load = 7.5 if model == LOAD_MISS else 0.5

    def peak(times):
        sizes = {"reserved_bytes": int(size * times * GIB), "allocated_bytes": 1, "load_bytes": int(load * GIB)}
        pace = {} if model == FAR_MISS else {"rows_per_s": 1.25 * times}
        return {"method": "qlora", "text_tokens": 512, "image_tokens": 77} | sizes | pace

    peaks = {"8gb": peak(1), "12gb": peak(1), "24gb": peak(2)}
    measured = {"gpu": "NVIDIA H100", "method": "qlora", "rank": 16, "tokens": 463, "versions": VERSIONS}
    measured |= {"reserved_bytes": int(3.25 * GIB), "allocated_bytes": 3 * GIB}
    return {
        "model": model,
        "image_tokens": {} if model == NONE else {"336": 100, "1024": 1024},
        "peaks": {} if model == NONE else peaks,
        "measured": [measured] if model == FIT else [],
        "problem": "florence2 is an encoder-decoder" if model == NONE else None,
        "versions": VERSIONS,
        "checked": "2026-11-20" if model == MISS else "2026-11-23",
    }


@pytest.fixture(autouse=True)
def _file(monkeypatch, tmp_path):
    file = tmp_path / "estimates.jsonl"
    file.write_text("".join(json.dumps(line(entry.model_id)) + "\n" for entry in catalog()), encoding="utf-8")
    monkeypatch.setattr(stored, "FILE", file)
    stored._all.cache_clear()
    yield
    stored._all.cache_clear()


def listed(run_cli, *args):
    return json.loads(run_cli("models", "list", *args, "--json").stdout)


def test_what_fits_comes_first_and_what_cannot_be_tuned_last(run_cli):
    answer = listed(run_cli)
    ids = [model["id"] for model in answer["models"]]
    assert len(ids) == len(catalog())
    fits = {model["id"]: model["fits"] for model in answer["models"]}
    assert (fits[FIT], fits[LARGER_FIT], fits[MISS], fits[NONE]) == (True, True, False, None)
    assert fits[LOAD_MISS] is False, "loading takes more than the card has"
    assert ids[0] != FAR_MISS and ids.index(LARGER_FIT) < ids.index(FIT) < ids.index(LOAD_MISS)
    assert ids.index(LOAD_MISS) < ids.index(MISS) < ids.index(FAR_MISS) < ids.index(NONE)


def test_the_card_decides_the_preset_and_the_preset_the_card(run_cli):
    def head(*args):
        answer = listed(run_cli, *args)
        return answer["gpu"], answer["preset"]

    assert head() == ("8gb", "8gb")
    assert head("--preset", "24gb") == ("24gb", "24gb")
    assert head("--preset", "ultra_low_memory") == ("8gb", "8gb")
    assert head("--gpu", "rtx-3060-12gb") == ("rtx-3060-12gb", "12gb")
    assert head("--gpu", "11gb") == ("11gb", "8gb")
    assert head("--gpu", "4gb") == ("4gb", "6gb")
    assert head("--gpu", "rtx-4090", "--preset", "8gb") == ("rtx-4090", "8gb")


def test_another_card_needs_no_other_estimate(run_cli):
    def fits(*args):
        return {model["id"]: model["fits"] for model in listed(run_cli, *args)["models"]}

    assert not fits("--gpu", "8gb")[MISS]
    assert fits("--gpu", "12gb", "--preset", "8gb")[MISS]
    assert not fits("--gpu", "12gb", "--preset", "24gb")[MISS]


def test_the_table_at_80_columns_keeps_every_id_whole(run_cli):
    answer = run_cli("models", "list", "--gpu", "8gb")
    assert answer.code == 0
    lines = answer.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    for entry in catalog():
        place = next(number for number, text in enumerate(lines) if text.startswith(f"{entry.model_id} "))
        assert entry.licence in lines[place + 1]
    row, below = next((text.split(), lines[place + 1]) for place, text in enumerate(lines) if text.startswith(FIT))
    assert row[1:] == ["4.44B", "8.9", "77", "3.00", "yes"] and below.split()[-2:] == ["1.25", "rows/s"]
    assert next(text.split() for text in lines if text.startswith(LOAD_MISS))[-2:] == ["7.50", "no"]
    assert next(text.split() for text in lines if text.startswith(NONE))[-3:] == ["-", "-", "-"]
    total = len(catalog())
    told = f"{total - 4} of {total} models fit 8 GB card, as NVIDIA GeForce RTX 4060: 7.01 GiB, preset 8gb."
    assert told in answer.stdout
    assert "checked 2026-11-20 with torch 2.15.0" in answer.stdout, "the oldest day counts"


def test_a_wide_terminal_gets_a_line_a_model(run_cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "130")
    lines = run_cli("models", "list").stdout.splitlines()
    row = next(text.split() for text in lines if text.startswith(FIT))
    assert row[1:] == ["qwen3_vl", "apache-2.0", "4.44B", "8.9", "77", "3.00", "1.25", "yes", "2026-11-23"]


def test_a_model_is_one_line_at_100_columns(run_cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = run_cli("models", "list").stdout.splitlines()
    assert max(map(len, lines)) <= 100
    table = lines[2 : lines.index("")]
    names = [text.split()[0] for text in table if text.strip("─ ")]
    assert sorted(names) == sorted(entry.model_id for entry in catalog())
    assert next(text.split() for text in table if text.startswith(FIT))[1:] == (
        ["qwen3_vl", "4.44B", "8.9", "77", "3.00", "1.25", "yes"]
    )


@pytest.mark.parametrize(("option", "value"), [("--gpu", "rtx-9999"), ("--preset", "9gb")])
def test_unknown_words_are_errors(run_cli, option, value):
    answer = run_cli("models", "list", option, value)
    assert (answer.code, answer.stdout) == (1, "")
    assert value in answer.stderr and "hint:" in answer.stderr


def test_show_says_everything_of_a_model(run_cli):
    text = run_cli("models", "show", FIT.lower()).stdout
    assert max(map(len, text.splitlines())) <= 80
    for part in (
        "apache-2.0 (copy of the model card)",
        "8.88 GB (parameters in bfloat16)",
        "config.json is the hub's own",
        "2026-11-23 with torch 2.15.0",
        "4,437,815,808  100.0%",
        "336 px",
    ):
        assert part in text, part
    rows = [words.split() for words in text.splitlines()]
    assert ["8gb", "qlora", "512", "77", "3.00", "7.01", "yes"] in rows
    assert ["image", "tokens", "100", "1,024"] in rows
    assert "measured on NVIDIA H100: 3.25 GiB reserved" in text
    assert f"Next: vlmtune plan --model {FIT} --gpu 8gb -o my-run.yaml" in text


def test_show_names_the_smallest_card_that_holds_the_preset(run_cli):
    text = run_cli("models", "show", MISS).stdout
    assert f"Next: vlmtune plan --model {MISS} --gpu 12gb " in text


def test_show_as_json(run_cli):
    answer = json.loads(run_cli("models", "show", MISS, "--json").stdout)
    assert answer["id"] == MISS and answer["confidence"] == "copy"
    assert answer["peaks"]["8gb"]["fits"] is False and answer["peaks"]["12gb"]["fits"] is True
    assert answer["peaks"]["8gb"]["reserved_bytes"] == 9 * GIB
    assert answer["image_tokens"] == {"336": 100, "1024": 1024}


def test_show_of_a_model_that_cannot_be_tuned(run_cli):
    text = run_cli("models", "show", NONE).stdout
    assert "vlmtune cannot tune it: florence2 is an encoder-decoder" in text
    assert "Next:" not in text


def test_show_of_an_unknown_model_names_the_nearest(run_cli):
    answer = run_cli("models", "show", "llava-hf/llava-1.5-7b")
    assert (answer.code, answer.stdout) == (1, "")
    assert answer.stderr.splitlines() == [
        "error: llava-hf/llava-1.5-7b is not in the catalogue",
        "hint:  did you mean llava-hf/llava-1.5-7b-hf, llava-hf/llava-1.5-13b-hf, llava-hf/llava-v1.6-mistral-7b-hf? "
        "`vlmtune models list` shows those that are; `vlmtune models check llava-hf/llava-1.5-7b` tries any other",
    ]


def test_the_gpu_here_counts_with_what_is_free_of_it(run_cli, monkeypatch):
    from vlmtune.cli import targets
    from vlmtune.hardware.cards import Target, find_card

    here = targets.ChosenCard(Target(find_card("rtx-4090"), 2 * GIB, expandable_segments=True), "the GPU here", "")
    asked = []
    monkeypatch.setattr(targets, "choose_target", lambda gpu, *others: asked.append(gpu) or here)
    answer = listed(run_cli, "--gpu", "here", "--preset", "8gb")
    assert (asked, answer["gpu"], answer["budget_bytes"]) == (["here"], "rtx-4090", 2 * GIB)
    assert not {model["id"]: model["fits"] for model in answer["models"]}[FIT]


def test_rows_a_second_are_those_of_the_card_that_stands_for_the_preset(run_cli, monkeypatch):
    answer = listed(run_cli, "--gpu", "rtx-3090")
    paces = {model["id"]: model["rows_per_s"] for model in answer["models"]}
    assert (answer["preset"], answer["rows_per_s_on"]) == ("24gb", "NVIDIA GeForce RTX 4090")
    assert (paces[FIT], paces[FAR_MISS], paces[NONE]) == (2.5, None, None)
    monkeypatch.setenv("COLUMNS", "150")
    shown = run_cli("models", "list", "--gpu", "8gb").stdout
    missing = next(text for text in shown.splitlines() if text.startswith(FAR_MISS))
    assert missing.split()[-3:-1] == ["-", "no"]
    assert "r/s: rows a second, predicted for NVIDIA GeForce RTX 4060, if all rows are the largest" in shown
