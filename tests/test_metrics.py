"""Measures against published values, other libraries, loops in double precision, and counts by hand."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from scipy.stats import t as student
from torch import Tensor, nn
from torch.nn import functional as F

from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import Constraints
from decant.costs import counts
from decant.costs.divergence import divergence
from decant.costs.likeness import cosines, relative_errors
from decant.errors import DecantError
from decant.evidence.significance import wilson_interval
from decant.networks.architectures import Lenet5, Lenet300100, Mlp, build
from decant.networks.record import give_example_, record_of
from decant.networks.structure import compressible
from tasks.evaluate import accuracy
from tasks.evaluate.measures import headline, measure
from tasks.pipeline.metrics import OF_CLASSES, OF_OUTPUTS, interval, set_of


def logits(seed: int, count: int = 40, classes: int = 4, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))


def labels(seed: int, count: int = 40, classes: int = 4) -> Tensor:
    return torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed))


def certain(confidences: list[float]) -> Tensor:
    """Return logits of two classes whose first has these probabilities."""
    return torch.tensor([[math.log(p), math.log1p(-p)] for p in confidences], dtype=torch.double)


def test_accuracy_by_hand() -> None:
    answers = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [5.0, -5.0]])
    assert accuracy.accuracy(answers, torch.tensor([1, 0, 0, 1])) == 0.5
    assert accuracy.accuracy(answers, torch.tensor([1, 0, 1, 0])) == 1.0


@given(st.integers(0, 99), st.integers(1, 60))
def test_accuracy_is_exactly_hits_over_count(seed: int, count: int) -> None:
    answers, truth = logits(seed, count), labels(seed + 1, count)
    hits = sum(
        max(range(4), key=row.__getitem__) == t
        for row, t in zip(answers.tolist(), truth.tolist(), strict=True)
    )
    assert accuracy.accuracy(answers, truth) == pytest.approx(hits / count, abs=1e-15)


def test_accuracy_of_many_is_not_rounded_to_float32() -> None:
    truth = torch.zeros(17_000_001, dtype=torch.int8)
    truth[0] = 1
    answers = torch.tensor([[1.0, 0.0]]).expand(len(truth), 2)
    assert accuracy.accuracy(answers, truth) == 17_000_000 / 17_000_001


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 10), (9, 10), (81, 263), (9312, 10_000)])
def test_wilson_s_interval_agrees_with_scipy(hits: int, count: int) -> None:
    reference = binomtest(hits, count).proportion_ci(0.95, "wilson")
    found = wilson_interval(hits / count, count)
    assert found == pytest.approx((reference.low, reference.high), rel=1e-12, abs=1e-12)


def test_wilson_s_interval_is_the_published_one() -> None:
    # Newcombe, Two-sided confidence intervals for the single proportion, 1998, table I, method 3.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0 / 20, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1 / 29, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_the_interval_holds_the_share_and_stays_in_range(count: int, part: float) -> None:
    share = round(part * count) / count
    low, high = wilson_interval(share, count)
    assert 0 <= low <= share
    assert share <= high <= 1
    assert high - low > 0


def test_the_ends_of_the_interval_are_whole_where_the_share_is() -> None:
    ends = [(wilson_interval(0.0, n)[0], wilson_interval(1.0, n)[1]) for n in range(1, 20001)]
    assert set(ends) == {(0.0, 1.0)}


@given(st.integers(0, 99))
def test_the_likelihood_agrees_with_a_loop(seed: int) -> None:
    answers, truth = logits(seed, 12), labels(seed + 1, 12)
    naive = [
        math.log(math.fsum(math.exp(z) for z in row)) - row[label]
        for row, label in zip(answers.tolist(), truth.tolist(), strict=True)
    ]
    assert accuracy.nll(answers, truth) == pytest.approx(math.fsum(naive) / 12, rel=1e-12)


def test_a_likelihood_by_hand_and_one_that_underflows() -> None:
    assert accuracy.nll(torch.zeros(3, 10), torch.tensor([0, 4, 9])) == pytest.approx(math.log(10))
    assert accuracy.nll(torch.tensor([[0.0, 2000.0]]), torch.tensor([0])) == 2000.0


# --- calibration


def test_a_calibration_error_by_hand() -> None:
    # Two bins of two, with mean confidences 0.66 and 0.95; in each, one answer is right.
    answers = certain([0.62, 0.7, 0.92, 0.98])
    truth = torch.tensor([0, 1, 1, 0])
    by_hand = (2 * abs(0.5 - 0.66) + 2 * abs(0.5 - 0.95)) / 4
    assert accuracy.calibration_error(answers, truth, bins=5) == pytest.approx(by_hand)


def naive_calibration_error(confidences: list[float], hits: list[bool], bins: int) -> float:
    """Guo et al., equation 3: bin m holds the confidences in ((m - 1) / M, m / M]."""
    total = 0.0
    for m in range(1, bins + 1):
        inside = [i for i, c in enumerate(confidences) if (m - 1) / bins < c <= m / bins]
        if inside:
            confidence = math.fsum(confidences[i] for i in inside) / len(inside)
            hit_rate = sum(hits[i] for i in inside) / len(inside)
            total += len(inside) / len(confidences) * abs(hit_rate - confidence)
    return total


@given(st.integers(0, 999), st.sampled_from([1, 7, 10, 15, 100]))
def test_a_calibration_error_agrees_with_a_loop(seed: int, bins: int) -> None:
    answers, truth = logits(seed).double(), labels(seed + 1)
    confidence, predicted = answers.softmax(1).max(1)
    naive = naive_calibration_error(confidence.tolist(), (predicted == truth).tolist(), bins)
    assert accuracy.calibration_error(answers, truth, bins) == pytest.approx(naive, abs=1e-12)


def test_the_edges_of_confidence_are_counted() -> None:
    # Confidence 1 falls into the last bin, 1/2 (an edge of ten bins) into the fifth.
    sure = torch.tensor([[1000.0, 0.0]] * 3)
    assert accuracy.calibration_error(sure, torch.tensor([0, 0, 1])) == pytest.approx(1 / 3)
    assert accuracy.calibration_error(sure, torch.zeros(3).long()) == 0.0
    edge = torch.zeros(4, 2)
    assert accuracy.calibration_error(edge, torch.tensor([0, 0, 1, 1]), bins=10) == 0.0
    both = torch.cat([edge, certain([0.6] * 4)])
    truth = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])
    # In one bin the gaps +0.5 and -0.35 would cancel; in two bins they do not.
    assert accuracy.calibration_error(both, truth, bins=10) == pytest.approx((4 * 0.5 + 4 * 0.35) / 8)
    assert accuracy.calibration_error(both, truth, bins=1) == pytest.approx(abs(5 / 8 - 0.55))


def test_a_calibrated_model_errs_little_and_an_overconfident_one_much() -> None:
    random.seed(0)
    confidences = [random.uniform(0.5, 1) for _ in range(20_000)]
    truth = torch.tensor([0 if random.random() < c else 1 for c in confidences])
    answers = certain(confidences)
    assert accuracy.calibration_error(answers, truth) < 0.02
    assert accuracy.calibration_error(5 * answers, truth) > 0.1


def test_agreement_by_hand() -> None:
    one = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    other = torch.tensor([[9.0, 8.0], [0.0, 0.1], [0.0, 1.0]])
    assert accuracy.agreement(one, other.argmax(1)) == pytest.approx(2 / 3)
    assert accuracy.agreement(one, one.argmax(1)) == 1.0


# --- counts


def test_zeros_are_counted_to_the_weight() -> None:
    module = build(Mlp(hidden=(5,)), (1, 2, 2), 3, seed=0)  # 4 * 5 + 5 + 5 * 3 + 3
    with torch.no_grad():
        module.get_parameter("layers.0.weight")[0] = 0  # 4 of the 35 weights
        module.get_parameter("layers.2.weight")[1, 2] = -0.0
        module.get_parameter("layers.0.bias")[:] = 0
    assert counts.parameters(module) == 43
    assert counts.nonzeros(module) == 43 - 4 - 1 - 5
    assert counts.sparsity(module) == 5 / 35


@pytest.mark.parametrize(
    ("stride", "padding", "groups", "dilation"),
    [(1, 0, 1, 1), (2, 1, 1, 1), (3, 2, 2, 1), (1, 2, 4, 2), (2, 0, 4, 1)],
)
def test_multiplications_of_a_convolution_by_hand(
    stride: int, padding: int, groups: int, dilation: int
) -> None:
    layer = nn.Conv2d(4, 8, 3, stride, padding, dilation, groups)
    side = (11 + 2 * padding - dilation * 2 - 1) // stride + 1
    outputs, inputs_of_each = 8 * side * side, 4 // groups * 3 * 3
    assert counts.macs(shown(nn.Sequential(layer), 4, 11, 11)) == outputs * inputs_of_each


def shown(module: nn.Module, *shape: int) -> nn.Module:
    """Return the network, which knows what it takes."""
    give_example_(module, (torch.zeros(1, *shape),))
    return module


def test_multiplications_of_published_networks() -> None:
    by_hand = 784 * 300 + 300 * 100 + 1000
    assert counts.macs(build(Lenet300100(), (1, 28, 28), 10, seed=0)) == by_hand
    by_hand = 24 * 24 * 20 * 25 + 8 * 8 * 50 * 20 * 25 + 800 * 500 + 500 * 10
    assert counts.macs(build(Lenet5(), (1, 28, 28), 10, seed=0)) == by_hand


def test_a_layer_that_is_used_twice_counts_twice() -> None:
    layer = nn.Linear(6, 6, bias=False)
    assert counts.macs(shown(nn.Sequential(nn.Flatten(), layer, layer), 1, 2, 3)) == 72


class Tokens(nn.Module):
    """Attention, then two recurrent layers, a transposed convolution, and a matrix of the network's own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.lstm = nn.LSTM(8, 10, batch_first=True)
        self.gru = nn.GRU(10, 3, bidirectional=True, batch_first=True)
        self.up = nn.ConvTranspose1d(6, 4, 3, stride=2, bias=False)
        self.table = nn.Parameter(torch.ones(4, 5))

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.embed(inputs)
        tokens = self.attention(tokens, tokens, tokens)[0]
        states = self.gru(self.lstm(tokens)[0])[0]
        result: Tensor = self.up(states.mT).mean(2) @ self.table
        return result


