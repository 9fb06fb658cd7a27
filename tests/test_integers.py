"""Integers stand for the same numbers; a settled bias is what integer kernels add, and naive sums agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from decant.checkpoints.activations import DynamicGrid, InputGrid
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import FREE, Constraints, Levels
from decant.lowering.folding import folded
from decant.lowering.integers import (
    ROOM,
    SAFE,
    TOP,
    Whole,
    is_settled,
    risky,
    settled,
    unit,
    whole,
    with_bias,
)
from decant.networks.structure import compressible, followers
from decant.quantize.schemes import Binary, Codebook, Integer, PowerOfTwo, Quantizer, Ternary
from tests.drawn import drawn
from tests.nets import NETS, net
from tests.slow import chessboard

WHOLE: dict[str, Quantizer] = {
    **{f"{bits} bits": Integer(bits=bits) for bits in range(2, 9)},
    **{f"affine, {bits} bits": Integer(bits=bits, symmetric=False) for bits in range(2, 9)},
    "tensor": Integer(bits=4, per_channel=False),
    "affine tensor": Integer(bits=8, symmetric=False, per_channel=False),
    "ternary": Ternary(),
    "binary": Binary(),
}


def turned() -> Checkpoint:
    """Return a network of whose batch norms some factors are negative, and one is zero."""
    model = net(NETS["residual"])
    for _, norm in followers(model.module).values():
        with torch.no_grad():
            norm.weight[0], norm.weight[1] = -0.7, 0.0
    return model


def quantized(scheme: Quantizer, *, masked: bool = False) -> Checkpoint:
    """Return that network on levels and folded, its inputs on grids of 8 bits that are drawn."""
    model = turned()
    masks = {n: drawn(5, *w.shape) > -0.5 if masked else None for n, w in compressible(model.module).items()}
    held = {
        name: Constraints(levels=scheme.levels(weight.detach(), masks[name]), mask=masks[name])
        for name, weight in compressible(model.module).items()
    }
    grids = {
        name.removesuffix(".weight"): InputGrid(8, 0.01 * (index + 1), 3 * index)
        for index, name in enumerate(held)
    }
    return folded(model.narrowed(held, grids))


@pytest.mark.parametrize(("kind", "masked"), chessboard(WHOLE, (True, False)))
def test_the_integers_are_the_weight_to_the_bit(kind: str, masked: bool) -> None:
    scheme = WHOLE[kind]
    model = quantized(scheme, masked=masked)
    for name, weight in compressible(model.module).items():
        found = whole(weight.detach(), model.constraints[name])
        assert found is not None
        column = [-1, *[1] * (weight.dim() - 1)]
        steps = found.codes.long() - found.zero_point.long().reshape(column)
        assert torch.equal(found.steps, steps)
        assert torch.equal(steps.float() * found.scale.reshape(column), weight)
        assert (found.scale > 0).all()
        assert found.scale.shape == found.zero_point.shape == (len(weight),)
        if found.codes.dtype == torch.int8:
            assert not found.zero_point.any()
            assert scheme in (WHOLE["8 bits"], WHOLE["affine tensor"]) or steps.abs().max() <= TOP // 2
        else:
            assert found.codes.dtype == found.zero_point.dtype == torch.uint8


@pytest.mark.parametrize("bits", range(2, 8))
def test_few_bits_fill_the_codes_that_16_bits_can_add(bits: int) -> None:
    weight = drawn(0, 6, 40)
    weight[2] = 0
    found = whole(weight, Constraints(levels=Integer(bits=bits).levels(weight)))
    assert found is not None
    largest = found.codes.long().abs().amax(1)
    assert ((largest > SAFE // 2) & (largest <= SAFE) | (torch.arange(6) == 2)).all()
    assert 2 * SAFE * TOP < 2**15


@pytest.mark.parametrize(
    ("weight", "levels"),
    [
        (drawn(0, 4, 32), None),
        (drawn(0, 4, 32), Codebook(entries=5).levels(drawn(0, 4, 32))),
        (drawn(0, 4, 32), PowerOfTwo(bits=4).levels(drawn(0, 4, 32))),
        (drawn(0, 4, 32), Integer(bits=4, group=16).levels(drawn(0, 4, 32))),
        (drawn(0, 4, 6, 1, 1), Integer(bits=8).levels(drawn(0, 4, 6, 1, 1), axis=1)),
        (drawn(0, 4, 32), Levels(torch.tensor([-200.0, 0.0, 7.0]), torch.tensor(0.01))),
    ],
    ids=["free", "codebook", "powers of two", "groups", "input channels", "more than 8 bits"],
)
def test_other_weights_are_no_integers_of_channels(weight: Tensor, levels: Levels | None) -> None:
    held = Constraints(levels=levels)
    assert whole(held.project(weight), held) is None


def hand(codes: list[list[int]], scale: list[float]) -> Whole:
    return Whole(
        torch.tensor(codes, dtype=torch.int8),
        torch.tensor(scale),
        torch.zeros(len(scale), dtype=torch.int8),
    )


def test_a_bias_in_steps_by_hand() -> None:
    found = with_bias(hand([[3, -2], [1, 0]], [0.5, 0.25]), torch.tensor([1.3, -0.2]), 0.125)
    assert found is not None
    assert found[1].dtype == torch.int32
    assert found[1].tolist() == [21, -6]  # 1.3 / 0.0625 = 20.8 and -0.2 / 0.03125 = -6.4
    assert found[0].scale.tolist() == [0.5, 0.25]


def test_sums_of_32_bits_are_taken_and_the_next_is_refused() -> None:
    one, fits = hand([[1]], [1.0]), float(ROOM - TOP)
    found = with_bias(one, torch.tensor([fits]), 1.0)
    assert found is not None
    assert found[1].item() + TOP == ROOM
    above = torch.tensor([fits]).nextafter(torch.tensor(torch.inf))
    assert with_bias(one, above, 1.0) is None
    assert with_bias(one, -above, 1.0) is None
    assert with_bias(hand([[1, 1]], [1.0]), torch.tensor([fits]), 1.0) is None


def test_a_channel_that_adds_nothing_keeps_its_bias_and_gets_a_scale_of_its_own() -> None:
    weight = hand([[0, 0], [64, 64], [0, 0], [5, 5]], [1e-30, 1e-25, 3.0, 0.1])
    bias = torch.tensor([0.3, -0.7, 0.0, 0.3])
    found = with_bias(weight, bias, 0.02)
    assert found is not None
    assert not found[0].codes[:3].any()
    assert found[0].codes[3].tolist() == [5, 5]
    near = found[1] * unit(found[0].scale, 0.02)
    assert torch.allclose(near[:3], bias[:3], rtol=2.0**-23, atol=0)
    assert abs(near[3] - bias[3]) <= 0.001


@pytest.mark.parametrize("scheme", WHOLE.values(), ids=WHOLE.keys())
def test_settling_moves_biases_by_half_a_step_and_nothing_else(scheme: Quantizer) -> None:
    model = quantized(scheme)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    after = settled(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())
    moved = 0
    for name, tensor in after.module.state_dict().items():
        if not name.endswith("bias"):
            assert torch.equal(tensor, before[name])
            continue
        layer = name.removesuffix(".bias")
        weight = whole(
            after.module.get_parameter(f"{layer}.weight").detach(), model.constraints[f"{layer}.weight"]
        )
        assert weight is not None
        step = unit(weight.scale, model.grids[layer].scale)  # type: ignore[union-attr]
        assert ((tensor - before[name]).abs() <= step * 0.5 + before[name].abs() * 2.0**-22).all()
        moved += int((tensor != before[name]).sum())
    assert moved > 0
    assert (after.constraints, after.grids) == (model.constraints, model.grids)


@given(st.integers(0, 1000), st.integers(2, 8), st.floats(-6, 1), st.floats(-6, 0), st.floats(-6, 3))
def test_twice_is_as_good_as_once(seed: int, bits: int, step: float, scale: float, bias: float) -> None:
    held = Constraints(levels=Integer(bits=bits).levels(drawn(seed, 8, 20) * 10**scale))
    weight = whole(held.project(drawn(seed, 8, 20) * 10**scale), held)
    assert weight is not None
    first = with_bias(weight, drawn(seed + 1, 8) * 10**bias, 10**step)
    if first is None:
        return
    once = first[1] * unit(first[0].scale, 10**step)
    assert is_settled(*first, once, 10**step)
    second = with_bias(weight, once, 10**step)
    assert second is not None
    assert torch.equal(second[1] * unit(second[0].scale, 10**step), once)


def test_a_bias_that_is_half_a_step_off_is_not_settled() -> None:
    weight, bias = hand([[3, -2]], [0.5]), torch.tensor([1.25])
    found = with_bias(weight, bias, 0.125)
    assert found is not None
    assert is_settled(*found, bias, 0.125)
    assert not is_settled(*found, bias + 0.03, 0.125)


def test_what_no_integer_kernel_takes_is_left_alone() -> None:
    """Batch ranges, inputs in float32, codebooks; and transposed convolutions, whose rows are no outputs."""
    model = quantized(Integer(bits=8))
    layer = "stages.0.conv1"
    grids = {name: grid for name, grid in model.grids.items() if name != layer}
    book = {f"{layer}.weight": Constraints(levels=Codebook(entries=5).levels(drawn(0, 6, 6, 3, 3)))}
    for other in (
        replace(model, grids=grids),
        replace(model, grids={layer: DynamicGrid(8)}),
        replace(model, constraints={**model.constraints, **book}),
        replace(model, constraints={**model.constraints, f"{layer}.weight": FREE}),
    ):
        bias = model.module.get_parameter(f"{layer}.bias")
        assert torch.equal(settled(other).module.get_parameter(f"{layer}.bias"), bias)
        assert not torch.equal(settled(model).module.get_parameter(f"{layer}.bias"), bias)
    module = nn.Sequential(nn.ConvTranspose2d(4, 6, 3), nn.Conv2d(6, 4, 3, bias=False)).eval()
    scheme = Integer(bits=8, per_channel=False)
    held = {f"{i}.weight": Constraints(levels=scheme.levels(module[i].weight.detach())) for i in range(2)}
    transposed = replace(model, shape=(4, 12, 12), module=module, constraints={}, grids={}).narrowed(
        held, {"0": InputGrid(8, 0.01, 0), "1": InputGrid(8, 0.01, 0)}
    )
    assert torch.equal(settled(transposed).module[0].bias, module[0].bias)


@pytest.mark.parametrize(
    ("scheme", "grid", "cut"),
    [
        (Integer(bits=8), InputGrid(8, 0.01, 0), True),
        (Integer(bits=7), InputGrid(8, 0.01, 0), False),
        (Integer(bits=6, symmetric=False), InputGrid(8, 0.01, 0), False),
        (Integer(bits=7, symmetric=False), InputGrid(8, 0.01, 0), True),  # 0 to 127, as int8
        (Integer(bits=8, symmetric=False), InputGrid(8, 0.01, 0), False),  # 0 to 255, as uint8
        (Integer(bits=8), DynamicGrid(8), True),
        (Codebook(entries=16), InputGrid(8, 0.01, 0), False),
        (Integer(bits=8), None, False),
    ],
    ids=str,
)
def test_sums_are_cut_where_codes_are_large_and_multiplied_as_integers(
    scheme: Quantizer, grid: InputGrid | DynamicGrid | None, cut: bool
) -> None:
    """The head's weights lie on one side of zero; no convolution is concerned, as their inputs are free."""
    model = turned()
    weight = model.module.get_parameter("head.weight")
    with torch.no_grad():
        weight.abs_()
    held = {"head.weight": Constraints(levels=scheme.levels(weight.detach()))}
    child = model.narrowed(held, {} if grid is None else {"head": grid})
    assert risky(child) == (["head"] if cut else [])


