"""Values of the environment that libraries answer with a traceback or a signal are one error of ours."""

import errno
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

import vlmtune
from vlmtune.engine.runtime import prepare_environment
from vlmtune.environment import FORMS, check_environment
from vlmtune.errors import VlmtuneError

WRONG = {
    "HF_HUB_ETAG_TIMEOUT": ["abc", "1.5", "-1"],
    "HF_HUB_DOWNLOAD_TIMEOUT": ["ten"],
    "HF_ENDPOINT": ["nonsense", "ftp://a"],
    "OMP_NUM_THREADS": ["abc", "-1", "0", "99999999999"],
    "PYTORCH_ALLOC_CONF": ["nonsense", ":", "a:b,c"],
    "PYTORCH_CUDA_ALLOC_CONF": ["nonsense"],
    "CUDA_VISIBLE_DEVICES": ["foo", "0;1", "GPU"],
}
RIGHT = {
    "HF_HUB_ETAG_TIMEOUT": ["10"],
    "HF_HUB_DOWNLOAD_TIMEOUT": [" 10 "],
    "HF_ENDPOINT": ["https://mirror.example/hf", "http://127.0.0.1:80"],
    "OMP_NUM_THREADS": ["1", "4,2"],
    "PYTORCH_ALLOC_CONF": ["expandable_segments:True", "max_split_size_mb:128, garbage_collection_threshold:0.8"],
    "PYTORCH_CUDA_ALLOC_CONF": ["roundup_power2_divisions:[256:1,512:2,>:4]"],
    "CUDA_VISIBLE_DEVICES": ["0", "1, 0", "-1", "GPU-8932f937-d72c", "MIG-GPU-8932f937-d72c/1/0", "NoDevFiles"],
}


def test_each_variable_is_tried():
    assert WRONG.keys() == RIGHT.keys() == FORMS.keys()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_value_that_no_library_takes_is_named(name, value):
    with pytest.raises(VlmtuneError, match=f"^the environment variable {name} is ") as raised:
        check_environment({name: value})
    assert repr(value) in raised.value.message and raised.value.hint == f"unset {name}"


@pytest.mark.parametrize("values", [{}, dict.fromkeys(FORMS, ""), *({k: v} for k, vs in RIGHT.items() for v in vs)])
def test_other_values_are_left_alone(values):
    check_environment(values)


def test_a_locale_that_cannot_name_files_is_one_error():
    check_environment({}, "utf-8")
    with pytest.raises(VlmtuneError, match="names of files are ascii in this locale, not UTF-8"):
        check_environment({}, "ascii")


def test_commands_look_first(run_cli, monkeypatch):
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "nonsense")
    refused = run_cli("presets", "list")
    assert refused.code == 1 and refused.stderr.startswith("error: the environment variable PYTORCH_ALLOC_CONF is 'non")


def test_a_value_that_pytorch_alone_can_read_is_one_error_too(monkeypatch, tmp_path):
    """As its import ends with it; what it says of a right one is not changed."""
    (tmp_path / "torch.py").write_text("raise ValueError('Invalid log settings: nonsense')")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TORCH_LOGS", "nonsense")
    with pytest.raises(
        VlmtuneError, match="^the environment variable TORCH_LOGS is 'nonsense', which PyTorch"
    ) as raised:
        prepare_environment()
    assert raised.value.hint == "unset TORCH_LOGS"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']"),
    ],
)
def test_no_room_for_temporary_files_is_one_error(run_cli, monkeypatch, error):
    monkeypatch.setattr("tempfile.TemporaryDirectory", Mock(side_effect=error))
    done = run_cli("models", "check", Path(vlmtune.__file__).parent / "demo" / "model")
    assert done.code == 1
    assert done.stderr.startswith(
        "error: the disk is full: a temporary file could not be written\nhint:  free some space"
    )
    assert "TMPDIR" in done.stderr


def test_another_error_of_the_system_is_a_bug(run_cli, monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryDirectory", Mock(side_effect=FileNotFoundError(errno.ENOENT, "other")))
    with pytest.raises(FileNotFoundError):
        run_cli("models", "check", Path(vlmtune.__file__).parent / "demo" / "model")
