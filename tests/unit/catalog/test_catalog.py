import json

import pytest

from vlmtune.catalog import FOLDER, catalog, find_entry, nearest_ids
from vlmtune.errors import VlmtuneError
from vlmtune.families import FAMILIES, find_family
from vlmtune.hub.source import open_model

ENTRIES = catalog()
PARTS = {"vision", "projector", "text", "head", "other"}
BYTES_PER_PARAMETER = {"float32": 4, "float16": 2, "bfloat16": 2}
TUNABLE = [entry for entry in ENTRIES if entry.family]


def offline(model_id, tmp_path):
    return open_model(model_id, None, tmp_path, offline_catalog=True)


def test_size_of_the_catalogue():
    assert len(ENTRIES) >= 47
    assert len({entry.model_type for entry in ENTRIES}) >= 12
    assert len(TUNABLE) >= 20


def test_every_entry_has_a_folder_and_every_folder_an_entry():
    folders = {path.name for path in FOLDER.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {entry.folder.name for entry in ENTRIES}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.model_id)
def test_entry_is_consistent(entry):
    config = json.loads((entry.folder / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == entry.model_type
    assert set(entry.parameters) == PARTS
    assert entry.parameters["vision"] > 0 and entry.parameters["text"] > 0
    assert sum(entry.parameters.values()) == entry.num_parameters
    assert entry.confidence in ("hub", "copy", "built")
    assert entry.licence and entry.licence_source and entry.source
    assert all(path.suffix == ".json" and path.stat().st_size < 20_000 for path in entry.folder.iterdir())


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.model_id)
def test_download_holds_at_least_what_is_loaded(entry):
    dtype = entry.download_source.removeprefix("parameters in ")
    if entry.download_source == "published":
        assert 1.9 * entry.num_parameters < entry.download_bytes < 4.1 * entry.num_parameters
    else:
        assert entry.download_bytes == BYTES_PER_PARAMETER[dtype] * entry.num_parameters


@pytest.mark.parametrize(
    ("model_id", "num_parameters", "download_bytes"),
    [
        ("llava-hf/llava-1.5-7b-hf", 7_063_427_072, 14_126_946_048),
        ("Qwen/Qwen2.5-VL-3B-Instruct", 3_754_622_976, 7_509_245_952),
        ("Qwen/Qwen-VL-Chat", 9_656_935_168, 19_313_870_336),
        ("OpenGVLab/InternVL3-1B-hf", 938_193_024, 1_876_386_048),  # its head is its own, whatever the config says
        ("HuggingFaceTB/SmolVLM2-2.2B-Instruct", 2_246_784_880, 8_987_139_520),  # published in fp32
    ],
)
def test_published_counts(model_id, num_parameters, download_bytes):
    entry = find_entry(model_id)
    assert (entry.num_parameters, entry.download_bytes) == (num_parameters, download_bytes)


def test_families_are_those_that_vlmtune_knows():
    assert len({entry.family for entry in TUNABLE}) >= 8
    for entry in TUNABLE:
        config = json.loads((entry.folder / "config.json").read_text(encoding="utf-8"))
        declared = [family.name for family in FAMILIES if family.takes(config)]
        assert declared == [entry.family] if entry.family != "generic" else declared == [], entry.model_id
    assert {entry.model_type for entry in ENTRIES if not entry.family} == {"florence2"}


@pytest.mark.parametrize(
    ("model_id", "size_px", "tokens"),
    [
        ("llava-hf/llava-1.5-7b-hf", (1024, 768), 576),
        ("llava-hf/llava-1.5-13b-hf", (100, 100), 576),
        ("Qwen/Qwen2.5-VL-3B-Instruct", (1024, 1024), 37 * 37),  # 1036 px in cells of 28
        ("Qwen/Qwen2.5-VL-7B-Instruct", (336, 336), 12 * 12),
        ("Qwen/Qwen2-VL-7B-Instruct", (640, 480), 23 * 17),
        ("Qwen/Qwen3-VL-8B-Instruct", (1024, 1024), 32 * 32),  # cells of 32 px
        ("Qwen/Qwen3-VL-4B-Instruct", (100, 100), 8 * 8),  # enlarged to 65,536 pixels
        # 16 tiles of 81 tokens and 2 for their marker, 4 newlines, the overview with 3 markers
        ("HuggingFaceTB/SmolVLM2-2.2B-Instruct", (1536, 1536), 16 * 83 + 4 + 84),
        ("HuggingFaceTB/SmolVLM-256M-Instruct", (2048, 1024), 8 * 66 + 2 + 67),
        ("HuggingFaceM4/Idefics3-8B-Llama3", (500, 500), 16 * 171 + 4 + 172),
        ("google/gemma-3-4b-it", (1920, 1080), 256 + 4),
        ("google/paligemma-3b-pt-224", (1920, 1080), 256),
        ("google/paligemma-3b-pt-448", (1920, 1080), 1024),
    ],
)
def test_image_tokens_of_known_sizes(model_id, size_px, tokens, tmp_path):
    source = offline(model_id, tmp_path)
    family = find_family(source.config, model_id)
    assert family.image_tokens(source.config, source.preprocessor, *size_px) == tokens


def test_open_model_takes_the_catalogue_only_when_asked(tmp_path):
    model_id = "Qwen/Qwen2.5-VL-3B-Instruct"
    source = offline(model_id.lower(), tmp_path)
    assert source.location == model_id
    assert source.config["model_type"] == "qwen2_5_vl" and source.preprocessor["max_pixels"] == 12845056
    with pytest.raises(VlmtuneError, match="is not in the local cache"):
        open_model(model_id, None, tmp_path)


def test_a_folder_goes_before_the_catalogue(tmp_path):
    folder = tmp_path / "Qwen" / "Qwen2.5-VL-3B-Instruct"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llava"}')
    assert offline("Qwen/Qwen2.5-VL-3B-Instruct", tmp_path).config == {"model_type": "llava"}


def test_unknown_id_names_the_nearest(tmp_path):
    with pytest.raises(VlmtuneError) as error:
        offline("Qwen/Qwen2.5-VL-3B-Instrct", tmp_path)
    assert error.value.message.startswith("model.name: Qwen/Qwen2.5-VL-3B-Instrct is not in the local cache")
    assert "; known models with a similar name: Qwen/Qwen2.5-VL-3B-Instruct" in error.value.hint
    with pytest.raises(VlmtuneError) as error:
        offline("org/model", tmp_path)
    assert error.value.hint == "check the connection, or give the path of a folder with the model"


def test_find_entry_and_nearest():
    assert find_entry("org/model") is None
    assert find_entry("LLAVA-HF/llava-1.5-7b-hf").model_id == "llava-hf/llava-1.5-7b-hf"
    assert nearest_ids("google/gemma-3-4b")[0] == "google/gemma-3-4b-it"


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("qwen/qwen2.5-vl-4b", ["Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct"]),
        ("Qwen3-VL-4B", ["Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-8B-Instruct", "Qwen/Qwen3-VL-2B-Instruct"]),
        ("llava-1.5", ["llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-13b-hf"]),
        ("liuhaotian/llava-1.5-7b", ["llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-13b-hf"]),
        ("google/gemma-3n-E8B-it", ["google/gemma-3n-E4B-it", "google/gemma-3n-E2B-it"]),
        ("OpenGVLab/InternVL3-38B", ["OpenGVLab/InternVL3-8B-hf"]),
    ],
)
def test_ids_of_the_same_series_come_first(asked, near):
    assert nearest_ids(asked)[: len(near)] == near


@pytest.mark.parametrize("asked", ["bert-base-uncased", "q", "meta-llama"])
def test_what_is_like_nothing_has_no_near_ids(asked):
    assert nearest_ids(asked) == []
