"""Draws the pictures that the demo's base model is pretrained on: letters and invented symbols.

A drawing class is a list of strokes through control points. A picture of it shakes the points,
bends the page, draws at 32x32 in black and white and counts ink in blocks of 4x4, which is how
old 8x8 scans of handwriting were made. No picture of the digit data set is used, and no class
here is a digit. Only `vlmtune.demo.pretrain` imports this file.

Shapes: B pictures, C control points, K points along the strokes, S side of the fine page.
"""

from dataclasses import dataclass

import torch

FINE_SIDE = 32
SCAN_SIDE = 8
NUM_POINTS = 72
MAX_STROKES = 3

# "xy" control points on a 5x7 grid, y down; a point given twice is a corner, "/" lifts the pen.
LETTERS = {
    "a": ("06 20 20 46/14 34", "32 12 03 05 16 26 34/32 36"),
    "b": ("00 06/00 30 41 32 03 03 33 44 45 36 06", "00 06/03 12 32 43 45 36 16 05"),
    "c": ("41 30 10 01 05 16 36 45",),
    "d": ("00 06/00 20 42 44 26 06", "40 46/43 32 12 03 05 16 36 45"),
    "e": ("40 00 00 06 06 46/03 33", "04 44 43 32 12 03 05 16 36 45"),
    "f": ("40 00 00 06/03 33", "30 20 11 16/03 33"),
    "g": ("41 30 10 01 05 16 36 45 43 43 23", "31 11 02 03 14 24 32 31 31 35 26 06"),
    "h": ("00 06/40 46/03 43", "00 06/04 13 33 44 46"),
    "i": ("10 30/20 26/16 36",),
    "j": ("30 35 26 16 05", "10 30 30 35 26 06"),
    "k": ("00 06/40 03 03 46", "00 06/32 04 04 36"),
    "l": ("00 06 06 46",),
    "m": ("06 00 00 24 24 40 40 46", "06 03/04 13 24 26/24 33 44 46"),
    "n": ("06 00 00 46 46 40", "02 06/03 12 32 43 46"),
    "o": ("20 00 03 06 26 46 43 40 20",),
    "p": ("06 00 00 30 41 42 33 03",),
    "q": ("20 00 03 06 26 46 43 40 20/34 46", "31 11 02 03 14 24 32 31 31 36 46"),
    "r": ("06 00 00 30 41 32 03/23 46", "02 06/04 13 32"),
    "s": ("41 30 10 01 02 13 33 44 45 36 16 05",),
    "t": ("00 40/20 26", "10 15 26 36/02 32"),
    "u": ("00 04 06 26 46 44 40", "02 05 16 26 35 32 32 36"),
    "v": ("00 26 26 40",),
    "w": ("00 16 16 22 22 36 36 40",),
    "x": ("00 46/40 06",),
    "y": ("00 23 23 40/23 26", "00 23/40 06"),
    "z": ("00 40 40 06 06 46",),
}


@dataclass(frozen=True)
class Drawing:
    """One class of pictures: its name, its kind ("letter" or "symbol") and its strokes."""

    name: str
    kind: str
    strokes: tuple[torch.Tensor, ...]  # each [C, 2], in 0..1


def letter_drawings() -> list[Drawing]:
    """Returns every shape of the 26 letters, capital and small."""
    return [
        Drawing(letter, "letter", tuple(_points(part) for part in shape.split("/")))
        for letter, shapes in LETTERS.items()
        for shape in shapes
    ]


def symbol_drawings(names: list[str], generator: torch.Generator) -> list[Drawing]:
    """Returns one invented symbol of one to three random strokes for each name."""
    return [Drawing(name, "symbol", _random_strokes(generator)) for name in names]


