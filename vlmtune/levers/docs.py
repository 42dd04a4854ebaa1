"""The table of all levers, made from their files: docs/levers.md."""

from vlmtune import levers


def levers_table_markdown() -> str:
    """Return the levers in the order in which they are given up, those that save nothing by themselves last."""
    rows = [
        "| Lever | Keys | What it costs | Same result | A run may change it |",
        "|---|---|---|---|---|",
    ]
    saving = list(dict.fromkeys(lever.name for lever, _ in levers.savings()))
    for lever in sorted(levers.LEVERS, key=lambda one: saving.index(one.name) if one.name in saving else len(saving)):
        keys = ", ".join(f"`{key}`" for key in lever.keys)
        exact = "yes" if lever.exact else "no"
        rows.append(f"| {lever.name} | {keys} | {lever.costs} | {exact} | {lever.on_resume.value} |")
    return "\n".join(rows) + "\n"


def savings_table_markdown() -> str:
    """Return every saving in the order in which `vlmtune plan` gives it up."""
    rows = ["| | Saving | Lever |", "|--:|---|---|"]
    for number, (lever, saving) in enumerate(levers.savings(), 1):
        rows.append(f"| {number} | {saving.reason} | {lever.name} |")
    return "\n".join(rows) + "\n"
