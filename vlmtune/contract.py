"""The contract of a model family, tried on a tiny random model of a config.json: what holds, and what does not."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from torch import Tensor, nn
from transformers import ProcessorMixin

from vlmtune.config.schema import TrainingConfig
from vlmtune.data.collate import WHERE, Collator, collate
from vlmtune.data.dataset import TuneDataset
from vlmtune.data.encode import Encoded
from vlmtune.data.types import ImageRef, Sample, Turn
from vlmtune.engine.checkpoints import save_adapter
from vlmtune.engine.evaluate import generate
from vlmtune.engine.step import IGNORED, forward_loss
from vlmtune.engine.tuned import Tuned
from vlmtune.errors import VlmtuneError
from vlmtune.estimate.allocator.caching import RESET_PEAK
from vlmtune.estimate.simulate.record import Log
from vlmtune.estimate.simulate.simulation import Run, record_steps, simulate
from vlmtune.families import find_family
from vlmtune.families.base import Family
from vlmtune.hub.source import ModelSource, open_model
from vlmtune.models.build import base_of, build_model, build_tuned
from vlmtune.models.processor import load_processor
from vlmtune.models.tiny import tiny_model
from vlmtune.plan.decide import make_plan
from vlmtune.plan.types import Device, RunPlan

ESTIMATE_TOLERANCE = 0.005
"""Between the simulated and the real peak on a CPU."""
FAILURES = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError)
FAILURES += (StrictDataclassError, TypeError, ValueError, VlmtuneError)
"""What an architecture that keeps other conventions raises: anything, in the library's code."""
LONGEST_REASON = 300
CPU = Device("cpu", "CPU", bf16=False)


@dataclass(frozen=True)
class Finding:
    """One point of the contract."""

    name: str
    holds: bool
    reason: str = ""


@dataclass
class Subject:
    """A tiny model and what the points of the contract share."""

    folder: Path
    plan: RunPlan
    family: Family
    processor: ProcessorMixin
    samples: list[Sample]
    rows: list[Encoded] = field(default_factory=list)

    @property
    def source(self) -> ModelSource:
        """Its configs."""
        return open_model(str(self.folder), None, Path("/"))

    def batch(self, num_rows: int = 1) -> dict[str, Tensor]:
        """Return rows as the model takes them."""
        batch = collate(self.rows[:num_rows], Collator(self.processor).pad_token_id)
        return {key: value for key, value in batch.items() if key != WHERE}


def check(source: ModelSource, folder: Path) -> list[Finding]:
    """Return how the architecture of `source` keeps the contract; its tiny model is written into `folder`.

    Later points are left out when one that they need does not hold.
    """
    findings: list[Finding] = []
    subject: Subject | None = None

    def tried(name: str, work: Callable[[], object]) -> object | None:
        try:
            result = work()
        except FAILURES as error:
            findings.append(Finding(name, False, _reason(error, folder)))
            return None
        findings.append(Finding(name, True))
        return result

    if not tried("tiny model", lambda: tiny_model(source.config, source.preprocessor, folder / "model")):
        return findings
    subject = tried("family and processor", lambda: _subject(folder))
    if subject is None or tried("rows", lambda: _encode(subject)) is None:
        return findings
    for name, work in POINTS.items():
        tried(name, lambda work=work: work(subject))
    return findings


def _reason(error: BaseException, folder: Path) -> str:
    told = error.message if isinstance(error, VlmtuneError) else str(error)
    told = told.replace(str(folder / "model"), "the model").replace(str(folder / "adapter"), "the adapter's folder")
    return f"{type(error).__name__}: {' '.join(told.split())}"[:LONGEST_REASON]


def _subject(folder: Path) -> Subject:
    plan = tiny_plan(folder / "model")
    source = open_model(plan.model, None, Path("/"))
    picture = folder / "picture.png"
    Image.effect_noise((90, 60), 80).convert("RGB").save(picture)
    ref = ImageRef(path=str(picture))
    samples = [
        Sample((Turn("user", (ref, question)), Turn("assistant", ("it is grey",))), f"row {index}")
        for index, question in enumerate(("What is it?", "Which colour has this picture?"))
    ]
    return Subject(folder / "model", plan, find_family(source.config, plan.model), load_processor(plan), samples)


def tiny_plan(folder: Path) -> RunPlan:
    """Return the plan for two steps of QLoRA on a CPU with the checkpoint in `folder`."""
    training = {"gradient_accumulation_steps": 1, "batch_size": 1}
    config = TrainingConfig.model_validate(
        {"model": {"name": str(folder)}, "data": {"train_path": "rows.jsonl"}, "training": training}
    )
    return make_plan(config, open_model(str(folder), None, Path("/")), CPU)


def _encode(subject: Subject) -> list[Encoded]:
    dataset = TuneDataset(subject.samples, subject.processor, subject.family, subject.plan)
    subject.rows = [dataset[index] for index in range(len(dataset))]
    return subject.rows


def image_tokens_are_counted(subject: Subject) -> None:
    """The family counts the tokens that the processor makes."""
    counted = subject.family.image_tokens(subject.source.config, subject.source.preprocessor, 90, 60)
    made = subject.rows[0].num_image_tokens
    assert counted == made, f"{counted} image tokens counted, {made} made"