def scan(drawings: list[Drawing], class_ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns a noisy 8x8 scan of each named class, ink 0 to 16, as uint8 [B, 8, 8]."""
    control, mixing = _tables(drawings)
    scans = []
    for ids in class_ids.split(512):
        shake = 0.02 + 0.06 * torch.rand(len(ids), 1, 1, generator=generator)
        points = control[ids]
        points = points + shake * torch.randn(points.shape, generator=generator)
        points = _place(_bend(mixing[ids] @ points, generator), generator)
        scans.append(_ink(points, generator))
    return torch.cat(scans)


def _points(text: str) -> torch.Tensor:
    """Returns control points [C, 2] in 0..1 from grid text such as "00 06"."""
    pairs = [(int(pair[0]) / 6 + 1 / 6, int(pair[1]) / 6) for pair in text.split()]
    return torch.tensor(pairs)


def _random_strokes(generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Returns the strokes of one invented symbol."""
    strokes = []
    num_strokes = 1 + int(torch.randint(MAX_STROKES, (), generator=generator))
    for _ in range(num_strokes):
        fewest = 3 if num_strokes == 1 else 2
        num_points = fewest + int(torch.randint(6 - num_strokes, (), generator=generator))
        cells = [torch.randint(12, (), generator=generator)]
        while len(cells) < num_points:  # no point twice in a row: strokes stay long and readable
            cells.append((cells[-1] + torch.randint(1, 12, (), generator=generator)) % 12)
        cell = torch.stack(cells)
        points = torch.stack((cell % 3, cell // 3), dim=-1) / torch.tensor([2.6, 3.0])
        points = points + 0.08 * torch.randn(points.shape, generator=generator)
        corners = torch.rand(num_points, generator=generator) < 0.25
        strokes.append(points.repeat_interleave(1 + corners.long(), dim=0))
    return tuple(strokes)


def _tables(drawings: list[Drawing]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns control points [N, C, 2] and the matrices [N, K, C] that mix them into curves."""
    num_control = max(sum(len(s) for s in d.strokes) for d in drawings)
    control = torch.zeros(len(drawings), num_control, 2)
    mixing = torch.zeros(len(drawings), NUM_POINTS, num_control)
    for row, drawing in enumerate(drawings):
        spans = torch.tensor([(s[1:] - s[:-1]).norm(dim=1).sum() for s in drawing.strokes])
        ends = (spans.cumsum(0) / spans.sum() * NUM_POINTS).round().long().tolist()
        first_point = first_control = 0
        for stroke, end in zip(drawing.strokes, ends, strict=True):
            last_control = first_control + len(stroke)
            control[row, first_control:last_control] = stroke
            curve = _curve(len(stroke), end - first_point)
            mixing[row, first_point:end, first_control:last_control] = curve
            first_point, first_control = end, last_control
    return control, mixing


def _curve(num_control: int, num_points: int) -> torch.Tensor:
    """Returns the weights [points, C] of a quadratic B-spline that reaches both end points."""
    num_padded = num_control + 2  # both ends given twice, so that the curve starts and ends there
    position = torch.linspace(0, num_padded - 2 - 1e-4, num_points)
    left = position.floor().long()
    t = position - left
    weights = torch.zeros(num_points, num_padded)
    pieces = ((1 - t) ** 2 / 2, 0.5 + t - t**2, t**2 / 2)
    for offset, piece in enumerate(pieces):
        weights[torch.arange(num_points), left + offset] = piece
    folded = weights[:, 1:-1].clone()
    folded[:, 0] += weights[:, 0]
    folded[:, -1] += weights[:, -1]
    return folded


def _bend(points: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns the points [B, K, 2] slanted, turned, stretched and slightly waved."""

    def spread(width: float) -> torch.Tensor:
        return width * (2 * torch.rand(len(points), 1, generator=generator) - 1)

    x, y = (points - 0.5).unbind(-1)
    x = x + 0.05 * torch.sin(6 * y + spread(3.14)) + spread(0.35) * y
    y = y + 0.05 * torch.sin(6 * x + spread(3.14))
    x = x * torch.exp(spread(0.4) - 0.2)
    angle = spread(0.25)
    return torch.stack((x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()), dim=-1)


def _place(points: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns the points [B, K, 2] scaled to fill the page, in pixels of the fine page."""
    low, high = points.amin(1, keepdim=True), points.amax(1, keepdim=True)
    span = (high - low).amax(-1, keepdim=True).clamp_min(1e-3)
    inside = 0.76 + 0.18 * torch.rand(len(points), 1, 1, generator=generator)
    shift = 1.5 * torch.randn(len(points), 1, 2, generator=generator)
    return (points - (low + high) / 2) / span * inside * FINE_SIDE + FINE_SIDE / 2 + shift


def _ink(points: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns the ink counts [B, 8, 8], 0 to 16, of a pen drawn through the points."""
    axis = torch.arange(FINE_SIDE) + 0.5
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    radius = 1.2 + 1.6 * torch.rand(len(points), 1, generator=generator)
    distance = torch.cdist(pixels.expand(len(points), -1, -1), points).amin(-1)  # [B, S*S]
    page = (distance < radius).float().view(-1, 1, FINE_SIDE, FINE_SIDE)
    counts = torch.nn.functional.avg_pool2d(page, FINE_SIDE // SCAN_SIDE).squeeze(1) * 16
    strength = 0.85 + 0.15 * torch.rand(len(points), 1, 1, generator=generator)
    noise = 0.4 * torch.randn(counts.shape, generator=generator)
    return (counts * strength + noise).round().clamp(0, 16).to(torch.uint8)
