"""The benchmarks of temperature against width and of whole chains: their blocks are recipes, runs go on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import decant
from benchmarks import combined, distillation_grid
from benchmarks.distillation_grid import block_of, choices, gain, mean, picture, table
from decant.distill.params import DistillParams
from decant.errors import DecantError
from decant.finetune.params import FinetuneParams
from decant.prune.params import PruneParams
from decant.quantize.params import QuantizeParams
from decant.schema import mistakes

SCHEMAS: Mapping[str, Any] = {
    "distill": DistillParams,
    "finetune": FinetuneParams,
    "prune": PruneParams,
    "quantize": QuantizeParams,
}


def wrong(block: dict[str, Any]) -> list[str]:
    return mistakes({"from": "teacher"} | block, SCHEMAS[block["op"]])


def cell(bits: int, temperature: float | None, seed: int, validation: float) -> dict[str, Any]:
    found = {"bits": bits, "temperature": temperature, "seed": seed, "seconds": 6.0}
    return found | {"validation": validation, "test": validation - 1}


CELLS = [
    cell(bits, temperature, seed, 80 + bits / 10 + best * (temperature == best_at) + seed * drift)
    for bits, best_at, best in ((4, 4.0, 2.0), (2, 1.0, 3.0))
    for temperature, drift in ((None, 0.0), (1.0, 0.1), (4.0, 0.2))
    for seed in (1, 2)
]


@pytest.mark.parametrize("bits", distillation_grid.WIDTHS)
@pytest.mark.parametrize("temperature", [None, 8.0])
def test_every_cell_is_a_recipe(bits: int, temperature: float | None) -> None:
    block = block_of(bits, temperature, {"epochs": 1})
    assert wrong({"op": "finetune" if bits == 32 else "quantize", **block}) == []
    loss = block["loss"] if bits == 32 else block["train"]["loss"]
    assert loss["hard"] == (1.0 if temperature is None else 0.1)


def test_validation_chooses_the_temperature_and_test_is_shown_beside() -> None:
    assert mean(CELLS, 4, 4.0, "validation") == pytest.approx(82.7)
    assert gain(CELLS, 4, 4.0, None, "test") == "+2.30 ± 0.14"
    four, two = choices(CELLS)[2:]
    assert four.startswith("| 4 | 4 | +2.30 ± 0.14 | +0.00 |") and two.startswith("| 2 | 1 | +3.15")
    assert "**82.70**" in table(CELLS, "validation")[2] and "**" not in "".join(table(CELLS, "test"))
    labels = [text.get_text() for text in picture(CELLS).axes[0].get_xticklabels()]
    assert labels == ["labels", "T = 1", "T = 4"]


def test_an_interrupted_grid_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[tuple[int, float | None, int]]()

    def measured(bits: int, temperature: float | None, seed: int, quick: bool) -> dict[str, Any]:
        asked.append((bits, temperature, seed))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return cell(bits, temperature, seed, 80.0)

    monkeypatch.setattr(distillation_grid, "measured", measured)
    wanted, keep = [(32, None, 1), (32, 1.0, 1), (2, 1.0, 1)], tmp_path / "grid.json"
    with pytest.raises(KeyboardInterrupt):
        distillation_grid.run(wanted, keep, 1, True)
    assert len(json.loads(keep.read_text())["cells"]) == 2
    assert len(distillation_grid.run(wanted, keep, 1, True)) == 3
    assert asked == [*wanted, wanted[2]]


def test_every_chain_is_of_recipes_and_begins_with_the_default_one() -> None:
    found = combined.chains(quick=False)
    assert next(iter(found)) == combined.COMBINED
    assert [wrong(block) for blocks in found.values() for block in blocks if wrong(block)] == []


def test_chains_are_compared_on_the_same_images() -> None:
    right = torch.tensor([True] * 12 + [False] * 1)
    digits = np.packbits(right.numpy()).tobytes().hex()
    assert torch.equal(combined.unpacked(digits, 13), right)
    other = np.packbits(np.array([True] * 3 + [False] * 10)).tobytes().hex()
    steps = [{"op": "distill", "validation": 92.31, "bytes": 5678 + number} for number in range(4)]
    row = {"seed": 1, "bytes": 1234, "seconds": 5.0, "steps": steps, "validation": digits, "test": digits}
    page = combined.page(
        {
            "images": {"validation": 13, "test": 13},
            "train": 10,
            "teacher": row,
            "rows": [
                {**row, "chain": combined.COMBINED, "seed": 2},
                {**row, "chain": combined.COMBINED},
                {**row, "chain": "mine", "test": other, "bytes": 1234 + 2},
                {**row, "chain": "mine", "test": digits, "seed": 2, "bytes": 1234 + 4},
                {**row, "chain": "like it", "bytes": 99},
            ],
        }
    )
    assert "| combined | 2 | 1,234 | 92.31 ± 0.00 | 92.31 ± 0.00 |  |  | 5 |" in page
    assert page.count(": 92.31 %, 5,67") == 2, "of the default chain, whose blocks are known"
    # One seed loses 9 of 13 images, the other none.
    assert "| mine | 2 | 1,237 | 92.31 ± 0.00 | 57.69 ± 48.95 | -34.62 | 0.0027 | 5 |" in page
    assert page.index("| like it | 1 | 99 |") < page.index("| mine |"), "fewer bytes first"
    assert "- The default chain is better than: mine." in page
    assert "- Chance may be all between it and: like it." in page


def test_chains_are_made_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[str, int]]()

    def made(self: Any, name: str, blocks: Any, seed: int) -> dict[str, Any]:
        asked.append((name, seed))
        return {"chain": name, "seed": seed}

    monkeypatch.setattr(combined.Bench, "made", made)
    monkeypatch.setattr(combined.Bench, "found", lambda self, model: {})
    images = torch.zeros(5, 1, 2, 2)
    examples = decant.Examples(images, torch.zeros(5, dtype=torch.long), ("a", "b"))
    bench = combined.Bench(None, decant.Splits(examples, examples), examples)  # type: ignore[arg-type]
    wanted, keep = [(combined.COMBINED, 1), (combined.COMBINED, 2), ("prune alone", 1)], tmp_path / "c.json"
    assert combined.run(bench, wanted[:2], keep, -1, True)["rows"] == [] and not asked, "no time is left"
    combined.run(bench, wanted[:2], keep, 1, True)
    assert len(combined.run(bench, wanted, keep, 1, True)["rows"]) == 3 and asked == wanted
    fewer = combined.Bench(None, decant.Splits(examples.first(3), examples), examples)  # type: ignore[arg-type]
    with pytest.raises(
        DecantError, match=r"c.json has chains of 5 training images; take --images 5, or move"
    ):
        combined.run(fewer, wanted, keep, 1, True)
