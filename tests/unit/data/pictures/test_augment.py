"""Random changes of training pictures: the same for the same seed, and nothing else of chance is touched."""

import pytest
import torch
from PIL import Image, ImageDraw

from vlmtune.data.pictures.augment import augmented
from vlmtune.plan.types import Augment

CHANGES = [Augment(rotation=5.0), Augment(color_jitter=0.3), Augment(jpeg_quality=10), Augment(3.0, 0.2, 40)]


@pytest.fixture
def page() -> Image.Image:
    image = Image.new("RGB", (60, 40), "black")
    ImageDraw.Draw(image).ellipse((10, 10, 40, 30), fill=(200, 90, 40))
    return image


def changed(page: Image.Image, augment: Augment, *seed: int) -> bytes:
    (image,) = augmented([page], augment, seed)
    assert (image.mode, image.size) == ("RGB", page.size)
    return image.tobytes()


@pytest.mark.parametrize("augment", CHANGES, ids=str)
def test_the_seed_decides_the_picture(augment, page):
    first = changed(page, augment, 1, 2, 3)
    assert first == changed(page, augment, 1, 2, 3) and first != page.tobytes()
    others = [changed(page, augment, *seed) for seed in ((2, 2, 3), (1, 3, 3), (1, 2, 4))]
    assert any(other != first for other in others)


def test_corners_of_a_turned_picture_are_white(page):
    white = next(seed for seed in range(20) if changed(page, Augment(rotation=20.0), seed)[:3] == b"\xff\xff\xff")
    assert white < 20


def test_two_pictures_of_a_row_are_changed_otherwise(page):
    one, other = augmented([page, page], Augment(color_jitter=0.5), (1,))
    assert one.tobytes() != other.tobytes()


def test_chance_outside_goes_on_as_it_was(page):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    augmented([page], CHANGES[-1], (1,))
    assert torch.equal(torch.rand(3), expected)
