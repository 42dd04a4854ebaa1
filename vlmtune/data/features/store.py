"""Features of images on disk: safetensors files in a folder that is named by all that makes them, mapped into memory.

A file is written under another name and renamed when it is whole, so a kill leaves whole files only. Its name follows
from the images in it: two runs that encode the same ones write the same files. Each says what it was made of.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlmtune.errors import VlmtuneError
from vlmtune.files import PARTIAL, cache_folder, is_disk_full, sync
from vlmtune.levers.features import KEY
from vlmtune.units import GIB

FORMAT = "1"
SUFFIX = ".safetensors"
ABANDONED_S = 3600
"""A half-written file that was not written to for so long belongs to a process that was killed."""
SPARE_BYTES = GIB
"""Of the disk: left free for everything else."""


def features_folder() -> Path:
    """Return where the features of all models are."""
    return cache_folder() / "features"


class FeatureStore:
    """The features of images under one model and one setting of its processor."""

    def __init__(self, made_of: str) -> None:
        """Open what is there.

        Args:
            made_of: digest of all that decides a feature besides the image.

        Raises:
            VlmtuneError: a file is damaged, of another version, or of another model.
        """
        self.made_of = made_of
        self.folder = features_folder() / made_of[:32]
        self.form: str | None = None
        """How the model gives its features to itself (`models.features`); None while there are none."""
        self._files: dict[str, safe_open] = {}
        self._place_of: dict[str, str] = {}
        """Digest of an image → the file that holds its features."""
        self.look()

    def __getstate__(self) -> dict:
        """Leave out open files: another process opens its own."""
        return vars(self) | {"_files": {}}

    def __contains__(self, digest: str) -> bool:
        return digest in self._place_of

    def __getitem__(self, digest: str) -> Tensor:
        """Return the features of an image, a view of the mapped file: [K, tokens, H] or [K, tiles, T, H]."""
        return self._open(self._place_of[digest]).get_tensor(digest)

    def look(self) -> None:
        """Take in the files that this or another run has written since."""
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            if path.name not in self._files:
                self._place_of |= dict.fromkeys(self._checked(path).keys(), path.name)
        with suppress(OSError):  # a cache that cannot be written can be read
            os.utime(self.folder)

    def _checked(self, path: Path) -> safe_open:
        """Return an opened file whose features may be used."""
        file = self._open(path.name)
        said = file.metadata() or {}
        if said.get("format") != FORMAT:
            raise _refused(path, f"is of format {said.get('format')}, this vlmtune reads {FORMAT}")
        if said.get("made_of") != self.made_of:
            raise _refused(path, "was made of other weights, or of another setting")
        self.form = said["form"]
        return file

    def _open(self, name: str) -> safe_open:
        if name not in self._files:
            path = self.folder / name
            try:
                self._files[name] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise _refused(path, f"is damaged: {error}") from None
        return self._files[name]

    def write(self, features: dict[str, Tensor], form: str) -> None:
        """Keep the features of some images, by their digests: all of them or none.

        Raises:
            VlmtuneError: the disk is full, or the folder cannot be written.
        """
        path = self.folder / _name_of(features)
        partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(features, partial, {"format": FORMAT, "made_of": self.made_of, "form": form})
            sync(partial)
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            raise full_disk(self.folder) if is_disk_full(error) else not_writable(self.folder) from None
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        sync(self.folder)
        self.look()

    def forget(self, wanted: Collection[str]) -> int:
        """Remove the files without a single image that is wanted, and return their bytes."""
        used = {self._place_of[digest] for digest in wanted if digest in self}
        unused, freed = set(self._files) - used, 0
        for path in (self.folder / name for name in sorted(unused)):
            freed += path.stat().st_size
            del self._files[path.name]
            path.unlink()
        self._place_of = {digest: name for digest, name in self._place_of.items() if name in used}
        return freed


def _name_of(digests: Collection[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:32] + SUFFIX


def _refused(path: Path, what: str) -> VlmtuneError:
    return VlmtuneError(f"the cached features in {path} cannot be used: the file {what}", "delete it: it is made again")


def full_disk(folder: Path, told: str = "") -> VlmtuneError:
    """Return the error for features that find no room."""
    return VlmtuneError(
        f"the disk is full: {told}features of images are kept in {folder}",
        f"free some space, or set {KEY}: false; images that are encoded already stay so",
    )


def not_writable(folder: Path) -> VlmtuneError:
    """Return the error for a folder that takes no features."""
    return VlmtuneError(
        f"{KEY}: features of images cannot be written to {folder}", f"change its permissions, or set {KEY}: false"
    )


def free_bytes() -> int | None:
    """Return what may be written into the features' folder, which need not exist yet; None: it cannot be written."""
    place = features_folder()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        return None
    return max(0, shutil.disk_usage(place).free - SPARE_BYTES)


def make_room(store: FeatureStore, wanted: Collection[str], needed_bytes: int, budget_bytes: int) -> int:
    """Remove features until `needed_bytes` more are within the budget, and return the bytes of those removed.

    First those of other models, unused for longest first, then those of this one of images that are not `wanted`.
    """
    folders = [folder for folder in features_folder().glob("*") if folder.is_dir()]
    sizes = {folder: sum(size for _, size in _files_in(folder)) for folder in folders}
    over, removed = sum(sizes.values()) + needed_bytes - budget_bytes, 0
    for folder in sorted(set(folders) - {store.folder}, key=lambda one: one.stat().st_mtime):
        if removed < over:
            shutil.rmtree(folder, ignore_errors=True)
            removed += sizes[folder]
    return removed + (store.forget(wanted) if removed < over else 0)


def forget_abandoned() -> None:
    """Remove what killed processes have left half-written."""
    for path, _ in _files_in(features_folder()):
        with suppress(OSError):  # another run may remove it at this moment
            if path.name.endswith(PARTIAL) and time.time() - path.stat().st_mtime > ABANDONED_S:
                path.unlink()


def _files_in(folder: Path) -> Iterator[tuple[Path, int]]:
    for path in folder.rglob("*"):
        with suppress(OSError):
            if path.is_file():
                yield path, path.stat().st_size
