"""The pictures in a folder, by the endings of their names."""

import os
from pathlib import Path

ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".ico"),
    *(".avif", ".heic", ".heif", ".jp2"),
)


def pictures_in(path: Path) -> list[tuple[str, Path]]:
    """Return (name below the folder, absolute path) of every picture in a folder and below it, by name.

    Of one picture itself the same; nothing of another file.
    """
    if not path.is_dir():
        return [(path.name, path.absolute())] if path.suffix.lower() in ENDINGS and path.is_file() else []
    found = [
        Path(folder, name) for folder, _, names in os.walk(path) for name in names if name.lower().endswith(ENDINGS)
    ]
    return [(file.relative_to(path).as_posix(), file.absolute()) for file in sorted(found)]
