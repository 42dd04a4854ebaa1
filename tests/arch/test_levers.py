"""A lever is one file: a toy one, written here as a file of its own, is seen everywhere without another line."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from vlmtune import levers
from vlmtune.config.keys import all_keys
from vlmtune.config.load import preset_config
from vlmtune.errors import VlmtuneError
from vlmtune.estimate.report import MemoryReport, PeakAt
from vlmtune.hub.source import ModelSource
from vlmtune.levers.base import GivesUp, OnResume
from vlmtune.plan.decide import make_plan
from vlmtune.plan.resume import differences
from vlmtune.plan.types import Device, RunPlan

TOY = """
from vlmtune.levers.base import Choice, Decision, GivesUp, Lever, OnResume, Saving, Spending

KEY = "training.max_grad_norm"


def decide(config, model, device):
    norm = config.training.max_grad_norm / 2
    return Decision({"max_grad_norm": norm}, (Choice(KEY, str(norm), "the toy halves it"),))


def smaller(config, model, text_tokens):
    return [{KEY: config.training.max_grad_norm / 10}]


def larger(config, model, tokens):
    return [{KEY: 50.0}, {KEY: 100.0}]


def apply(model, plan, family):
    model.toyed_with = plan.max_grad_norm


def kept(model, plan, family, batch_tokens):
    return 2**30


LEVER = Lever(
    name="Toy",
    keys=(KEY,),
    costs="nothing but the fun",
    decide=decide,
    fields=("max_grad_norm",),
    savings=(Saving(GivesUp.TIME, "a toy gives up its norm", smaller),),
    spending=Spending(larger, lambda values: "a toy buys norm", is_division=False),
    more=lambda config, model: [{KEY: 7.0}],
    on_resume=OnResume.FREE,
    excludes=lambda config: [f"{KEY}: no toy beside seed 13"] if config.training.seed == 13 else [],
    apply=apply,
    main_memory_bytes=kept,
)
"""
SOURCE = ModelSource("org/model", {"model_type": "llava", "vision_config": {"image_size": 336}, "text_config": {}}, {})
CPU = Device("cpu", "CPU", bf16=False)


def module_of(file: Path):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The toy lever, the last in the list."""
    file = tmp_path / "toy.py"
    file.write_text(TOY)
    module = module_of(file)
    monkeypatch.setattr(levers, "LEVERS", (*levers.LEVERS, module.LEVER))
    return module.LEVER


def config_with(*words: str):
    return preset_config("org/model", "8gb", words).config


def plan_with(*words: str) -> RunPlan:
    return make_plan(config_with(*words), SOURCE, CPU)


def test_the_plan_takes_its_decision_with_its_reason(toy):
    plan = plan_with()
    assert plan.max_grad_norm == 0.5
    assert [choice.reason for choice in plan.choices if choice.key == toy.keys[0]] == ["the toy halves it"]


def test_what_it_excludes_is_refused_by_the_plan(toy):
    with pytest.raises(VlmtuneError, match="no toy beside seed 13"):
        plan_with("training.seed=13")


def test_explain_prices_it_both_ways(toy):
    from vlmtune.estimate.search.explain import price_levers

    before = report_of(100, 100)
    asked = []

    def estimate(values):
        asked.append(values)
        return report_of(90, 100)

    priced = price_levers(config_with(), before, estimate)
    words = [word for one in priced for word in one.words if word.startswith("training.max_grad_norm")]
    assert sorted(words) == ["training.max_grad_norm=0.1", "training.max_grad_norm=7.0"]
    assert {"training.max_grad_norm": 0.1} in asked


@pytest.mark.parametrize(
    ("budget", "words", "reasons"),
    [
        (61, {"training.max_grad_norm=0.1"}, {"a toy gives up its norm"}),
        (80, {"training.max_grad_norm=50.0"}, {"a toy buys norm"}),
        (200, {"training.max_grad_norm=100.0"}, {"a toy buys norm"}),
    ],
)
def test_the_search_gives_it_up_and_buys_with_it(toy, budget, words, reasons):
    from vlmtune.estimate.search.fit import find_fit

    family = SimpleNamespace(name="toy", not_cacheable="it is one", not_packable="it is one")
    facts = {"prequantised": None, "shares_embedding": False, "fixed_images": True, "adapter": None}
    facts |= {"config": {"model_type": "toy"}, "layers_with_state": ()}
    model = SimpleNamespace(num_layers=32, family=family, **facts)
    needed = {1.0: 100, 0.1: 60, 50.0: 70, 100.0: 150}

    def estimate(values):
        return report_of(needed[values.get("training.max_grad_norm", 1.0)], budget)

    fit = find_fit(config_with(), model, estimate, estimate, lambda values, known: None)
    assert fit.fits and words <= set(fit.words)
    assert reasons == {change.reason for change in fit.changes if "toy" in change.reason}


