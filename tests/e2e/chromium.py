"""The Chromium that is installed here: PLAUDIT_CHROMIUM, one on the path, or playwright's own."""

import os
import shutil

from playwright.sync_api import Browser, Playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def launch(playwright: Playwright) -> Browser | None:
    """The browser, without a window; None: there is none."""
    found = os.environ.get("PLAUDIT_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    path = found or playwright.chromium.executable_path
    if not shutil.which(path):
        return None
    return playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
