"""Write report/index.html, all models on one page: python -m tasks.report.page [--against REV] [--open]

It is no output of a stage, as the times in benchmark/ are none: they differ from run to run. The same files
give the same bytes.
"""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser
from pathlib import Path

from decant.errors import DecantError
from decant.outputs import telling_full_disks, write_text
from tasks.pipeline.environment import raise_interrupts
from tasks.pipeline.params import read_yaml
from tasks.report.page.against import compare
from tasks.report.page.models import read_models
from tasks.report.page.render import collect, render
from tasks.report.page.times import read_times

PAGE = Path("report/index.html")

ABOUT = """Write all models on one page that needs no network: trade-off, table, lineage, a card for each
model, two models compared.

exit code: 0 it is written, 1 it could not be"""


def main(words: list[str] | None = None) -> int:
    """Write the page, say where it is, open it where that was asked for; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.report.page", description=ABOUT, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--against", metavar="REV", help="also say what differs from a branch, tag or commit")
    parser.add_argument(
        "--out", type=Path, default=PAGE, metavar="FILE", help=f"where it is written ({PAGE})"
    )
    parser.add_argument("--open", action="store_true", help="open it in a browser, where there is a screen")
    chosen = parser.parse_args(words)
    raise_interrupts()
    try:
        with telling_full_disks():
            write_text(chosen.out, page(chosen.against))
    except DecantError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(chosen.out)
    if chosen.open and has_screen():
        webbrowser.open(chosen.out.resolve().as_uri())
    return 0


def page(revision: str | None = None) -> str:
    """Return the page of the project in the current folder, compared with a revision where one is named."""
    params = read_yaml()
    models = read_models(params)
    times, problems = read_times([model.name for model in models])
    content = collect(models, times, problems)
    against = compare(revision, params, content.values, content.columns) if revision else None
    return render(content, against)


def has_screen() -> bool:
    """Say whether a browser has a screen to open on; without one some would take over the terminal."""
    return sys.platform in ("darwin", "win32") or any(
        os.environ.get(key) for key in ("DISPLAY", "WAYLAND_DISPLAY")
    )


if __name__ == "__main__":
    sys.exit(main())
