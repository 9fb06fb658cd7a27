"""What is seen of work that takes more than a few seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(items: Iterable[Any] | None, title: str, unit: str, **more: Any) -> tqdm[Any]:
    """Return a bar over the items that shows itself after three seconds and is gone when they are done.

    In a log file, where nothing can be drawn over, it writes a line every ten seconds.

    Args:
        items: What is worked through; None where the caller counts.
        title: What is done, in front of the bar.
        unit: What is counted, in the plural.
        more: Other settings of the bar.
    """
    settings = {"delay": 3, "leave": False, "mininterval": interval(), "dynamic_ncols": True, **more}
    return tqdm(items, desc=title, unit=f" {unit}", **settings)


def interval() -> float:
    """Return the least seconds between two states of a bar."""
    return 0.2 if sys.stderr.isatty() else 10
