"""The commands that people wait for load no library that takes seconds to load."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
HEAVY = (
    "torch",
    "torchvision",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "numpy",
    "PIL",
    "pyarrow",
    "jinja2",
    "datasets",
)

REPORT_LOADED = """
import sys
from vlmtune.cli import main
try:
    main(sys.argv[1:])
finally:
    sys.stdout.flush()
    print("\\nLOADED", *sys.modules, file=sys.stderr)
"""


def loaded_by(*args: str, code: int = 0) -> set[str]:
    """The names of all modules that a command loaded in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", REPORT_LOADED, *args], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stderr
    return set(done.stderr.rpartition("LOADED ")[2].split())


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["presets", "list"],
        ["presets", "show", "8gb"],
        ["models", "list"],
        ["models", "list", "--gpu", "rtx-3060-12gb", "--preset", "8gb", "--json"],
        ["models", "show", "llava-hf/llava-1.5-7b-hf"],
        ["guide", "--help"],
        ["validate", "--help"],
        ["validate", "--schema"],
    ],
    ids=" ".join,
)
def test_light_commands_load_nothing_heavy(args):
    loaded = loaded_by(*args)
    assert "typer" in loaded
    assert not loaded & set(HEAVY)


def test_presets_and_help_do_not_even_build_the_schema():
    assert "vlmtune.config.schema" not in loaded_by("--help") | loaded_by("presets", "list")


def test_validate_reads_rows_of_text_without_anything_heavy(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    (tmp_path / "run.yaml").write_text("preset: 8gb\nmodel: {name: m}\ndata: {train_path: rows.jsonl}\n")
    loaded = loaded_by("validate", str(tmp_path / "run.yaml"))
    assert "vlmtune.config.schema" in loaded
    assert not loaded & set(HEAVY)


def test_validate_reads_pictures_without_torch(tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "question": "q", "answer": "a"}\n')
    (tmp_path / "run.yaml").write_text("model: {name: m}\ndata: {train_path: rows.jsonl}\n")
    loaded = loaded_by("validate", str(tmp_path / "run.yaml"))
    assert "PIL" in loaded
    assert not loaded & (set(HEAVY) - {"PIL"})
    assert "PIL.EpsImagePlugin" not in loaded, "Pillow's fifty formats, where ten are read"


def test_validate_reads_a_large_file_with_arrow_and_without_torch(tmp_path):
    (tmp_path / "rows.jsonl").write_text(f'{{"question": "{"q" * 1000}", "answer": "a"}}\n' * 5000)
    (tmp_path / "run.yaml").write_text("model: {name: m}\ndata: {train_path: rows.jsonl}\n")
    loaded = loaded_by("validate", str(tmp_path / "run.yaml"))
    assert "pyarrow" in loaded
    assert not loaded & (set(HEAVY) - {"pyarrow", "numpy"})


def test_a_wrong_config_fails_as_lightly(tmp_path):
    (tmp_path / "run.yaml").write_text("nope: 1\n")
    assert not loaded_by("validate", str(tmp_path / "run.yaml"), code=1) & set(HEAVY)
