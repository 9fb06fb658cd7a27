"""The benchmark of distillation: its blocks are recipes, its test is McNemar's, and --quick runs it all."""

import math
import re

import pytest
import torch

from benchmarks import distillation
from benchmarks.distillation import ALONE, SUBJECTS, cases, gain, page, paired
from decant.costs.counts import parameters
from decant.distill.params import DistillParams
from decant.schema import mistakes
from tests.test_distillation import BLOCKS


@pytest.fixture(scope="module")
def digits() -> distillation.Subject:
    return SUBJECTS["digits"](True)


def test_every_row_is_a_recipe_and_every_loss_has_one(digits: distillation.Subject) -> None:
    found = cases(digits)
    assert next(iter(found)) == ALONE
    for changes in found.values():
        block = {"op": "distill", "from": "teacher", "student": digits.student, "training": digits.training}
        assert mistakes(block | changes, DistillParams) == []
    kinds = {changes["loss"]["kind"] for changes in found.values()}
    assert kinds == set(BLOCKS) - {"attention"}, "a table has no places"


def test_the_student_of_the_table_is_a_tenth_of_its_teacher_and_columns_are_shuffled_alike(
    digits: distillation.Subject,
) -> None:
    architecture = DistillParams.model_validate(
        {"op": "distill", "from": "a", "student": digits.student, "loss": {"kind": "softmax"}}
        | {"training": digits.training}
    ).student
    student = architecture.build(digits.teacher.shape, 10)  # type: ignore[union-attr]
    assert 10 * parameters(student) <= parameters(digits.teacher.module)
    blank = digits.splits.train.images.float().mean(0).flatten() == 0
    assert int((blank & (digits.test.images.float().mean(0).flatten() == 0)).sum()) > 0


def test_mcnemar_by_hand() -> None:
    # 9 gained and 3 lost of 20: z = 6 / sqrt(12).
    one = torch.tensor([True] * 9 + [False] * 3 + [True] * 8)
    other = torch.tensor([False] * 9 + [True] * 3 + [True] * 8)
    assert paired([one], [other]) == pytest.approx(math.erfc(6 / math.sqrt(12) / math.sqrt(2)))
    assert paired([one[:10], one[10:]], [other[:10], other[10:]]) == paired([one], [other])
    assert paired([one], [one]) == 1


def test_a_gain_is_of_means() -> None:
    assert gain({"accuracies": [90.0, 92.0]}, {"accuracies": [90.0, 90.0]}) == 1


def test_rows_that_are_not_asked_for_stay_as_they_were(digits: distillation.Subject) -> None:
    known = [{"name": name, "accuracies": [1.5]} for name in cases(digits)]
    found = distillation.measured(digits, [1], ["softmax"], known)["rows"]
    assert [row["name"] for row in found] == list(cases(digits))
    assert [row["name"] for row in found if row["accuracies"] != [1.5]] == [ALONE, "softmax"]


def test_quick_goes_through_all_of_it_and_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        distillation.main(["--quick", "--write"])
    assert "--quick measures nothing worth writing" in capsys.readouterr().err
    found = distillation.main(["--quick", "--seeds", "1", "2", "--subjects", "digits"])
    rows = found["subjects"]["digits"]["rows"]
    assert all(len(row["accuracies"]) == 2 and 0 <= row["p"] <= 1 for row in rows)
    text = page(found)
    assert len(re.findall(r"(?m)^\| [a-z].*\|$", text)) == len(rows) + 1
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith("|"))
