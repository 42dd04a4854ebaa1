"""A run's model on this machine: its plan for what is here."""

from dataclasses import replace

import pytest

from vlmtune.data.types import Sample, Turn
from vlmtune.engine import tuned
from vlmtune.errors import VlmtuneError
from vlmtune.plan.file import save_plan
from vlmtune.plan.types import Device
from vlmtune.runs.folder import Learned, RunFolder

HERE = [
    (Device("cpu", "CPU", bf16=False), "fp32", False),
    (Device("cuda", "T4", bf16=False), "fp16", False),
    (Device("cuda", "A100", bf16=True), "fp16", True),
    (Device("cuda", "A100", bf16=True, no_triton="no compiler"), "fp16", True),
]


@pytest.mark.parametrize(("device", "dtype", "varlen"), HERE)
def test_what_the_device_here_lacks_is_not_asked_of_it(device, dtype, varlen, models, tmp_path, monkeypatch):
    monkeypatch.setattr(tuned, "probe_device", lambda: device)
    folder = RunFolder.create(tmp_path / "run")
    kernels = dict.fromkeys(("varlen_attention", "fused_norms", "fused_elementwise"), True)
    save_plan(replace(models("llava").plan, base_dtype="fp16", **kernels), folder.plan)
    plan = tuned.plan_here(folder)
    assert (plan.device, plan.base_dtype, plan.varlen_attention) == (device.kind, dtype, varlen)
    assert plan.fused_norms == (device.kind == "cuda")
    assert plan.fused_elementwise == (varlen and not device.no_triton)


@pytest.mark.parametrize("of", ["run", "base", "folder"])
def test_what_a_model_cannot_take_is_told_before_it_loads(of, models, monkeypatch):
    tiny = models("llava")
    for name in ("build_tuned", "load_base"):
        monkeypatch.setattr(tuned, name, lambda *args, **how: pytest.fail("loaded"))
    asked = [Sample((Turn("user", ("What is <image>?",)), Turn("assistant", ("",))), "--prompt")]
    with pytest.raises(VlmtuneError, match="--prompt: a text holds <image>"):
        if of == "run":
            tuned.load_tuned(tiny.plan, Learned(tiny.folder, "a checkpoint"), samples=asked)
        elif of == "base":
            tuned.load_untuned(tiny.plan, asked)
        else:
            tuned.load_whole(tiny.folder, asked)