TOKENS = {
    "attention.in_proj_weight": 6 * 3 * 8 * 8,
    "attention.out_proj.weight": 6 * 8 * 8,
    "lstm.weight_ih_l0": 6 * 40 * 8,
    "lstm.weight_hh_l0": 6 * 40 * 10,
    "gru.weight_ih_l0": 6 * 9 * 10,
    "gru.weight_hh_l0": 6 * 9 * 3,
    "gru.weight_ih_l0_reverse": 6 * 9 * 10,
    "gru.weight_hh_l0_reverse": 6 * 9 * 3,
    "up.weight": 6 * 6 * 4 * 3,
    "table": 4 * 5,
}


def test_multiplications_of_attention_recurrences_and_parameters_by_hand() -> None:
    module = Tokens()
    give_example_(module, (torch.ones(2, 6, dtype=torch.int64),))
    record = record_of(module)
    assert {name: record.macs_of(name) for name in compressible(module)} == TOKENS
    assert counts.macs(module) == sum(TOKENS.values()) + 2 * 6 * 6 * 8  # and two products within attention


def test_zeros_are_counted_wherever_weights_are() -> None:
    module = Tokens()
    give_example_(module, (torch.ones(2, 6, dtype=torch.int64),))
    zero = [module.lstm.weight_hh_l0, module.up.weight, module.table]
    for weight in [*zero, module.embed.weight]:
        nn.init.zeros_(weight)
    every = [p for name, p in module.named_parameters() if p.dim() > 1 and name != "embed.weight"]
    assert counts.sparsity(module) == sum(w.numel() for w in zero) / sum(w.numel() for w in every)


