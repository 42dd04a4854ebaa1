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
CheckpointOption = Annotated[
    str | None,
    typer.Option(
        metavar="STEP",
        help="Take this checkpoint, or `newest`. Default: what the finished run has left; before that, the newest.",
        show_default=False,
    ),
]
BaseModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="DIR", help="Where the base model is now, if it or the run was moved.", show_default=False
    ),
]
AskedArgument = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="The run folder that `vlmtune train` wrote, or the model that merge wrote."),
]
UntunedOption = Annotated[bool, typer.Option("--base", help="Ask the base model as it was before the run.")]
TemperatureOption = Annotated[
    float, typer.Option(min=0.0, max=10.0, help="Draw tokens, more freely the higher. 0: always the likeliest.")
]
TopPOption = Annotated[
    float, typer.Option(min=0.01, max=1.0, help="Draw from the likeliest tokens with this probability together.")
]
MaxNewTokensOption = Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Rows that are answered at once. Default: as many as memory leaves room for.", show_default=False
    ),
]
