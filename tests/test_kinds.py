"""What inputs are: the kinds that tables and models keep, and what is none of its kind."""

from pathlib import Path

import pytest
import torch
from torch import nn

import decant
from decant.examples import Examples, Rows
from decant.inputs import KINDS, TensorInput, alike, inputs_of, kinds_of, misfit
from decant.networks.python import Python
from tasks.pipeline import splits
from tasks.prepare import tables

ROWS = {
    "image": torch.zeros(4, 3, 2, 2, dtype=torch.uint8),
    "numbers": torch.zeros(4, 5),
    "text": torch.zeros(4, 6, dtype=torch.int64),
    "sound": torch.zeros(4, 1, 9),
    "tensor": torch.zeros(4, dtype=torch.bool),
}


def test_each_kind_takes_its_rows_and_no_others() -> None:
    assert [*KINDS] == [*ROWS]
    fits = {
        (kind, name)
        for kind in KINDS
        for name, rows in ROWS.items()
        if not misfit(kind, str(rows.dtype).removeprefix("torch."), rows.shape[1:])
    }
    assert fits == {(name, name) for name in ROWS} | {("tensor", name) for name in ROWS}
    with pytest.raises(ValueError, match=r"z: rows \[5\] of float32 are no image, which is pixels"):
        inputs_of({"z": ROWS["numbers"]}, {"z": "image"})
    with pytest.raises(ValueError, match="are no sound"):
        TensorInput(kind="sound", shape=(5,))


def test_kinds_are_written_with_rows_and_read_back(tmp_path: Path) -> None:
    kinds = {f"my {name}": name for name in ROWS}
    found = Examples(Rows(dict(zip(kinds, ROWS.values(), strict=True)), kinds=kinds), None, ())
    tables.write_rows({"train": found}, tmp_path, {})
    read = splits.read(tmp_path / "train.parquet")
    assert kinds_of(read.shape) == kinds and read.shape == found.shape
    assert kinds_of(read.at_most(2).shape) == kinds_of(read.shape)
    assert kinds_of((3, 8, 8)) == {"image": "image"}


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)


def test_a_model_keeps_kinds_and_takes_the_rows_of_before(tmp_path: Path) -> None:
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    own = Examples(Rows({"x": x}, kinds={"x": "numbers"}), None, ())
    model = decant.adopt(decant.Source(Python.of(Sum), weights=Sum().state_dict()), own).model
    decant.save(model, tmp_path / "model")
    found = decant.load(tmp_path / "model", build=Sum)
    assert kinds_of(found.shape) == {"x": "numbers"}
    before = Examples(Rows({"x": x}), None, ())
    assert found.shape != before.shape and alike(found.shape, before.shape)
    assert not alike(found.shape, (1, 2, 3)) and alike((1, 2, 3), (1, 2, 3))
    assert not alike(found.shape, Examples(Rows({"x": x[:, :4]}), None, ()).shape)
    assert TensorInput.model_validate({"shape": [5]}).kind == "tensor"
