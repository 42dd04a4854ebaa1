"""What is asked: a run, one of its checkpoints, its base as it was, or a whole model."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vlmtune.errors import VlmtuneError
from vlmtune.printing import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vlmtune.data.types import ImageRef, Sample
    from vlmtune.engine.tuned import Tuned
    from vlmtune.runs.folder import Learned, RunFolder


@dataclass(frozen=True)
class Asked:
    """What somebody wants to ask, found on disk."""

    path: Path
    folder: "RunFolder | None"
    """None of a whole model."""
    learned: "Learned | None"
    """None where the base is asked as it was."""
    base_model: str | None

    def load(self, samples: "Sequence[Sample]" = ()) -> "Tuned":
        """Return the model, and say what there is to be told of it; to be called before torch is imported.

        Raises:
            VlmtuneError: it cannot take one of the samples that it is to answer, or cannot be loaded.
        """
        from vlmtune.workflow.start import start_on_gpu

        start_on_gpu()
        from vlmtune.engine.runtime import quiet_libraries
        from vlmtune.engine.tuned import load_tuned, load_untuned, load_whole, plan_here

        quiet_libraries()
        if self.folder is None:
            tuned, note = load_whole(self.path, samples)
        elif self.learned is None:
            tuned, note = load_untuned(plan_here(self.folder, self.base_model), samples), None
        else:
            plan, note = plan_here(self.folder, self.base_model), self.learned.note
            tuned = load_tuned(plan, self.learned, samples=samples)
        if note:
            say(note, err=True)
        return tuned


def find(run: Path, checkpoint: str | None, base_model: str | None, *, base: bool) -> Asked:
    """Return what is asked; raise for flags that it does not have."""
    from vlmtune.engine.ranks.single import refuse_several_processes
    from vlmtune.runs.folder import RunFolder

    refuse_several_processes()
    refuse_base_of_checkpoint(base, checkpoint)
    if _is_whole(run):
        if checkpoint or base_model or base:
            raise typer.BadParameter(f"{run} is a whole model: it has neither checkpoints nor a base", param_hint="RUN")
        return Asked(run, None, None, None)
    folder = RunFolder.open_existing(run)
    return Asked(run, folder, None if base else folder.learned(checkpoint), base_model)


def refuse_base_of_checkpoint(base: bool, checkpoint: str | None) -> None:
    """Raise where both are asked."""
    if base and checkpoint:
        raise typer.BadParameter("--base asks the model before the run, which is no checkpoint", param_hint="--base")


def refuse_blank(prompt: str | None) -> None:
    """Raise where a question is given and says nothing."""
    if prompt is not None and not prompt.strip():
        raise typer.BadParameter("it says nothing: write the question", param_hint="--prompt")


def pictures(paths: list[Path]) -> "tuple[ImageRef, ...]":
    """Return pictures that can be opened; raise for the first that cannot."""
    from vlmtune.data.images import open_image
    from vlmtune.data.types import ImageRef

    refs = tuple(ImageRef(path=str(path.expanduser().absolute())) for path in paths)
    for ref in refs:
        try:
            open_image(ref, max_side_px=None)
        except VlmtuneError as error:  # whose hint is for rows where there is no such file
            hint = error.hint if Path(ref.path).exists() else "paths start from the folder that the command runs in"
            raise VlmtuneError(error.message, hint) from None
    return refs


def _is_whole(folder: Path) -> bool:
    return (folder / "config.json").is_file() and not (folder / "plan.json").exists()