def test_counting_leaves_no_hook_behind() -> None:
    module = build(Mlp(hidden=(5,)), (1, 2, 2), 3, seed=0)
    counts.macs(module)
    assert not any(layer._forward_hooks for layer in module.modules())


# --- the row


def checkpoint(hidden: int = 5) -> Checkpoint:
    module = build(Mlp(hidden=(hidden,)), (1, 2, 2), 3, seed=0).eval()
    return Checkpoint(Mlp(hidden=(hidden,)), (1, 2, 2), tuple("abc"), module)


def test_certain_answers_have_a_likelihood_of_nothing_and_no_minus() -> None:
    found = accuracy.nll(torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]), torch.tensor([0, 1]))
    assert str(found) == "0.0"


@given(st.integers(0, 10**6), st.sampled_from([1e-3, 1.0, 50.0, 1e30]))
def test_the_divergence_of_two_networks_is_never_below_zero(seed: int, scale: float) -> None:
    expected = logits(seed, scale=scale)
    assert divergence(expected, expected) >= 0
    assert divergence(expected * (1 + 1e-7), expected) >= 0
    other = logits(seed + 1, scale=1.0)
    by_hand = F.kl_div(other.double().log_softmax(1), expected.double().softmax(1), reduction="batchmean")
    assert divergence(other, expected) == pytest.approx(max(0.0, by_hand.item()), rel=1e-9, abs=1e-12)