def loss_is_the_librarys(subject: Subject) -> None:
    """The chunked loss equals the library's own, and so do its gradients."""
    model = build_model(subject.plan).eval()
    adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    _randomise(adapters)
    batch = subject.batch()
    ours = forward_loss(model, batch, subject.plan)
    plain = model(**batch, use_cache=False).loss
    own = torch.autograd.grad(ours, adapters, allow_unused=True)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(own, torch.autograd.grad(plain, adapters, allow_unused=True), strict=True):
        assert (mine is None) == (theirs is None), "an adapter has a gradient in one loss only"
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def two_steps_train_the_adapters(subject: Subject) -> None:
    """Two optimizer steps change adapters and nothing else, and the reloaded adapter gives equal logits."""
    model = build_model(subject.plan).train()
    batch = subject.batch()
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    adapters = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    assert adapters, "no adapter was attached"
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(2):
        loss = forward_loss(model, batch, subject.plan)
        assert torch.isfinite(loss), f"the loss is {loss.item()}"
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = dict(model.named_parameters())
    changed = [name for name, value in frozen.items() if not torch.equal(after[name], value)]
    assert not changed, f"{changed[0]} is frozen and changed"
    still = [name for name, value in adapters.items() if torch.equal(after[name], value)]
    assert len(still) < len(adapters), "no adapter changed"
    save_adapter(model, subject.folder.parent / "adapter")
    model.eval()
    reloaded = build_tuned(subject.plan, str(subject.folder.parent / "adapter"))
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        torch.manual_seed(0)
        expected = model(**inputs).logits
        torch.manual_seed(0)
        assert torch.equal(reloaded(**inputs).logits, expected), "the reloaded adapter gives other logits"


def the_tower_stays_outside_autograd(subject: Subject) -> None:
    """Nothing that the frozen vision tower returns requires gradients."""
    model = build_model(subject.plan).train()
    seen: list = []
    base_of(model).get_submodule(subject.family.vision).register_forward_hook(lambda m, a, output: seen.append(output))
    forward_loss(model, subject.batch(), subject.plan).backward()
    assert seen, f"{subject.family.vision} was never called"
    assert not any(value.requires_grad for output in seen for value in _tensors(output)), "the tower is in the graph"


def rows_share_a_batch(subject: Subject) -> None:
    """Two rows of different lengths in one batch give the loss that they give alone."""
    model = build_model(subject.plan).eval()
    labelled = [int((row.labels[:, 1:] != IGNORED).sum()) for row in subject.rows]
    with torch.no_grad():
        together = forward_loss(model, subject.batch(len(labelled)), subject.plan, sum(labelled))
        first = forward_loss(model, subject.batch(), subject.plan, sum(labelled))
        subject_of_second = dataclasses.replace(subject, rows=subject.rows[1:])
        second = forward_loss(model, subject_of_second.batch(), subject.plan, sum(labelled))
    torch.testing.assert_close(together, first + second, rtol=1e-3, atol=1e-4)


def it_generates(subject: Subject) -> None:
    """The tuned model writes tokens."""
    model = build_model(subject.plan).eval()
    generate(Tuned(subject.plan, model, subject.processor), subject.samples[:1], 4)


def the_estimate_is_the_real_peak(subject: Subject) -> None:
    """The step without weights takes what the step takes on a CPU, with what a card computes in one kernel."""
    run, plan = Run([[subject.batch()]] * 2, load=None), replace(subject.plan, fused_norms=True, fused_elementwise=True)
    real = peak_bytes(record_steps(build_model(plan).train(), plan, run))
    simulated = peak_bytes(simulate(plan, run))
    off = simulated / real - 1
    assert abs(off) <= ESTIMATE_TOLERANCE, f"estimated {simulated}, real {real} bytes: {off:+.2%}"


POINTS: dict[str, Callable[[Subject], None]] = {
    "image tokens": image_tokens_are_counted,
    "trains and reloads": two_steps_train_the_adapters,
    "loss": loss_is_the_librarys,
    "tower outside autograd": the_tower_stays_outside_autograd,
    "generates": it_generates,
    "rows in one batch": rows_share_a_batch,
    "estimate": the_estimate_is_the_real_peak,
}


COUNTED = tuple(name for name in POINTS if name != "rows in one batch")
"""The points that a run with one row at a time needs."""


def peak_bytes(log: Log) -> int:
    """Most bytes that were live at once, from the beginning of training on."""
    sizes: dict[int, int] = {}
    live, most, training = 0, 0, False
    for event in log.events:
        handle, num_bytes = event
        if handle > 0:
            sizes[handle] = num_bytes
            live += num_bytes
        elif handle < 0:
            live -= sizes.pop(-handle)
        training = training or event == RESET_PEAK
        most = max(most, live) if training else 0
    return most


def _tensors(output) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if hasattr(output, "values") else output
    return [value for value in values if isinstance(value, Tensor)]


def _randomise(parameters: list[nn.Parameter]) -> None:
    """LoRA starts with B = 0, where half of the gradients are zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.05)
