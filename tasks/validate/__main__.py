"""Stage `validate`: python -m tasks.validate"""

from __future__ import annotations

from pathlib import Path

from decant.outputs import write_text
from tasks.pipeline.params import read_yaml, refuse
from tasks.pipeline.stage import run
from tasks.validate.bfloat16 import gains
from tasks.validate.hardware import without_device
from tasks.validate.networks import write_sums
from tasks.validate.recipes import check

VALID = Path("data/params.valid")


def main() -> None:
    """Read params.yaml; say all that is wrong with it, or write the same bytes as ever, and sums of files.

    What could be faster here is a note, and nothing is wrong with it.

    Every other stage comes after this one; since its output never changes, a valid edit reruns nothing but
    the stages that it is about.
    """
    recipes = check(params := read_yaml())
    refuse(list(without_device(params)))
    write_sums(recipes.data, recipes.teacher)
    write_text(VALID, "params.yaml is valid\n")
    for note in gains(params):
        print(f"  note: {note}")


if __name__ == "__main__":
    run(main)