def test_convolutions_with_the_range_of_each_batch_are_no_concern() -> None:
    model = quantized(Integer(bits=8))
    layers = [name.removesuffix(".weight") for name in compressible(model.module)]
    assert risky(model) == layers
    dynamic = model.narrowed({}, dict.fromkeys(layers, DynamicGrid(8)))
    assert risky(dynamic) == ["head"]


def naive(codes: np.ndarray, weight: Whole, bias: Tensor, zero: int) -> np.ndarray:
    """Return the sums [O, H, W] of a 3 x 3 convolution of codes [I, H, W], padded, in int64, by loops."""
    padded = np.pad(codes.astype(np.int64) - zero, ((0, 0), (1, 1), (1, 1)))
    steps, (_, height, width) = weight.steps.numpy(), codes.shape
    sums = np.zeros((len(steps), height, width), np.int64)
    for o in range(len(steps)):
        for y in range(height):
            for x in range(width):
                sums[o, y, x] = bias[o].item() + (steps[o] * padded[:, y : y + 3, x : x + 3]).sum()
    return sums


@pytest.mark.parametrize("kind", ["8 bits", "3 bits", "affine, 8 bits", "affine tensor", "ternary", "binary"])
def test_naive_integers_are_what_pytorch_computes_once_biases_are_settled(kind: str) -> None:
    model = settled(quantized(WHOLE[kind]))
    layer, following = "stages.0.conv1", InputGrid(8, 0.05, 128)
    grid, held = model.grids[layer], model.constraints[f"{layer}.weight"]
    assert isinstance(grid, InputGrid)
    convolution = model.module.get_submodule(layer)
    weight = whole(convolution.weight.detach(), held)
    assert weight is not None
    fitting = with_bias(weight, convolution.bias.detach(), grid.scale)
    assert fitting is not None
    assert is_settled(*fitting, convolution.bias.detach(), grid.scale)
    codes = np.random.default_rng(3).integers(0, 256, (convolution.in_channels, 5, 4))
    inputs = (torch.from_numpy(codes).float() - grid.zero_point) * grid.scale
    with torch.no_grad():
        expected = convolution(inputs[None])[0]  # its inputs lie on the grid: the hook changes nothing
    step = unit(fitting[0].scale, grid.scale).double().numpy()[:, None, None]
    sums = naive(codes, *fitting, grid.zero_point)
    assert np.abs(sums).max() <= ROOM
    found = sums * step
    assert np.abs(found - expected.double().numpy()).max() <= 1e-5 * max(1, np.abs(found).max())
    rounded = torch.from_numpy(np.clip(np.rint(found / following.scale) + 128, 0, 255))
    apart = (rounded - (following(expected).double() / following.scale + 128)).abs()
    assert apart.max() <= 1.001
    assert (apart > 0.5).double().mean() <= 0.01


def test_pytorch_without_settling_is_another_function() -> None:
    """So that the test above could fail: half a step of the sums is more than float32's rounding."""
    model = quantized(WHOLE["ternary"])
    bias = model.module.get_parameter("stages.0.conv1.bias").detach()
    weight = whole(
        model.module.get_parameter("stages.0.conv1.weight").detach(),
        model.constraints["stages.0.conv1.weight"],
    )
    assert weight is not None
    fitting = with_bias(weight, bias, 0.02)
    assert fitting is not None
    assert not is_settled(*fitting, bias, 0.02)
    assert F.l1_loss(fitting[1] * unit(fitting[0].scale, 0.02), bias) > 1e-6
