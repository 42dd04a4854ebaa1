"""Rows of models whose tokenizers are not at hand: images are counted as they are, texts by their bytes."""

import pytest
import torch
from PIL import Image

from vlmtune.catalog import find_entry
from vlmtune.config.load import preset_config
from vlmtune.data.run_data import MeasuredRows
from vlmtune.data.types import ImageRef, Sample, Turn
from vlmtune.errors import VlmtuneError
from vlmtune.estimate.given_rows import GivenRows
from vlmtune.estimate.guessed_rows import GuessedRows
from vlmtune.estimate.scenario import Scenario
from vlmtune.hardware.cards import find_card
from vlmtune.hub.source import open_model

SIZES_PX = ((640, 480), (100, 900), (33, 31))
MODELS = (
    "HuggingFaceTB/SmolVLM-256M-Instruct",
    "Qwen/Qwen-VL-Chat",
    "Qwen/Qwen2.5-VL-3B-Instruct",
    "Qwen/Qwen3-VL-4B-Instruct",
    "Salesforce/instructblip-vicuna-7b",
    "google/gemma-3-4b-it",
    "google/paligemma-3b-pt-224",
    "llava-hf/llava-1.5-7b-hf",
    "llava-hf/llava-v1.6-mistral-7b-hf",
    "OpenGVLab/InternVL3-1B-hf",
)


def samples(folder, question="What is it?"):
    made = []
    for number, size_px in enumerate(SIZES_PX, 1):
        path = folder / f"{number}.png"
        Image.new("RGB", size_px, "grey").save(path)
        turns = (Turn("user", (ImageRef(path=str(path)), question)), Turn("assistant", ("A wall. " * number,)))
        made.append(Sample(turns, f"rows.jsonl:{number}", number))
    return made


def scenario_of(model, rows):
    from vlmtune.hardware.cards import Target

    loaded = preset_config(model, "8gb")
    source = open_model(model, None, loaded.base_dir, offline_catalog=True)
    guessed = GuessedRows(GivenRows(MeasuredRows(rows)), source)
    return Scenario(loaded, source, Target(find_card("8gb"), 8 * 2**30, True), guessed)


@pytest.mark.parametrize("model", MODELS)
def test_image_tokens_are_the_processors_and_texts_a_third_of_their_bytes(tmp_path, model):
    scenario = scenario_of(model, samples(tmp_path))
    plan, rows = scenario.plan, scenario.rows
    lengths, facts = rows.lengths(plan, scenario.source), find_entry(model)
    assert facts is not None
    encoded = [rows.dataset(plan)[index] for index in range(3)]
    assert [row.num_image_tokens for row in encoded] == lengths.image.tolist()
    marks = [row.num_text_tokens - text for row, text in zip(encoded, lengths.text.tolist(), strict=True)]
    assert set(marks) <= {0, 2}, "PaliGemma's processor writes a start token, which the stand-in's tokenizer does not"
    assert lengths.text[2] - lengths.text[0] == 8 - 3  # answers of 24 and of 8 bytes


def test_tokens_that_stand_for_images_are_the_models_own(tmp_path):
    scenario = scenario_of("Qwen/Qwen3-VL-4B-Instruct", samples(tmp_path))
    row = scenario.rows.dataset(scenario.plan)[0]
    own = int((row.tensors["input_ids"] == scenario.source.config["image_token_id"]).sum())
    assert own == row.num_image_tokens
    assert torch.equal(row.labels[row.labels != -100], row.tensors["input_ids"][row.labels != -100])


def test_a_row_that_is_too_long_by_the_guess_says_that_it_was_guessed(tmp_path):
    from vlmtune.data.measure.lengths import refuse_too_long

    scenario = scenario_of("Qwen/Qwen3-VL-4B-Instruct", samples(tmp_path, question="Wände? " * 300))
    with pytest.raises(VlmtuneError) as raised:
        refuse_too_long(scenario.rows.lengths(scenario.plan, scenario.source), scenario.plan)
    assert "rows.jsonl:1, text guessed: " in str(raised.value)


def test_what_templates_are_given_besides_is_guessed_as_text(tmp_path):
    [plain, *_] = samples(tmp_path)
    asked, answered = plain.turns
    called = Turn("assistant", (), more='{"tool_calls": [1, 2]}')
    given = Sample((asked, called, Turn("tool", ("it is",)), answered), "rows.jsonl:4", 4, tools="[1, 2, 3]")
    scenario = scenario_of("Qwen/Qwen2.5-VL-3B-Instruct", [plain, given])
    lengths = scenario.rows.lengths(scenario.plan, scenario.source)
    assert lengths.image[0] == lengths.image[1] and lengths.text[1] - lengths.text[0] >= (22 + 5 + 9) // 3
