"""`vlmtune validate --preview N`: rows as the model will see them. Loads the model's processor, not the model."""

from typing import TYPE_CHECKING

from vlmtune.printing import say

if TYPE_CHECKING:
    from vlmtune.config.load import LoadedConfig
    from vlmtune.data.types import Rows


def print_preview(loaded: "LoadedConfig", data: "dict[str, Rows]", num_rows: int) -> None:
    """Print rows: learned tokens green (between » and « where there is no colour), read tokens plain.

    Raises:
        VlmtuneError: rows of the data files do not fit the model.
    """
    from rich.text import Text

    from vlmtune.cli.show import render
    from vlmtune.engine.runtime import quiet_libraries
    from vlmtune.workflow.fitting import fitting_rows
    from vlmtune.workflow.job import make_run_plan
    from vlmtune.workflow.start import start_on_gpu

    start_on_gpu()
    plan, source = make_run_plan(loaded)
    quiet_libraries()
    from vlmtune.data.dataset import TuneDataset
    from vlmtune.data.preview import pieces
    from vlmtune.data.run_data import MeasuredRows
    from vlmtune.data.types import count
    from vlmtune.models.build import family_of
    from vlmtune.models.processor import load_processor

    fitting = {}
    for key, rows in data.items():
        fitting[key], bad_rows = fitting_rows(MeasuredRows(rows.samples, loaded.config.data.on_bad_row), plan, source)
        if bad_rows:
            say(f"data.{key}: {count(len(bad_rows), 'row')} skipped that the model cannot take", err=True)
    processor = load_processor(plan)
    out = render.console()
    colour = out.color_system is not None
    for row in TuneDataset(fitting["train_path"].samples[:num_rows], processor, family_of(plan), plan):
        found = pieces(row, processor)
        learned = sum(piece.num_tokens for piece in found if piece.kind == "learned")
        head = f"{row.where}: {row.num_text_tokens} text and {row.num_image_tokens} image tokens, {learned} learned"
        out.print()
        out.print(Text(head, style="bold"), soft_wrap=True)
        shown = Text()
        for piece in found:
            mark = piece.kind == "learned" and not colour
            style = {"learned": "bold green", "image": "cyan", "read": ""}[piece.kind]
            shown.append(f"»{piece.text}«" if mark else piece.text, style=style)
        out.print(shown)
