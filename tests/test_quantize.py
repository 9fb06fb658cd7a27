"""Schemes and calibration against arithmetic by hand and loops in double precision."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from decant.calibration.grids import affine_grid
from decant.calibration.observers import of_inputs
from decant.calibration.ranges import Best, Bounds, Mse, Percentile
from decant.checkpoints.constraints import Constraints
from decant.errors import DecantError
from decant.networks.architectures import Lenet5, Mlp, Resnet, build
from decant.networks.record import give_example_
from decant.networks.structure import compressible
from decant.quantize.kmeans import cluster
from decant.quantize.quantizable import quantizable
from decant.quantize.schemes import SILENT, Binary, Codebook, Integer, PowerOfTwo, Quantizer, Scheme, Ternary
from tasks.pipeline.params import validate

SCHEMES: dict[str, Quantizer] = {
    "integer": Integer(bits=4),
    "per tensor": Integer(bits=3, per_channel=False),
    "affine": Integer(bits=4, symmetric=False),
    "affine, per tensor": Integer(bits=8, symmetric=False, per_channel=False),
    "group": Integer(bits=4, group=16),
    "affine group": Integer(bits=2, group=16, symmetric=False, range=Percentile(keep=0.9)),
    "ternary": Ternary(),
    "ternary, per tensor": Ternary(threshold=0.5, per_channel=False),
    "binary": Binary(),
    "balanced": Binary(balanced=True),
    "codebook": Codebook(),
    "codebook of 2": Codebook(entries=2),
    "codebook of 256": Codebook(entries=256),
    "power of two": PowerOfTwo(),
    "power of two, 8 bits": PowerOfTwo(bits=8),
    "power of two, per tensor": PowerOfTwo(bits=3, per_channel=False, range=Mse()),
}
COUNTS = {
    "integer": 15,
    "per tensor": 7,
    "affine": 16,
    "affine, per tensor": 256,
    "group": 15,
    "affine group": 4,
    "ternary": 3,
    "ternary, per tensor": 3,
    "binary": 2,
    "balanced": 2,
    "codebook": 16,
    "codebook of 2": 2,
    "power of two": 15,
    "power of two, 8 bits": 255,
    "power of two, per tensor": 7,
}
WEIGHT = torch.tensor([[0.7, -0.2, 0.05, -1.4], [0.0, 0.3, -0.35, 0.1]])


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rounded(scheme: Quantizer, weight: Tensor, mask: Tensor | None = None, axis: int = 0) -> Tensor:
    shifted = scheme.shifted(weight, mask, axis)
    return Constraints(levels=scheme.levels(shifted, mask, axis), mask=mask).project(shifted)


# --- what all of them keep


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 3, 3), (4, 2, 5)])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_exam(scheme: Quantizer, shape: tuple[int, ...], masked: bool) -> None:
    weight = normal(0, *shape)
    weight[1] = 0  # a dead channel
    mask = normal(1, *shape) > -0.5 if masked else None
    before = weight.clone()
    shifted = scheme.shifted(weight, mask)
    levels = scheme.levels(shifted, mask)
    held = Constraints(levels=levels, mask=mask)
    quantized = held.project(shifted)
    assert torch.equal(weight, before)
    assert quantized.shape == weight.shape
    assert quantized.dtype == levels.scale.dtype == levels.values.dtype == torch.float32
    assert torch.isfinite(quantized).all()
    assert (levels.scale > 0).all()
    assert (levels.values.diff() > 0).all()
    assert 2 <= len(levels.values) <= 256
    assert torch.equal(held.project(quantized), quantized)
    assert held.broken_by(quantized, held) == []
    assert torch.equal(rounded(scheme, weight, mask), quantized)
    assert mask is None or (quantized[~mask] == 0).all()
    assert validate(scheme.model_dump(), Scheme) == scheme
    if isinstance(scheme, Binary):
        assert (quantized[1].abs() <= SILENT).all()
    elif not isinstance(scheme, Codebook):
        assert (quantized[1] == 0).all()


def test_the_exam_covers_the_union() -> None:
    members = set(get_args(get_args(Scheme)[0]))
    assert {type(scheme) for scheme in SCHEMES.values()} == members
    for member in members:
        assert validate({"kind": member.model_fields["kind"].default}, Scheme) == member()


@pytest.mark.parametrize("kind", COUNTS)
def test_levels_are_as_many_as_promised(kind: str) -> None:
    assert len(SCHEMES[kind].levels(normal(3, 8, 200)).values) == COUNTS[kind]


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_each_weight_goes_to_its_nearest_level_by_a_naive_loop(scheme: Quantizer) -> None:
    weight = scheme.shifted(normal(4, 3, 40))
    levels = scheme.levels(weight)
    steps = levels.spread(levels.scale, weight.shape).expand_as(weight).double()
    zero = torch.zeros(3, 40)
    if levels.zero_point is not None:
        zero = levels.spread(levels.zero_point, weight.shape).expand_as(weight)
    error = (levels.project(weight).double() - weight.double()).abs()
    for channel in range(3):
        for place in range(40):
            step, z = steps[channel, place].item(), zero[channel, place].item()
            w = weight[channel, place].item()
            nearest = min(abs((value - z) * step - w) for value in levels.values.tolist())
            assert error[channel, place].item() == pytest.approx(nearest, abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_nan_and_infinity_are_named(scheme: Quantizer, bad: float) -> None:
    weight = WEIGHT.clone()
    weight[1, 2] = bad
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        scheme.levels(scheme.shifted(weight))


@pytest.mark.parametrize("value", [0.0, 0.3, -0.3])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_constant_weights(scheme: Quantizer, value: float) -> None:
    quantized = rounded(scheme, torch.full((3, 20), value))
    if isinstance(scheme, PowerOfTwo):  # 0.3 is nearest to a quarter
        assert torch.equal(quantized, torch.full((3, 20), value).sign() * 0.25)
    elif isinstance(scheme, Binary) and (scheme.balanced or value == 0):
        assert quantized.abs().max() < 1e-7
    else:
        assert torch.allclose(quantized, torch.full((3, 20), value), rtol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_nothing_that_survives_leaves_zeros(scheme: Quantizer) -> None:
    assert (rounded(scheme, normal(0, 3, 20), torch.zeros(3, 20, dtype=torch.bool)) == 0).all()


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_what_a_mask_holds_counts_for_nothing(scheme: Quantizer) -> None:
    weight, mask = normal(5, 4, 33), normal(6, 4, 33) > 0
    far = torch.where(mask, weight, 1e6)
    assert scheme.levels(scheme.shifted(weight, mask), mask).equals(
        scheme.levels(scheme.shifted(far, mask), mask)
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_output_channels_on_axis_1_are_those_of_the_transposed_weight(
    scheme: Quantizer, masked: bool
) -> None:
    if isinstance(scheme, Integer) and scheme.group:
        with pytest.raises(ValueError, match=r"group of 16 .* on axis 1, as transposed .* leave group out"):
            scheme.levels(WEIGHT, axis=1)
        return
    weight = normal(7, 5, 4, 3, 3) * torch.tensor([1.0, 5.0, 0.1, 2.0])[:, None, None]
    mask = normal(8, 5, 4, 3, 3) > 0 if masked else None
    across = None if mask is None else mask.transpose(0, 1).contiguous()
    straight = rounded(scheme, weight.transpose(0, 1).contiguous(), across)
    assert torch.equal(rounded(scheme, weight, mask, axis=1), straight.transpose(0, 1))


def test_only_binary_asks_for_wide_ends() -> None:
    assert [kind for kind, scheme in SCHEMES.items() if scheme.wide_ends] == ["binary", "balanced"]


# --- integers


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


def test_affine_integers_by_hand() -> None:
    # From -1.4 to 0.7 in 3 steps of 0.7: the zero point is 2; from -0.35 to 0.3: 0.65 / 3, and 1.6 -> 2.
    levels = Integer(bits=2, symmetric=False).levels(WEIGHT)
    assert levels.values.tolist() == [0, 1, 2, 3]
    assert levels.zero_point is not None
    assert levels.zero_point.tolist() == [[2], [2]]
    assert levels.scale.flatten().tolist() == pytest.approx([0.7, 0.65 / 3])
    assert levels.codes(WEIGHT).tolist() == [[3, 2, 2, 0], [2, 3, 0, 2]]


def test_affine_levels_are_widened_to_hold_zero() -> None:
    levels = Integer(bits=4, symmetric=False).levels(torch.tensor([[0.5, 3.0, 1.0], [-3.0, -0.5, -1.0]]))
    assert levels.zero_point is not None
    assert levels.zero_point.flatten().tolist() == [0, 15]
    assert levels.scale.flatten().tolist() == pytest.approx([0.2, 0.2])


@given(st.integers(2, 8), st.booleans(), st.integers(0, 99))
def test_rounding_agrees_with_torch_and_errs_by_half_a_step(bits: int, per_channel: bool, seed: int) -> None:
    weight = normal(seed, 5, 11)
    levels = Integer(bits=bits, per_channel=per_channel).levels(weight)
    top = 2 ** (bits - 1) - 1
    reference = torch.round(weight / levels.scale).clamp(-top, top) * levels.scale
    assert torch.equal(levels.project(weight), reference)
    assert ((levels.project(weight) - weight).abs() <= levels.scale * 0.500001).all()


@given(st.integers(2, 8), st.floats(-3, 3), st.integers(0, 99))
def test_affine_rounding_agrees_with_torch(bits: int, shift: float, seed: int) -> None:
    weight = normal(seed, 5, 11) + shift
    levels = Integer(bits=bits, symmetric=False).levels(weight)
    assert levels.zero_point is not None
    scale, zero = levels.scale.flatten(), levels.zero_point.flatten()
    reference = torch.fake_quantize_per_channel_affine(weight, scale, zero.int(), 0, 0, 2**bits - 1)
    error, theirs = (levels.project(weight) - weight).abs(), (reference - weight).abs()
    assert torch.allclose(error, theirs, atol=1e-5 * scale.max().item())  # half-way goes up here, even there
    # The zero point is rounded, so that an end may be half a step away.
    assert (error <= levels.scale * 0.50001).all()
    assert (levels.project(torch.zeros(5, 11)) == 0).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("width", [16, 32, 33, 40, 7])
def test_a_group_is_rounded_as_a_channel_of_its_own(width: int, symmetric: bool) -> None:
    # 40 = 16 + 16 + 8: the last group is shorter; 7 < 16: a row is one group.
    weight, mask = normal(0, 3, width) * 2, normal(1, 3, width) > -1
    scheme = Integer(bits=3, group=16, symmetric=symmetric)
    levels = scheme.levels(weight, mask)
    assert levels.scale.shape == (3, math.ceil(width / 16))
    alone = Integer(bits=3, symmetric=symmetric)
    for start in range(0, width, 16):
        part, kept = weight[:, start : start + 16], mask[:, start : start + 16]
        expected = alone.levels(part, kept)
        assert torch.equal(levels.scale[:, start // 16], expected.scale[:, 0])
        assert torch.equal(levels.project(weight)[:, start : start + 16], expected.project(part))


def test_groups_run_through_the_pixels_of_a_convolution() -> None:
    weight, scheme = normal(2, 4, 3, 3, 3), Integer(bits=4, group=16)
    flat = scheme.levels(weight.flatten(1))
    levels = scheme.levels(weight)
    assert levels.scale.shape == (4, 2)
    assert torch.equal(levels.project(weight), flat.project(weight.flatten(1)).reshape(weight.shape))


@given(st.integers(2, 7), st.integers(0, 99), st.booleans())
def test_a_bit_more_never_errs_more_in_sum(bits: int, seed: int, symmetric: bool) -> None:
    weight = normal(seed, 3, 40)
    coarse, fine = (
        Integer(bits=b, symmetric=symmetric).levels(weight).project(weight) for b in (bits, bits + 1)
    )
    assert (fine - weight).abs().sum() <= (coarse - weight).abs().sum()


def test_zero_is_exact_at_every_width() -> None:
    for bits in range(2, 9):
        for symmetric in (True, False):
            levels = Integer(bits=bits, symmetric=symmetric).levels(WEIGHT)
            assert levels.project(WEIGHT)[1, 0].item() == 0.0


def test_ends_stay_within_the_weights_and_fall_back_to_them() -> None:
    weight = torch.tensor([[-1.0, 0.5, 2.0]])
    for span, expected in (
        (Bounds(minimum=-9.0, maximum=9.0), (-1.0, 2.0)),
        (Bounds(maximum=0.25), (-1.0, 0.25)),
        (Bounds(minimum=3.0), (0.0, 2.0)),  # cut to nothing below zero, and widened to hold it
        (Bounds(minimum=-0.1, maximum=0.1), (-0.1, 0.1)),
        (Bounds(minimum=5.0, maximum=6.0), (0.0, 2.0)),
    ):
        low, high = span.ends(weight, None, 8, per_channel=False)
        assert (low.item(), high.item()) == pytest.approx(expected)
    low, high = Bounds(minimum=1.0, maximum=2.0).ends(-weight.abs(), None, 8, per_channel=True)
    assert (low.item(), high.item()) == (-2.0, 0.0)  # nothing of it is left: the extremes


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"bits": 1}, "greater than or equal to 2"),
        ({"bits": 9}, "less than or equal to 8"),
        ({"group": 8}, "greater than or equal to 16"),
        ({"group": 129}, "less than or equal to 128"),
        ({"group": 32, "per_channel": False}, "groups lie within channels"),
        ({"range": {"kind": "min-max", "per_channel": True}, "per_channel": False}, "needs one range for it"),
        ({"range": {"kind": "mse", "bits": 3}}, "3 is not the 8 of the grid"),
        ({"kind": "power-of-two", "range": {"kind": "mse", "bits": 3}}, "3 is not the 4 of the grid"),
        ({"kind": "ternary", "threshold": 1.0}, "less than 1"),
        ({"kind": "codebook", "entries": 1}, "greater than or equal to 2"),
        ({"kind": "codebook", "entries": 257}, "less than or equal to 256"),
        ({"kind": "binary", "bits": 1}, "bits"),
    ],
)
def test_impossible_schemes_are_refused(block: dict[str, object], words: str) -> None:
    with pytest.raises(DecantError, match=words):
        validate({"kind": "integer", **block}, Scheme)


@pytest.mark.parametrize("scheme", [Integer(range=Best()), PowerOfTwo(range=Best())])
def test_the_best_range_has_to_be_chosen_first(scheme: Quantizer) -> None:
    with pytest.raises(ValueError, match="has to be chosen first"):
        scheme.levels(WEIGHT)


# --- ternary


def test_ternary_by_hand() -> None:
    # mean |w| = 0.5875, of which 0.7 are 0.41125: above are 0.7 and 1.4, whose mean is 1.05.
    levels = Ternary().levels(WEIGHT[:1])
    assert levels.values.tolist() == [-1, 0, 1]
    assert levels.scale.item() == pytest.approx(1.05)
    assert levels.project(WEIGHT[:1]).tolist() == [pytest.approx([1.05, 0, 0, -1.05])]
    # per tensor: mean |w| = 3.1 / 8, 0.7 of it 0.27125; 0.7, 1.4, 0.3 and 0.35 are above
    assert Ternary(per_channel=False).levels(WEIGHT).scale.item() == pytest.approx(2.75 / 4)


@given(st.integers(0, 99), st.floats(0.1, 0.95))
def test_ternary_never_errs_more_than_the_papers_threshold(seed: int, threshold: float) -> None:
    weight = normal(seed, 4, 50)
    levels = Ternary(threshold=threshold).levels(weight)
    papers = torch.zeros(4, 50)
    for channel, row in enumerate(weight.tolist()):
        delta = threshold * sum(abs(w) for w in row) / 50
        large = [abs(w) for w in row if abs(w) > delta]
        alpha = sum(large) / len(large)
        assert levels.scale[channel].item() == pytest.approx(alpha)
        papers[channel] = torch.tensor([math.copysign(alpha, w) if abs(w) > delta else 0.0 for w in row])
    error, theirs = ((each - weight).square().sum(1) for each in (levels.project(weight), papers))
    assert (error <= theirs * 1.000001).all()


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_seven_tenths_is_nearly_the_best_threshold(kind: str) -> None:
    # The paper's claim (section 2.2), here within 1 % of the best of a fine search.
    weight = normal(0, 1, 20_000)
    if kind == "uniform":
        weight = torch.rand(1, 20_000, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def error(threshold: float) -> float:
        levels = Ternary(threshold=threshold).levels(weight)
        return (levels.project(weight) - weight).square().sum().item()

    assert error(0.7) <= 1.01 * min(error(k / 50) for k in range(1, 50))


# --- binary


def test_binary_by_hand() -> None:
    levels = Binary().levels(WEIGHT[:1])
    assert levels.bits == 1
    assert levels.scale.item() == pytest.approx((0.7 + 0.2 + 0.05 + 1.4) / 4)
    assert levels.project(WEIGHT[:1]).sign().tolist() == [[1, -1, 1, -1]]


def test_no_other_scale_gives_signs_a_smaller_squared_error() -> None:
    # XNOR-Net's claim for alpha = mean |w|.
    weight = normal(5, 1, 200).double()
    alpha = Binary().levels(weight).scale.double()

    def error(scale: torch.Tensor) -> float:
        return (weight - scale * weight.sign()).square().sum().item()

    assert all(error(alpha) < error(alpha * factor) for factor in (0.9, 0.99, 1.01, 1.1))


def test_binary_does_not_count_masked_zeros() -> None:
    weight = torch.tensor([[0.4, 0.0, 0.0, -0.2]])
    mask = torch.tensor([[True, False, True, True]])
    assert Binary().levels(weight).scale.item() == pytest.approx(0.6 / 4)
    assert Binary().levels(weight, mask).scale.item() == pytest.approx(0.6 / 3)


def test_balanced_by_hand() -> None:
    # 0.7, -0.2, 0.05, -1.4 less their mean -0.2125; then of the first three alone, less 0.55 / 3.
    scheme, row = Binary(balanced=True), WEIGHT[:1]
    shifted = scheme.shifted(row)
    assert shifted.tolist() == [pytest.approx([0.9125, 0.0125, 0.2625, -1.1875])]
    assert scheme.levels(shifted).scale.item() == pytest.approx((0.9125 + 0.0125 + 0.2625 + 1.1875) / 4)
    mask = torch.tensor([[True, True, True, False]])
    mean = 0.55 / 3
    expected = [0.7 - mean, -0.2 - mean, 0.05 - mean, 0]
    assert scheme.shifted(row, mask).tolist() == [pytest.approx(expected)]


@given(st.integers(0, 99), st.floats(-2, 2))
def test_balanced_signs_are_about_half_and_half_and_shifting_twice_is_once(seed: int, shift: float) -> None:
    weight, scheme = normal(seed, 3, 400) + shift, Binary(balanced=True)
    shifted = scheme.shifted(weight)
    positive = (scheme.levels(shifted).project(shifted) > 0).float().mean(1)
    assert ((positive - 0.5).abs() < 0.1).all()  # four deviations of 400 throws
    assert torch.allclose(scheme.shifted(shifted), shifted, atol=1e-6)


def test_shifting_is_for_balanced_signs_alone_and_lets_gradients_through() -> None:
    for scheme in SCHEMES.values():
        balanced = isinstance(scheme, Binary) and scheme.balanced
        assert (scheme.shifted(WEIGHT) is WEIGHT) is not balanced
    weight = WEIGHT.clone().requires_grad_()
    mask = WEIGHT > -0.3
    Binary(balanced=True).shifted(weight, mask).backward(torch.full_like(WEIGHT, 3.0))
    assert weight.grad is not None
    assert torch.equal(weight.grad, 3.0 * mask)


# --- codebooks


def least_error(numbers: Tensor, entries: int) -> float:
    """Return the least squared error of so many means, over all divisions of the sorted numbers into runs."""
    ordered, best = numbers.sort().values.tolist(), [0.0] + [math.inf] * len(numbers)
    for _ in range(entries):
        row = [math.inf] * len(best)
        for end in range(1, len(best)):
            mean = error = 0.0
            for begin in range(end, 0, -1):  # Welford's sums, the run grows to the left
                off, size = ordered[begin - 1] - mean, end - begin + 1
                mean += off / size
                error += off * (ordered[begin - 1] - mean)
                row[end] = min(row[end], best[begin - 1] + error)
        best = row
    return best[-1]


def codebook_error(numbers: Tensor, levels: Tensor) -> float:
    return (numbers[:, None] - levels.double()).square().amin(1).sum().item()


def far_away(seed: int, count: int, size: float) -> Tensor:
    """Return normal numbers of which three are far from all others."""
    numbers = normal(seed, count).double()
    numbers[:3] = torch.tensor([40.0, -35.0, 60.0]).double() * size
    return numbers.float().double()


@given(
    st.lists(st.floats(-10, 10, width=32), min_size=9, max_size=24, unique=True),
    st.integers(2, 8),
    st.sampled_from([0.0, 1e3, 1e12]),
)
def test_k_means_has_the_least_error_of_all(numbers: list[float], entries: int, outlier: float) -> None:
    some = torch.tensor([*numbers, outlier, -outlier, outlier], dtype=torch.double).float().double()
    found, least = codebook_error(some, cluster(some, entries)), least_error(some, entries)
    # To float32's rounding of the entries, and 2^-20 of a number's size below which entries are one.
    assert found <= least * 1.0001 + (some.abs().max().item() * 1e-6) ** 2 * len(some)


@pytest.mark.parametrize("entries", [2, 5, 16])
@pytest.mark.parametrize("size", [0.1, 1.0, 1e9])
def test_k_means_with_numbers_far_from_all_others(entries: int, size: float) -> None:
    numbers = far_away(entries, 90, size)
    levels = cluster(numbers, entries)
    assert len(levels) == entries
    rest = (size * 6) ** 2 * 1e-13  # entries in float32
    assert codebook_error(numbers, levels) <= 1.0001 * least_error(numbers, entries) + rest


@pytest.mark.parametrize("entries", [16, 256])
def test_all_entries_are_used_well_where_there_are_many_numbers(entries: int) -> None:
    """Of more numbers than the start tells apart."""
    numbers = far_away(1, 20_000, 1.0)
    levels = cluster(numbers, entries)
    assert len(levels) == entries
    assert (levels.diff() > 0).all()
    assert len(torch.bucketize(numbers, (levels[1:] + levels[:-1]).double() / 2).unique()) == entries
    # Panter and Dite: of normal numbers, entries err by at least sqrt(3) pi / 2 / entries^2 in the limit.
    limit = math.sqrt(3) * math.pi / 2 / (entries - 3) ** 2 * len(numbers)
    assert codebook_error(numbers, levels) <= 1.02 * limit


def test_k_means_by_hand() -> None:
    # 0, 1, 2 | 9, 10.
    assert cluster(torch.tensor([9.0, 0, 10, 1, 2]).double(), 2).tolist() == [1.0, 9.5]
    # Either pair may be divided; the other has its mean.
    found = cluster(torch.tensor([0, 0.1, 10, 9.8]).double(), 3).tolist()
    assert found == pytest.approx([0.05, 9.8, 10.0])


@given(st.integers(0, 99), st.integers(2, 64))
def test_a_codebook_is_a_fixed_point_and_errs_less_than_its_start(seed: int, entries: int) -> None:
    weight = normal(seed, 10, 30)
    levels = Codebook(entries=entries).levels(weight)
    codes = levels.codes(weight)
    for code, value in enumerate(levels.values.tolist()):
        members = weight[codes == code]
        assert len(members) > 0
        assert members.double().mean().item() == pytest.approx(value, abs=1e-5)
    start = torch.linspace(weight.min().item(), weight.max().item(), entries)
    even = start[(weight[..., None] - start).abs().argmin(-1)]
    assert (levels.project(weight) - weight).square().sum() <= (even - weight).square().sum() * 1.00001


def test_a_codebook_of_all_distinct_weights_loses_nothing() -> None:
    weight = torch.tensor([[0.5, -0.25, 0.5], [0.125, 0.5, -0.25]])
    levels = Codebook(entries=8).levels(weight)
    assert levels.values.tolist() == [-0.25, 0.125, 0.5]
    assert torch.equal(levels.project(weight), weight)
    assert levels.scale.shape == ()
    assert levels.scale.item() == 1.0


@pytest.mark.parametrize(
    ("numbers", "expected"), [([], [0, 1]), ([0, 0], [0, 1]), ([0.5], [0, 0.5]), ([-2, -2], [-2, 0])]
)
def test_one_number_gets_another_beside_it(numbers: list[float], expected: list[float]) -> None:
    assert cluster(torch.tensor(numbers, dtype=torch.double), 4).tolist() == expected


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40),
    st.integers(2, 8),
    st.floats(-50, 50).filter(lambda factor: abs(factor) > 1e-3),
)
@example([1.401298464324817e-45], 2, 1.0)
def test_entries_stay_apart_to_the_bit_even_when_scaled(
    numbers: list[float], entries: int, factor: float
) -> None:
    weight = torch.tensor([numbers])
    levels = Codebook(entries=entries).levels(weight)
    once = levels.project(weight)
    assert torch.equal(levels.project(once), once)
    scaled = type(levels)(levels.values, torch.tensor(factor))
    for code in range(len(levels.values)):
        assert scaled.codes(scaled.decode(torch.tensor([code]))).item() == code


def test_neighbouring_floats_are_one_entry() -> None:
    close = torch.nextafter(torch.tensor(0.3), torch.tensor(1.0)).item()
    assert len(cluster(torch.tensor([0.3, close, 0.9], dtype=torch.double), 4)) == 2


# --- powers of two


def test_powers_of_two_by_hand() -> None:
    # 4 * 1.4 / 3 = 1.87 -> 2^0; 4 * 0.35 / 3 = 0.467 -> 2^-2.
    levels = PowerOfTwo(bits=3).levels(WEIGHT)
    assert levels.values.tolist() == [-1, -0.5, -0.25, 0, 0.25, 0.5, 1]
    assert levels.scale.flatten().tolist() == [1.0, 0.25]
    assert levels.project(WEIGHT).tolist() == [[0.5, -0.25, 0, -1], [0, 0.25, -0.25, 0.125]]
    assert PowerOfTwo(bits=3, per_channel=False).levels(WEIGHT).scale.tolist() == 1.0


@given(st.floats(2.0**-20, 2.0**20, width=32), st.integers(2, 8))
def test_the_largest_level_is_inqs_power(threshold: float, bits: int) -> None:
    levels = PowerOfTwo(bits=bits).levels(torch.tensor([[threshold, 0.0]]))
    assert levels.scale.item() == 2.0 ** math.floor(math.log2(4 * threshold / 3))
    assert len(levels.values) == 2**bits - 1
    exponents = {math.log2(value) for value in levels.values.tolist() if value > 0}
    assert exponents == set(range(2 - 2 ** (bits - 1), 1))


@pytest.mark.parametrize("exponent", range(-100, 101, 10))
def test_a_power_of_two_is_its_own_level_and_three_halves_go_up(exponent: int) -> None:
    power, limit = 2.0**exponent, 1.5 * 2.0**exponent
    below = torch.nextafter(torch.tensor(limit), torch.tensor(0.0)).item()
    thresholds = torch.tensor([[power], [below], [limit]])
    assert PowerOfTwo().levels(thresholds).scale.flatten().tolist() == [power, power, 2 * power]


# --- which weights


def test_quantizable_weights_are_the_compressible_ones() -> None:
    for architecture in (Resnet(widths=(4, 8), blocks=(1, 1)), Lenet5(), Mlp(hidden=(6,))):
        module = build(architecture, (1, 28, 28), 5, seed=0)
        found = quantizable(module)
        assert list(found) == list(compressible(module))
        assert all(weight is module.get_parameter(name) for name, (weight, _) in found.items())
        assert {axis for _, axis in found.values()} == {0}


class Product(nn.Module):
    """A table that inputs stand on the left of."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...], int, int]] = {
    "conv1d": (nn.Conv1d(4, 6, 3), (1, 4, 8), 0, 6),
    "conv2d": (nn.Conv2d(4, 6, 3), (1, 4, 8, 8), 0, 6),
    "conv3d": (nn.Conv3d(4, 6, 3), (1, 4, 4, 4, 4), 0, 6),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (1, 4, 8, 8), 0, 6),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (1, 4, 8, 8), 0, 4),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2), (1, 4, 8, 8), 0, 6),
    "linear": (nn.Linear(4, 6), (1, 4), 0, 6),
    "embedding": (nn.Embedding(6, 4), (1, 5), 0, 6),
    "transposed1d": (nn.ConvTranspose1d(4, 6, 3), (1, 4, 8), 1, 6),
    "transposed2d": (nn.ConvTranspose2d(4, 6, 3), (1, 4, 8, 8), 1, 6),
    "transposed3d": (nn.ConvTranspose3d(4, 6, 3), (1, 4, 4, 4, 4), 1, 6),
    "transposed, grouped": (nn.ConvTranspose2d(4, 6, 3, groups=2), (1, 4, 8, 8), 1, 3),
    "product": (Product(), (1, 4), 1, 6),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer_has_a_scale_for_each_of_its_channels(kind: str) -> None:
    layer, shape, axis, channels = LAYERS[kind]
    module = nn.Sequential(layer, nn.Tanh()).eval()
    give_example_(module, (torch.zeros(shape, dtype=torch.int64 if kind == "embedding" else None),))
    (name, (weight, found)), *others = quantizable(module).items()
    assert (name, found, others) == ("0.weight", axis, [])
    for scheme in (Integer(bits=4), Integer(bits=4, symmetric=False), Ternary(), Binary(), PowerOfTwo()):
        levels = scheme.levels(weight, axis=found)
        assert list(levels.scale.shape) == [channels if dim == axis else 1 for dim in range(weight.dim())]
        assert levels.project(weight).shape == weight.shape


# --- the inputs of layers


@given(st.floats(-50, 50), st.floats(0, 50), st.integers(1, 8))
def test_an_affine_grid_holds_zero_and_both_ends(low: float, width: float, bits: int) -> None:
    grid = affine_grid(low, low + width, bits)
    assert 0 <= grid.zero_point < 2**bits
    ends = torch.tensor([low, 0.0, low + width])
    assert grid(ends)[1] == 0
    assert ((grid(ends) - ends).abs() <= grid.scale * 0.501).all()


def test_an_affine_grid_by_hand() -> None:
    grid = affine_grid(-1.0, 2.0, 2)
    assert (grid.scale, grid.zero_point) == (1.0, 1)
    assert grid(torch.tensor([-5.0, -0.6, 0.4, 1.6, 7.0])).tolist() == [-1, -1, 0, 2, 2]


def test_one_bit_is_zero_or_the_scale() -> None:
    grid = affine_grid(0.0, 3.0, 1)
    assert (grid.scale, grid.zero_point) == (3.0, 0)
    assert grid(torch.tensor([-1.0, 0.0, 1.4, 1.6, 9.0])).tolist() == [0, 0, 0, 3, 3]


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
