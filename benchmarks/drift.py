"""What `tasks.drift` finds and what it does not: disturbed and undisturbed draws of the test pictures.

    python -m benchmarks.drift [--model thin-ft-int8] [--draws 20] [--write benchmarks/drift.md]

The reference are the validation pictures. It takes about two minutes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from decant.outputs import write_text
from tasks.drift.judge import IMAGE, Settings, Verdict, judge
from tasks.pipeline import splits

Pictures = NDArray[np.uint8]

ROWS = (100, 500, 2000)


def brighter(factor: float) -> Callable[[Pictures], Pictures]:
    return lambda pictures: np.clip(pictures * factor, 0, 255).astype(np.uint8)


def noisy(deviation: float) -> Callable[[Pictures], Pictures]:
    def disturbed(pictures: Pictures) -> Pictures:
        noise = np.random.default_rng(1).normal(0, deviation, pictures.shape)
        return np.clip(pictures + noise, 0, 255).astype(np.uint8)

    return disturbed


DISTURBED: dict[str, Callable[[Pictures], Pictures]] = {
    "as they are": lambda pictures: pictures,
    "brightness 1.1": brighter(1.1),
    "brightness 1.3": brighter(1.3),
    "brightness 0.7": brighter(0.7),
    "noise of deviation 10 of 255": noisy(10),
    "moved by a pixel": lambda pictures: np.roll(pictures, 1, axis=3),
    "moved by three pixels": lambda pictures: np.roll(pictures, 3, axis=3),
    "upside down": lambda pictures: pictures[:, :, ::-1].copy(),
}


def main() -> None:
    """Measure, and print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="thin-ft-int8")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--write", type=Path, help="the page to write")
    chosen = parser.parse_args()
    tested = splits.read(splits.TEST).images
    assert not isinstance(tested, splits.Rows)
    table = measured(tested.numpy(), chosen.model, chosen.draws)
    text = page(table, chosen.model, chosen.draws)
    if chosen.write:
        write_text(chosen.write, text)
    print(text)


def measured(tested: Pictures, model: str, draws: int) -> dict[str, dict[int, list[Verdict]]]:
    """Return verdicts by disturbance and number of rows: of many draws undisturbed, of one else."""
    table: dict[str, dict[int, list[Verdict]]] = {}
    cases = [(name, rows) for name in DISTURBED for rows in ROWS]
    for name, rows in tqdm(cases, desc="drift"):
        count = draws if name == "as they are" else 1
        verdicts = [verdict(DISTURBED[name](drawn(tested, rows, seed)), model) for seed in range(count)]
        table.setdefault(name, {})[rows] = verdicts
    return table


def drawn(tested: Pictures, rows: int, seed: int) -> Pictures:
    return np.random.default_rng(seed).choice(tested, rows, replace=False)


def verdict(pictures: Pictures, model: str) -> Verdict:
    with tempfile.TemporaryDirectory() as folder:
        np.savez(today := Path(folder, "today.npz"), **{IMAGE: pictures})
        return judge(splits.VALIDATION, today, model, Settings())


def page(table: dict[str, dict[int, list[Verdict]]], model: str, draws: int) -> str:
    """Return the page in Markdown."""
    lines = [
        "Written by `python -m benchmarks.drift --write benchmarks/drift.md`.",
        "",
        f"The model `{model}`; the reference are the validation pictures, today's are drawn from the test "
        f"split. Undisturbed: how many of {draws} draws are told to have moved. Disturbed: how many features "
        "have moved in one draw, of how many; the largest size; the layer whose range cuts more by the most.",
        "",
        "| today's pictures | "
        + " | ".join(f"{rows:,} rows" for rows in ROWS)
        + " | agreement with the teacher |",
        "|---|" + "---|" * (len(ROWS) + 1),
    ]
    for name, by_rows in table.items():
        cells = [cell(verdicts) for verdicts in by_rows.values()]
        last = by_rows[ROWS[-1]][0]
        assert last.agreement is not None
        agreement = "{:.1f} → {:.1f} %".format(*(100 * share for share in last.agreement))
        lines.append(f"| {name} | {' | '.join(cells)} | {agreement} |")
    return "\n".join(lines) + "\n"


def cell(verdicts: list[Verdict]) -> str:
    if len(verdicts) > 1:
        return f"{sum(each.moved for each in verdicts)} of {len(verdicts)} draws"
    (found,) = verdicts
    largest = max((each.size for each in found.shifted), default=0.0)
    cut = max((now - then for then, now in found.cut.values()), default=0.0)
    told = f"{len(found.shifted)} of {len(found.shifts)}, {largest:.2f}" if found.shifted else "nothing"
    return f"{told}; {100 * cut:+.1f} points cut"


if __name__ == "__main__":
    main()
