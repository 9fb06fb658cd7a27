"""Each range against a second opinion: a finer search, a loop in double precision, the paper's numbers."""

import math
import re
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decant.calibration.grids import affine_grid, symmetric_levels
from decant.calibration.observers import Sample, Samples, of_weight
from decant.calibration.ranges import (
    CANDIDATES,
    Aciq,
    Best,
    Bounds,
    Cut,
    Deviation,
    Entropy,
    MinMax,
    Mse,
    Percentile,
    Ranges,
    Span,
    Sparsity,
)
from decant.calibration.thresholds import (
    AT_ONCE,
    BINS,
    LAWS,
    THRESHOLD_CANDIDATES,
    divergence,
    histogram,
    least_errors,
    rounding_error,
)
from decant.clip.params import ClipParams
from decant.errors import DecantError
from decant.quantize.params import Activations, QuantizeParams
from decant.quantize.schemes import Integer, Scheme
from tasks.pipeline.params import validate

FITTED = [Mse(), Entropy(), Aciq(), Aciq(distribution="gauss")]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def laplace(seed: int, count: int) -> Tensor:
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.double) - 0.5
    return -uniform.sign() * (1 - 2 * uniform.abs()).log()


def sample(values: Tensor, *, symmetric: bool = True) -> Sample:
    values = values.double()
    low, high = values.min().item(), values.max().item()
    return Sample(values, low, high, values.mean().item(), values.std(correction=0).item(), symmetric)


# --- what all of them keep


@pytest.mark.parametrize("span", [*CANDIDATES.values(), Bounds(minimum=-0.5)], ids=lambda s: s.kind)
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_range_found_again_is_the_same_and_projecting_twice_is_once(span: Span, per_channel: bool) -> None:
    if isinstance(span, Bounds) and per_channel:
        return
    weight = normal(0, 5, 7, 3)
    weight[2] = 0  # a dead channel
    asked = span.model_copy(update={"per_channel": per_channel})
    held = asked.constrain(weight)
    assert held.range is not None
    assert held.range.per_channel == per_channel
    assert held.range == asked.constrain(weight).range
    once = held.project(weight)
    assert torch.equal(held.project(once), once)
    assert torch.equal(once[2], weight[2])
    assert held.broken_by(once, held) == []
    assert validate(asked.model_dump(), Ranges) == asked


@given(st.integers(0, 999), st.integers(2, 8), st.booleans(), st.booleans())
def test_what_is_found_lies_between_the_extremes(
    seed: int, bits: int, symmetric: bool, positive: bool
) -> None:
    values = normal(seed, 300) * 3
    numbers = sample(values.abs() if positive else values, symmetric=symmetric)
    for span in [*FITTED, Percentile(keep=0.9), MinMax()]:
        low, high = span.bounds(numbers, bits)
        assert numbers.low <= low <= high <= numbers.high


@given(st.integers(0, 99), st.floats(0.1, 0.9), st.floats(0.01, 0.09))
def test_a_wider_keep_and_a_larger_multiple_give_a_wider_range(seed: int, keep: float, more: float) -> None:
    weight = normal(seed, 6, 50)
    for narrow, wide in (
        (Percentile(keep=keep), Percentile(keep=keep + more)),
        (Deviation(multiple=keep), Deviation(multiple=keep + more)),
        (Percentile(keep=keep, per_channel=True), Percentile(keep=keep + more, per_channel=True)),
    ):
        inner, outer = narrow.constrain(weight).range, wide.constrain(weight).range
        assert inner is not None
        assert outer is not None
        assert inner.within(outer)


@pytest.mark.parametrize("span", CANDIDATES.values(), ids=CANDIDATES.keys())
def test_per_channel_is_each_channel_alone(span: Span) -> None:
    weight, mask = (
        normal(1, 4, 30, 2) * torch.tensor([1.0, 5.0, 0.1, 2.0])[:, None, None],
        normal(2, 4, 30, 2) > 0,
    )
    mask[3] = False  # nothing survives
    together = span.model_copy(update={"per_channel": True}).constrain(weight, mask).range
    assert together is not None
    assert isinstance(together.low, Tensor)
    assert isinstance(together.high, Tensor)
    assert together.low.shape == together.high.shape == (4, 1, 1)
    for channel in range(4):
        alone = span.constrain(weight[channel], mask[channel]).range
        assert alone is not None
        assert (together.low[channel].item(), together.high[channel].item()) == (alone.low, alone.high)


