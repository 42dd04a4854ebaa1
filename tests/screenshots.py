"""Photographs the pages of the demo's run into docs/pages: `make screenshots`, after `make demo`."""

import io
import sys
from pathlib import Path

from browsers import open_browser
from PIL import Image

from vlmtune.runs.folder import RunFolder

ROOT = Path(__file__).parents[1]
RUN = RunFolder(ROOT / "runs" / "smoke")
SIZES_PX = {"": ("light", 860, 1180), "-phone": ("dark", 360, 1180)}
"""Ending of the name → colours, width and height of the window."""


def main() -> None:
    """Write every page in every size."""
    pages = (RUN.report_html, RUN.evaluation.with_suffix(".html"))
    if missing := [str(page) for page in pages if not page.exists()]:
        sys.exit(f"{' and '.join(missing)} missing: run `make demo` first")
    with open_browser() as browser:
        for page in pages:
            for ending, (scheme, width_px, height_px) in SIZES_PX.items():
                size = {"width": width_px, "height": height_px}
                window = browser.new_page(viewport=size, color_scheme=scheme, device_scale_factor=1.5)
                window.goto(page.as_uri())
                photo = Image.open(io.BytesIO(window.screenshot())).convert("RGB")
                photo.quantize(method=Image.Quantize.MAXCOVERAGE).save(
                    ROOT / "docs" / "pages" / f"{page.stem}{ending}.png", optimize=True
                )


if __name__ == "__main__":
    main()
