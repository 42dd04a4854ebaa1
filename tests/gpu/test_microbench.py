"""The names under which single kernels are timed are those that are kept: the script runs on a card too seldom."""

import json

import torch
from gpu import microbench
from gpu.compare import MEASURED


def test_what_is_timed_is_what_is_kept(monkeypatch):
    for name in ("PRODUCTS", "ATTENTION", "STRETCHED"):  # of these a CPU would take minutes
        monkeypatch.setattr(microbench, name, getattr(microbench, name)[:1])
    monkeypatch.setattr(microbench, "CONVOLUTIONS", ((8, 8, (9, 9), (7, 7), 8), (8, 8, (9,), (4,), 8)))
    monkeypatch.setattr(microbench, "CARD", "cpu")
    monkeypatch.setattr(microbench, "NUMBERS", microbench.NUMBERS[:1])
    monkeypatch.setattr(microbench, "WEIGHTS", microbench.WEIGHTS[-2:-1])
    monkeypatch.setattr(microbench, "TOKENS", microbench.TOKENS[:1])
    monkeypatch.setattr(microbench, "milliseconds", lambda run, times=20: 0.0 if run() is not None else 1.0)
    found = {}
    for measure in ("products", "unpacking", "passes", "attention", "convolutions", "stretching"):
        getattr(microbench, measure)(found)
    kept = json.loads((MEASURED / "microbench.json").read_text(encoding="utf-8"))
    assert len(found) > 30 and set(found.values()) == {0.0}
    assert all(name in kept for name in found if not name.startswith("conv"))  # here of other sizes
    assert not torch.backends.cuda.matmul.allow_tf32
