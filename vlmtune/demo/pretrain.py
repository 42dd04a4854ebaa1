"""Pretrains the demo's base model and saves it: `python -m vlmtune.demo.pretrain [OUT_DIR]`.

First the vision tower learns to tell drawings apart, through a classifier that is thrown away;
then the whole model learns to name them, to count strokes and to put the words of the digits in
order. It never sees a picture of a digit. It learns what strokes look like, so that adapters on
its language model alone can later learn to read digits.
"""

import argparse
import itertools
import math
import sys
import time
from pathlib import Path

import torch

from vlmtune.demo.base_model import IMAGE_PIXELS, build_model, build_processor
from vlmtune.demo.chats import IGNORED_LABEL, Chats, vocabulary
from vlmtune.demo.drawings import letter_drawings, scan, symbol_drawings

SEED = 0
NUM_SYMBOLS = 200
NUM_IMAGES = 120_000
BATCH_SIZE = 128
NUM_SEEING_STEPS, SEEING_RATE = 3000, 3e-3
NUM_ANSWERING_STEPS, ANSWERING_RATE = 1200, 1e-3
WARMUP_STEPS = 200


def pretrain(out_dir: Path) -> dict:
    """Returns `parameters`, `accuracy` on fresh drawings and `seconds`, after saving the model."""
    started = time.monotonic()
    generator = torch.Generator().manual_seed(SEED)
    names = _symbol_names(NUM_SYMBOLS, generator)
    drawings = letter_drawings() + symbol_drawings(names, generator)
    processor = build_processor(vocabulary(names))
    torch.manual_seed(SEED)
    model = build_model(processor.tokenizer)
    # Letters twice as often as their share: they are drawn as people write.
    weights = torch.tensor([3.0 if d.kind == "letter" else 1.0 for d in drawings])
    class_ids = torch.multinomial(weights, NUM_IMAGES, replacement=True, generator=generator)
    scans = scan(drawings, class_ids, generator)
    chats = Chats(processor, drawings)
    model.train()
    _learn_to_see(model, len(drawings), scans, class_ids, generator)
    _learn_to_answer(model, chats, scans, class_ids, generator)
    model.eval()
    fresh_ids = torch.randint(len(drawings), (1024,), generator=generator)
    accuracy = _accuracy(model, chats, scan(drawings, fresh_ids, generator), fresh_ids)
    model.save_pretrained(out_dir)
    processor.save_pretrained(out_dir)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "accuracy": accuracy,
        "seconds": time.monotonic() - started,
    }


def _learn_to_see(model, num_classes: int, scans, class_ids, generator: torch.Generator) -> None:
    """Trains the vision tower and the projector to tell the drawing classes apart."""
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    classifier = torch.nn.Linear(model.config.text_config.hidden_size, num_classes)

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        seen = tower(_pixels(scans[rows]), output_hidden_states=True).hidden_states[-1]
        logits = classifier(projector(seen[:, 1:]).mean(dim=1))  # without the class token
        return torch.nn.functional.cross_entropy(logits, class_ids[rows])

    modules = torch.nn.ModuleList([tower, projector, classifier])
    _train(modules, loss_of, len(scans), (NUM_SEEING_STEPS, SEEING_RATE), generator)


def _learn_to_answer(model, chats: Chats, scans, class_ids, generator: torch.Generator) -> None:
    """Trains the whole model to answer questions about the drawings."""

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        batch = chats.batch(class_ids[rows], generator)
        return model(pixel_values=_pixels(scans[rows]), **batch).loss

    schedule = (NUM_ANSWERING_STEPS, ANSWERING_RATE)
    _train(model, loss_of, len(scans), schedule, generator)


def _train(modules, loss_of, num_images: int, schedule, generator: torch.Generator) -> None:
    """Trains the modules on random batches: warm-up, then half a cosine down to zero."""
    num_steps, peak_rate = schedule
    optimizer = torch.optim.AdamW(modules.parameters(), peak_rate, weight_decay=0.05)
    for step in range(num_steps):
        warm_up = min(1.0, (step + 1) / WARMUP_STEPS)
        rate = peak_rate * warm_up * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = torch.randint(num_images, (BATCH_SIZE,), generator=generator)
        loss = loss_of(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            sys.stdout.write(f"step {step} of {num_steps}, loss {loss.item():.3f}\n")
            sys.stdout.flush()


def _pixels(scans: torch.Tensor) -> torch.Tensor:
    """Returns pixel values [B, 3, 32, 32] in -1..1, as the processor makes them from a PNG."""
    paper = (1 - scans.float() / 16).unsqueeze(1)
    # antialias selects the bicubic kernel that Pillow uses
    large = torch.nn.functional.interpolate(paper, size=IMAGE_PIXELS, mode="bicubic", antialias=True)
    return (large.clamp(0, 1) * 2 - 1).expand(-1, 3, -1, -1)


@torch.no_grad()
def _accuracy(model, chats: Chats, scans, class_ids) -> float:
    """Returns the share of pictures whose first answer token is the right name."""
    batch = chats.pad([chats.names[class_id][0] for class_id in class_ids.tolist()])
    labels = batch.pop("labels")
    first = (labels != IGNORED_LABEL).long().argmax(dim=1)
    rows = torch.arange(len(labels))
    logits = model(pixel_values=_pixels(scans), **batch).logits
    guessed = logits[rows, first - 1].argmax(dim=-1)
    return (guessed == labels[rows, first]).float().mean().item()


def _symbol_names(count: int, generator: torch.Generator) -> list[str]:
    """Returns that many invented three-letter names."""
    spelled = ["".join(n) for n in itertools.product("bdfgklmnprstvz", "aeiou", "bdfgklmnprst")]
    order = torch.randperm(len(spelled), generator=generator)[:count]
    return [spelled[i] for i in order.tolist()]


def main() -> None:
    """Pretrains into the folder on the command line, by default the one that is committed."""
    parser = argparse.ArgumentParser(description="Pretrain the demo's base model.")
    default = Path(__file__).parent / "model"
    parser.add_argument("out_dir", type=Path, nargs="?", default=default)
    out_dir = parser.parse_args().out_dir
    result = pretrain(out_dir)
    sys.stdout.write(
        f"saved {result['parameters']} parameters to {out_dir}: "
        f"{result['accuracy']:.1%} of new drawings named after {result['seconds']:.0f} s\n"
    )


if __name__ == "__main__":
    main()
