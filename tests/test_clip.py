"""Every cut passes one exam; ranges against torch.quantile and arithmetic by hand; masks to the weight."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decant.calibration.ranges import Best, Bounds, Cut, Deviation, Entropy, MinMax, Percentile, Threshold
from decant.checkpoints.constraints import FREE, Constraints, Range
from decant.errors import DecantError
from decant.quantize.schemes import Integer
from tasks.pipeline.params import validate

CUTS = [cut for cut in get_args(get_args(Cut)[0]) if cut not in (MinMax, Best)]  # which cut nothing, and all
REQUIRED = {
    "bounds": {"minimum": -0.5},
    "threshold": {"threshold": 0.3},
    "sparsity": {"sparsity": 0.25},
    "mse": {"bits": 2},
    "entropy": {"bits": 2},
    "aciq": {"bits": 2},
}
WEIGHT = torch.tensor([[0.6, -0.2, 0.05, -1.0], [0.0, 0.3, -0.35, 0.1]])


def random_weight(seed: int, shape: tuple[int, ...] = (6, 5, 3, 3)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", CUTS)
@pytest.mark.parametrize("shape", [(4, 60), (4, 3, 7, 7), (200,)])
def test_exam(kind: type[Percentile], shape: tuple[int, ...]) -> None:
    name = kind.model_fields["kind"].default
    cut = validate({"kind": name, **REQUIRED.get(name, {})}, Cut)
    weight = random_weight(0, shape)
    before = weight.clone()
    constraints = cut.constrain(weight)
    once = constraints.project(weight)
    assert torch.equal(weight, before)
    assert once.shape == weight.shape
    assert torch.isfinite(once).all()
    assert constraints.levels is None
    # A histogram of 200 numbers is mostly holes, in which `entropy` sees nothing to gain.
    assert (kind is not Entropy) <= int((once != weight).sum()) < weight.numel()
    assert torch.equal(constraints.project(once), once)
    assert constraints.broken_by(once, constraints) == []
    # Whatever is cut comes nearer to zero, and never changes its sign.
    assert (once.abs() <= weight.abs()).all()
    assert (once * weight >= 0).all()
    again = cut.constrain(weight)
    assert again.range == constraints.range
    assert (again.mask is None) == (constraints.mask is None)
    assert again.mask is None or torch.equal(again.mask, constraints.mask)
    assert validate(cut.model_dump(), Cut) == cut


def test_bounds_by_hand() -> None:
    both = Bounds(minimum=-0.25, maximum=0.5).constrain(WEIGHT).project(WEIGHT)
    assert both[0].tolist() == pytest.approx([0.5, -0.2, 0.05, -0.25])
    upper = Bounds(maximum=0.5).constrain(WEIGHT)
    assert upper.range == Range(-math.inf, 0.5)
    assert upper.project(WEIGHT)[0].tolist() == pytest.approx([0.5, -0.2, 0.05, -1.0])
    assert Bounds(minimum=-0.25).constrain(WEIGHT).range == Range(-0.25, math.inf)


def test_bounds_are_float32_as_the_weights_are() -> None:
    held = Bounds(maximum=0.1).constrain(WEIGHT).range
    assert held is not None
    assert held.high != 0.1
    assert held.high == torch.tensor(0.1).item()


def test_a_percentile_by_hand() -> None:
    # Eleven weights 0, 1, ..., 10: the middle 80 % lie between 1 and 9.
    held = Percentile(keep=0.8).constrain(torch.arange(11.0)).range
    assert held is not None
    assert (held.low, held.high) == pytest.approx((1, 9))


@given(st.integers(0, 50), st.integers(1, 300), st.floats(0.001, 0.999))
def test_percentiles_agree_with_torch(seed: int, count: int, keep: float) -> None:
    weight = random_weight(seed, (count,))
    tails = torch.tensor([(1 - keep) / 2, 1 - (1 - keep) / 2], dtype=torch.double)
    reference = weight.double().quantile(tails).float().tolist()
    held = Percentile(keep=keep).constrain(weight).range
    assert held is not None
    assert [held.low, held.high] == pytest.approx(reference, rel=1e-6, abs=1e-7)


def test_a_percentile_cuts_as_many_as_it_says() -> None:
    weight = random_weight(1, (100, 100))
    cut = Percentile(keep=0.99).constrain(weight).project(weight) != weight
    assert int((cut & (weight > 0)).sum()) == 50
    assert int((cut & (weight < 0)).sum()) == 50


@pytest.mark.slow
def test_more_weights_than_torch_s_quantile_takes() -> None:
    weight = torch.arange(2.0**24 + 2)
    with pytest.raises(RuntimeError, match="too large"):
        weight.quantile(0.5)
    held = Percentile(keep=0.5).constrain(weight).range
    assert held is not None
    assert (held.low, held.high) == pytest.approx((2**22, 3 * 2**22), rel=1e-6)


@pytest.mark.parametrize("multiple", [0.5, 1.0, 3.0])
def test_a_deviation_agrees_with_a_loop(multiple: float) -> None:
    weight = random_weight(2, (7, 11))
    values = weight.flatten().tolist()
    mean = math.fsum(values) / len(values)
    sigma = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    held = Deviation(multiple=multiple).constrain(weight).range
    assert held is not None
    assert [held.low, held.high] == pytest.approx([mean - multiple * sigma, mean + multiple * sigma])


def test_a_deviation_by_hand() -> None:
    # Mean 2, deviation 2 (over four, not over three).
    held = Deviation(multiple=1.5).constrain(torch.tensor([0.0, 0.0, 4.0, 4.0])).range
    assert held == Range(-1.0, 5.0)


def test_a_threshold_takes_what_is_equal_too() -> None:
    weight = torch.tensor([0.5, -0.5, 0.500001, -0.500001, 0.0, 0.25])
    mask = Threshold(threshold=0.5).constrain(weight).mask
    assert mask is not None
    assert mask.tolist() == [False, False, True, True, False, False]


@given(st.integers(0, 99), st.floats(0.01, 3))
def test_a_threshold_s_mask_is_exact(seed: int, threshold: float) -> None:
    weight = random_weight(seed, (9, 9))
    once = Threshold(threshold=threshold).constrain(weight).project(weight)
    naive = [0.0 if abs(value) <= threshold else value for value in weight.flatten().tolist()]
    assert once.flatten().tolist() == naive


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        ({"kind": "bounds", "minimum": 0.5, "maximum": 0.5}, "minimum 0.5 is not below maximum 0.5"),
        ({"kind": "bounds", "minimum": 1, "maximum": -1}, "minimum 1.0 is not below maximum -1.0"),
        ({"kind": "bounds"}, "give minimum, maximum or both"),
        ({"kind": "percentile", "keep": 0}, r"keep: must be greater than 0"),
        ({"kind": "percentile", "keep": 1}, r"keep: must be less than 1"),
        ({"kind": "percentile", "keep": 99.9}, r"keep: must be less than 1"),
        ({"kind": "deviation", "multiple": 0}, r"multiple: must be greater than 0"),
        ({"kind": "threshold"}, "threshold: is missing"),
        ({"kind": "threshold", "threshold": -0.1}, "threshold: must be greater than 0"),
    ],
)
def test_impossible_cuts_are_refused(cut: dict[str, object], words: str) -> None:
    with pytest.raises(DecantError, match=f"models.x.cut(: |.){words}"):
        validate(cut, Cut, "models.x.cut")


# --- with what was done before


def added(earlier: Constraints, cut: Cut, weight: torch.Tensor) -> Constraints:
    new = cut.constrain(weight)
    return earlier.narrow(range=new.range, mask=new.mask)


@given(st.integers(0, 30), st.floats(0.5, 0.99), st.floats(0.5, 0.99))
def test_clipping_twice_intersects(seed: int, first: float, second: float) -> None:
    weight = random_weight(seed)
    once = added(FREE, Percentile(keep=first), weight)
    clipped = once.project(weight)
    twice = added(once, Deviation(multiple=2 * second), clipped)
    assert once.range is not None
    assert twice.range is not None
    assert twice.range.within(once.range)
    assert once.broken_by(twice.project(clipped), twice) == []


def test_two_thresholds_are_the_larger_one() -> None:
    one, other = Threshold(threshold=0.1), Threshold(threshold=0.3)
    there = added(added(FREE, one, WEIGHT), other, WEIGHT)
    back = added(added(FREE, other, WEIGHT), one, WEIGHT)
    assert there.mask is not None
    assert back.mask is not None
    assert torch.equal(there.mask, back.mask)
    assert torch.equal(there.mask, WEIGHT.abs() > 0.3)


def test_a_range_after_levels_holds_up_to_half_a_step() -> None:
    levels = Integer(bits=4, per_channel=False).levels(WEIGHT)
    quantized = levels.project(WEIGHT)
    held = added(Constraints(levels=levels), Bounds(minimum=-0.55, maximum=0.55), quantized)
    clipped = held.project(quantized)
    step = levels.scale.item()
    # The nearest level to 0.55 at a step of 1/7 is 4/7, a little outside.
    assert clipped.min().item() == pytest.approx(-4 / 7)
    assert clipped.abs().max().item() <= 0.55 + step / 2
    codes = clipped / step
    assert torch.allclose(codes, codes.round(), atol=1e-5)
    assert Constraints(levels=levels).broken_by(clipped, held) == []


def test_a_threshold_after_levels_zeroes_whole_levels() -> None:
    levels = Integer(bits=3).levels(WEIGHT)
    quantized = levels.project(WEIGHT)
    held = added(Constraints(levels=levels), Threshold(threshold=0.3), quantized)
    clipped = held.project(quantized)
    assert torch.equal(clipped, torch.where(quantized.abs() > 0.3, quantized, 0.0))


def test_a_range_that_leaves_zero_out_does_not_move_what_a_mask_holds() -> None:
    earlier = Constraints(mask=WEIGHT.abs() > 0.25)
    held = added(earlier, Bounds(minimum=0.2), earlier.project(WEIGHT))
    clipped = held.project(WEIGHT)
    assert clipped.flatten().tolist() == pytest.approx([0.6, 0, 0, 0.2, 0, 0.3, 0.2, 0])
    assert earlier.broken_by(clipped, held) == []


def test_zeros_under_a_mask_do_not_count_into_the_range() -> None:
    weight, mask = torch.zeros(100), torch.arange(100) >= 95
    weight[mask] = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])
    assert Percentile(keep=0.5).constrain(weight, mask).range == Range(-1.0, 1.0)
    assert Percentile(keep=0.5).constrain(weight).range == Range(0.0, 0.0)
    held = Deviation(multiple=1.0).constrain(weight, mask).range
    assert held is not None
    assert held.high == pytest.approx(2.0)  # sqrt((9 + 1 + 0 + 1 + 9) / 5)


def test_ranges_that_do_not_meet_are_refused() -> None:
    with pytest.raises(ValueError, match=r"from 0\.2 to 0\.1 holds no number"):
        Constraints(range=Range(-1, 0.1)).narrow(range=Range(0.2, 1))
