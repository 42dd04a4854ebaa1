"""Writes the demo data set: scanned handwritten digits with questions, and answers in words.

The pictures are the 1,797 scans that scikit-learn carries, so no network is needed. Nothing in
the package imports this file; it is run by `make demo`, by hand and by tests.
"""

import argparse
import json
import random
import sys
from pathlib import Path

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QUESTIONS = (
    "Which digit is written here?",
    "What digit is this?",
    "Read the digit in the picture.",
    "Name the digit that you see.",
)
SIDE_PIXELS = 32
HELDOUT_FRACTION = 0.2
SEED = 0


def write_digits(out_dir: Path) -> dict:
    """Returns the counts of what it wrote: `images`, `train`, `heldout` and the folder, `out_dir`.

    Writes `images/0000.png` and so on, `train.jsonl` and `heldout.jsonl`; rows name their image
    relative to `out_dir`. The same bytes come out of every call.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    out_dir = Path(out_dir)
    (out_dir / "images").mkdir(parents=True, exist_ok=True)
    rng = random.Random(SEED)
    rows = []
    for index, (scan, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        name = f"images/{index:04d}.png"
        _picture(scan).save(out_dir / name)
        rows.append({"image": name, "question": rng.choice(QUESTIONS), "answer": WORDS[label]})
    train, heldout = train_test_split(rows, test_size=HELDOUT_FRACTION, random_state=SEED, stratify=digits.target)
    _write_rows(out_dir / "train.jsonl", train)
    _write_rows(out_dir / "heldout.jsonl", heldout)
    return {
        "images": len(rows),
        "train": len(train),
        "heldout": len(heldout),
        "out_dir": str(out_dir),
    }


def _picture(scan):
    """Returns the 8x8 scan (ink 0 to 16) as dark ink on white paper, smoothly enlarged."""
    import numpy as np
    from PIL import Image

    grey = np.rint(255 - scan * (255 / 16)).astype(np.uint8)
    small = Image.fromarray(grey)
    return small.resize((SIDE_PIXELS, SIDE_PIXELS), Image.Resampling.BICUBIC).convert("RGB")


def _write_rows(path: Path, rows: list[dict]) -> None:
    """Writes one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Writes the data set to the folder named on the command line and says so in one line."""
    parser = argparse.ArgumentParser(description="Write the digit data set of the demo.")
    parser.add_argument("out_dir", type=Path, help="folder to write to; made if missing")
    wrote = write_digits(parser.parse_args().out_dir)
    sys.stdout.write(
        f"wrote {wrote['images']} images, {wrote['train']} training and "
        f"{wrote['heldout']} held-out rows to {wrote['out_dir']}\n"
    )


if __name__ == "__main__":
    main()
