"""`vlmtune calibrate`: measure the GPU at hand, so that estimates for it need to assume nothing of it."""

from pathlib import Path
from typing import TYPE_CHECKING

from vlmtune.cli.options import JsonOption
from vlmtune.units import MIB

if TYPE_CHECKING:
    from vlmtune.hardware.calibration import Calibration, ShortRun, Speeds

EXAMPLE = "Example: [bold]vlmtune calibrate[/bold]"


def calibrate(as_json: JsonOption = False) -> None:
    """Measure the GPU here in a minute: context, a short run beside its estimate, how fast it is. Estimates use it."""
    from vlmtune.workflow.start import start_on_gpu

    start_on_gpu()
    from vlmtune.hardware.at_hand import require_card

    require_card()
    from vlmtune.hardware.calibration import keep_calibration
    from vlmtune.workflow.progress import standard_error

    with standard_error(live=not as_json).status("loading libraries…") as status:
        from vlmtune.workflow.calibrate import calibrate

        result = calibrate(lambda doing: status.update(f"{doing}…"))
    path = keep_calibration(result)
    if as_json:
        from dataclasses import asdict

        from vlmtune.cli.show import render

        render.print_json(asdict(result) | {"file": str(path)})
    else:
        _print(result, path)


def _print(result: "Calibration", path: Path) -> None:
    from vlmtune.cli.show import render

    out, setup, figures = render.console(), result.setup, result.figures
    out.print(f"{setup.card}, driver {setup.driver}, torch {setup.torch}", soft_wrap=True)
    out.print()
    table = render.table("the process takes", "MiB", right=("MiB",))
    context = "the driver does not tell" if figures.context_bytes is None else f"{figures.context_bytes / MIB:,.1f}"
    table.add_row("CUDA context", context)
    for name, blocks in zip(("forward", "backward"), figures.cublas_bytes, strict=True):
        table.add_row(f"cuBLAS, {name} pass", " + ".join(f"{size / MIB:,.1f}" for size in blocks) or "0.0")
    out.print(table)
    out.print()
    out.print(_check_table(result.check))
    out.print()
    if result.speeds:
        out.print(_speeds_table(result.speeds))
        out.print()
    out.print(f"kept in {path}: estimates for this card use it", soft_wrap=True)


def _check_table(check: "ShortRun"):
    from vlmtune.cli.show import render

    numbers = ("estimated, MiB", "measured, MiB", "difference")
    table = render.table("a short training run", *numbers, right=numbers)
    for name, estimated, measured in (
        ("peak reserved", check.estimated_reserved_bytes, check.measured_reserved_bytes),
        ("peak allocated", check.estimated_allocated_bytes, check.measured_allocated_bytes),
    ):
        table.add_row(
            name, f"{estimated / MIB:,.1f}", f"{measured / MIB:,.1f}", f"{100 * (estimated / measured - 1):+.2f}%"
        )
    return table


def _speeds_table(speeds: "Speeds"):
    from vlmtune.cli.show import render

    table = render.table("the card does", "", right=("",))
    table.add_row("products of 16 bits", f"{speeds.tensor_flops_s / 1e12:,.1f} TFLOP/s")
    table.add_row("products of fp32", f"{speeds.fp32_flops_s / 1e12:,.1f} TFLOP/s")
    table.add_row("its memory", f"{speeds.bytes_s / 1e9:,.0f} GB/s")
    table.add_row("main memory to it", f"{speeds.host_bytes_s / 1e9:,.1f} GB/s")
    launch_s = speeds.plain_launch_s
    launch = "the card was too busy to tell" if launch_s is None else f"{launch_s * 1e6:,.1f} µs"
    table.add_row("the processor for a plain launch", launch)
    return table
