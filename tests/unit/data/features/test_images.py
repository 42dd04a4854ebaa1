"""Images are found once, by their content, wherever and however often rows have them."""

from pathlib import Path

import pytest
from tiny.rows import picture, sample

from vlmtune.data.features.images import row_images
from vlmtune.data.progress import silent
from vlmtune.data.types import ImageRef
from vlmtune.errors import VlmtuneError


def test_each_content_is_one_image(tmp_path):
    first, twin = picture(tmp_path, "a", (40, 60), "red"), picture(tmp_path, "b", (40, 60), "red")
    other = picture(tmp_path, "c", (90, 30), "blue")
    data = ImageRef(data=Path(other.path).read_bytes())
    images = row_images([sample("?", "!", first, other), sample("?", "!"), sample("?", "!", twin, data)], 45, silent)
    assert len(images.digests) == 2 and len(set(images.digests)) == 2
    assert [images.of_row(row) for row in range(3)] == [[0, 1], [], [0, 1]]
    assert images.sizes_px.tolist() == [[30, 45], [45, 15]]
    assert images.ref(1) == other


def test_an_image_that_cannot_be_read_names_its_row(tmp_path):
    rows = [sample("?", "!", ImageRef(path=str(tmp_path / "gone.png")), where="rows.jsonl:7")]
    with pytest.raises(VlmtuneError, match=r"rows.jsonl:7: image .*gone.png does not exist"):
        row_images(rows, None, silent)
