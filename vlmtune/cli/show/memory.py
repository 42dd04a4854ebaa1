"""How estimates look in a terminal: one plan, several side by side, and the levers of one."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from vlmtune.cli.show import render
from vlmtune.units import GIB, MIB, rate_format

if TYPE_CHECKING:
    from vlmtune.cli.targets import ChosenCard
    from vlmtune.estimate.report import MemoryReport, WithoutWorst
    from vlmtune.estimate.search.explain import Priced

BAR_MOST, SHARE_BAR = 48, 16
PARTS_SHOWN = 3
"""Of main memory."""
SAME_FOR_MEMORY = ("experiment_name", "output_dir")
"""Keys that name a run and do not change it."""


@dataclass(frozen=True)
class Estimated:
    """A plan with its estimate and the words around it."""

    name: str
    """The config file as the user wrote it, or the model."""
    values: dict[str, object]
    """The config, by dotted key."""
    report: "MemoryReport"
    chosen: "ChosenCard"
    without_worst: "WithoutWorst | None"


def print_one(plan: Estimated) -> None:
    """Print the verdict, the peak against the budget, where it is reached and what it is made of."""
    out, report = render.console(), plan.report
    preset = f", preset {report.preset}" if report.preset else ""
    out.print(f"{report.model}{preset}", style="bold", soft_wrap=True)
    out.print(f"on {plan.chosen.target.card.name} ({plan.chosen.card_from})", soft_wrap=True)
    out.print()
    amount = f"{report.peak_reserved_bytes / GIB:.2f} of {report.budget_bytes / GIB:.2f} GiB"
    bar = _bar(report, min(BAR_MOST, max(10, out.width - len(amount) - 3)))
    out.print(Text.assemble(bar, f"  {amount}"), soft_wrap=True)
    out.print(_verdict(report), soft_wrap=True)
    out.print()
    out.print(_facts(plan))
    out.print()
    out.print(_parts(report))


def print_levers(levers: "list[Priced]") -> None:
    """Print what each change would save, and what it costs in work."""
    numbers = ("GiB saved", "work", "time", "streamed")
    table = render.table("lever", *numbers, "fits", right=numbers)
    for lever in levers:
        words = "\n  ".join(f"--set {word}" for word in lever.words)
        streamed = f"{lever.streamed_bytes_per_step / GIB:.1f} GiB" if lever.streamed_bytes_per_step else ""
        saved, work = f"{lever.saved_bytes / GIB:+z.2f}", f"×{lever.work:.2f}"
        time = "" if lever.time is None else f"×{lever.time:.2f}"
        table.add_row(words, saved, work, time, streamed, "yes" if lever.fits else "no")
    out = render.console()
    out.print()
    out.print(table)
    out.print("work: floating-point operations a row; time: what a row is predicted to take, against now")
    out.print("streamed: what comes from main memory in one optimizer step, while the card computes")


def print_side_by_side(plans: list[Estimated]) -> None:
    """Print plans as columns: the values that differ, the verdicts, the parts; changes count from the first plan."""
    out = render.console()
    if differing := differences(plans):
        names = [plan.name for plan in plans]
        table = render.table("value", *names)
        for key, values in differing.items():
            table.add_row(key, *map(_shown, values))
        out.print(table)
        out.print()
    out.print(_verdicts_side_by_side(plans))
    out.print()
    out.print(_parts_side_by_side(plans))


def _verdicts_side_by_side(plans: list[Estimated]) -> Table:
    reports = [plan.report for plan in plans]
    peaks, budgets = [r.peak_reserved_bytes for r in reports], [r.budget_bytes for r in reports]
    table = _with_change_columns("", plans)
    table.add_row("fits", *_without_changes(["yes" if report.fits else "no" for report in reports]))
    table.add_row("card", *_without_changes([report.gpu for report in reports]))
    spare = [budget - peak for budget, peak in zip(budgets, peaks, strict=True)]
    main = [r.main_memory.peak_bytes for r in reports]
    rows = (("peak reserved, GiB", peaks), ("budget, GiB", budgets), ("to spare, GiB", spare))
    for name, sizes in (*rows, ("main memory, GiB", main)):
        table.add_row(name, *_with_changes([size / GIB for size in sizes], ".2f"))
    if all(report.time for report in reports):
        rates = [report.time.rows_per_s for report in reports]
        table.add_row("rows a second", *_with_changes(rates, rate_format(max(rates))))
    for kind in ("text", "image", "total"):
        table.add_row(f"{kind} tokens", *_with_changes([report.tokens[kind] for report in reports], ",d"))
    return table


def _parts_side_by_side(plans: list[Estimated]) -> Table:
    reports = [plan.report for plan in plans]
    table = _with_change_columns("part, MiB", plans)
    for name in part_names(reports):
        sizes = [sum(share.bytes for share in report.breakdown if share.name == name) for report in reports]
        table.add_row(name, *_with_changes([size / MIB for size in sizes], ",.1f"))
    table.add_section()
    totals = [report.device_total_bytes / MIB for report in reports]
    table.add_row("total on the device", *_with_changes(totals, ",.1f"))
    return table


def _with_change_columns(first: str, plans: list[Estimated]) -> Table:
    columns = [plans[0].name, *(word for plan in plans[1:] for word in (plan.name, "change"))]
    return render.table(first, *columns, right=tuple(columns))


def differences(plans: list[Estimated]) -> dict[str, list[object]]:
    """Return the config keys that are not the same in all plans, with each plan's value."""
    found = {}
    for key in plans[0].values:
        values = [plan.values[key] for plan in plans]
        if key not in SAME_FOR_MEMORY and any(value != values[0] for value in values):
            found[key] = values
    return found