@given(st.integers(0, 10**6), st.integers(1, 60), st.sampled_from([1e-6, 1.0, 1e4, 1e37]))
def test_every_measure_lies_in_its_range(seed: int, count: int, scale: float) -> None:
    answers, truth = logits(seed, count, 3, scale), labels(seed + 1, count, 3)
    right = answers.argmax(1)
    for classes, reference in ((truth, right), (right, right), ((right + 1) % 3, (right + 1) % 3)):
        row = measure(checkpoint(), checkpoint(7), answers, reference, classes, size=100)
        assert list(row) == [metric.key for metric in OF_CLASSES.of(row)]
        for metric in OF_CLASSES.of(row):
            key = metric.key
            assert metric.least <= row[key] <= metric.most
            assert math.isfinite(row[key])
            assert not str(row[key]).startswith("-")


@pytest.mark.parametrize("count", [9, 10, 40])
def test_five_guesses_are_counted_from_ten_classes_on(count: int) -> None:
    module = build(Mlp(hidden=(5,)), (1, 2, 2), count, seed=0).eval()
    model = Checkpoint(Mlp(hidden=(5,)), (1, 2, 2), tuple(map(str, range(count))), module)
    answers, truth = logits(0, 60, count), labels(1, 60, count)
    row = measure(model, model, answers, answers.argmax(1), truth, size=100)
    assert list(row) == [metric.key for metric in OF_CLASSES.of(row)]
    assert ("top5_accuracy" in row) == (count >= 10)
    if count >= 10:
        hits = sum(
            int(label in order[:5])
            for label, order in zip(truth, answers.argsort(1, descending=True), strict=True)
        )
        assert row["top5_accuracy"] == pytest.approx(hits / 60, rel=1e-5)
    assert "top5_accuracy" not in headline(row)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_not_written(wrong: float) -> None:
    answers = logits(0, 9, 3)
    answers[3] = wrong
    with pytest.raises(
        DecantError, match=r"(nll|calibration_error) came out as (nan|inf), and is a number from 0"
    ):
        measure(checkpoint(), checkpoint(), answers, answers.argmax(1), labels(1, 9, 3), size=100)


