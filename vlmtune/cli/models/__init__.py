"""`vlmtune models`: the catalogue, and what vlmtune can do with any other model. One file a command."""

import typer

from vlmtune.cli.models import check, list, show

app = typer.Typer(
    help="Models: list those known, show one, check any other.",
    no_args_is_help=True,
    epilog=list.EXAMPLE,
)
app.command("list", epilog=list.EXAMPLE)(list.list_models)
app.command("show", epilog=show.EXAMPLE)(show.show_model)
app.command("check", epilog=check.EXAMPLE)(check.check_model)