def part_names(reports: "list[MemoryReport]") -> list[str]:
    """Return the parts that any report has, in the order of the first that has them; what all end with stays last."""
    last = [share.name for share in reports[0].breakdown[-3:]]
    names = dict.fromkeys(share.name for report in reports for share in report.breakdown if share.name not in last)
    return [*names, *last]


def _bar(report: "MemoryReport", width: int) -> Text:
    """The peak against the budget; what sticks out is marked."""
    full = round(width * min(1.0, report.peak_reserved_bytes / max(1, report.budget_bytes)))
    over = "" if report.peak_reserved_bytes <= report.budget_bytes else "▶"
    return Text("█" * full + "░" * (width - full) + over, style="green" if report.fits else "red")


def _verdict(report: "MemoryReport") -> Text:
    spare_gib = (report.budget_bytes - report.peak_reserved_bytes) / GIB
    if report.fits:
        return Text.assemble(("fits", "bold green"), f", {spare_gib:.2f} GiB to spare")
    if spare_gib < 0:
        return Text.assemble(("does not fit", "bold red"), f", {-spare_gib:.2f} GiB too much")
    if report.swaps:
        over_gib = (report.main_memory.peak_bytes - report.main_memory_available_bytes) / GIB
        return Text.assemble(("does not fit", "bold red"), f": {over_gib:.2f} GiB too much for main memory")
    before = "encoding the images" if report.most_bytes == report.encoding_reserved_bytes else "loading the model"
    return Text.assemble(("does not fit", "bold red"), f": {before} takes {report.most_bytes / GIB:.2f} GiB")


def _facts(plan: Estimated) -> Table:
    from vlmtune.data.types import count

    report, tokens = plan.report, plan.report.tokens
    at = report.peak_at
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column()
    grid.add_column(overflow="fold")
    grid.add_row("budget", plan.chosen.budget_from)
    grid.add_row(
        "longest row",
        f"{tokens['text']:,} text + {tokens['image']:,} image = {tokens['total']:,} tokens ({report.worst_row})",
    )
    if rest := plan.without_worst:
        saved = f"{rest.saved_bytes / GIB:.2f} GiB less, {rest.longest_tokens:,} tokens at most"
        grid.add_row("", f"without the longest {count(rest.num_rows, 'row')}: {saved}")
    grid.add_row("peak at", f"{at.phase}, {at.op}")
    grid.add_row("", at.module)
    if report.streamed_bytes_per_step:
        grid.add_row("streamed", f"{report.streamed_bytes_per_step / GIB:.2f} GiB a step come from main memory")
    if report.gathered_bytes_per_step:
        grid.add_row("gathered", f"{report.gathered_bytes_per_step / GIB:.2f} GiB a step come from the other GPUs")
    phases = ", ".join(f"{name} {peak / GIB:.2f}" for name, peak in _by_phase(report).items())
    grid.add_row("allocated", f"{phases} GiB")
    if report.encoding_reserved_bytes:
        grid.add_row("before", f"images are encoded with {report.encoding_reserved_bytes / GIB:.2f} GiB reserved")
    grid.add_row("main memory", _main_memory(report))
    for name, words in time_in_words(report):
        grid.add_row(name, words)
    return grid


def time_in_words(report: "MemoryReport") -> list[tuple[str, str]]:
    """Return what a step is predicted to take, and what it waits for, each with its name."""
    if report.time is None:
        return [("predicted", "no time: nobody knows how fast this card is")]
    return [("predicted", report.time.pace), ("", report.time.limits)]


def _main_memory(report: "MemoryReport") -> str:
    """Return what the run takes of main memory, what of that the largest parts are, and what this machine has."""
    from vlmtune.hardware.main_memory import read_main_memory

    need, here = report.main_memory, read_main_memory()
    parts = ", ".join(f"{part.name} {part.bytes / GIB:.2f}" for part in need.parts[:PARTS_SHOWN])
    there = f"; here {here.in_words} are available" if here else ""
    return f"{need.peak_bytes / GIB:.2f} GiB ({parts}){there}"


def _by_phase(report: "MemoryReport") -> dict[str, int]:
    """Return the peak of each phase; of the steps after the first, the highest."""
    peaks: dict[str, int] = {}
    for phase in report.phases:
        name = "later steps" if phase.name.startswith("step ") and phase.name != "step 1" else phase.name
        peaks[name] = max(peaks.get(name, 0), phase.peak_allocated_bytes)
    return peaks


def _parts(report: "MemoryReport") -> Table:
    table = render.table("part", "MiB", "share", "", right=("MiB", "share"))
    largest = max(share.bytes for share in report.breakdown)
    for share in report.breakdown:
        part = share.bytes / report.device_total_bytes
        bar = "▇" * round(SHARE_BAR * share.bytes / max(1, largest))
        table.add_row(share.name, f"{share.bytes / MIB:,.1f}", f"{part:.1%}", Text(bar, style="cyan"))
    table.add_section()
    table.add_row("total on the device", f"{report.device_total_bytes / MIB:,.1f}", "100.0%", "")
    return table


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _without_changes(cells: list[str]) -> list[str]:
    return [cells[0], *(text for cell in cells[1:] for text in (cell, ""))]


def _with_changes(numbers: list[float], form: str) -> list[str]:
    """Return cells of numbers, each but the first with how far it is from the first."""
    cells = [format(numbers[0], form)]
    for number in numbers[1:]:
        change = format(number - numbers[0], f"+{form}")
        cells += [format(number, form), change if change.strip("+-0.,") else ""]
    return cells