KEYS = [
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "balanced_accuracy",
    "macro_f1",
    "nll",
    "calibration_error",
    "agreement",
    "size_bytes",
    "ratio",
    "parameters",
    "nonzeros",
    "macs",
    "sparsity",
    "bits_per_weight",
]


def test_a_row_has_the_same_keys_in_the_same_order_and_six_digits() -> None:
    teacher, answers, truth = checkpoint(10), logits(0, 37, 3), labels(1, 37, 3)
    mask = torch.ones(5, 4).bool()
    mask[:3] = False
    model = checkpoint(5).narrowed({"layers.0.weight": Constraints(mask=mask)})
    row = measure(model, teacher, answers, logits(2, 37, 3).argmax(1), truth, size=111)
    assert list(row) == KEYS
    assert row["size_bytes"] == 111
    assert row["ratio"] == pytest.approx(4 * (4 * 10 + 10 + 30 + 3) / 111, rel=1e-5)
    assert (row["parameters"], row["nonzeros"], row["macs"]) == (43, 31, 35)
    assert row["sparsity"] == pytest.approx(12 / 35, rel=1e-5)
    assert row["bits_per_weight"] == pytest.approx(8 * 111 / 43, rel=1e-5)
    assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
    assert all(type(row[key]) is int for key in ("size_bytes", "parameters", "nonzeros", "macs"))
    for value in row.values():
        assert value == float(f"{value:.6g}")
    assert list(checkpoint_row := headline(row)) == list(OF_CLASSES.headline)
    assert all(checkpoint_row[key] == row[key] for key in OF_CLASSES.headline)


def test_the_teacher_agrees_with_itself() -> None:
    teacher, answers = checkpoint(), logits(0, 20, 3)
    row = measure(teacher, teacher, answers, answers.argmax(1), labels(1, 20, 3), size=4 * 43)
    assert (row["agreement"], row["ratio"], row["bits_per_weight"], row["sparsity"]) == (1.0, 1.0, 32.0, 0.0)


def test_large_integers_are_not_rounded() -> None:
    row = measure(
        checkpoint(), checkpoint(), logits(0, 5, 3), logits(1, 5, 3).argmax(1), labels(1, 5, 3), 123_456_789
    )
    assert row["size_bytes"] == 123_456_789


# --- outputs that are no classes: numbers by hand

FOUND = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0]])
RIGHT = torch.tensor([[3.0, 4.0], [2.0, 0.0], [2.0, 2.0], [0.0, 0.0]])


def test_cosines_of_four_rows_by_hand() -> None:
    """The same, at a right angle, half as long, and two rows of zeros, which are alike."""
    assert cosines(FOUND, RIGHT).tolist() == pytest.approx([1, 0, 1, 1])
    assert cosines(-FOUND, RIGHT).tolist() == pytest.approx([-1, 0, -1, 1])
    assert cosines(torch.zeros(1, 2), RIGHT[:1]).tolist() == [0]
    assert cosines(RIGHT[:1], torch.zeros(1, 2)).tolist() == [0]


def test_relative_errors_of_four_rows_by_hand() -> None:
    assert relative_errors(FOUND, RIGHT).tolist() == pytest.approx([0, math.sqrt(8) / 2, 0.5, 0])
    mean_square = math.sqrt((25 + 4 + 8 + 0) / 4)  # in place of the length of a row of zeros
    moved = torch.cat([FOUND[:3], torch.tensor([[0.0, 3.0]])])
    assert relative_errors(moved, RIGHT)[3].item() == pytest.approx(3 / mean_square)
    assert relative_errors(torch.zeros(2, 2), torch.zeros(2, 2)).tolist() == [0, 0]
    assert math.isinf(relative_errors(torch.ones(1, 2), torch.zeros(1, 2)).item())


