"""`vlmtune generate`: one answer of a tuned model, as a run folder or merged."""

from pathlib import Path
from typing import Annotated

import typer

from vlmtune.cli.options import BaseModelOption, CheckpointOption, JsonOption
from vlmtune.printing import say

EXAMPLE = 'Example: [bold]vlmtune generate runs/my-run --image cat.jpg --prompt "What is this?"[/bold]'


def generate(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="The run folder that `vlmtune train` wrote, or the model that merge wrote."),
    ],
    prompt: Annotated[str, typer.Option("--prompt", help="The question.")],
    image: Annotated[list[Path] | None, typer.Option("--image", help="A picture. Repeatable.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 256,
    checkpoint: CheckpointOption = None,
    base_model: BaseModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the tuned model one question about one or several pictures, or none."""
    from vlmtune.data.images import open_image
    from vlmtune.data.types import ImageRef, Sample, Turn
    from vlmtune.runs.folder import RunFolder

    folder = None if _is_whole(run) else RunFolder.open_existing(run)
    if folder is None and (checkpoint or base_model):
        raise typer.BadParameter(f"{run} is a whole model: it has neither checkpoints nor a base", param_hint="RUN")
    learned = folder.learned(checkpoint) if folder else None
    images = tuple(ImageRef(path=str(path.absolute())) for path in image or ())
    for ref in images:
        open_image(ref, max_side_px=None)
    from vlmtune.workflow.start import start_on_gpu

    start_on_gpu()
    from vlmtune.engine.evaluate import generate as ask
    from vlmtune.engine.runtime import quiet_libraries
    from vlmtune.engine.tuned import load_tuned, load_whole, plan_here

    quiet_libraries()
    sample = Sample((Turn("user", (*images, prompt)), Turn("assistant", ("",))), "--prompt")
    if folder:
        tuned, note = load_tuned(plan_here(folder, base_model), learned), learned.note
    else:
        tuned, note = load_whole(run)
    if note:
        say(note, err=True)
    [written] = ask(tuned, [sample], max_new_tokens)
    if written.is_cut:
        say(f"cut at {max_new_tokens} tokens: --max-new-tokens N lets the answer be longer", err=True)
    if as_json:
        from vlmtune.cli.show import render

        asked = {"prompt": prompt, "images": [str(path) for path in image or ()]}
        render.print_json({**asked, "answer": written.answer, "thought": written.thought, "cut": written.is_cut})
        return
    say(written.answer)


def _is_whole(folder: Path) -> bool:
    return (folder / "config.json").is_file() and not (folder / "plan.json").exists()
