"""Digests of files: of what stands in them, and each read once."""

import hashlib
import os

import pytest

from vlmtune import files
from vlmtune.files import code_sha256, file_sha256


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The names of files that were read for their digest."""
    names = []
    real = hashlib.file_digest
    monkeypatch.setattr(files.hashlib, "file_digest", lambda file, name: names.append(file.name) or real(file, name))
    return names


def test_a_file_that_stays_as_it_is_is_read_once(tmp_path, read):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"rows")
    assert [file_sha256(path), file_sha256(path)] == [hashlib.sha256(b"rows").hexdigest()] * 2
    assert read == [str(path)]
    path.write_bytes(b"sour")
    os.utime(path, ns=(1, 1))
    assert file_sha256(path) == hashlib.sha256(b"sour").hexdigest()


def test_the_digest_of_code_is_that_of_all_its_files(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.py").write_text("a = 1")
    first = code_sha256(tmp_path)
    code_sha256.cache_clear()
    (tmp_path / "notes.txt").write_text("this is no code")
    assert code_sha256(tmp_path) == first
    code_sha256.cache_clear()
    (tmp_path / "inner" / "a.py").write_text("a = 2")
    assert code_sha256(tmp_path) != first
