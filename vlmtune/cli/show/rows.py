"""`vlmtune validate --preview N`: rows as the model will see them. Loads the model's processor, not the model."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlmtune.config.load import LoadedConfig
    from vlmtune.data.types import Sample


def print_preview(loaded: "LoadedConfig", samples: "list[Sample]") -> None:
    """Print each row: learned tokens green (between » and « where there is no colour), read tokens plain."""
    from rich.text import Text

    from vlmtune.cli.show import render
    from vlmtune.workflow.job import make_run_plan

    plan, source = make_run_plan(loaded)
    from vlmtune.data.dataset import TuneDataset
    from vlmtune.data.preview import pieces
    from vlmtune.models.build import family_of
    from vlmtune.models.processor import load_processor

    processor = load_processor(plan)
    out = render.console()
    colour = out.color_system is not None
    for row in TuneDataset(samples, processor, family_of(plan), plan):
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
