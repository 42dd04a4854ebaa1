"""`vlmtune merge`: adapter and base become one model, and it is proven to answer the same."""

from pathlib import Path
from typing import Annotated

import typer

from vlmtune.cli.options import BaseModelOption, CheckpointOption, JsonOption, RunArgument
from vlmtune.cli.show.share import upload_line
from vlmtune.printing import say

EXAMPLE = "Example: [bold]vlmtune merge runs/my-run -o my-model[/bold]"


def merge(
    run: RunArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; must be new or empty.")],
    checkpoint: CheckpointOption = None,
    base_model: BaseModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Merge the adapter into the 16-bit base, load the result and compare its logits with base + adapter."""
    import dataclasses
    import shlex

    from vlmtune.engine.ranks.single import refuse_several_processes
    from vlmtune.runs.folder import RunFolder
    from vlmtune.workflow.start import start_on_gpu

    refuse_several_processes()
    folder = RunFolder.open_existing(run)
    learned = folder.learned(checkpoint)
    start_on_gpu()
    from vlmtune.engine.merge import merge as run_merge
    from vlmtune.engine.results.card import write_card
    from vlmtune.engine.runtime import quiet_libraries
    from vlmtune.engine.tuned import plan_here
    from vlmtune.runs.records import read_report

    quiet_libraries()
    plan = plan_here(folder, base_model)
    if learned.note:
        say(learned.note, err=True)
    proof = run_merge(plan, learned, out)
    write_card(out, plan, read_report(folder.report_json), whole=True)
    if as_json:
        from vlmtune.cli.show import render

        render.print_json({**dataclasses.asdict(proof), "relative_difference": proof.relative, "out": str(out)})
        return
    say(f"merged into {out}")
    say(
        f"logits of base + adapter and of the merged model differ by at most {proof.largest_difference:.2e}, "
        f"{proof.relative:.1e} of the largest logit (bound {proof.bound:.0e}); "
        f"{proof.same_best_tokens:.0%} of the best tokens are the same"
    )
    if proof.unpacked_base:
        say("the base's files are in 4 bits: they were unpacked to 16, and the merged model keeps their rounding")
    say(f"share it: {upload_line(plan.experiment_name, out)} (its README.md says what it is: read it first)")
    say(f'try it: vlmtune generate {shlex.quote(str(out))} --image IMAGE --prompt "QUESTION"')