@given(st.integers(0, 10**6), st.sampled_from([1e-30, 1.0, 1e30]))
def test_cosines_and_errors_are_those_of_a_loop(seed: int, scale: float) -> None:
    found, right = logits(seed, 5, 3, scale), logits(seed + 1, 5, 3, scale)
    pairs = list(zip(found.double().tolist(), right.double().tolist(), strict=True))
    angles = [math.fsum(x * y for x, y in zip(a, b, strict=True)) for a, b in pairs]
    sizes = [(math.hypot(*a), math.hypot(*b)) for a, b in pairs]
    assert cosines(found, right).tolist() == pytest.approx(
        [angle / (one * other) for angle, (one, other) in zip(angles, sizes, strict=True)], abs=1e-12
    )
    assert relative_errors(found, right).tolist() == pytest.approx(
        [math.dist(a, b) / math.hypot(*b) for a, b in pairs], rel=1e-12
    )


@pytest.mark.parametrize("count", [7, 58, 1000])
def test_the_interval_of_a_mean_is_students(count: int) -> None:
    values = logits(count, count, 1).flatten()
    mean, low, high = accuracy.mean_interval(values)
    spread = math.sqrt(math.fsum((x - mean) ** 2 for x in values.double().tolist()) / (count - 1))
    assert mean == pytest.approx(math.fsum(values.double().tolist()) / count)
    expected = student.interval(0.95, count - 1, mean, spread / math.sqrt(count))
    assert (low, high) == pytest.approx(expected, rel=0.01)


def test_one_row_has_no_interval() -> None:
    with pytest.raises(DecantError, match="1 test row has no spread to judge a mean by; take two or more"):
        accuracy.mean_interval(torch.ones(1))


def test_a_row_without_labels_by_hand() -> None:
    row = measure(checkpoint(), checkpoint(), FOUND, RIGHT, None, size=100)
    assert list(row) == list(OF_OUTPUTS.keys)
    assert row["cosine"] == 0.75
    assert row["cosine_least"] == 0
    assert row["cosine_p1"] == pytest.approx(0.03)  # three hundredths of the way from the worst to the next
    assert row["relative_error"] == pytest.approx((math.sqrt(2) + 0.5) / 4, rel=1e-5)
    assert row["cosine_low"] < 0.75 < row["cosine_high"] == 1
    assert row["relative_error_low"] == 0 < row["relative_error"] < row["relative_error_high"]
    assert list(headline(row)) == list(OF_OUTPUTS.headline)


def test_the_teacher_is_like_itself() -> None:
    """Whatever type it answers in: what is kept of it is float32."""
    answers = logits(3, 20, 5).double() / 3
    row = measure(checkpoint(), checkpoint(), answers, answers.float(), None, size=100)
    assert [row[key] for key in OF_OUTPUTS.keys[:8]] == [1, 1, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_outputs_that_are_no_numbers_are_refused(wrong: float) -> None:
    answers = RIGHT.clone()
    answers[2, 1] = wrong
    with pytest.raises(DecantError, match="cosine came out as nan, and is a number from -1 to 1"):
        measure(checkpoint(), checkpoint(), answers, RIGHT, None, size=100)
    with pytest.raises(DecantError, match="cosine came out as nan"):
        measure(checkpoint(), checkpoint(), RIGHT, answers, None, size=100)


def test_a_teacher_of_zeros_is_refused() -> None:
    with pytest.raises(DecantError, match="The teacher answers nothing but zeros"):
        measure(checkpoint(), checkpoint(), FOUND, torch.zeros(4, 2), None, size=100)


def test_labels_need_a_logit_for_each_class() -> None:
    with pytest.raises(DecantError, match="answers 7 numbers for each of 3 classes' examples"):
        measure(checkpoint(), checkpoint(), logits(0, 9, 7), labels(1, 9, 3), labels(2, 9, 3), size=100)


def test_each_metric_stands_in_one_table() -> None:
    for each in (OF_CLASSES, OF_OUTPUTS):
        assert len(set(each.keys)) == len(each.metrics)
        assert {each.quality, *interval(each.quality), *each.headline, *each.columns} <= {*each.keys}
        assert all(each.by_key[key].title and each.by_key[key].meaning for key in each.columns)
        assert set_of(each.keys) is each