def report_of(size: int, budget: int) -> MemoryReport:
    return MemoryReport(
        model="m",
        preset=None,
        gpu="8gb",
        fits=size <= budget,
        peak_reserved_bytes=size,
        peak_allocated_bytes=size,
        device_total_bytes=size,
        budget_bytes=budget,
        breakdown=(),
        parts={},
        peak_at=PeakAt("step 1", "mm", "head"),
        phases=(),
        worst_row="largest",
        tokens={"text": 100, "image": 0, "total": 5000},
        flops_per_row=1.0,
        fast=True,
        seconds=0.0,
        versions={},
    )


def test_a_resumed_run_may_change_it_as_it_says(toy, monkeypatch):
    begun, now = plan_with(), plan_with("training.max_grad_norm=3")
    assert begun != now and differences(now, begun, num_rows=7) == []
    pinned = replace(toy, on_resume=OnResume.PINNED)
    monkeypatch.setattr(levers, "LEVERS", (*levers.LEVERS[:-1], pinned))
    assert differences(now, begun, num_rows=7) == ["max_grad_norm: 0.5 -> 1.5"]


def test_a_retry_after_running_out_of_memory_takes_it(toy, monkeypatch):
    from vlmtune.workflow.attempts import _next_change
    from vlmtune.workflow.job import Job

    words = ("hardware.offload_activations=true", "hardware.streamed_layers=32", "data.cache_features=true")
    loaded = preset_config("org/model", "8gb", ["training.max_grad_norm=1.0", *words])
    job = Job(loaded, None, SOURCE, None, Path("runs"))
    assert _next_change(None, job, None, has_checkpoint=True) == {"training.max_grad_norm": 0.1}
    monkeypatch.setattr(levers, "LEVERS", levers.LEVERS[:-1])
    assert _next_change(None, job, None, has_checkpoint=True) is None


def test_the_docs_name_it(toy):
    renew = module_of(Path(__file__).parents[2] / "docs" / "renew.py")
    (row,) = (line for line in renew.levers_table().splitlines() if line.startswith("| Toy "))
    assert "`training.max_grad_norm`" in row and "nothing but the fun" in row and "at any checkpoint" in row


def test_what_it_keeps_in_main_memory_is_estimated_under_its_name(toy, run_cli, models):
    import json

    done = run_cli("estimate-vram", "--model", models("llava").folder, "--gpu", "8gb", "--fast", "--json")
    need = json.loads(done.stdout)["main_memory"]
    assert {"name": "Toy", "bytes": 2**30} in need["parts"]


def test_it_acts_on_the_model_with_and_without_storage(toy, models):
    from tiny.rows import tiny_plan

    from vlmtune.models.build import base_of, build_model

    tiny = models("llava")
    for weights in ("checkpoint", "none"):
        model = build_model(tiny_plan(tiny.folder), weights=weights)
        assert base_of(model).toyed_with == 0.5


def test_every_key_and_field_of_a_lever_exists_and_has_one_owner():
    names, fields = {key.name for key in all_keys()}, set(RunPlan.__dataclass_fields__)
    keys = [key for lever in levers.LEVERS for key in lever.keys]
    owned = [field for lever in levers.LEVERS for field in lever.fields]
    assert len(keys) == len(set(keys)) >= 15 and set(keys) <= names
    assert len(owned) == len(set(owned)) >= 15 and set(owned) <= fields


def test_savings_come_in_the_order_of_what_they_give_up():
    order = [saving.gives_up for _, saving in levers.savings()]
    assert order == sorted(order) and set(order) == set(GivesUp)
    assert [lever.name for lever in levers.LEVERS if lever.exact] == [
        "Embeddings in main memory",
        "Recompute activations",
        "Rows at a time",
        "Several GPUs",
        "Rows in packs",
        "One attention call for all rows",
        "Widths filled up",
        "Constants of 4 bits joined",
        "Vision features cached",
        "Layers shared by the GPUs",
        "Layers in main memory",
        "Base in 4 bits kept on disk",
    ]
