"""Write docs/page.png, the top of the page of all models in Chromium: python -m benchmarks.screenshot

It needs report/index.html (`make report`), Chromium and playwright.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

PAGE, PICTURE = Path("report/index.html"), Path("docs/page.png")
LARGEST = 300_000
WIDTH, HEIGHT = 1100, 1240
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = [
    "--headless",
    "--no-sandbox",  # which a container does not allow; nothing foreign is opened
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def picture(page: Path, browser: str) -> bytes:
    """Return the top of a page as PNG, in light colours."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=QUIET)
        context = chromium.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        shown = context.new_page()
        shown.goto(page.resolve().as_uri())
        shown.wait_for_selector("#chart svg")
        content = shown.screenshot()
        chromium.close()
        return content


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.screenshot", description=__doc__)
    parser.add_argument("--out", type=Path, default=PICTURE, help=f"where the picture is written ({PICTURE})")
    chosen = parser.parse_args()
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if not PAGE.is_file():
        sys.exit(f"error: no {PAGE}; run `make report`")
    if browser is None:
        sys.exit("error: no Chromium on PATH; run `apt-get install chromium`, or install Google Chrome")
    content = picture(PAGE, browser)
    if len(content) > LARGEST:
        sys.exit(f"error: the picture has {len(content):,} bytes, expected at most {LARGEST:,}")
    chosen.out.write_bytes(content)
    print(f"{chosen.out}: {len(content):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