@pytest.mark.parametrize("span", CANDIDATES.values(), ids=CANDIDATES.keys())
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("value", [0.0, 2.5, -2.5])
def test_constant_numbers_have_a_range_that_holds_them(span: Span, symmetric: bool, value: float) -> None:
    low, high = span.bounds(sample(torch.full((50,), value), symmetric=symmetric), 4)
    assert low == pytest.approx(value, abs=1e-9)
    assert high == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused(wrong: float) -> None:
    weight = torch.tensor([[1.0, wrong]])
    for cut in (MinMax(), Mse(per_channel=True), Sparsity(sparsity=0.5)):
        with pytest.raises(ValueError, match="holds NaN or infinity"):
            cut.constrain(weight)
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        Integer(bits=4).levels(weight)


# --- mse


def naive_error(values: list[float], threshold: float, bits: int, symmetric: bool) -> float:
    """Round each number to the nearest of all points of the grid."""
    if symmetric:
        top = 2 ** (bits - 1) - 1
        points = [threshold * k / top for k in range(-top, top + 1)]
    else:
        low, high = min(0.0, max(min(values), -threshold)), max(0.0, min(max(values), threshold))
        step = (high - low) / (2**bits - 1)
        zero = round(-low / step)
        points = [(k - zero) * step for k in range(2**bits)]
    return math.fsum(min((value - point) ** 2 for point in points) for value in values)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("positive", [True, False])
def test_mse_is_the_best_of_its_grid_by_a_naive_search(bits: int, symmetric: bool, positive: bool) -> None:
    values = laplace(bits, 80).abs() if positive else laplace(bits, 80)
    numbers = sample(values, symmetric=symmetric)
    thresholds = [numbers.largest * k / THRESHOLD_CANDIDATES for k in range(1, THRESHOLD_CANDIDATES + 1)]
    errors = [naive_error(values.tolist(), threshold, bits, symmetric) for threshold in thresholds]
    found = max(abs(end) for end in Mse(bits=bits).bounds(numbers, 8))
    assert naive_error(values.tolist(), found, bits, symmetric) == pytest.approx(min(errors), rel=1e-9)
    ours = [rounding_error(numbers, threshold, bits) for threshold in thresholds]
    assert ours == pytest.approx(errors, rel=1e-9)


def looped(numbers: Sample, bits: int) -> float:
    """Return the threshold of the least error, one threshold after the other, in Python's own numbers."""

    def error(threshold: float) -> float:
        most = 2 ** (bits - 1) - 1
        step, least = threshold / most, -most
        if not numbers.symmetric:
            low, high = numbers.within(threshold)
            low, high = min(low, 0.0), max(high, 0.0)
            step = (high - low) / (2**bits - 1)
            least = -round(-low / step)
            most = 2**bits - 1 + least
        codes = (numbers.values / step).round().clamp(least, most)
        return (codes * step - numbers.values).square().sum().item()

    if numbers.largest == 0:
        return 0.0
    thresholds = [numbers.largest * k / THRESHOLD_CANDIDATES for k in range(THRESHOLD_CANDIDATES, 0, -1)]
    return min(thresholds, key=error)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("rows", "width", "group", "masked"),
    [
        (3, 200, 64, False),  # the last group of each row is shorter
        (3, 200, 64, True),  # each of another length
        (15, 9, None, False),
        (3, 40_000, None, False),  # longer than what is rounded at once
        (2, AT_ONCE // 2, None, False),
    ],
)
def test_many_samples_at_once_have_the_thresholds_of_a_loop_to_the_bit(
    rows: int, width: int, group: int | None, masked: bool, symmetric: bool
) -> None:
    weight = laplace(width, rows * width).float().reshape(rows, width) * normal(2, rows, 1)
    weight[0] = 0 if masked else weight[0].abs()
    mask = normal(1, rows, width) > -0.5 if masked else None
    samples = of_weight(weight, mask, per_channel=True, group=group, symmetric=symmetric).each
    for bits in (2, 4, 8) if width < 1000 else (4,):
        assert least_errors(samples, bits) == [looped(each, bits) for each in samples]
        assert Mse().each_bounds(samples, bits) == [Mse().bounds(each, bits) for each in samples]


