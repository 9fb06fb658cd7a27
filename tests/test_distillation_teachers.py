"""The benchmark of two teachers: its losses are recipes, runs go on, and its page says what follows."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import distillation_teachers as bench
from benchmarks.combined import packed
from decant.distill.params import DistillParams
from decant.schema import mistakes
from decant.training.losses import SoftTargets
from tasks.pipeline.params import validate


@pytest.mark.parametrize("loss", bench.LOSSES)
def test_every_loss_is_a_recipe(loss: str) -> None:
    block = {"op": "distill", "from": "teacher", "student": bench.STUDENT, "training": bench.training(4)}
    assert mistakes(block | {"loss": dict(bench.LOSSES[loss])}, DistillParams) == []


def test_standardized_losses_have_nine_times_their_weight() -> None:
    assert 0.9 * validate(dict(bench.LOSSES["KD, standardized"]), SoftTargets).factor == pytest.approx(9)
    assert 0.9 * bench.LOSSES["MLKD, standardized"]["factor"] == pytest.approx(9)
    dkd = bench.LOSSES["DKD, standardized"]
    assert (dkd["alpha"], dkd["beta"], dkd["temperature"]) == (9, 72, 2), "nine times 1 and 8"


def row(teacher: str, loss: str, seed: int, right: int) -> dict[str, Any]:
    """Return a row that is right about the first so many of 100 images."""
    digits = packed(torch.arange(100) < right)
    found = {"teacher": teacher, "loss": loss, "seed": seed, "seconds": 60.0}
    return found | {"validation": digits, "test": digits}


def results(right: dict[str, int]) -> dict[str, Any]:
    about = {"accuracy": 90.0, "certain": 0.9, "entropy": 0.5, "parameters": 1234}
    return {
        "teachers": {"smoothed": about, "not smoothed": about},
        "machine": {"processor": "a processor"},
        "images": {"train": 7000, "validation": 100, "test": 100},
        "rows": [
            row("smoothed", loss, seed, count + seed) for loss, count in right.items() for seed in (1, 2)
        ],
    }


def test_the_page_has_means_gains_and_what_validation_chooses() -> None:
    right = dict.fromkeys(bench.LOSSES, 50) | {"KD, T = 2": 60, "KD, T = 4": 55, "KD, standardized": 58}
    text = bench.page(results(right))
    assert "| labels alone | 51.50 ± 0.71 |  |  | 51.50 ± 0.71 |  |" in text
    # Of two seeds each gains ten images and loses none: McNemar's z is 20 / sqrt(20).
    assert "| KD, T = 2 | 61.50 ± 0.71 | +10.00 | 7.7e-06 | 61.50 ± 0.71 | +10.00 |" in text
    assert "- Of the temperatures validation chooses KD, T = 2." in text
    assert "- KD, standardized against KD, T = 4: +3.00 points in validation (p = 0.014)" in text
    assert "- KD, standardized against KD, T = 2: -2.00 points in validation (p = 0.046)" in text
    assert "- DKD, standardized against DKD: +0.00 points in validation (p = 1)" in text
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith(("|", "-")))


def test_an_interrupted_run_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[tuple[str, str, int]]()

    def measured(name: str, loss: str, seed: int, folder: Path, quick: bool) -> dict[str, Any]:
        asked.append((name, loss, seed))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return row(name, loss, seed, 50)

    class Some(list[int]):
        train = validation = (0,) * 100

    monkeypatch.setattr(bench, "measured", measured)
    monkeypatch.setattr(bench, "described", lambda *_: {"accuracy": 90.0})
    monkeypatch.setattr(bench, "examples", lambda _: (Some(), Some()))
    wanted = [("smoothed", bench.LABELS, seed) for seed in (1, 2)]
    keep = tmp_path / "rows.json"
    assert bench.run(wanted, keep, tmp_path, -1.0, True)["rows"] == [] and not asked
    with pytest.raises(KeyboardInterrupt):
        bench.run(wanted, keep, tmp_path, 1.0, True)
    assert len(json.loads(keep.read_text())["rows"]) == 1
    assert len(bench.run(wanted, keep, tmp_path, 1.0, True)["rows"]) == 2
    assert asked == [*wanted, wanted[1]]
