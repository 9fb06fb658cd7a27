"""Measures of numbers, of several labels, and of rare classes, beside scikit-learn's and loops by hand."""

import json

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from decant.errors import DecantError
from decant.evidence.significance import wilson_interval
from tasks.evaluate import marks
from tasks.evaluate.marks import AveragePrecision
from tasks.evaluate.numbers import Errors, apart
from tasks.evaluate.resampling import bootstrap
from tasks.pipeline import metrics
from tasks.pipeline.metrics import BY_TARGET, OF_BALANCED, OF_CLASSES, OF_LABELS, OF_NUMBERS, SETS, set_of
from tests.imports import ROOT

GENERATOR = torch.Generator().manual_seed(4)
TRUTH = torch.randn(80, 2, generator=GENERATOR) * torch.tensor([1.0, 30.0]) + 5
OUTPUTS = TRUTH + torch.randn(80, 2, generator=GENERATOR) * torch.tensor([0.3, 20.0])
MARKS = torch.rand(90, 4, generator=GENERATOR) < torch.tensor([0.5, 0.2, 0.1, 0.0])
LOGITS = (torch.randn(90, 4, generator=GENERATOR) + MARKS * 1.5).mul(
    4
).round() / 4  # with scores that are equal


def test_errors_are_those_of_scikit_learn() -> None:
    found = Errors(OUTPUTS, TRUTH)
    assert found.mae() == pytest.approx(reference.mean_absolute_error(TRUTH, OUTPUTS), rel=1e-6)
    assert found.rmse() == pytest.approx(reference.root_mean_squared_error(TRUTH, OUTPUTS), rel=1e-6)
    assert found.r2() == pytest.approx(reference.r2_score(TRUTH, OUTPUTS), rel=1e-6)


def test_weights_count_rows_as_often_as_repeating_them() -> None:
    times = np.arange(80) % 4
    rows = np.repeat(np.arange(80), times)
    weighed, repeated = Errors(OUTPUTS, TRUTH), Errors(OUTPUTS[rows], TRUTH[rows])
    for name in ("mae", "rmse", "r2"):
        value = getattr(weighed, name)(times.astype(float))
        assert value == pytest.approx(getattr(repeated, name)(), rel=1e-9), name
    scores, true = LOGITS.double().numpy(), MARKS.numpy()
    times = np.arange(90) % 3
    rows = np.repeat(np.arange(90), times)
    whole = AveragePrecision(scores[rows], true[rows]).mean(np.ones(len(rows)))
    assert AveragePrecision(scores, true).mean(times.astype(float)) == pytest.approx(whole, rel=1e-12)


def test_the_interval_of_a_mean_is_the_one_of_the_central_limit_theorem() -> None:
    values = np.random.Generator(np.random.PCG64(2)).normal(3, 2, 4000)
    low, high = bootstrap(lambda weights: float(weights @ values / weights.sum()), 4000)
    reach = 1.96 * values.std() / np.sqrt(4000)
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.1 * reach)


def test_the_interval_of_a_share_is_near_wilsons() -> None:
    right = np.arange(500) < 450
    found = bootstrap(lambda weights: float(weights @ right / weights.sum()), 500)
    assert found == pytest.approx(wilson_interval(0.9, 500), abs=0.006)


def test_an_interval_holds_its_measure_even_of_two_rows() -> None:
    found = Errors(torch.tensor([[0.0], [1.5]]), torch.tensor([[0.0], [1.0]])).measures()
    assert found["r2_low"] <= found["r2"] <= found["r2_high"]
    assert found["mae_low"] <= found["mae"] <= found["mae_high"]


@pytest.mark.parametrize("truth", [torch.ones(5, 1), torch.zeros(1, 1)])
def test_r2_of_what_does_not_vary_is_refused(truth: torch.Tensor) -> None:
    with pytest.raises(DecantError, match="does not vary, of which R\\^2 is not defined"):
        Errors(truth + 1, truth)


