"""A model on disk is the model that was evaluated, at the bytes that its bits take, and never half of it."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tasks.checkpoints import Checkpoint, load, save, size_bytes, state
from tasks.constraints import Constraints, InputGrid, Levels, Range
from tasks.errors import DecantError
from tasks.models import Architecture, Lenet5, Mlp, Resnet, build, predict
from tasks.quantize.schemes import Binary, Integer

IMAGES = torch.randint(0, 256, (32, 1, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
CONV = "stages.0.conv2.weight"


def make(architecture: Architecture | None = None) -> Checkpoint:
    architecture = architecture or Resnet(widths=(4, 8), blocks=(1, 1))
    module = build(architecture, (1, 16, 16), 5, seed=3)
    module.train()
    for _ in range(3):  # batch norms with statistics that are not the defaults
        module(IMAGES.float() / 255)
    return Checkpoint(architecture, (1, 16, 16), tuple("abcde"), module.eval(), lineage=({"op": "teacher"},))


def constrained(constraints: dict[str, Constraints]) -> Checkpoint:
    return make().narrowed(constraints, {"head": InputGrid(8, 0.02, 3)})


def weight(name: str = CONV) -> torch.Tensor:
    return make().module.get_parameter(name).detach()


MASK = torch.rand(4, 4, 3, 3, generator=torch.Generator().manual_seed(1)) > 0.7
CODEBOOK = Levels(torch.tensor([-0.3, -0.01, 0.0, 0.17, 0.4]), torch.tensor(1.0))
CASES = {
    "free": {},
    "range": {CONV: Constraints(range=Range(-0.1, 0.12))},
    "half-range": {CONV: Constraints(range=Range(-math.inf, 0.12))},
    "mask": {CONV: Constraints(mask=MASK)},
    "integer": {CONV: Constraints(levels=Integer(bits=3).levels(weight()))},
    "tensor": {CONV: Constraints(levels=Integer(bits=8, per_channel=False).levels(weight()))},
    "binary": {CONV: Constraints(levels=Binary().levels(weight()))},
    "codebook": {CONV: Constraints(levels=CODEBOOK)},
    "all": {CONV: Constraints(Range(-0.2, 0.2), Binary().levels(weight()), MASK)},
    "empty": {CONV: Constraints(mask=torch.zeros_like(MASK))},
}


@pytest.mark.parametrize("name", CASES)
def test_the_loaded_model_gives_equal_logits_to_the_bit(name: str, tmp_path: Path) -> None:
    saved = constrained(CASES[name])
    save(saved, tmp_path)
    loaded = load(tmp_path)
    assert torch.equal(predict(loaded.module, IMAGES), predict(saved.module, IMAGES))
    assert all(torch.equal(t, state(saved.module)[n]) for n, t in state(loaded.module).items())
    assert loaded.grids == saved.grids
    assert loaded.classes == saved.classes
    assert loaded.lineage == saved.lineage
    for weight_name, held in loaded.constraints.items():
        assert held.broken_by(saved.module.get_parameter(weight_name), held) == []
        assert saved.constraints[weight_name].describe() == held.describe()


@pytest.mark.parametrize("architecture", [Mlp(hidden=(6,)), Lenet5(), Resnet(widths=(4,), blocks=(1,))])
def test_saving_what_was_loaded_gives_the_same_bytes(architecture: Architecture, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    save(make(architecture), first)
    save(load(first), second)
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


@pytest.mark.parametrize(("bits", "per_code"), [(8, 8), (5, 5), (4, 4), (2, 2), (1, 1)])
def test_integers_take_their_real_width(bits: int, per_code: int, tmp_path: Path) -> None:
    scheme = Binary() if bits == 1 else Integer(bits=bits)
    save(constrained({CONV: Constraints(levels=scheme.levels(weight()))}), tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored[f"{CONV}.codes"].dtype == torch.uint8
    assert stored[f"{CONV}.codes"].numel() == math.ceil(weight().numel() * per_code / 8)
    assert CONV not in stored


def test_only_survivors_are_stored_and_masks_are_not_floats(tmp_path: Path) -> None:
    save(constrained({CONV: Constraints(levels=Integer(bits=4).levels(weight()), mask=MASK)}), tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    survivors = int(MASK.sum())
    assert stored[f"{CONV}.codes"].numel() == math.ceil(survivors * 4 / 8)
    assert stored[f"{CONV}.mask"].dtype == torch.uint8
    assert stored[f"{CONV}.mask"].numel() <= math.ceil(MASK.numel() / 8)


def test_the_size_is_that_of_the_files(tmp_path: Path) -> None:
    save(make(), tmp_path)
    files = [(tmp_path / name).read_bytes() for name in ("model.safetensors", "model.json")]
    assert size_bytes(tmp_path) == sum(len(content) for content in files)


def test_a_copy_is_narrowed_not_the_parent() -> None:
    parent = make()
    before = weight()
    child = parent.narrowed({CONV: Constraints(mask=MASK)}, {"head": InputGrid(4, 0.1, 0)})
    assert torch.equal(parent.module.get_parameter(CONV), before)
    assert parent.constraints == {}
    assert not torch.equal(predict(parent.module, IMAGES), predict(child.module, IMAGES))


def test_nan_is_never_saved(tmp_path: Path) -> None:
    checkpoint = make()
    with torch.no_grad():
        checkpoint.module.get_parameter("head.bias")[0] = math.nan
    with pytest.raises(DecantError, match=r"head\.bias holds NaN"):
        save(checkpoint, tmp_path)


@pytest.mark.parametrize("file", ["model.safetensors", "model.json", "lineage.json"])
def test_a_missing_file_is_named(file: str, tmp_path: Path) -> None:
    save(make(), tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(DecantError, match=r"No model at .*dvc repro"):
        load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
@pytest.mark.parametrize("file", ["model.safetensors", "model.json"])
def test_a_truncated_file_is_told_in_words(file: str, share: float, tmp_path: Path) -> None:
    save(constrained(CASES["all"]), tmp_path)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DecantError, match="does not hold a whole model"):
        load(tmp_path)


def test_files_of_two_models_are_told_apart(tmp_path: Path) -> None:
    save(make(Resnet(widths=(4, 8), blocks=(1, 2))), tmp_path)
    content = (tmp_path / "model.json").read_bytes()
    save(make(), tmp_path)
    (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(DecantError, match="has not the sum that"):
        load(tmp_path)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    save(make(), tmp_path)
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(DecantError, match="has not the sum"):
        load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": {"no.such.layer": {"bits": 8, "scale": 0.1, "zero_point": 0}}},
        {"weights": {CONV: {"shape": [4, 4, 3, 3], "bits": 8}}},
        {"architecture": {"kind": "transformer"}},
        {"shape": [1, 16]},
    ],
)
def test_a_description_that_does_not_fit_is_told_in_words(change: dict[str, Any], tmp_path: Path) -> None:
    save(make(), tmp_path)
    described = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(described | change))
    with pytest.raises(DecantError, match="does not hold a whole model"):
        load(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    save(make(), tmp_path)
    described = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(described | {"format": 99}))
    with pytest.raises(DecantError, match="has format 99, this code reads 1"):
        load(tmp_path)


def test_files_carry_no_time_and_no_pickle(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        save(replace(make(), lineage=()), folder)
    for file in first.iterdir():
        content = file.read_bytes()
        assert content == (second / file.name).read_bytes()
        assert b"pickle" not in content
