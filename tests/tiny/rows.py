"""Rows and plans for the tiny models."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from tiny import save_tiny
from vlmtune.config.schema import TrainingConfig
from vlmtune.data.collate import WHERE, collate
from vlmtune.data.dataset import TuneDataset
from vlmtune.data.types import ImageRef, Sample, Turn
from vlmtune.engine.step import forward_loss
from vlmtune.estimate.simulate.record import Log
from vlmtune.families import find_family
from vlmtune.hub.source import open_model
from vlmtune.models.build import build_model
from vlmtune.models.processor import load_processor
from vlmtune.plan.decide import make_plan
from vlmtune.plan.types import Device, RunPlan

CPU = Device("cpu", "CPU", bf16=False)


def picture(folder: Path, name: str, size_px: tuple[int, int], colour: str) -> ImageRef:
    """Save a plain picture and return where it is."""
    path = folder / f"{name}.png"
    Image.new("RGB", size_px, colour).save(path)
    return ImageRef(path=str(path))


def sample(question: str, answer: str, *images: ImageRef, where: str = "rows.jsonl:1") -> Sample:
    """Return one question with its images first, and one answer."""
    return Sample((Turn("user", (*images, question)), Turn("assistant", (answer,))), where)


def colour_rows(folder: Path, count: int = 4) -> list[Sample]:
    """Return rows that ask for the colour of a picture; sizes and lengths differ."""
    colours = ("red", "lime", "blue", "black")
    rows = []
    for index in range(count):
        colour = colours[index % len(colours)]
        image = picture(folder, f"{colour}{index}", (40 + 30 * index, 60), colour)
        question = "What colour" + " is this" * (1 + index % 3) + "?"
        rows.append(sample(question, f"it is {colour}", image, where=f"rows.jsonl:{index + 1}"))
    return rows


def tiny_plan(folder: Path, **sections: dict) -> RunPlan:
    """Return the CPU plan for the checkpoint in `folder`; `sections` are config sections."""
    config = TrainingConfig.model_validate(
        {"model": {"name": str(folder)}, "data": {"train_path": "rows.jsonl"}, **sections}
    )
    return make_plan(config, open_model(str(folder), None, Path("/")), CPU)


class TinyModel:
    """A saved tiny checkpoint with all that a test asks of it."""

    def __init__(self, model_type: str, folder: Path, layers: int = 2) -> None:
        self.model_type = model_type
        self.folder = save_tiny(model_type, folder / f"{model_type}-{layers}", layers=layers)
        self.source = open_model(str(self.folder), None, Path("/"))
        self.family = find_family(self.source.config, model_type)
        self.plan = tiny_plan(self.folder)
        self.processor = load_processor(self.plan)

    def batch(self, folder: Path, count: int = 4) -> dict[str, Tensor]:
        """Return so many rows in one batch; their pictures go into `folder`."""
        rows = list(TuneDataset(colour_rows(folder, count), self.processor, self.family, self.plan))
        batch = collate(rows, self.processor.tokenizer.pad_token_id)
        return {key: value for key, value in batch.items() if key != WHERE}


def built(plan: RunPlan) -> nn.Module:
    """Return a plan's model as if it had learned something: new adapters change nothing, and have half no gradients."""
    model = build_model(plan).train()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05)
    return model


def learned(tiny: TinyModel, batch: dict[str, Tensor], hardware: dict, training: dict) -> list[Tensor]:
    """Return losses and summed gradients of two passes, an evaluation between them."""
    plan = tiny_plan(tiny.folder, hardware=hardware, training=training)
    model = built(plan)
    losses = [forward_loss(model, batch, plan)]
    losses[0].backward()
    with torch.no_grad():
        losses.append(forward_loss(model.eval(), batch, plan))
    losses.append(forward_loss(model.train(), batch, plan))
    losses[2].backward()
    return [*(loss.detach() for loss in losses), *(p.grad for p in model.parameters() if p.requires_grad)]


def made_by(log: Log, prefix: str) -> list[tuple[str, int]]:
    """Return the allocations of operations whose names begin so: name, bytes."""
    made = [(log.tags[handle][1], num_bytes) for handle, num_bytes in log.events if handle > 0]
    return [(name, num_bytes) for name, num_bytes in made if name.startswith(prefix)]