def test_a_search_a_hundred_times_finer_gains_next_to_nothing() -> None:
    numbers = sample(laplace(0, 20_000))
    found = rounding_error(numbers, Mse(bits=4).bounds(numbers, 8)[1], 4)
    finest = min(rounding_error(numbers, numbers.largest * k / 10_000, 4) for k in range(1500, 6000, 20))
    assert finest <= found * 1.000001
    assert found <= finest * 1.01


def test_mse_by_hand() -> None:
    # Two bits, levels -r, 0, r. With r = 1 the errors are 0, 0, 0, and (4 - 1)^2 = 9; with r = 4 each 1 is
    # rounded to 0 and the sum is 3; with r = 2 - e the 1s go to r (1 each) and 4 errs by 2: 3 + 4 = 7.
    low, high = Mse(bits=2).bounds(sample(torch.tensor([1.0, -1.0, 1.0, 4.0])), 8)
    assert (low, high) == (-1.0, 4.0)
    # With many more of the small ones the large one is given up.
    many = torch.tensor([1.0, -1.0] * 10 + [4.0])
    assert Mse(bits=2).bounds(sample(many), 8)[1] == pytest.approx(1.16)
    assert rounding_error(sample(many), 1.16, 2) == pytest.approx(20 * 0.16**2 + 2.84**2)


def test_the_step_that_mse_asks_for_is_the_one_that_integers_take() -> None:
    weight = laplace(3, 4000).float().reshape(40, 100)
    wide, narrow = (Integer(bits=4, per_channel=False, range=r) for r in (MinMax(), Mse()))
    errors = [(s.levels(weight).project(weight) - weight).square().sum().item() for s in (wide, narrow)]
    assert errors[1] < 0.6 * errors[0]
    threshold = Mse(bits=4).bounds(sample(weight.flatten()), 8)[1]
    assert rounding_error(sample(weight.flatten()), threshold, 4) == pytest.approx(errors[1], rel=1e-4)


def test_error_over_an_affine_grid_is_that_of_the_grid() -> None:
    values = normal(4, 2000).abs()
    numbers = sample(values, symmetric=False)
    low, high = Mse(bits=3).bounds(numbers, 8)
    rounded = affine_grid(low, high, 3)(values)
    assert rounding_error(numbers, high, 3) == pytest.approx(
        (rounded - values).square().sum().item(), rel=1e-4
    )


# --- entropy


