from vlmtune.runs.versions import library_versions


def test_versions_come_from_metadata(monkeypatch):
    import importlib.metadata

    def version(name):
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return f"{name}-version"

    monkeypatch.setattr(importlib.metadata, "version", version)
    versions = library_versions()
    assert versions["torch"] == "torch-version"
    assert versions["peft"] == "not installed"
    assert list(versions)[:2] == ["python", "vlmtune"]
