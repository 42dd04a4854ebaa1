"""A hub model → its folder in the local cache: only the files that are needed, each byte fetched once. No torch here.

huggingface_hub does the work but for large files: it drops what it has of a file when its process ends (since 1.17),
and a connection cut after 13 of 14 GB would begin at nothing. Weights are fetched with its `http_get` into a partial
file that stays, and are compared with the hub's SHA-256 before they get their place in its cache.
"""

import hashlib
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from vlmtune.compat.huggingface_hub import HTTP_GET, REPO_FOLDER_NAME, WEAK_FILE_LOCK
from vlmtune.errors import VlmtuneError
from vlmtune.hub.commits import hub_errors
from vlmtune.hub.shards import INDEX, PICKLES, SINGLE, stored_tensors, weight_map

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
"""Config, processor, tokenizer and the index of the weights."""
NOT_NEEDED = ["original/*", "onnx/*", "*.gguf", "*.pt", "*.bin"]
Advance = Callable[[int], None]


def checkpoint_folder(model: str, revision: str | None, *, weights: bool = True, live: bool = True) -> Path:
    """Return the folder of a model: `model` itself, or the hub model's files in the cache, downloaded if absent.

    Once a commit is in the cache, the hub is not asked again. `weights=False` fetches the small files only;
    `live=False` shows no progress bar.

    Raises:
        VlmtuneError: the hub refuses or cannot be reached, the disk is full, or the model has no safetensors.
    """
    if Path(model).is_absolute() or model.startswith("."):
        if not Path(model).is_dir():
            raise VlmtuneError(f"there is no folder {model}", "put the model back where it was")
        return Path(model)
    folder, files = _small_files(model, revision)
    if weights and files:
        missing = [file for file in _weight_files(model, folder, files) if not (folder / file.path).exists()]
        if missing:
            _fetch(model, folder.name, missing, live)
            _link(model, folder.name, [file.path for file in missing])
    return folder


def tensor_names(model: str, revision: str | None) -> Collection[str]:
    """Return the names of all tensors of a model; of files that are not here yet, the headers alone are fetched.

    Raises:
        VlmtuneError: as `checkpoint_folder`, or a file that is here is damaged.
    """
    folder = checkpoint_folder(model, revision, weights=False)
    if (folder / INDEX).is_file():
        return weight_map(folder / INDEX)
    if (folder / SINGLE).is_file() or folder == Path(model):
        return stored_tensors(folder)
    from huggingface_hub import HfApi

    _, files = _small_files(model, revision)
    (single,) = _weight_files(model, folder, files)
    with hub_errors(model, revision):
        return HfApi().parse_safetensors_file_metadata(model, single.path, revision=revision).tensors


def _small_files(name: str, revision: str | None) -> "tuple[Path, list[RepoFile]]":
    """Return the snapshot's folder with the small files in it, and all files that the repository has.

    The list is empty when only the cache is there and it was filled by another program, which left no list.
    """
    from huggingface_hub import get_cached_repo_tree, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import CachedRepoTreeNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    try:
        with hub_errors(name, revision):
            found = snapshot_download(name, revision=revision, allow_patterns=SMALL_FILES, ignore_patterns=NOT_NEEDED)
    except VlmtuneError:
        with hub_errors(name, revision):
            config = try_to_load_from_cache(name, "config.json", revision=revision)
        if not isinstance(config, str):
            raise
        found = Path(config).parent
    try:
        return Path(found), get_cached_repo_tree(name, revision=Path(found).name)
    except CachedRepoTreeNotFoundError:
        return Path(found), []


def _weight_files(name: str, folder: Path, files: "Sequence[RepoFile]") -> "list[RepoFile]":
    """Return the files that transformers would load: one file, or those that the index names."""
    names = {file.path for file in files}
    if SINGLE in names:
        wanted = {SINGLE}
    elif INDEX in names:
        wanted = set(weight_map(folder / INDEX).values())
        if absent := sorted(wanted - names):
            raise VlmtuneError(f"{name} lacks {absent[0]}, which its index names", "choose another model.revision")
    else:
        pickles = [path for path in sorted(names) if path.endswith(PICKLES)]
        kind = f"its weights in {pickles[0]}, a pickle" if pickles else "no weights that transformers loads"
        raise VlmtuneError(
            f"model.name: {name} has {kind}: vlmtune loads safetensors only",
            f"look for a revision or a copy with model.safetensors, or fetch all of it (hf download {name} "
            "--local-dir FOLDER) and give the folder: vlmtune says how to convert it",
        )
    return [file for file in files if file.path in wanted]


