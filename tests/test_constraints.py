"""Projections hold exactly, compose in any order, and let gradients through as they claim."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decant.checkpoints.activations import DynamicGrid, InputGrid, on_grid
from decant.checkpoints.constraints import FREE, Constraints, Levels, Range, nearest_integers
from decant.checkpoints.gradients import passed, straight_through, within
from decant.quantize.schemes import Binary, Integer

WEIGHT = torch.tensor([[0.6, -0.2, 0.05, -1.0], [0.0, 0.3, -0.35, 0.1]])


def random_weight(seed: int, shape: tuple[int, ...] = (6, 5, 3, 3)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def any_constraints(seed: int, bits: int, *, ranged: bool, levelled: bool, masked: bool) -> Constraints:
    weight = random_weight(seed)
    scheme = Binary() if bits == 1 else Integer(bits=bits, per_channel=bool(seed % 2))
    return Constraints(
        range=Range(-0.8, 1.1) if ranged else None,
        levels=scheme.levels(weight) if levelled else None,
        mask=random_weight(seed + 1) > 0.3 if masked else None,
    )


@given(st.integers(0, 50), st.integers(1, 8), st.booleans(), st.booleans(), st.booleans())
def test_projecting_twice_changes_nothing_more(
    seed: int, bits: int, ranged: bool, levelled: bool, masked: bool
) -> None:
    constraints = any_constraints(seed, bits, ranged=ranged, levelled=levelled, masked=masked)
    once = constraints.project(random_weight(seed))
    assert torch.equal(constraints.project(once), once)
    assert constraints.broken_by(once, constraints) == []


def test_levels_choose_the_nearest_by_a_naive_loop() -> None:
    levels = Levels(torch.tensor([-1.5, -0.25, 0.0, 2.0]), torch.tensor(0.4))
    weight = random_weight(3).flatten()
    steps = [v * 0.4 for v in levels.values.tolist()]
    naive = [min(steps, key=lambda step: abs(step - w)) for w in weight.tolist()]
    assert torch.allclose(levels.project(weight), torch.tensor(naive))


def test_half_way_goes_up_and_beyond_the_ends_is_cut() -> None:
    levels = Levels(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor(1.0))
    assert levels.project(torch.tensor([-9.0, -0.5, 0.5, 9.0])).tolist() == [-1.0, 0.0, 1.0, 1.0]


def test_levels_with_a_zero_point_by_hand() -> None:
    # (code - 2) * 0.5, four codes: -1, -0.5, 0 and 0.5
    levels = Levels(torch.arange(4.0), torch.tensor(0.5), torch.tensor(2.0))
    assert levels.codes(torch.tensor([-7.0, -0.3, 0.2, 0.25, 9.0])).tolist() == [0, 1, 2, 3, 3]
    assert levels.decode(torch.arange(4)).tolist() == [-1, -0.5, 0, 0.5]
    assert levels.integers == (0, 3)
    assert levels.scope == "tensor"


def test_levels_by_group_by_hand() -> None:
    # Rows of five in groups of two: two, two and one.
    scale = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    levels = Levels(torch.tensor([-1.0, 0.0, 1.0]), scale, group=2)
    spread = levels.spread(scale, (2, 5))
    assert spread.tolist() == [[1, 1, 2, 2, 4], [8, 8, 16, 16, 32]]
    assert torch.equal(levels.decode(torch.full((2, 5), 2)), spread)
    assert levels.codes(spread * 0.6).tolist() == [[2] * 5] * 2
    assert levels.codes(spread * 0.4).tolist() == [[1] * 5] * 2
    # The pixels of a convolution are neighbours of its inputs' rows.
    assert torch.equal(levels.spread(scale, (2, 1, 5, 1)).flatten(1), spread)
    assert levels.scope == "group of 2"


def test_two_grids_are_equal_to_the_bit_or_not_at_all() -> None:
    levels = Levels(torch.arange(4.0), torch.ones(2, 1), torch.ones(2, 1))
    assert levels.equals(Levels(torch.arange(4.0), torch.ones(2, 1), torch.ones(2, 1)))
    for other in (
        None,
        Levels(torch.arange(4.0), torch.ones(2, 1)),
        Levels(torch.arange(4.0), torch.ones(2, 1), torch.zeros(2, 1)),
        Levels(torch.arange(4.0), torch.ones(2, 1), torch.ones(2, 1), group=16),
        Levels(torch.arange(5.0), torch.ones(2, 1), torch.ones(2, 1)),
        Levels(torch.arange(4.0), torch.ones(2, 1) + 1e-7, torch.ones(2, 1)),
    ):
        assert not levels.equals(other)


def test_zero_stays_zero_under_a_mask_though_binary_levels_have_no_zero() -> None:
    mask = torch.tensor([[True, False, True, True], [True, True, True, False]])
    binary = Constraints(levels=Levels(torch.tensor([-1.0, 1.0]), torch.tensor(0.5)), mask=mask)
    assert binary.project(WEIGHT).tolist() == [[0.5, 0.0, 0.5, -0.5], [0.5, 0.5, -0.5, 0.0]]


def test_ranges_and_masks_intersect() -> None:
    first = Constraints(range=Range(-1, 0.5), mask=torch.tensor([True, True, False]))
    both = first.narrow(range=Range(-0.2, math.inf), mask=torch.tensor([False, True, True]))
    assert both.range == Range(-0.2, 0.5)
    assert both.mask is not None
    assert both.mask.tolist() == [False, True, False]


def test_a_second_quantization_is_refused() -> None:
    levels = Integer(bits=8).levels(WEIGHT)
    with pytest.raises(ValueError, match="levels already"):
        Constraints(levels=levels).narrow(levels=levels)


def test_a_revived_weight_is_told() -> None:
    earlier = Constraints(mask=WEIGHT != 0.6)
    assert earlier.broken_by(WEIGHT, earlier) == ["1 of 1 masked weights are not zero"]


def test_a_lost_mask_is_told_even_while_its_weights_are_zero() -> None:
    earlier = Constraints(mask=WEIGHT != 0)
    assert earlier.broken_by(WEIGHT, FREE) == ["the mask was lost or widened"]


def test_lost_levels_and_a_widened_range_are_told() -> None:
    earlier = Constraints(range=Range(-1, 1), levels=Integer(bits=4).levels(WEIGHT))
    later = Constraints(range=Range(-2, 1), levels=Integer(bits=8).levels(WEIGHT))
    assert earlier.broken_by(earlier.project(WEIGHT), later) == [
        "the quantization levels were lost or changed",
        "the range [-1, 1] was lost or widened",
    ]


def test_a_weight_off_its_grid_is_told() -> None:
    held = Constraints(levels=Integer(bits=8).levels(WEIGHT))
    moved = held.project(WEIGHT)
    moved[0, 0] += 1e-4
    assert held.broken_by(moved, held) == ["1 of 8 weights are off their range, levels or mask"]


def test_the_gradient_passes_straight_through_but_not_through_masks() -> None:
    mask = WEIGHT > 0
    held = Constraints(levels=Integer(bits=4).levels(WEIGHT), mask=mask)
    weight = WEIGHT.clone().requires_grad_()
    factors = torch.arange(8.0).reshape(2, 4)
    projected = straight_through(weight, held)
    (projected * factors).sum().backward()
    assert torch.equal(projected, held.project(WEIGHT))
    assert weight.grad is not None
    assert torch.equal(weight.grad, factors * mask)


def test_an_input_grid_agrees_with_a_loop_in_double_precision() -> None:
    grid = InputGrid(bits=4, scale=0.25, zero_point=5)
    inputs = torch.linspace(-3, 4, 57)
    naive = [(min(max(round(x / 0.25) + 5, 0), 15) - 5) * 0.25 for x in inputs.tolist()]
    assert grid(inputs).tolist() == naive


def test_a_grid_of_one_bit_is_zero_or_its_step() -> None:
    assert InputGrid(1, 2.0, 0)(torch.tensor([-1.0, 0.9, 1.1, 7.0])).tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize(
    ("bits", "scale", "zero_point"),
    [(0, 1.0, 0), (9, 1.0, 0), (8, 0.0, 0), (8, -1.0, 0), (8, math.nan, 0), (4, 1.0, 16), (4, 1.0, -1)],
)
def test_impossible_grids_are_refused(bits: int, scale: float, zero_point: int) -> None:
    with pytest.raises(ValueError, match="1 to 8 bits, a positive step and a zero point among its points"):
        InputGrid(bits, scale, zero_point)


def test_a_dynamic_grid_is_onnx_s_by_hand() -> None:
    # From -1 to 2 in 3 steps of 1: the zero point is 1; inputs that are never negative start at 0.
    assert DynamicGrid(2)(torch.tensor([-1.0, 0.4, 0.6, 2.0])).tolist() == [-1, 0, 1, 2]
    assert DynamicGrid(2)(torch.tensor([1.4, 3.0])).tolist() == [1, 3]
    assert DynamicGrid(8)(torch.zeros(3)).tolist() == [0, 0, 0]
    inputs = torch.tensor([-1.0, 0.4, 2.0], requires_grad=True)
    DynamicGrid(2)(inputs).sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"1 to 8 bits, .*bits=9"):
        DynamicGrid(9)


def test_by_rows_each_row_has_its_own_range_whatever_lies_beside_it() -> None:
    # Three bits, signed: three steps to either side of 0. The first row's step is 1, the second's 0.1.
    inputs = torch.tensor([[-3.0, 1.4, 0.4], [0.3, -0.14, 0.06], [0.0, 0.0, 0.0]], requires_grad=True)
    found = DynamicGrid(3, rows=True)(inputs)
    assert torch.allclose(found, torch.tensor([[-3.0, 1, 0], [0.3, -0.1, 0.1], [0, 0, 0]]))
    assert torch.equal(found[1:2], DynamicGrid(3, rows=True)(inputs[1:2]))
    found.sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.eq(1).all()
    with pytest.raises(ValueError, match="by rows at least 2"):
        DynamicGrid(1, rows=True)


def test_what_passes_has_one_value_and_the_other_s_gradient() -> None:
    value, through = torch.tensor([5.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)
    result = passed(value, through)
    (3 * result).backward()
    assert result.item() == 5
    assert (value.grad, through.grad) == (None, torch.tensor([3.0]))


def test_descriptions_name_each_constraint() -> None:
    held = Constraints(Range(-1, 1), Integer(bits=4, per_channel=False).levels(WEIGHT), WEIGHT != 0)
    assert held.describe() == "range [-1, 1], 15 levels per tensor, mask 12.50% zero"


def test_whole_levels_are_found_as_a_search_finds_them() -> None:
    """Also beside the middles, where adding a half would round up what is below it."""
    middles = torch.arange(-9.5, 10)
    near = [middles, middles.nextafter(torch.tensor(-math.inf)), middles.nextafter(torch.tensor(math.inf))]
    numbers = torch.cat([*near, torch.randn(1000) * 5, torch.tensor([0.0, -0.0, math.inf, -math.inf, 1e30])])
    levels = Levels(torch.arange(-8.0, 8), torch.tensor(1.0))
    searched = levels.values[levels.codes(numbers)]
    assert torch.equal(nearest_integers(numbers, -8, 7), searched)
    assert torch.equal(levels.project(numbers), searched)


def test_whole_levels_with_scales_and_zero_points_are_projected_as_decoded_codes() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 6, generator=generator)
    for levels in (
        Levels(torch.arange(-7.0, 8), torch.rand(4, 1, generator=generator)),
        Levels(
            torch.arange(0.0, 16),
            torch.rand(4, 1, generator=generator),
            torch.tensor([[7.0], [0], [15], [3]]),
        ),
        Levels(torch.arange(-8.0, 8), torch.rand(4, 2, generator=generator), group=4),
    ):
        assert torch.equal(levels.project(weight), levels.decode(levels.codes(weight)))
        assert levels.project(weight.double()).dtype == torch.float32


def test_within_has_both_bounds_inside_and_keeps_the_layout() -> None:
    low, high = torch.tensor(-0.3), torch.tensor(0.7)
    inputs = torch.cat(
        [torch.stack([low, high, low.nextafter(-high), high.nextafter(2 * high)]), torch.randn(60)]
    )
    numbers = torch.randn(1, 4, 4, 4).contiguous(memory_format=torch.channels_last)
    inputs = inputs.reshape(1, 4, 4, 4)
    expected = [
        n if low <= x <= high else 0.0 for n, x in zip(numbers.flatten(), inputs.flatten(), strict=True)
    ]
    found = within(numbers, inputs, low, high)
    assert torch.equal(found.flatten(), torch.tensor([float(each) for each in expected]))
    assert found.stride() == numbers.stride()


@pytest.mark.parametrize("grid", [InputGrid(8, 0.01, 0), InputGrid(4, 0.2, 7), InputGrid(8, 0.013, 128)])
def test_a_grid_is_torchs_own_operator_also_in_training(grid: InputGrid) -> None:
    inputs = torch.randn(5, 1, 8, 8).contiguous(memory_format=torch.channels_last)
    one, other = (inputs.clone().requires_grad_() for _ in range(2))
    gradient = torch.randn(5, 1, 8, 8)
    found = grid(one)
    expected = torch.fake_quantize_per_tensor_affine(other, grid.scale, grid.zero_point, 0, 2**grid.bits - 1)
    found.backward(gradient)
    expected.backward(gradient)
    for each in (found, grid(inputs)):
        assert torch.equal(each, expected)
        assert each.stride() == expected.stride()
    assert one.grad is not None
    assert other.grad is not None
    assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_learned_step_rounds_as_the_grid_does(dtype: torch.dtype) -> None:
    inputs, grid = torch.randn(4, 3, 5, 5).to(dtype) * 3, InputGrid(8, 0.021, 40)
    found = on_grid(inputs, torch.tensor(0.021), -40, 215)
    assert found.dtype == dtype
    assert torch.equal(found, grid(inputs))
