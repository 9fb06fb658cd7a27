"""What docs/evidence.md says of this project's models is what the stage has written of them."""

import json

import pytest

from benchmarks.evidence import BEGIN, END, Found, block, read
from benchmarks.readme import between
from tasks.pipeline.metrics import STABILITY
from tests.imports import ROOT

PAIR = ("thin-ft-binary", "student")
PAGE = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def found() -> dict[str, Found]:
    return {each.name: each for each in read(ROOT)}


def test_the_table_is_the_one_of_the_committed_files() -> None:
    assert between(PAGE, BEGIN, block(read(ROOT)), END) == PAGE, "run `python -m benchmarks.evidence`"


def test_every_metric_of_classes_is_explained() -> None:
    assert [metric.key for metric in STABILITY["classes"] if f"`{metric.key}`" not in PAGE] == []
    for row in (each.row for each in read(ROOT)):
        assert [*row] == [metric.key for metric in STABILITY["classes"]]


def test_what_the_page_concludes_holds(found: dict[str, Found]) -> None:
    thin, tuned = found["thin"], found["thin-ft"]
    assert thin.accuracy == tuned.accuracy
    assert thin.row["corruption_agreement"] < tuned.row["corruption_agreement"] - 0.02
    assert thin.row["logit_drift"] > 1.8 * tuned.row["logit_drift"]
    assert (thin.lost, tuned.lost) == (True, False)
    student, binary = found["student"], found["thin-ft-binary"]
    assert student.accuracy > binary.accuracy
    assert student.row["corruption_accuracy"] < binary.row["corruption_accuracy"]
    assert found["int8-static"].row["negative_flips"] <= 0.001
    assert found["clip-percentile"].kept
    assert found["clip-percentile"].row["classes_worse"] > 0
    assert [round(100 * each.row["corruption_accuracy"], 1) for each in (binary, student)] == [69.1, 67.9]
    sizes = [json.loads((ROOT / "headline" / f"{each}.json").read_text())["size_bytes"] for each in PAIR]
    assert round(sizes[1] / sizes[0]) == 14
    for name, each in found.items():
        lost = found["teacher"].accuracy - each.accuracy
        assert name == "teacher" or lost <= 0 or 2 * lost < each.row["worst_class_drop"] < 7 * lost
    assert [found[name].row["worst_class_drop"] for name in ("clip-int4", "student-60")] == [0.17, 0.08]
    bounds = {name: found[name].row["lipschitz_ratio"] for name in ("obs-80", "student")}
    assert bounds["obs-80"] > 1 > bounds["student"]
    assert student.row["mean_corruption_error"] > found["obs-80"].row["mean_corruption_error"]
