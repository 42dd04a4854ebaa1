"""Estimates kept in the user's cache folder, by everything that decides them: plan, card, code and library versions."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import vlmtune
from vlmtune.estimate.report import MemoryReport, PeakAt, Phase, Share
from vlmtune.files import cache_folder, code_sha256
from vlmtune.runs.folder import library_versions

KEPT = 1000
"""Estimates in the folder; the oldest go first."""


def cached(decided_by: Any, make: Callable[[], MemoryReport]) -> MemoryReport:
    """Return the kept estimate for these JSON-able values, or make it and keep it."""
    key = hashlib.sha256(json.dumps([decided_by, library_versions(), _code()], default=str).encode()).hexdigest()
    path = cache_folder() / "estimates" / f"{key[:32]}.json"
    try:
        return _report(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        report = make()
    _keep(path, report)
    return report


def _keep(path: Path, report: MemoryReport) -> None:
    """Write the estimate, unless the folder cannot be written: then nothing is kept."""
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(asdict(report)), encoding="utf-8")
        partial.replace(path)
        for old in sorted(path.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)
    except OSError:
        return


def _report(values: dict[str, Any]) -> MemoryReport:
    shapes = {
        "breakdown": tuple(Share(**share) for share in values["breakdown"]),
        "phases": tuple(Phase(**phase) for phase in values["phases"]),
        "peak_at": PeakAt(**values["peak_at"]),
    }
    return MemoryReport(**(values | shapes))


def _code() -> str:
    """The digest of vlmtune's own code and data: an estimate holds for what made it."""
    return code_sha256(Path(vlmtune.__file__).parent)