def naive_divergence(counts: list[float], end: int, levels: int) -> float:
    p = counts[:end]
    p[-1] += sum(counts[end:])
    q = [0.0] * end
    for level in range(levels):
        group = [place for place in range(end) if place * levels // end == level]
        filled = [place for place in group if p[place] > 0]
        for place in filled:
            q[place] = sum(counts[at] for at in group) / len(filled)
    total_p, total_q = sum(p), sum(q)
    return math.fsum(
        a / total_p * math.log((a / total_p) / max(b / total_q, 1e-12))
        for a, b in zip(p, q, strict=True)
        if a > 0
    )


@pytest.mark.parametrize(("end", "levels"), [(16, 4), (100, 8), (512, 128), (2048, 8)])
def test_the_divergence_agrees_with_a_loop(end: int, levels: int) -> None:
    counts = histogram(sample(laplace(5, 5000)))
    assert divergence(counts, end, levels) == pytest.approx(naive_divergence(counts.tolist(), end, levels))


def test_the_histogram_agrees_with_a_loop_and_leaves_zeros_out() -> None:
    values = torch.cat([normal(6, 500), torch.zeros(30)])
    numbers = sample(values)
    naive = [0] * BINS
    for value in numbers.values.abs().tolist():
        if value > 0:
            naive[min(int(value / numbers.largest * BINS), BINS - 1)] += 1
    assert histogram(numbers).tolist() == naive
    assert sum(naive) == 500


def test_the_divergence_by_hand() -> None:
    # P = 1/4, 3/4 (the tail of 1 in its last bin); Q, one group of 3 over two bins: 1/2, 1/2.
    by_hand = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert divergence(torch.tensor([1.0, 2.0, 1.0]).double(), 2, 1) == pytest.approx(by_hand)
    # As many levels as bins and no tail: nothing is lost.
    assert divergence(torch.tensor([1.0, 2.0, 1.0, 5.0]).double(), 4, 4) == 0.0


def test_entropy_cuts_far_outliers_and_keeps_what_is_even() -> None:
    even = torch.linspace(-1, 1, 4001)
    assert Entropy(bits=4).bounds(sample(even), 8) == (-1.0, 1.0)
    outliers = torch.cat([normal(7, 20_000), torch.tensor([60.0])])
    low, high = Entropy(bits=8).bounds(sample(outliers), 8)
    assert 2 < high < 10
    assert 2 < -low < 10


# --- aciq


def expected_error(density: str, alpha: float, bits: int) -> float:
    """Integrate (x - clip(x))^2 and step^2 / 12 over the density, by the midpoint rule."""
    x = (torch.arange(400_000, dtype=torch.double) + 0.5) * 1e-4  # to 40 scales
    normal = (-x.square() / 2).exp() / math.sqrt(2 * math.pi)
    p = (-x).exp() / 2 if density == "laplace" else normal
    tails = 2 * ((x - alpha).clamp(min=0).square() * p).sum().item() * 1e-4
    return tails + (2 * alpha / 2**bits) ** 2 / 12


@pytest.mark.parametrize(
    ("distribution", "published"), [("laplace", [2.83, 3.89, 5.03]), ("gauss", [1.71, 2.15, 2.55])]
)
def test_aciq_cuts_where_the_paper_says(distribution: str, published: list[float]) -> None:
    found = [LAWS[distribution].multiple(bits) for bits in (2, 3, 4)]
    assert found == pytest.approx(published, abs=0.01)  # two digits, some of them cut off


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("distribution", ["laplace", "gauss"])
def test_aciq_has_the_least_error_by_numerical_integration(distribution: str, bits: int) -> None:
    alpha = LAWS[distribution].multiple(bits)
    least = expected_error(distribution, alpha, bits)
    for factor in (0.9, 0.98, 1.02, 1.1):
        assert least < expected_error(distribution, alpha * factor, bits)


def test_aciq_by_hand_on_four_numbers() -> None:
    # Mean 1; mean distance (3 + 0 + 0 + 3) / 4 = 1.5; deviation sqrt(18 / 4). Both reach beyond the extremes
    # at 8 bits and so give these; at 2 bits gauss reaches 1.71 * 2.12 = 3.63, and laplace 2.83 * 1.5 = 4.25.
    numbers = sample(torch.tensor([-2.0, 1.0, 1.0, 4.0]))
    assert Aciq().bounds(numbers, 8) == (-2.0, 4.0)
    far = sample(torch.tensor([-2.0, 1.0, 1.0, 4.0] * 100 + [1.0 + 50, 1.0 - 50]))
    scale = (600 + 100) / 402
    low, high = Aciq(bits=2).bounds(far, 8)
    assert (low, high) == pytest.approx((1 - 2.83 * scale, 1 + 2.83 * scale), abs=0.01)
    sigma = math.sqrt((200 * 9 + 2 * 2500) / 402)
    assert Aciq(bits=2, distribution="gauss").bounds(far, 8)[1] == pytest.approx(1 + 1.71 * sigma, abs=0.02)


def test_aciq_behind_a_rectifier_takes_half_the_distribution_and_one_bit_more() -> None:
    whole = laplace(8, 100_000)
    rectified = sample(whole.clamp(min=0), symmetric=False)
    low, high = Aciq(bits=4).bounds(rectified, 8)
    assert low == 0
    assert high == pytest.approx(LAWS["laplace"].multiple(5), rel=0.02)  # b = 1
    # The paper's claim, measured: no reach near by has a smaller error on the grid that is used.
    assert rounding_error(rectified, high, 4) <= min(
        rounding_error(rectified, high * factor, 4) for factor in (0.8, 1.25)
    )


@given(st.integers(2, 7))
def test_more_bits_cut_less(bits: int) -> None:
    for law in LAWS.values():
        assert law.multiple(bits) < law.multiple(bits + 1)


# --- sparsity


@given(st.integers(0, 99), st.floats(0.01, 0.99))
def test_a_sparsity_is_exact_ties_included_and_the_later_goes_first(seed: int, share: float) -> None:
    weight = (normal(seed, 7, 9) * 2).round() / 2  # many are equal
    mask = Sparsity(sparsity=share).constrain(weight).mask
    assert mask is not None
    order = sorted(range(63), key=lambda place: (abs(weight.flatten()[place].item()), -place))
    gone = set(order[: round(share * 63)])
    assert mask.flatten().tolist() == [place not in gone for place in range(63)]


def test_a_sparsity_counts_what_was_zero_before() -> None:
    weight = torch.tensor([5.0, 4.0, 3.0, 2.0])
    earlier = torch.tensor([False, True, True, True])
    mask = Sparsity(sparsity=0.5).constrain(weight, earlier).mask
    assert mask is not None
    assert mask.tolist() == [False, True, True, False]


# --- the range of a quantization


@pytest.mark.parametrize("per_channel", [False, True])
def test_min_max_gives_the_step_that_the_largest_weight_always_gave(per_channel: bool) -> None:
    weight = normal(9, 6, 5, 3, 3)
    largest = weight.abs().flatten(1).amax(1) if per_channel else weight.abs().amax()
    levels = Integer(bits=5, per_channel=per_channel).levels(weight)
    assert torch.equal(levels.scale.flatten(), (largest / 15).flatten())
    assert levels.scale.shape == ((6, 1, 1, 1) if per_channel else ())


@pytest.mark.parametrize("span", CANDIDATES.values(), ids=CANDIDATES.keys())
@pytest.mark.parametrize("per_channel", [False, True])
def test_every_range_gives_a_step_no_coarser_than_min_max(span: Span, per_channel: bool) -> None:
    weight = normal(10, 5, 40)
    weight[3] = 0
    plain = Integer(bits=3, per_channel=per_channel).levels(weight)
    levels = validate(
        {"kind": "integer", "bits": 3, "per_channel": per_channel, "range": span}, Scheme
    ).levels(weight)
    assert (levels.scale <= plain.scale).all()
    assert (levels.scale > 0).all()
    assert levels.project(weight)[3].tolist() == [0] * 40
    assert torch.equal(levels.project(levels.project(weight)), levels.project(weight))


def test_a_step_by_hand() -> None:
    weight = torch.tensor([[0.6, -0.2, 0.05, -1.0], [0.0, 0.3, -0.35, 0.1]])
    scheme = Integer(bits=3, per_channel=False, range=Bounds(minimum=-0.75, maximum=0.5))
    assert scheme.levels(weight).scale.item() == 0.25  # three steps to the farther end
    assert scheme.levels(weight).project(weight)[0].tolist() == [0.5, -0.25, 0.0, -0.75]
    half_open = Integer(bits=3, per_channel=False, range=Bounds(maximum=0.5))
    assert half_open.levels(weight).scale.item() == pytest.approx(1 / 3)  # as far down as there are weights


def test_a_range_of_nothing_but_zero_falls_back_to_the_largest() -> None:
    weight = torch.zeros(1, 100)
    weight[0, 0] = 8.0
    levels = Integer(bits=4, range=Percentile(keep=0.5)).levels(weight)
    assert levels.project(weight)[0, 0].item() == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("content", "schema", "words"),
    [
        (
            {"kind": "integer", "range": {"kind": "threshold", "threshold": 1}},
            Scheme,
            "unknown kind 'threshold'",
        ),
        (
            {"kind": "integer", "bits": 4, "range": {"kind": "mse", "bits": 8}},
            Scheme,
            "8 is not the 4 of the grid",
        ),
        (
            {"kind": "integer", "per_channel": False, "range": {"kind": "mse", "per_channel": True}},
            Scheme,
            "one step for the tensor needs one range",
        ),
        ({"range": {"kind": "best", "bits": 4}}, Activations, "4 is not the 8 of the grid"),
        ({"range": {"kind": "min-max", "per_channel": True}}, Activations, "clip them per channel first"),
        ({"kind": "bounds", "maximum": 1, "per_channel": True}, Ranges, "the same in every channel"),
        ({"kind": "mse", "bits": 1}, Ranges, "bits: must be greater than or equal to 2, got 1"),
        ({"kind": "aciq", "distribution": "cauchy"}, Ranges, "distribution: must be 'laplace' or 'gauss'"),
        ({"kind": "best", "images": 0}, Ranges, "images: must be greater than 0, got 0"),
        ({"kind": "sparsity", "sparsity": 1}, Ranges, "unknown kind 'sparsity'"),
    ],
)
def test_what_cannot_be_is_refused(content: dict[str, object], schema: object, words: str) -> None:
    with pytest.raises(DecantError, match=words):
        validate(content, schema, "x")


