"""Arguments and flags that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="The YAML file of the run.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder that `vlmtune train` wrote.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key, such as training.lora.rank=16. Repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
