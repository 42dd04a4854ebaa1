"""A browser without a window, for pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class NoBrowser(Exception):
    """None is installed."""


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Yield a Chromium that is installed, by playwright or by the system."""
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        program = next(filter(None, map(shutil.which, PROGRAMS)), own if Path(own).exists() else None)
        if program is None:
            raise NoBrowser(f"none of {', '.join(PROGRAMS)} is installed, and none by `playwright install chromium`")
        browser = playwright.chromium.launch(executable_path=program)
        try:
            yield browser
        finally:
            browser.close()
