"""What Triton needs of a machine, and the sentence for each that is missing."""

import pytest

from vlmtune.hardware import triton


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine on which nothing is missing."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "not yet" / "there"))
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(triton, "find_spec", lambda name: object())
    monkeypatch.setattr(triton.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(triton.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    return tmp_path


def test_nothing_is_missing(machine):
    assert triton.why_no_triton() is None


def test_without_triton(machine, monkeypatch):
    monkeypatch.setattr(triton, "find_spec", lambda name: None)
    assert "Triton is not installed" in triton.why_no_triton()


def test_without_a_compiler(machine, monkeypatch):
    monkeypatch.setattr(triton.shutil, "which", lambda name: None)
    assert triton.why_no_triton() == "there is no C compiler for Triton, none of gcc and clang"
    monkeypatch.setenv("CC", "/opt/cc")
    assert triton.why_no_triton() is None


def test_without_pythons_headers(machine):
    (machine / "Python.h").unlink()
    assert "Python.h is missing" in triton.why_no_triton()


def test_where_kernels_cannot_be_kept(machine, monkeypatch):
    seen = []
    monkeypatch.setattr(triton.os, "access", lambda folder, mode: seen.append(folder))
    assert triton.why_no_triton().startswith(
        f"{machine}/not yet/there cannot be written, where Triton keeps its kernels"
    )
    assert seen == [machine]
    monkeypatch.delenv("TRITON_CACHE_DIR")
    monkeypatch.setenv("TRITON_HOME", "/elsewhere")
    assert triton.why_no_triton().startswith("/elsewhere/.triton/cache cannot be written")
