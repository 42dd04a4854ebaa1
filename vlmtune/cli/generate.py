"""`vlmtune generate`: one answer of a tuned model."""

from pathlib import Path
from typing import Annotated

import typer

from vlmtune.cli.options import JsonOption, RunArgument

EXAMPLE = 'Example: [bold]vlmtune generate runs/my-run --image cat.jpg --prompt "What is this?"[/bold]'


def generate(
    run: RunArgument,
    prompt: Annotated[str, typer.Option("--prompt", help="The question.")],
    image: Annotated[list[Path] | None, typer.Option("--image", help="A picture. Repeatable.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 256,
    as_json: JsonOption = False,
) -> None:
    """Ask the tuned model one question about one or several pictures, or none."""
    from vlmtune.data.images import open_image
    from vlmtune.data.types import ImageRef, Sample, Turn
    from vlmtune.runs.folder import RunFolder

    folder = RunFolder.open_existing(run)
    images = tuple(ImageRef(path=str(path.absolute())) for path in image or ())
    for ref in images:
        open_image(ref, max_side_px=None)
    from vlmtune.workflow.start import start_on_gpu

    start_on_gpu()
    from vlmtune.engine.evaluate import generate as ask
    from vlmtune.engine.runtime import quiet_libraries
    from vlmtune.engine.tuned import load_tuned

    quiet_libraries()
    sample = Sample((Turn("user", (*images, prompt)), Turn("assistant", ("",))), "--prompt")
    [written] = ask(load_tuned(folder), [sample], max_new_tokens)
    if written.is_cut:
        typer.echo(f"cut at {max_new_tokens} tokens: --max-new-tokens N lets the answer be longer", err=True)
    if as_json:
        from vlmtune.cli.show import render

        asked = {"prompt": prompt, "images": [str(path) for path in image or ()]}
        render.print_json({**asked, "answer": written.answer, "thought": written.thought, "cut": written.is_cut})
        return
    typer.echo(written.answer)
