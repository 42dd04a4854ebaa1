"""Files that are no config at all, or hold YAML that configs may not use."""

import os
from pathlib import Path

import pytest

from vlmtune.config.load import load_config
from vlmtune.config.reader import HINT_CONFIG, read_text
from vlmtune.errors import VlmtuneError

GOOD = "model: {name: m}\ndata: {train_path: t}\n"


@pytest.fixture
def error_of(tmp_path, monkeypatch):
    """A function that returns the one mistake in a file's bytes as (message, hint)."""
    monkeypatch.chdir(tmp_path)

    def _error_of(content: str | bytes) -> tuple[str, str | None]:
        Path("run.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(VlmtuneError) as caught:
            load_config(Path("run.yaml"))
        assert len(caught.value.problems) <= 1
        return caught.value.message, caught.value.hint

    return _error_of


@pytest.mark.parametrize("content", [b"", b"\n\n", b"# only a comment\n", b"---\n", b"\xef\xbb\xbf", b"~\n", b"{}\n"])
def test_empty_file(error_of, content):
    assert error_of(content) == ("run.yaml is empty", "start from `vlmtune presets copy 8gb FILE`")


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (
            "model:\n  name: a\n data: b\n",
            "run.yaml is not YAML: expected <block end>, but found '<block mapping start>'  (run.yaml:3)",
            "look at line 3 and the one before it: a missing colon, quote or indent",
        ),
        (
            "model:\n\tname: a\n",
            "run.yaml is not YAML: found character '\\t' that cannot start any token  (run.yaml:2)",
            "indent with spaces: YAML does not allow tabs",
        ),
        (
            "a: 1\nb: \x07\n",
            "run.yaml holds the character 0x7, which YAML does not allow  (run.yaml:2)",
            "remove it",
        ),
        ('a: "\\UFFFFFFFF"\n', "run.yaml holds an escape that is no character", "look for a \\U in quotes"),
        (
            "- model\n",
            "run.yaml must hold `key: value` lines, not a list  (run.yaml:1)",
            "compare it with configs/8gb.yaml",
        ),
        (
            "\nhello\n",
            "run.yaml must hold `key: value` lines, not a single value  (run.yaml:2)",
            "compare it with configs/8gb.yaml",
        ),
        (b"model: \n  name: caf\xe9\n", "run.yaml is not UTF-8 text  (run.yaml:2)", "save it as UTF-8"),
        ("model: x".encode("utf-16"), "run.yaml is not UTF-8 text  (run.yaml:1)", "save it as UTF-8"),
        (
            b"# " + b"x" * 1024 * 1024,
            "run.yaml is larger than 1 MiB, the most that is read of it",
            "a config is a YAML file of a few dozen lines; rows have their own file",
        ),
        (
            GOOD + "training: " + "[" * 100_000,
            "run.yaml is nested more than 20 levels deep  (run.yaml:3)",
            "a config has three levels at most",
        ),
        (
            GOOD + "training: " + "{a: " * 5000,
            "run.yaml is nested more than 20 levels deep  (run.yaml:3)",
            "a config has three levels at most",
        ),
        (
            GOOD + "training:\n  seed: 1\n  optim: adamw\n  seed: 2\n",
            "training.seed is given twice, first on line 4  (run.yaml:6)",
            "keep one of them",
        ),
        (
            GOOD + "experiment_name: !!python/object/apply:os.system [ls]\n",
            "the tag !!python/object/apply:os.system is not allowed  (run.yaml:3)",
            "write the plain value",
        ),
        ("!!map\nmodel: {name: m}\n", "the tag !!map is not allowed  (run.yaml:1)", "write the plain value"),
        (
            GOOD + "experiment_name: !secret x\n",
            "the tag !secret is not allowed  (run.yaml:3)",
            "write the plain value",
        ),
        (
            GOOD + "experiment_name: &name x\n",
            "the anchor &name is not allowed  (run.yaml:3)",
            "write the value where it is needed",
        ),
        (GOOD + "experiment_name: *name\n", "the alias *name is not allowed  (run.yaml:3)", "write the value itself"),
        (
            GOOD + "? [a, b]\n: 1\n",
            "a key must be a plain word  (run.yaml:3)",
            "compare it with configs/all-keys.yaml",
        ),
        (GOOD + "---\n" + GOOD, "a second YAML document starts here  (run.yaml:3)", "keep one run in one file"),
        (
            GOOD + 'experiment_name: "a\\0b"\n',
            '"a\\x00b" holds a character that is not text  (run.yaml:3)',
            "remove the escape",
        ),
        (
            GOOD + 'experiment_name: "\\uD800"\n',
            '"\\ud800" holds a character that is not text  (run.yaml:3)',
            "remove the escape",
        ),
        (
            GOOD + '"k\\e[31m": 1\n',
            "k\\x1b[31m is not a known key  (run.yaml:3)",
            "remove it; the keys at the top are experiment_name, output_dir, preset, model, data, training, hardware, "
            "evaluation",
        ),
    ],
)
def test_files_that_are_refused(error_of, content, message, hint):
    assert error_of(content) == (message, hint)


def test_an_alias_bomb_is_refused_without_being_expanded(tmp_path):
    rows = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    with pytest.raises(VlmtuneError):
        (tmp_path / "bomb.yaml").write_text("\n".join(rows))
        load_config(tmp_path / "bomb.yaml")


def test_paths_that_are_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    os.mkfifo("pipe")
    no_config = "a config is a YAML file of a few dozen lines; rows have their own file"
    for path, message, hint in [
        (
            "none.yaml",
            "none.yaml does not exist",
            HINT_CONFIG,
        ),
        ("folder", "folder is a folder, not a regular file", no_config),
        ("pipe", "pipe is a pipe, not a regular file", no_config),
        (
            "8gb",
            "8gb does not exist",
            "8gb is a preset: `vlmtune presets copy 8gb my-run.yaml` makes a config of it",
        ),
        ("x" * 300, f"{'x' * 300} cannot be read: File name too long", "check the path and its permissions"),
    ]:
        with pytest.raises(VlmtuneError) as caught:
            load_config(Path(path))
        assert (caught.value.message, caught.value.hint) == (message, hint)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "run.yaml").touch()
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(VlmtuneError, match="cannot be read: Permission denied"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("0012", 12),
        ("1e-4", 1e-4),
        ("2.e3", 2000.0),
        ("-.5", -0.5),
        ("True", True),
        ("NULL", None),
        ("'true'", "true"),
        ("-.inf", float("-inf")),
        ("9" * 5000, float("inf")),
    ],
)
def test_plain_words(word, value):
    got = read_text(f"key: {word}\n", "x").values["key"]
    assert got == value and type(got) is type(value)
