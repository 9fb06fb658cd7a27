"""A model on disk is the model that was evaluated, at the bytes that its bits take, and never half of it."""

import json
import math
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from decant.checkpoints.activations import DynamicGrid, InputGrid
from decant.checkpoints.checkpoint import Checkpoint, state
from decant.checkpoints.constraints import Constraints, Levels, Range
from decant.checkpoints.files import load, save, size_bytes
from decant.checkpoints.lineage import read_beside
from decant.checkpoints.packing import packed_size
from decant.errors import DecantError
from decant.lowering.folding import folded
from decant.networks.architectures import Architecture, Lenet5, Lenet300100, Mlp, Resnet, build
from decant.networks.execution import predict
from decant.networks.structure import compressible
from decant.quantize.schemes import Binary, Codebook, Integer, PowerOfTwo, Quantizer, Ternary
from decant.sealed import seal, sum_of, unseal
from tests.nets import SCHEMES

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
CASES = {
    "free": {},
    "range": {CONV: Constraints(range=Range(-0.1, 0.12))},
    "half-range": {CONV: Constraints(range=Range(-math.inf, 0.12))},
    "range per channel": {
        CONV: Constraints(range=Range(-torch.arange(1, 5.0).reshape(4, 1, 1, 1) / 20, torch.ones(4, 1, 1, 1)))
    },
    "mask": {CONV: Constraints(mask=MASK)},
    "sparse mask": {CONV: Constraints(mask=MASK & MASK.roll(1, 0) & MASK.roll(1, 1))},
    "own levels": {
        CONV: Constraints(levels=Levels(torch.tensor([-0.3, -0.01, 0.0, 0.4]), torch.tensor(1.0)))
    },
    "other axis": {CONV: Constraints(levels=Integer(bits=3).levels(weight(), axis=1))},
    "all": {CONV: Constraints(Range(-0.2, 0.2), Binary().levels(weight()), MASK)},
    "empty": {CONV: Constraints(mask=torch.zeros_like(MASK))},
    "empty of levels": {CONV: Constraints(levels=Ternary().levels(weight()), mask=torch.zeros_like(MASK))},
    **{name: {CONV: Constraints(levels=scheme.levels(weight()))} for name, scheme in SCHEMES.items()},
    **{
        f"{name}, masked": {CONV: Constraints(levels=scheme.levels(weight(), MASK), mask=MASK)}
        for name, scheme in SCHEMES.items()
    },
}


@pytest.mark.parametrize(
    ("name", "fold"),
    [*((name, at % 2 == 0) for at, name in enumerate(CASES)), ("free", False), ("all", False)],
)
def test_the_loaded_model_gives_equal_logits_to_the_bit(name: str, fold: bool, tmp_path: Path) -> None:
    saved = folded(constrained(CASES[name])) if fold else constrained(CASES[name])
    save(saved, tmp_path)
    loaded = load(tmp_path)
    assert torch.equal(predict(loaded.module, IMAGES), predict(saved.module, IMAGES))
    assert all(torch.equal(t, state(saved.module)[n]) for n, t in state(loaded.module).items())
    assert state(loaded.module).keys() == state(saved.module).keys()
    assert loaded.grids == saved.grids
    assert loaded.classes == saved.classes
    assert loaded.lineage == saved.lineage
    assert loaded.folded == fold
    assert loaded.constraints.keys() == saved.constraints.keys()
    for weight_name, held in loaded.constraints.items():
        before = saved.constraints[weight_name]
        assert held.range == before.range
        assert before.levels.equals(held.levels) if before.levels else held.levels is None
        assert torch.equal(held.mask, before.mask) if before.mask is not None else held.mask is None
        assert held.broken_by(saved.module.get_parameter(weight_name), held) == []


def test_grids_and_clamps_of_every_kind_come_back(tmp_path: Path) -> None:
    grids = {"head": DynamicGrid(8), "stages.0.conv2": InputGrid(1, 0.7, 0), "stem.0": InputGrid(4, 0.1, 3)}
    ends = torch.linspace(0.1, 2, 4).reshape(4, 1, 1)
    clamps = {"stages.0.conv1": Range(-ends, ends), "head": Range(0.0, math.inf), "stem.0": Range(-0.5, 0.9)}
    grids["stages.0.branch"] = InputGrid(8, 0.02, 128)
    grids["stages.0.conv1"] = DynamicGrid(7, rows=True)
    saved = make().narrowed({}, grids, clamps)
    save(saved, tmp_path)
    loaded = load(tmp_path)
    assert loaded.grids == grids
    assert loaded.clamps == clamps
    assert torch.equal(predict(loaded.module, IMAGES), predict(saved.module, IMAGES))
    assert not torch.equal(predict(loaded.module, IMAGES), predict(make().module, IMAGES))


