"""The rows that a config names, read and looked at: shared by the commands that read data."""

from pathlib import Path
from typing import TYPE_CHECKING

from vlmtune.workflow.progress import progress

if TYPE_CHECKING:
    from vlmtune.config.load import LoadedConfig
    from vlmtune.data.types import Rows


def read_rows(loaded: "LoadedConfig", path: Path, *, live: bool) -> "Rows":
    """Return the rows of `path` by the config's data settings, unusable pictures among the bad rows.

    `live`: long work on them may be shown on a terminal.
    """
    from vlmtune.data.checked import with_images_checked
    from vlmtune.data.samples import read_samples

    data, told = loaded.config.data, progress(live)
    image_dir = loaded.resolve_path(data.image_dir) if data.image_dir else None
    rows = read_samples(path, image_dir=image_dir, allow_urls=data.allow_urls, progress=told)
    return with_images_checked(rows, progress=told)