def test_the_cards_name_every_kind_and_their_lines_are_valid() -> None:
    text = (Path(__file__).parent.parent / "docs" / "clipping.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    cut: ")]
    kinds = [validate(yaml.safe_load(line)["cut"], Cut).kind for line in lines]
    assert kinds == [kind.model_fields["kind"].default for kind in get_args(get_args(Cut)[0])]
    (example,) = re.findall(r"(?ms)^    clipped:.*?\n\n", text)
    for block in yaml.safe_load(example).values():
        validate(block, {"clip": ClipParams, "quantize": QuantizeParams}[block["op"]])


def test_best_is_no_range_before_it_is_chosen() -> None:
    with pytest.raises(ValueError, match="has to be chosen first"):
        Integer(bits=4, range=Best()).levels(normal(0, 3, 3))


def test_samples_of_weights_are_the_survivors() -> None:
    weight, mask = torch.tensor([[1.0, 9.0], [3.0, 4.0]]), torch.tensor([[True, False], [False, False]])
    (whole,) = of_weight(weight, mask, per_channel=False).each
    assert whole.values.tolist() == [1.0]
    rows = of_weight(weight, mask, per_channel=True)
    assert [row.values.tolist() for row in rows.each] == [[1.0], [0.0]]
    assert isinstance(rows, Samples)
    assert rows.shape == (-1, 1)