@pytest.mark.parametrize("architecture", [Mlp(hidden=(6,)), Lenet5(), Resnet(widths=(4,), blocks=(1,))])
def test_saving_what_was_loaded_gives_the_same_bytes(architecture: Architecture, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    save(make(architecture), first)
    save(load(first), second)
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


def streams(folder: Path) -> tuple[int, int]:
    """Return how many floats and how many packed bytes a model has."""
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() <= {"floats", "packed"}
    assert stored["floats"].dtype == torch.float32
    packed = stored.get("packed", torch.zeros(0, dtype=torch.uint8))
    assert packed.dtype == torch.uint8
    return stored["floats"].numel(), packed.numel()


def all_floats() -> int:
    return sum(tensor.numel() for tensor in state(make().module).values())


@pytest.mark.parametrize(
    ("scheme", "size", "others"),
    [
        (Integer(bits=8), 144, 4),
        (Integer(bits=5), 90, 4),
        (Integer(bits=4), 72, 4),
        (Integer(bits=4, per_channel=False), 72, 1),
        (Integer(bits=3), 53, 4),  # 7 levels: 6 words of 22, and 12 codes in 5 bytes; whole bits take 54
        (Integer(bits=2), 29, 4),  # 3 levels: 3 words of 40, and 24 codes in 5 bytes
        (Integer(bits=4, group=16), 72, 12),  # 36 = 16 + 16 + 4
        (Integer(bits=4, symmetric=False), 72 + 4, 4),  # a byte for each zero point
        (Integer(bits=2, symmetric=False), 36 + 4, 4),
        (Ternary(), 29, 4),
        (Binary(), 18, 4 + 2),
        (Codebook(entries=16), 72, 1 + 16),
        (PowerOfTwo(bits=4), 72, 4 + 15),
    ],
    ids=lambda value: value.kind if isinstance(value, Quantizer) else None,
)
def test_codes_take_their_real_width(scheme: Quantizer, size: int, others: int, tmp_path: Path) -> None:
    save(make().narrowed({CONV: Constraints(levels=scheme.levels(weight()))}), tmp_path)
    assert streams(tmp_path) == (all_floats() - 144 + others, size)


def test_only_survivors_are_stored_and_masks_are_not_floats(tmp_path: Path) -> None:
    save(constrained({CONV: Constraints(levels=Integer(bits=4).levels(weight()), mask=MASK)}), tmp_path)
    floats, packed = streams(tmp_path)
    codes = math.ceil(int(MASK.sum()) * 4 / 8)
    assert floats == all_floats() - 144 + 4
    assert codes < packed <= codes + math.ceil(MASK.numel() / 8)
    save(make().narrowed({CONV: Constraints(mask=MASK)}), tmp_path)
    floats, packed = streams(tmp_path)
    assert floats == all_floats() - 144 + int(MASK.sum())
    assert 0 < packed <= math.ceil(MASK.numel() / 8)


LARGE = (Lenet300100(), Resnet(widths=(32, 64, 128), blocks=(0, 1, 1), pool=2))
TIGHT = (
    *(Integer(bits=bits) for bits in range(2, 9)),
    Integer(bits=4, symmetric=False),
    Integer(bits=4, group=32),
    Ternary(),
    Binary(),
    Codebook(entries=16),
    PowerOfTwo(bits=4),
)


@pytest.mark.parametrize(
    ("architecture", "scheme"),
    [
        *((LARGE[at % 2], scheme) for at, scheme in enumerate(TIGHT)),
        (LARGE[0], Codebook(entries=16)),
    ],
    ids=lambda each: f"{each.kind}{getattr(each, 'bits', '')}",
)
def test_a_file_is_at_most_three_per_cent_larger_than_its_numbers(
    architecture: Architecture, scheme: Quantizer, tmp_path: Path
) -> None:
    module = build(architecture, (1, 28, 28), 10, seed=0).eval()
    saved = folded(Checkpoint(architecture, (1, 28, 28), tuple("abcdefghij"), module))
    changes = {name: Constraints(levels=scheme.levels(w)) for name, w in compressible(saved.module).items()}
    saved = saved.narrowed(changes)
    assert sum(parameter.numel() for parameter in saved.module.parameters()) > 100_000
    least, others = 0.0, sum(t.numel() for n, t in state(saved.module).items() if n not in changes)
    for name, held in changes.items():
        assert held.levels is not None
        count = saved.module.get_parameter(name).numel()
        least += count * held.levels.bits / 8
        others += held.levels.scale.numel()
        if held.levels.zero_point is not None:
            others += held.levels.zero_point.numel()
        if held.levels.integers is None:
            others += len(held.levels.values)
        assert packed_size(count, len(held.levels.values)) <= math.ceil(count * held.levels.bits / 8)
    save(saved, tmp_path)
    assert size_bytes(tmp_path) <= 1.03 * (least + 4 * others)


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
    with pytest.raises(DecantError, match="does not hold what it should"):
        load(tmp_path)


@pytest.mark.parametrize(
    "change", [{"steps": ["x"]}, {"steps": {}}, {"steps": None}, {"beside": 3}, {"x": 1}]
)
def test_a_lineage_that_is_no_list_of_steps_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    save(make(), tmp_path)
    reseal(tmp_path / "lineage.json", change)
    with pytest.raises(DecantError, match=r"lineage\.json does not hold what it should"):
        load(tmp_path)


def test_the_lineage_of_another_model_is_refused(tmp_path: Path) -> None:
    save(make(), tmp_path / "this")
    save(constrained(CASES["mask"]), tmp_path / "other")
    (tmp_path / "other" / "lineage.json").replace(tmp_path / "this" / "lineage.json")
    with pytest.raises(DecantError, match=r"this does not hold .*lineage\.json is another model's"):
        load(tmp_path / "this")


@pytest.mark.parametrize("file", ["model.safetensors", "model.json", "lineage.json"])
def test_a_folder_in_the_place_of_a_file_is_told_in_words(file: str, tmp_path: Path) -> None:
    save(make(), tmp_path)
    (tmp_path / file).unlink()
    (tmp_path / file).mkdir()
    with pytest.raises(DecantError, match=rf"{file} cannot be read \(.*\); delete .* and run `dvc repro`"):
        load(tmp_path)


def test_an_architecture_that_there_is_not_is_told_as_in_params(tmp_path: Path) -> None:
    save(make(), tmp_path)
    redescribe(tmp_path, {"architecture": {"kind": "resnt"}})
    with pytest.raises(DecantError, match=r"architecture: unknown kind 'resnt'; did you mean 'resnet'\?\)"):
        load(tmp_path)


def test_a_changed_number_of_the_description_is_refused(tmp_path: Path) -> None:
    save(constrained(CASES["integer"]), tmp_path)
    text = (tmp_path / "model.json").read_text()
    assert '"scale":0.02' in text
    (tmp_path / "model.json").write_text(text.replace('"scale":0.02', '"scale":0.03'))
    with pytest.raises(DecantError, match=r"does not hold what it should .*has not the sum"):
        load(tmp_path)


@pytest.mark.parametrize("file", ["model.json", "lineage.json"])
@pytest.mark.parametrize("text", ["", "\xff", '{"a":' * 100_000, "[" * 100_000, "9" * 10_000])
@pytest.mark.parametrize("sealed", [False, True])
def test_text_that_no_parser_bears_is_one_sentence(
    file: str, text: str, sealed: bool, tmp_path: Path
) -> None:
    save(make(), tmp_path)
    beside = (tmp_path / "model.safetensors").read_bytes() if file == "model.json" else b""
    if sealed:
        text = seal(text + "}", beside)
    (tmp_path / file).write_text(text, encoding="latin1")
    with pytest.raises(DecantError, match=r"does not hold what it should|has a former format") as told:
        load(tmp_path)
    assert str(told.value).endswith("; delete " + str(tmp_path) + " and run `dvc repro`")
    assert len(str(told.value)) < 500


def test_what_is_beside_a_model_is_covered_by_its_lineage(tmp_path: Path) -> None:
    save(make(), tmp_path, {"curve.csv": "epoch\n1\n"})
    assert read_beside(tmp_path, "curve.csv") == "epoch\n1\n"
    assert read_beside(tmp_path, "ledger.json") is None
    (tmp_path / "curve.csv").write_text("epoch\n2\n")
    with pytest.raises(
        DecantError, match=r"curve\.csv does not hold .* not the sum that lineage\.json names"
    ):
        read_beside(tmp_path, "curve.csv")
    (tmp_path / "curve.csv").unlink()
    with pytest.raises(DecantError, match=r"No model at .*curve\.csv"):
        read_beside(tmp_path, "curve.csv")


@pytest.mark.parametrize(
    "change",
    [
        {"shapes": {"head.weight": "5x7"}},
        {"shapes": {"stages.0.conv2.weight": "3x4x3x3"}},
        {"inputs": {"head": {"range": "3"}}},
    ],
)
def test_layers_that_do_not_fit_each_other_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    """The numbers are as many as the shapes say, yet no image could pass."""
    saved = make()
    save(saved, tmp_path)
    some = torch.zeros(all_floats() + (6 if "inputs" in change else 0))
    if "shapes" in change:
        (name, shape), *_ = change["shapes"].items()
        sizes = [int(size) for size in shape.split("x")]
        some = some[: some.numel() - saved.module.get_parameter(name).numel() + math.prod(sizes)]
    redescribe(tmp_path, change, to_bytes({"floats": some}))
    with pytest.raises(DecantError, match=r"does not hold what it should .*RuntimeError"):
        load(tmp_path)


def test_files_of_two_models_are_told_apart(tmp_path: Path) -> None:
    save(make(Resnet(widths=(4, 8), blocks=(1, 2))), tmp_path)
    content = (tmp_path / "model.json").read_bytes()
    save(make(), tmp_path)
    (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(DecantError, match="has not the sum"):
        load(tmp_path)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    save(make(), tmp_path)
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(DecantError, match="has not the sum"):
        load(tmp_path)


def reseal(path: Path, change: dict[str, Any], *beside: bytes) -> str:
    """Change a file as somebody who computes its sum anew; return the sum."""
    text = seal(json.dumps(unseal(path.read_bytes(), *beside) | change, separators=(",", ":")), *beside)
    path.write_text(text)
    return sum_of(text.encode(), *beside)


def redescribe(folder: Path, change: dict[str, Any], weights: bytes | None = None) -> None:
    """Change what a model's files say, and their sums with it."""
    before = (folder / "model.safetensors").read_bytes()
    described = unseal((folder / "model.json").read_bytes(), before) | change
    weights = before if weights is None else weights
    (folder / "model.safetensors").write_bytes(weights)
    text = seal(json.dumps(described, separators=(",", ":")), weights)
    (folder / "model.json").write_text(text)
    reseal(folder / "lineage.json", {"model": sum_of(text.encode(), weights)})


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": {"no.such.layer": {"bits": 8, "scale": 0.1, "zero_point": 0}}},
        {"inputs": {"head": {"bits": 9, "scale": 0.1, "zero_point": 0}}},
        {"inputs": {"head": {"bits": 0}}},
        {"inputs": {"head": {"bits": 8, "scale": -0.1, "zero_point": 0}}},
        {"inputs": {"head": {"bits": 1, "scale": 0.1, "zero_point": 2}}},
        {"inputs": {"head": {"bits": 8, "scale": 0.1}}},
        {"inputs": {"head": {"bits": "8", "scale": 0.1, "zero_point": 0}}},
        {"inputs": {"head": {"range": [1, 0]}}},
        {"inputs": {"head": {"range": [1, 2, 3]}}},
        {"inputs": {"head": {"range": "4xa"}}},
        {"weights": {CONV: {"shape": [4, 4, 3, 3], "bits": 8}}},
        {"weights": {}},
        {"weights": {"no.such.weight": {"per": "tensor", "integers": [-7, 7]}}},
        {"architecture": {"kind": "transformer"}},
        {"architecture": {"kind": "lenet-300-100"}},
        {"shape": [1, 16]},
        {"classes": ["a", "b"]},
        {"folded": True},
        {"weights": None},
    ],
)
def test_a_description_that_does_not_fit_is_told_in_words(change: dict[str, Any], tmp_path: Path) -> None:
    save(constrained(CASES["integer"]), tmp_path)
    redescribe(tmp_path, change)
    with pytest.raises(DecantError, match="does not hold what it should"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"integers": [-7, 7]}, "72 bytes expected, "),
        ({"integers": [-1, 1]}, "numbers and .* bytes are too many"),
        ({"integers": [3, 3]}, "2 to 256 levels, got 1"),
        ({"integers": [3, 2]}, "2 to 256 levels, got 0"),
        ({"integers": [3, -9]}, "2 to 256 levels, got -11"),
        ({"integers": [0, 10**9]}, "2 to 256 levels, got 1000000001"),
        ({"integers": [1]}, "not enough values"),
        ({"integers": ["a", "b"]}, "TypeError"),
        ({"per": "tensor"}, "numbers and 0 bytes are too many"),
        ({"per": 0}, "a group is of 0 weights"),
        ({"per": -3}, "a group is of -3 weights"),
        ({"per": 16}, "40 numbers expected, 37 are left"),
        ({"per": [2, 1, 1, 2]}, "RuntimeError"),
        ({"per": None}, "TypeError"),
        ({"affine": True}, "4 bytes expected, 0 are left"),
        ({"range": [1, 0]}, "holds no number"),
        ({"mask": [0, 20, 18]}, "holds 70 survivors, expected 20"),
        ({"mask": [9, 20, 18]}, "2 to 8 bits, or 0 for a bitmap, got 9"),
        ({"mask": [0, 20, -18]}, "-18 bytes expected"),
        ({"mask": [0, -20, 18]}, "holds 70 survivors, expected -20"),
        ({"mask": [0, 20]}, "not enough values"),
    ],
)
def test_levels_that_cannot_be_are_told_in_words(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    save(constrained(CASES["integer"]), tmp_path)
    described = json.loads((tmp_path / "model.json").read_text())["weights"][CONV]
    assert described == {"per": "channel", "integers": [-3, 3]}
    redescribe(tmp_path, {"weights": {CONV: described | change}})
    with pytest.raises(DecantError, match=f"does not hold what it should .*{words}"):
        load(tmp_path)


@pytest.mark.parametrize("stream", ["floats", "packed"])
@pytest.mark.parametrize("more", [-1, 1])
def test_streams_that_are_too_short_or_too_long_are_told(stream: str, more: int, tmp_path: Path) -> None:
    save(constrained(CASES["affine, masked"]), tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    longer = torch.cat([stored[stream], stored[stream].new_zeros(1)])
    content = to_bytes({**stored, stream: longer if more > 0 else stored[stream][:-1]})
    redescribe(tmp_path, {}, content)
    with pytest.raises(DecantError, match="are too many" if more > 0 else r"expected, \d+ are left"):
        load(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    save(make(), tmp_path)
    for number in (2, 99):
        redescribe(tmp_path, {"format": number})
        with pytest.raises(DecantError, match=f"has format {number}, this code reads 3; run `dvc repro`"):
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


# --- what a file announces costs nothing before it is compared with what it holds


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": {"kind": "resnet", "widths": [4, 8], "blocks": [1, 100_000]}},
        {"architecture": {"kind": "resnet", "widths": [4, 8], "blocks": [64, 64]}},
        {"architecture": {"kind": "resnet", "widths": [4, 2_500], "blocks": [1, 1]}},
        {"architecture": {"kind": "resnet", "widths": [8, 4_000], "blocks": [1, 1]}},
        {"architecture": {"kind": "mlp", "hidden": [8_000, 8_000]}},
        {"shape": [1, 1 << 12, 1 << 12], "architecture": {"kind": "mlp", "hidden": [3]}},
        {"shape": [1, 10**12, 10**12]},
        {"classes": ["x"] * 60_000},
        {"shapes": {CONV: "99999999x4x3x3"}},
        {"weights": {CONV: {"per": "channel", "integers": [-3, 3], "mask": [2, 0, 0]}}},
        {
            "architecture": {"kind": "mlp", "hidden": [8_000, 8_000]},
            "weights": {f"layers.{index}.weight": {"mask": [8, 0, 0]} for index in (0, 2, 4)},
        },
    ],
    ids=str,
)
def test_a_size_that_is_only_announced_takes_neither_time_nor_memory(
    change: dict[str, Any], tmp_path: Path
) -> None:
    save(constrained(CASES["integer"]), tmp_path)
    redescribe(tmp_path, change)
    before = resource.getrusage(resource.RUSAGE_SELF)
    with pytest.raises(DecantError, match=r"does not hold what it should"):
        load(tmp_path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_maxrss - before.ru_maxrss < 200 * 1024
    assert after.ru_utime - before.ru_utime < 5


def test_a_group_that_is_wider_than_its_row_takes_no_more_memory_than_the_row(tmp_path: Path) -> None:
    wide = Integer(bits=3, group=36).levels(weight())
    save(make().narrowed({CONV: Constraints(levels=replace(wide, group=10**12))}), tmp_path)
    assert torch.equal(load(tmp_path).module.get_parameter(CONV), wide.project(weight()))


def test_a_network_that_nothing_builds_is_not_written(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
    with pytest.raises(DecantError, match="give the Checkpoint an architecture"):
        save(Checkpoint(None, (1, 4, 4), ("a", "b"), module), tmp_path / "model")
    assert not (tmp_path / "model").exists()
