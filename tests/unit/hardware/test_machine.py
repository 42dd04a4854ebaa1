import importlib.metadata
import json
import sys

import pytest

from vlmtune.hardware import machine
from vlmtune.hardware.machine import PARTS, run_probe, supported_windows


def python(code):
    return [sys.executable, "-I", "-c", code]


def test_probe_returns_what_each_part_printed():
    lines = [json.dumps({"part": part, "answer": part.upper()}) for part in PARTS]
    found = run_probe(python(f"print('noise'); print({chr(10).join(lines)!r}); print('{{more noise')"))
    assert found == {part: {"answer": part.upper()} for part in PARTS}


def test_a_crash_is_blamed_on_the_part_in_which_it_happened():
    code = """
import os
print('{"part": "torch", "version": "2"}', flush=True)
os.kill(os.getpid(), 11)
"""
    assert run_probe(python(code)) == {
        "torch": {"version": "2"},
        "cuda": {"error": "crashed with signal 11"},
        "torchvision": {"error": "not tried, see above"},
        "bitsandbytes": {"error": "not tried, see above"},
    }


def test_an_early_exit_and_a_missing_python_are_findings():
    assert run_probe(python("raise SystemExit(3)"))["torch"] == {"error": "ended early with exit code 3"}
    missing = run_probe(["/nowhere/python"])
    assert missing["torch"] == {"error": "cannot start Python: No such file or directory"}


def test_a_probe_that_hangs_is_a_finding(monkeypatch):
    monkeypatch.setattr(machine, "PROBE_TIMEOUT_S", 0)
    assert run_probe(python("input()"))["torch"] == {"error": "no answer within 0 s"}


def test_the_probe_itself_reports_a_broken_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file\\nmore')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{machine.PROBE}"
    found = run_probe(python(code))
    assert found["torch"] == {"error": "OSError: libcudart.so.13: cannot open shared object file"}
    assert set(found) == set(PARTS) and all("error" in part for part in found.values())


TWO_GPUS = """
from types import SimpleNamespace

class cuda:
    gpus = [SimpleNamespace(name=f"card {number}", uuid=f"{number}{number}", total_memory=8) for number in (1, 0)]
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 2)
    get_device_properties = staticmethod(gpus.__getitem__)
    mem_get_info = staticmethod(lambda index: (5, 8))
    can_device_access_peer = staticmethod(lambda one, other: (one, other) == (0, 1))
    nccl = SimpleNamespace(version=lambda: (2, 28, 3))

distributed = SimpleNamespace(is_nccl_available=lambda: True)
__version__, version = "2", SimpleNamespace(cuda="13.0")

class ones:
    def __init__(self, size, device): pass
    sum = item = lambda self: self
"""


def test_the_probe_names_every_gpu_in_the_order_of_cuda(tmp_path):
    (tmp_path / "torch.py").write_text(TWO_GPUS)
    found = run_probe(python(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{machine.PROBE}"))
    names = ["card 1", "card 0"]
    first = {"name": "card 1", "uuid": "11", "names": names, "free_bytes": 5, "total_bytes": 8}
    both = {"uuids": ["11", "00"], "sizes": [8, 8], "reach": [True], "nccl": "2.28.3"}
    assert found["cuda"] == first | both


@pytest.mark.parametrize(
    ("cuda", "gpu"), [({"uuid": "11"}, "one"), ({"uuid": "77"}, "zero"), ({"error": "crashed"}, "zero"), ({}, "zero")]
)
def test_the_gpu_is_the_one_that_cuda_calls_the_first(monkeypatch, cuda, gpu):
    monkeypatch.setattr(machine, "visible_gpus", lambda: {"GPU-00": "zero", "GPU-11": "one"})
    monkeypatch.setattr(machine, "run_probe", lambda command: {"cuda": cuda})
    assert machine.read_machine().gpu == gpu
    monkeypatch.setattr(machine, "visible_gpus", lambda: {})
    assert machine.read_machine().gpu is None


def test_windows_come_from_the_package_metadata(monkeypatch):
    requirements = ["torch>=2.11", "torchvision", "transformers<6,>=5.17", "pytest>=8; extra == 'dev'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requirements)
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: {"Requires-Python": ">=3.11"})
    assert supported_windows() == {
        "python": ">=3.11",
        "torch": ">=2.11",
        "torchvision": "",
        "transformers": ">=5.17,<6",
    }


def test_no_windows_without_package_metadata(monkeypatch):
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert supported_windows() == {}


@pytest.mark.parametrize(
    ("variables", "folder"),
    (
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({"HOME": "/home/x"}, "/home/x/.cache/huggingface/hub"),
    ),
)
def test_the_model_cache_is_where_hugging_face_puts_it(monkeypatch, variables, folder):
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(machine._model_cache()) == folder


def test_disk_space_of_a_folder_that_does_not_exist_yet(tmp_path):
    assert machine._disk_free(tmp_path / "not" / "yet") > 0