@pytest.mark.parametrize("span", CANDIDATES.values(), ids=CANDIDATES.keys())
def test_per_group_is_each_group_alone(span: Span) -> None:
    weight, mask = normal(3, 2, 7, 5), normal(4, 2, 7, 5) > -0.5
    threshold = span.threshold(weight, mask, 4, per_channel=True, group=16)
    low, high = span.ends(weight, mask, 4, per_channel=True, group=16)
    assert threshold.shape == low.shape == high.shape == (2, 3)  # 35 = 16 + 16 + 3
    for row in range(2):
        for group in range(3):
            part = slice(16 * group, 16 * group + 16)
            numbers, kept = weight.flatten(1)[row, part], mask.flatten(1)[row, part]
            assert threshold[row, group] == span.threshold(numbers, kept, 4, per_channel=False)
            ends = span.ends(numbers, kept, 4, per_channel=False)
            assert (low[row, group], high[row, group]) == ends


@pytest.mark.parametrize("span", CANDIDATES.values(), ids=CANDIDATES.keys())
def test_per_channel_of_axis_1_is_that_of_the_transposed_weight(span: Span) -> None:
    weight, mask = normal(5, 3, 4, 5), normal(6, 3, 4, 5) > 0
    across, kept = weight.transpose(0, 1), mask.transpose(0, 1)
    threshold = span.threshold(weight, mask, 4, per_channel=True, axis=1)
    assert threshold.shape == (1, 4, 1)
    assert torch.equal(threshold.transpose(0, 1), span.threshold(across, kept, 4, per_channel=True))
    ends = span.ends(weight, mask, 4, per_channel=True, axis=1)
    for end, other in zip(ends, span.ends(across, kept, 4, per_channel=True), strict=True):
        assert torch.equal(end.transpose(0, 1), other)


@pytest.mark.parametrize("span", CANDIDATES.values(), ids=CANDIDATES.keys())
def test_ends_hold_zero_and_lie_within_the_weights(span: Span) -> None:
    for shift in (-3.0, 0.0, 3.0):
        weight = normal(7, 4, 50) + shift
        low, high = span.ends(weight, None, 4, per_channel=True)
        assert (low <= 0).all()
        assert (high >= 0).all()
        assert (low < high).all()
        assert (low >= weight.amin(1, keepdim=True).clamp(max=0)).all()
        assert (high <= weight.amax(1, keepdim=True).clamp(min=0)).all()


def test_union_and_candidates_agree() -> None:
    kinds = {kind.model_fields["kind"].default for kind in get_args(get_args(Ranges)[0])}
    assert kinds - {span.kind for span in CANDIDATES.values()} == {"bounds", "best"}


def test_symmetric_levels_of_nothing_have_the_step_one() -> None:
    assert symmetric_levels(torch.tensor([[0.0], [3.0]]), 3).scale.tolist() == [[1.0], [1.0]]
