"""Estimates kept in the user's cache folder, by everything that decides them: plan, card, code and library versions."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import vlmtune
from vlmtune.estimate.report import MemoryReport
from vlmtune.files import cache_folder, code_sha256, parse_json, strict_json, write_atomically
from vlmtune.plan.types import RunPlan
from vlmtune.runs.versions import library_versions

KEPT = 1000
"""Estimates in the folder; the oldest go first."""


def cached(decided_by: Any, make: Callable[[], MemoryReport]) -> MemoryReport:
    """Return the kept estimate for these JSON-able values, or make it and keep it."""
    key = hashlib.sha256(json.dumps([decided_by, library_versions(), _code()], default=str).encode()).hexdigest()
    path = cache_folder() / "estimates" / f"{key[:32]}.json"
    try:
        return _read(path.read_bytes())
    except (OSError, ValueError):
        report = make()
    _keep(path, report)
    return report


def base_is_kept(plan: RunPlan) -> bool:
    """Return whether the base will be read from the cache of quantised ones, which loads it in another way."""
    if not plan.cache_quantized:
        return False
    from vlmtune.models import build

    return build.base_is_kept(plan)


def _keep(path: Path, report: MemoryReport) -> None:
    """Write the estimate, unless the folder cannot be written: then nothing is kept."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = strict_json(asdict(report))
        write_atomically(path, f"{_digest(text.encode())}\n{text}")
        for old in sorted(path.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)
    except OSError:
        return


def _read(written: bytes) -> MemoryReport:
    """Return the estimate of a kept file; raise ValueError where it is not what was written."""
    digest, _, text = written.partition(b"\n")
    if _digest(text).encode() != digest:
        raise ValueError
    return parse_json(MemoryReport, text)


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _code() -> str:
    """The digest of vlmtune's own code and data: an estimate holds for what made it."""
    return code_sha256(Path(vlmtune.__file__).parent)