def test_several_labels_as_scikit_learn_measures_them() -> None:
    found = marks.several(LOGITS, -LOGITS, MARKS.float())
    said = LOGITS > 0
    there = [0, 1, 2]  # no row has the fourth
    scores = reference.average_precision_score(MARKS[:, there], LOGITS[:, there], average="macro")
    assert found["map"] == pytest.approx(scores, rel=1e-9)
    assert found["micro_f1"] == pytest.approx(reference.f1_score(MARKS, said, average="micro"))
    assert said[:, 3].any()  # so that scikit-learn counts the fourth as we do
    assert found["macro_f1"] == pytest.approx(reference.f1_score(MARKS, said, average="macro"))
    assert found["agreement"] == pytest.approx((said == (LOGITS < 0)).double().mean().item())
    assert found["map_low"] < found["map"] < found["map_high"]


def test_labels_that_no_row_has_cannot_be_measured() -> None:
    with pytest.raises(DecantError, match="No test row has any label"):
        AveragePrecision(np.zeros((3, 2)), np.zeros((3, 2), bool))


def test_rare_classes_count_as_much_as_others() -> None:
    labels = torch.tensor([0] * 70 + [1] * 15 + [2] * 5)
    logits = LOGITS[:, :3] + torch.nn.functional.one_hot(labels, 3)
    found, said = marks.balanced(logits, labels), logits.argmax(1)
    assert found.items() > marks.by_class(logits, labels).items()
    assert found["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(labels, said))
    assert found["macro_f1"] == pytest.approx(reference.f1_score(labels, said, average="macro"))
    assert found["balanced_accuracy_low"] < found["balanced_accuracy"] < found["balanced_accuracy_high"]
    always = torch.zeros(90, 3)
    always[:, 0] = 1
    assert marks.balanced(always, labels)["balanced_accuracy"] == pytest.approx(1 / 3)


def test_the_difference_from_the_teacher_is_in_the_targets_unit() -> None:
    assert apart(TRUTH + 2, TRUTH) == pytest.approx(2)


# --- one table


def test_each_target_has_one_set_and_rows_find_it() -> None:
    assert set(BY_TARGET) == {"classes", "balanced", "same", "numbers", "labels", "tokens"}
    for each in SETS:
        assert set_of(each.keys) is each
        assert len(set(each.keys)) == len(each.metrics)
        assert {each.quality, *each.headline, *each.columns} <= set(each.keys)
        assert each.higher[each.quality]  # the picture and the front take more for better
        assert set(metrics.interval(each.quality)) <= set(each.keys)
    directions = [(key, higher) for each in SETS for key, higher in each.higher.items()]
    assert len({key for key, _ in directions}) == len(set(directions))  # no key is better both ways


def test_what_is_measured_is_what_the_table_says() -> None:
    assert [*Errors(OUTPUTS, TRUTH).measures(), "from_teacher"] == [
        *OF_NUMBERS.keys[: len(OF_NUMBERS.keys) - len(metrics.COSTS)]
    ]
    assert [*marks.several(LOGITS, LOGITS, MARKS.float())] == [
        *OF_LABELS.keys[: len(OF_LABELS.keys) - len(metrics.COSTS)]
    ]
    balanced = {*marks.balanced(LOGITS, torch.arange(90) % 4)}
    assert {*OF_BALANCED.keys[:4]} == balanced and {*OF_BALANCED.keys} == {*OF_CLASSES.keys} | balanced
    assert {*marks.by_class(LOGITS, torch.arange(90) % 4)} == balanced & {*OF_CLASSES.keys}


def test_classes_measured_before_rare_ones_counted_are_still_of_classes() -> None:
    few = [key for key in OF_CLASSES.keys if key not in ("balanced_accuracy", "macro_f1")]
    assert set_of(few) is OF_CLASSES and [metric.key for metric in OF_CLASSES.of(few)] == few


def test_the_keys_of_classes_are_those_that_they_were() -> None:
    for path in sorted((ROOT / "metrics").glob("*.json")):
        row = json.loads(path.read_text())
        assert [*row] == [metric.key for metric in OF_CLASSES.of(row)], path
    assert OF_CLASSES.headline == tuple(json.loads((ROOT / "headline/teacher.json").read_text()))
