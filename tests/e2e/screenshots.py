"""Pictures for the documentation, of real pages: the console on the demo's reward model, the demo's own page, a report.

make demo screenshots        Needs runs/demo and a Chromium; writes docs/images.
"""

import argparse
import sys
from pathlib import Path

from chromium import launch
from playwright.sync_api import Page, sync_playwright

from plaudit_ppo.runs.report import write_report
from plaudit_service.testing import running_service

IMAGES = Path(__file__).parents[2] / "docs" / "images"
WIDTH = 1100


def main() -> int:
    """Take every picture; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--demo", type=Path, default=Path("runs/demo"), help="what make demo wrote (default: %(default)s)"
    )
    demo = parser.parse_args().demo
    if not (demo / "index.html").exists():
        print(f"{demo}: there is no demo; run make demo first", file=sys.stderr)
        return 2
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright, running_service(demo / "bundle") as service:
        browser = launch(playwright)
        if browser is None:
            print("no Chromium is installed; make test-browser installs one", file=sys.stderr)
            return 2
        page = browser.new_page(viewport={"width": WIDTH, "height": 800})
        page.goto(f"{service.url}/console")
        page.wait_for_selector("text=Ready.")
        compare(page)
        sweep(page, demo)
        page.click("#tab-watch")
        page.wait_for_selector("#live .card")
        page.screenshot(path=IMAGES / "console-service.png")
        page.goto((demo / "index.html").resolve().as_uri())
        page.screenshot(path=IMAGES / "demo.png")
        page.goto(write_report(demo / "ppo").resolve().as_uri())
        page.screenshot(path=IMAGES / "report.png")
        browser.close()
    return 0


def compare(page: Page) -> None:
    """Three completions of one prompt, with their values along the text where the model has them."""
    page.fill("#prompt", "A review of a hotel in Ghent, about the breakfast and the pool:")
    page.click("#add-completion")
    answers = (
        " The pool was lovely, and we found the breakfast fresh.",
        " The pool was fine.",
        " The breakfast was awful.",
    )
    for index, answer in enumerate(answers):
        page.locator("#completions textarea").nth(index).fill(answer)
    page.click("summary")
    if page.locator("#along").is_enabled():
        page.select_option("#along", "tokens")
    page.click("summary")
    page.click("#score")
    page.wait_for_selector("#compare-results table")
    page.screenshot(path=IMAGES / "console-compare.png", full_page=True)


def sweep(page: Page, demo: Path) -> None:
    """The preference pairs that the demo's reward model has not seen."""
    page.click("#tab-sweep")
    page.set_input_files("#file", demo / "held-out-pairs.jsonl")
    page.click("#sweep-start")
    page.wait_for_selector("#sweep-results table", timeout=120_000)
    page.evaluate("document.getElementById('sweep-note').scrollIntoView()")
    page.screenshot(path=IMAGES / "console-sweep.png")


if __name__ == "__main__":
    sys.exit(main())
