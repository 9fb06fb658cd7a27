"""What is seen of work that takes more than a few seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sized
from typing import Any

from tqdm import tqdm


def progress_bar(items: Iterable[Any] | None, title: str, unit: str, **more: Any) -> tqdm[Any]:
    """Return a bar over the items that shows itself after three seconds and is gone when they are done.

    In a log file, where nothing can be drawn over, it writes a line every ten seconds. A single item gets no
    bar, which would only stand inside that of whoever works through many such.

    Args:
        items: What is worked through; None where the caller counts.
        title: What is done, in front of the bar.
        unit: What is counted, in the plural.
        more: Other settings of the bar.
    """
    settings = {
        "delay": 3,
        "leave": False,
        "mininterval": 0.2 if sys.stderr.isatty() else 10,
        "dynamic_ncols": True,
        "disable": isinstance(items, Sized) and len(items) < 2,
    }
    return tqdm(items, desc=title, unit=f" {unit}", **(settings | more))
