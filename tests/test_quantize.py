"""Schemes and calibration against arithmetic by hand and loops in double precision."""

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tasks.constraints import Constraints
from tasks.grids import affine_grid
from tasks.params import validate
from tasks.quantize.schemes import Binary, Integer, Scheme
from tasks.samples import of_inputs

SCHEMES = get_args(get_args(Scheme)[0])
WEIGHT = torch.tensor([[0.7, -0.2, 0.05, -1.4], [0.0, 0.3, -0.35, 0.1]])


@pytest.mark.parametrize("kind", SCHEMES)
@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 3, 3), (4, 2, 5)])
def test_exam(kind: type[Integer], shape: tuple[int, ...]) -> None:
    scheme = validate({"kind": kind.model_fields["kind"].default}, Scheme)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight[1] = 0  # a dead channel
    before = weight.clone()
    levels = scheme.levels(weight)
    quantized = levels.project(weight)
    assert torch.equal(weight, before)
    assert quantized.shape == weight.shape
    assert torch.isfinite(quantized).all()
    assert (levels.scale > 0).all()
    assert (levels.values.diff() > 0).all()
    assert torch.equal(levels.project(quantized), quantized)
    assert torch.equal(scheme.levels(weight).project(weight), quantized)
    assert validate(scheme.model_dump(), Scheme) == scheme


def test_integers_by_hand_per_tensor() -> None:
    # The largest |w| is 1.4 and 4 bits reach 7: the step is 0.2.
    levels = Integer(bits=4, per_channel=False).levels(WEIGHT)
    assert levels.scale.item() == pytest.approx(0.2)
    assert levels.values.tolist() == list(range(-7, 8))
    codes = levels.codes(WEIGHT) - 7
    assert codes.tolist() == [[4, -1, 0, -7], [0, 2, -2, 1]]


def test_integers_by_hand_per_channel() -> None:
    levels = Integer(bits=2).levels(WEIGHT)
    assert levels.scale.flatten().tolist() == pytest.approx([1.4, 0.35])
    assert levels.project(WEIGHT)[1].tolist() == pytest.approx([0, 0.35, -0.35, 0])


@given(st.integers(2, 8), st.booleans(), st.integers(0, 99))
def test_rounding_agrees_with_torch_and_errs_by_half_a_step(bits: int, per_channel: bool, seed: int) -> None:
    weight = torch.randn(5, 11, generator=torch.Generator().manual_seed(seed))
    levels = Integer(bits=bits, per_channel=per_channel).levels(weight)
    top = 2 ** (bits - 1) - 1
    reference = torch.round(weight / levels.scale).clamp(-top, top) * levels.scale
    assert torch.equal(levels.project(weight), reference)
    assert ((levels.project(weight) - weight).abs() <= levels.scale * 0.500001).all()


@given(st.integers(2, 7), st.integers(0, 99))
def test_a_bit_more_never_errs_more_in_sum(bits: int, seed: int) -> None:
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(seed))
    coarse, fine = (Integer(bits=b).levels(weight).project(weight) for b in (bits, bits + 1))
    assert (fine - weight).abs().sum() <= (coarse - weight).abs().sum()


def test_zero_is_exact_at_every_width() -> None:
    for bits in range(2, 9):
        assert Integer(bits=bits).levels(WEIGHT).project(WEIGHT)[1, 0].item() == 0.0


def test_binary_by_hand() -> None:
    levels = Binary().levels(WEIGHT[:1])
    assert levels.bits == 1
    assert levels.scale.item() == pytest.approx((0.7 + 0.2 + 0.05 + 1.4) / 4)
    assert levels.project(WEIGHT[:1]).sign().tolist() == [[1, -1, 1, -1]]


def test_no_other_scale_gives_signs_a_smaller_squared_error() -> None:
    # XNOR-Net's claim for alpha = mean |w|.
    weight = torch.randn(1, 200, generator=torch.Generator().manual_seed(5)).double()
    alpha = Binary().levels(weight).scale.double()

    def error(scale: torch.Tensor) -> float:
        return (weight - scale * weight.sign()).square().sum().item()

    assert all(error(alpha) < error(alpha * factor) for factor in (0.9, 0.99, 1.01, 1.1))


def test_binary_does_not_count_masked_zeros() -> None:
    weight = torch.tensor([[0.4, 0.0, 0.0, -0.2]])
    mask = torch.tensor([[True, False, True, True]])
    assert Binary().levels(weight).scale.item() == pytest.approx(0.6 / 4)
    assert Binary().levels(weight, mask).scale.item() == pytest.approx(0.6 / 3)


@given(st.floats(-50, 50), st.floats(0, 50), st.integers(2, 8))
def test_an_affine_grid_holds_zero_and_both_ends(low: float, width: float, bits: int) -> None:
    grid = affine_grid(low, low + width, bits)
    assert 0 <= grid.zero_point < 2**bits
    ends = torch.tensor([low, 0.0, low + width])
    assert grid(ends)[1] == 0
    assert ((grid(ends) - ends).abs() <= grid.scale * 1.001).all()


def test_an_affine_grid_by_hand() -> None:
    grid = affine_grid(-1.0, 2.0, 2)
    assert (grid.scale, grid.zero_point) == (1.0, 1)
    assert grid(torch.tensor([-5.0, -0.6, 0.4, 1.6, 7.0])).tolist() == [-1, -1, 0, 2, 2]


def test_constant_activations_get_a_grid() -> None:
    grid = affine_grid(0.0, 0.0, 8)
    assert grid(torch.tensor([0.0])).item() == 0.0


@pytest.mark.parametrize(("low", "high", "bits"), [(9.5e-42, 1.9e-41, 2), (-1e-38, 1e-38, 8)])
def test_inputs_of_almost_nothing_keep_an_exact_zero(low: float, high: float, bits: int) -> None:
    assert affine_grid(low, high, bits)(torch.tensor([0.0, low, high])).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("low", "high"), [(float("nan"), 1.0), (0.0, float("inf")), (1.0, 0.0)])
def test_impossible_ranges_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="must be finite and ordered"):
        affine_grid(low, high, 8)


def test_ranges_are_those_of_every_batch_by_a_second_look() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    images = torch.randint(0, 256, (2500, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    images[2400] = 255  # seen in the last batch only
    seen = of_inputs(module, ["1", "3"], images.to(torch.uint8))
    inputs = images.float() / 255
    hidden = module[:3](inputs)
    (first,), (second,) = seen["1"].each, seen["3"].each
    assert (first.low, first.high) == (inputs.min().item(), inputs.max().item())
    assert (second.low, second.high) == pytest.approx((hidden.min().item(), hidden.max().item()))
    assert not any(layer._forward_pre_hooks for layer in module)


def test_quantizing_keeps_a_mask() -> None:
    mask = WEIGHT.abs() > 0.25
    held = Constraints(mask=mask).narrow(levels=Binary().levels(WEIGHT * mask))
    assert torch.equal(held.project(WEIGHT) == 0, ~mask)
