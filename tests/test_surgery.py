"""Channels cut out of tensors, constraints and layers alike, and models without them on disk and in ONNX."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from decant.checkpoints.activations import InputGrid
from decant.checkpoints.checkpoint import Checkpoint, altered, state
from decant.checkpoints.constraints import Constraints, Levels, Range
from decant.checkpoints.files import load, save
from decant.compression.invariants import check_invariants
from decant.compression.ledger import as_json, compare, lines
from decant.compression.surgery import composed, removed
from decant.costs.counts import macs, parameters
from decant.errors import DecantError
from decant.export.deploy import check_same, to_onnx
from decant.export.runtime import open_session
from decant.networks.architectures import Resnet
from decant.networks.execution import predict
from decant.quantize.schemes import Binary, Codebook, Integer, Ternary
from tests.nets import NETS, drawn, images, known, net
from tests.slow import slow_but
from tests.test_checkpoints import redescribe

CONV, NEXT = "stages.0.conv1.weight", "stages.0.conv2.weight"
KEPT = {
    CONV: {0: torch.tensor([0, 2, 5])},
    NEXT: {1: torch.tensor([0, 2, 5])},
    **{f"stages.0.norm1.{n}": {0: torch.tensor([0, 2, 5])} for n in ("weight", "bias")},
    **{f"stages.0.norm1.running_{n}": {0: torch.tensor([0, 2, 5])} for n in ("mean", "var")},
}


def residual() -> Checkpoint:
    return net(NETS["residual"])


def test_tensors_layers_and_nothing_else_change() -> None:
    parent = residual()
    before = {name: tensor.clone() for name, tensor in parent.module.state_dict().items()}
    child = removed(parent, KEPT)
    assert all(torch.equal(t, before[n]) for n, t in parent.module.state_dict().items())
    for name, tensor in child.module.state_dict().items():
        expected = before[name]
        for dim, kept in KEPT.get(name, {}).items():
            expected = expected.index_select(dim, kept)
        assert torch.equal(tensor, expected)
    conv, after = (child.module.get_submodule(n.removesuffix(".weight")) for n in (CONV, NEXT))
    norm = child.module.get_submodule("stages.0.norm1")
    assert (conv.out_channels, after.in_channels, norm.num_features) == (3, 3, 3)
    assert child.module.get_parameter(CONV).requires_grad


def test_the_same_again_is_one_step() -> None:
    parent = residual()
    second = {name: dict.fromkeys(dims, torch.tensor([0, 2])) for name, dims in KEPT.items()}
    twice = removed(removed(parent, KEPT), second)
    once = removed(parent, composed(KEPT, second))
    assert twice.module.get_parameter(CONV).shape[0] == 2
    assert all(torch.equal(t, once.module.state_dict()[n]) for n, t in twice.module.state_dict().items())


@pytest.mark.parametrize("name", [CONV, NEXT])
def test_constraints_are_cut_like_their_weight(name: str) -> None:
    parent = residual()
    weight = parent.module.get_parameter(name).detach()
    rows = weight.abs().amax((1, 2, 3), keepdim=True)
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) > 0.4
    held = {
        "mask": Constraints(mask=mask),
        "range": Constraints(Range(-0.6 * rows, 0.5 * rows)),
        "number": Constraints(Range(-0.1, 0.2)),
        "channel": Constraints(levels=Integer(bits=3).levels(weight)),
        "tensor": Constraints(levels=Integer(bits=3, per_channel=False).levels(weight)),
        "affine": Constraints(levels=Integer(bits=3, symmetric=False).levels(weight)),
        "ternary": Constraints(levels=Ternary(per_channel=False).levels(weight)),
        "codebook": Constraints(levels=Codebook(entries=7).levels(weight)),
        "all": Constraints(Range(-0.6 * rows, 0.5 * rows), Binary().levels(weight), mask),
    }
    (dim, kept), *_ = KEPT[name].items()
    for constraints in held.values():
        child = removed(parent.narrowed({name: constraints}), KEPT)
        cut = child.constraints[name]
        expected = constraints.project(weight).index_select(dim, kept)
        assert torch.equal(child.module.get_parameter(name), expected)
        assert torch.equal(cut.project(weight.index_select(dim, kept)), expected)


@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_lose_channels_and_no_inputs(symmetric: bool) -> None:
    parent = residual()
    scheme = Integer(bits=3, group=16, symmetric=symmetric)
    weight = parent.module.get_parameter(CONV).detach()
    held = Constraints(levels=scheme.levels(weight))
    child = removed(parent.narrowed({CONV: held}), KEPT)
    (kept,) = KEPT[CONV].values()
    assert torch.equal(child.module.get_parameter(CONV), held.project(weight)[kept])
    levels = child.constraints[CONV].levels
    assert levels is not None
    assert levels.scale.shape == (3, 4)  # 6 * 9 = 54 = 3 * 16 + 6
    assert levels.scope == "group of 16"
    assert torch.equal(levels.project(weight[kept]), held.project(weight)[kept])
    reader = parent.module.get_parameter(NEXT).detach()
    grouped = parent.narrowed({NEXT: Constraints(levels=scheme.levels(reader))})
    with pytest.raises(DecantError, match=r"group of 16 cannot lose inputs.*remove channels first"):
        removed(grouped, KEPT)


@pytest.mark.parametrize("kind", ["residual", "grouped", "depthwise", "flattened"])
def test_ranges_and_grids_of_inputs_stay_with_their_channels(kind: str) -> None:
    parent = net(NETS[kind])
    layers, clamps = {}, {}
    for name, layer in parent.module.named_modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            count = getattr(layer, "in_channels", None) or layer.in_features
            shape = (-1, *[1] * (layer.weight.dim() - 2))
            layers[name] = count
            low = torch.linspace(-0.5, -0.01, count).reshape(shape)
            clamps[name] = Range(low, torch.linspace(0.02, 0.9, count).reshape(shape))
    parent = parent.narrowed({}, {next(reversed(layers)): InputGrid(8, 0.02, 100)}, clamps)
    plan = drawn(parent, 3)
    plan.check(images())
    assert plan.model.grids == parent.grids
    for name, clamp in plan.model.clamps.items():
        layer = plan.model.module.get_submodule(name)
        assert isinstance(clamp.low, torch.Tensor)
        assert len(clamp.low) == (getattr(layer, "in_channels", None) or layer.in_features)


@pytest.mark.parametrize("seed", slow_but([0], range(3)))
@pytest.mark.parametrize("kind", NETS)
def test_a_model_without_channels_is_the_same_on_disk_and_in_onnx(
    kind: str, seed: int, tmp_path: Path
) -> None:
    child = drawn(net(NETS[kind], seed), seed).model
    save(child, tmp_path)
    with known():
        loaded = load(tmp_path)
    assert torch.equal(predict(loaded.module, images()), predict(child.module, images()))
    assert all(torch.equal(t, state(child.module)[n]) for n, t in state(loaded.module).items())
    assert str(loaded.module) == str(child.module)  # the layers' numbers, too
    (tmp_path / "again").mkdir()
    save(loaded, tmp_path / "again")
    for file in ("model.json", "model.safetensors"):
        assert (tmp_path / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    if seed == 0:
        check_same(kind, child, open_session(to_onnx(child).SerializeToString(), 1), images())


def test_two_widths_of_one_architecture_have_two_graphs() -> None:
    parent = residual()
    for model in (removed(parent, KEPT), parent, removed(parent, KEPT)):
        check_same("some", model, open_session(to_onnx(model).SerializeToString(), 1), images())


def test_only_a_model_without_channels_has_shapes_on_disk(tmp_path: Path) -> None:
    save(residual(), tmp_path)
    assert "shapes" not in json.loads((tmp_path / "model.json").read_text())
    child = removed(residual(), KEPT)
    save(child, tmp_path)
    shapes = json.loads((tmp_path / "model.json").read_text())["shapes"]
    assert shapes.keys() == KEPT.keys() == altered(child).keys()
    assert shapes[CONV] == "3x6x3x3"


@pytest.mark.parametrize(
    "shapes",
    [
        {CONV: "4x6x3x3"},
        {CONV: "3x6"},
        {CONV: "0x6x3x3"},
        {CONV: "3x6x3xa"},
        {CONV: [3, 6, 3, 3]},
        {"no.such": "3"},
        {"stages.0.conv1.stride": "3"},
        None,
    ],
)
def test_shapes_that_do_not_fit_are_damage(shapes: Any, tmp_path: Path) -> None:
    save(removed(residual(), KEPT), tmp_path)
    described = json.loads((tmp_path / "model.json").read_text())
    redescribe(tmp_path, {"shapes": described["shapes"] | shapes if shapes else {}})
    with pytest.raises(DecantError, match="does not hold what it should"):
        load(tmp_path)


def test_the_ledger_tells_of_channels() -> None:
    parent = residual()
    entries = {e.name: e for e in compare(parent, removed(parent, KEPT), dict.fromkeys(KEPT, "none"), KEPT)}
    assert entries[CONV].channels == "6 → 3 channels"
    assert entries[CONV].removed == 3 * 6 * 9
    assert entries[NEXT].channels == "6 → 3 inputs"
    assert (entries[CONV].changed, entries[CONV].untouched) == (0, "")
    told = {entry["name"]: entry for entry in as_json(list(entries.values()))}
    assert told[CONV]["removed"] == 162
    assert "removed" not in told["head.weight"]
    assert any("6 → 3 channels" in line for line in lines("some", list(entries.values())))


def test_invariants_hold_of_what_is_left() -> None:
    parent = residual()
    weight = parent.module.get_parameter(CONV)
    mask = weight.abs() > weight.abs().median()
    parent = parent.narrowed(
        {CONV: Constraints(mask=mask, levels=Levels(torch.arange(-7, 8.0), rows(weight)))}
    )
    child = removed(parent, KEPT)
    check_invariants(parent, child, KEPT)
    with torch.no_grad():
        child.module.get_parameter(CONV).fill_(0.3)
    with pytest.raises(DecantError, match="masked weights are not zero"):
        check_invariants(parent, child, KEPT)


def rows(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().abs().amax((1, 2, 3), keepdim=True) / 7


def test_macs_and_parameters_by_hand() -> None:
    parent = net(Resnet(widths=(6, 8), blocks=(1, 1), pool=1))
    child = removed(parent, KEPT)
    # conv1 loses 3 of 6 outputs, conv2 3 of 6 inputs, each 3 x 3 on 6 x 6 pixels; the norm 6 numbers
    assert macs(parent.module) - macs(child.module) == 2 * 162 * 36
    assert parameters(parent.module) - parameters(child.module) == 2 * 162 + 6
