"""A real browser, where one is installed."""

import os
import shutil

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def chromium():
    """The browser; `make test-browser` installs one where there is none."""
    from playwright.sync_api import sync_playwright

    found = os.environ.get("PLAUDIT_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        path = found or playwright.chromium.executable_path
        if not shutil.which(path):
            pytest.skip("no Chromium is installed; `make test-browser` installs it, PLAUDIT_CHROMIUM names one")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