def _fetch(name: str, commit: str, files: "Sequence[RepoFile]", live: bool) -> None:
    """Download whole files into the cache's blobs, going on where an earlier try ended."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    cache = Path(constants.HF_HUB_CACHE)
    repository = REPO_FOLDER_NAME(repo_id=name, repo_type="model")
    blobs, locks = cache / repository / "blobs", cache / ".locks" / repository
    for folder in (blobs, locks):
        folder.mkdir(parents=True, exist_ok=True)
    sources = {}
    for file in files:
        url = hf_hub_url(name, file.path, revision=commit)
        with hub_errors(name, commit):
            sources[url] = (blobs / (get_hf_file_metadata(url).etag or file.blob_id), file.size)
    total = sum(size for _, size in sources.values())
    parts = [path for blob, _ in sources.values() for path in (blob, _partial(blob))]
    there = sum(map(_size, parts))
    _refuse_full_disk(name, total - there, cache)
    with _lost_connection(name, commit, parts), _shown(name, total, there, live) as advance:
        for url, (blob, size) in sources.items():
            _fetch_file(url, blob, size, locks / f"{blob.name}.lock", advance)


def _fetch_file(url: str, blob: Path, num_bytes: int, lock: Path, advance: Advance) -> None:
    """Complete the partial file of `blob`, check it and give it its name; the lock is the one of huggingface_hub."""
    from huggingface_hub.utils import build_hf_headers

    part = _partial(blob)
    with WEAK_FILE_LOCK(lock):
        if blob.exists():
            return
        if _size(part) > num_bytes:
            part.unlink()
        with part.open("ab") as file:
            HTTP_GET(
                url,
                file,
                resume_size=file.tell(),
                headers=build_hf_headers(),
                expected_size=num_bytes,
                tqdm_class=partial(_Bar, advance),
            )
        with part.open("rb") as file:
            is_sha256 = re.fullmatch(r"[0-9a-f]{64}", blob.name)
            is_damaged = is_sha256 and hashlib.file_digest(file, "sha256").hexdigest() != blob.name
        if is_damaged:
            part.unlink()
            raise VlmtuneError(f"{url} arrived damaged: its SHA-256 is not {blob.name}", "run the command again")
        part.replace(blob)


def _link(name: str, commit: str, paths: list[str]) -> None:
    """Put downloaded blobs into the snapshot's folder under their names."""
    from huggingface_hub import snapshot_download

    with hub_errors(name, commit):
        snapshot_download(name, revision=commit, allow_patterns=paths)


class _Bar:
    """What `http_get` takes for a progress bar; its words go to the bar over all files."""

    def __init__(self, advance: Advance, **_: Any) -> None:
        self.update = advance

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


@contextmanager
def _shown(name: str, total_bytes: int, there_bytes: int, live: bool) -> Iterator[Advance]:
    """Say what will be downloaded, and show how far it is where a terminal can."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from vlmtune.console import SafeConsole

    console = SafeConsole(stderr=True, soft_wrap=True)
    resumed = f", {size_text(there_bytes)} of them are there" if there_bytes else ""
    console.print(f"downloading {name}: {size_text(total_bytes)}{resumed}")
    if not live or not console.is_terminal or console.is_dumb_terminal:
        yield lambda _: None
        return
    bar = BarColumn(bar_width=None, complete_style="cyan", finished_style="green")
    columns = (bar, DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(compact=True), TextColumn("left"))
    with Progress(*columns, console=console, expand=True, transient=True) as progress:
        task = progress.add_task(name, total=total_bytes, completed=there_bytes)
        yield partial(progress.advance, task)


@contextmanager
def _lost_connection(name: str, commit: str, parts: "Sequence[Path]") -> Iterator[None]:
    """One message for a connection that breaks; what has arrived stays."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        yield
    except HfHubHTTPError:
        with hub_errors(name, commit):
            raise
    except (HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            with hub_errors(name, commit):
                raise
        arrived = size_text(sum(_size(path) for path in parts))
        raise VlmtuneError(
            f"the connection to the hub was lost while downloading {name}",
            f"run the command again: it goes on from the {arrived} that have arrived",
        ) from None


def _refuse_full_disk(name: str, needed_bytes: int, cache: Path) -> None:
    free_bytes = shutil.disk_usage(cache).free
    if needed_bytes > free_bytes:
        raise VlmtuneError(
            f"{name} needs {size_text(needed_bytes)} on the disk of {cache}, {size_text(free_bytes)} are free",
            "make room, or set HF_HOME to a folder on a larger disk",
        )


def size_text(num_bytes: float) -> str:
    """Return bytes as people read them: 14.1 GB, 630 MB, 12 kB."""
    for unit in ("bytes", "kB", "MB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"


def _partial(blob: Path) -> Path:
    """Return where a file lies that is not complete; tools that clean the cache know the ending."""
    return blob.with_name(f"{blob.name}.incomplete")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
