"""Thousands of damaged configs: each one loads or is a VlmtuneError with something to say, and nothing else."""

import random
from pathlib import Path

import pytest

from vlmtune.config.load import load_config
from vlmtune.config.presets import names, starting_config
from vlmtune.errors import VlmtuneError

REPOSITORY = Path(__file__).parents[3]
TEXTS = [file.read_text(encoding="utf-8") for file in sorted((REPOSITORY / "configs").glob("*.yaml"))]
TEXTS += [starting_config(name, "my-run") for name in names()]

VALUES = """
~ true yes 0 -1 1e400 .nan -.inf 0x10 1_0 3.5 {} [] [[]] 
!!python/name:os.system !!int !x &a *a << | >- % @ ` { [ ] "open 'open
"\\0" "\\uD800" "\\UFFFFFFFF" é 日本 🐢 💥:
""".split()
VALUES += ["", "{a: 1}", "[1, two, ~]", "? a", "- - -", "a: b: c", "# gone", "\t1", "9" * 5000, "x" * 5000, "[" * 200]
VALUES += ["{a: " * 200, "\u202eright", "\ufeff", "\u2028", "\x85", "\x07"]
LINES = [
    "---",
    "...",
    "%YAML 9.9",
    "%TAG ! tag:x,2000:",
    "🐢: 1",
    "? [a]",
    "<<: {a: 1}",
    "lora_r: 8",
    "training: 3",
    "\t",
]
LINES += [
    "model:",
    "data: [1]",
    "'': 1",
    "~: 1",
    "training.lora.rank: 1",
    "  - 1",
    "preset: 9gb",
    "preset: [8gb]",
    ": 1",
]


def replace_value(rng: random.Random, line: str) -> str:
    return f"{line.partition(':')[0]}: {rng.choice(VALUES)}"


def replace_character(rng: random.Random, line: str) -> str:
    place = rng.randrange(len(line) + 1)
    return line[:place] + rng.choice(" :A\x7fé😀") + line[place + 1 :]


def reindent(rng: random.Random, line: str) -> str:
    return " " * rng.randrange(6) + line.lstrip()


def double(_rng: random.Random, line: str) -> str:
    return f"{line}\n{line}"


def add_line(rng: random.Random, line: str) -> str:
    return f"{line}\n{' ' * rng.randrange(5)}{rng.choice(LINES)}"


def remove(_rng: random.Random, _line: str) -> str:
    return ""


def mutated(rng: random.Random) -> bytes:
    """A config with one to four things done to it."""
    lines = rng.choice(TEXTS).splitlines()
    for _ in range(rng.randint(1, 4)):
        change = rng.choice((replace_value, replace_character, reindent, double, add_line, remove))
        place = rng.randrange(len(lines))
        lines[place] = change(rng, lines[place])
    if rng.random() < 0.1:
        lines = lines[: rng.randrange(len(lines))]
    raw = bytearray("\n".join(lines).encode())
    if rng.random() < 0.15:
        for _ in range(rng.randint(1, 8)):
            raw.insert(rng.randrange(len(raw) + 1), rng.randrange(256))
    return bytes(raw)


def check_words(error: VlmtuneError) -> None:
    """A message that can be printed anywhere, says where, and is not one of pydantic's."""
    for problem in (error, *error.problems):
        text = f"{problem.message}\n{problem.hint}"
        text.encode("utf-8")
        assert "\x1b" not in text and "\x00" not in text
        assert "Input should be" not in text and "validation error" not in text and "<class" not in text
        assert "run.yaml" in problem.message


@pytest.mark.parametrize("seed", range(6))
def test_no_mutated_config_escapes_the_loader(tmp_path, monkeypatch, seed):
    monkeypatch.chdir(tmp_path)
    rng, file = random.Random(seed), Path("run.yaml")
    refused = 0
    for _ in range(500):
        file.write_bytes(mutated(rng))
        try:
            load_config(file).values()
        except VlmtuneError as error:
            refused += 1
            check_words(error)
    assert 200 < refused < 490, "the mutations are too mild or too wild to test anything"


def test_no_mutated_config_gives_a_traceback_on_the_command_line(tmp_path, monkeypatch, run_cli):
    monkeypatch.chdir(tmp_path)
    rng, file = random.Random(99), Path("run.yaml")
    codes = []
    for _ in range(150):
        file.write_bytes(mutated(rng))
        result = run_cli("validate", file)
        codes.append(result.code)
        assert result.code in (0, 1)
        assert "Traceback" not in result.stderr
        assert (result.code == 0) == (result.stderr == "")
    assert codes.count(1) > 75
