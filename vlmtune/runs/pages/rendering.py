"""Templates → HTML: all text in it is escaped, whoever wrote it, and a browser asks nobody for anything."""

from typing import Any

from vlmtune.printing import printable


def render(template: str, **values: Any) -> str:
    """Return a page of `templates/` with these values in it."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vlmtune.runs.pages"),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # what a macro wrote is no str
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)
