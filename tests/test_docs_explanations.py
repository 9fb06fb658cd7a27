"""What docs/evidence.md says of this project's models' reasons is what the stage has written of them."""

from benchmarks.explanations import BEGIN, END, block, read
from benchmarks.readme import between
from tasks.pipeline.metrics import EXPLANATIONS
from tests.imports import ROOT

PAGE = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
FOUND = {each.name: each for each in read(ROOT)}


def test_the_tables_are_those_of_the_committed_files() -> None:
    assert between(PAGE, BEGIN, block(read(ROOT)), END) == PAGE, "run `python -m benchmarks.explanations`"


def test_every_metric_is_explained() -> None:
    keys = [metric.key for metric in EXPLANATIONS]
    assert [key for key in keys if f"`{key}`" not in PAGE] == []
    assert [each.name for each in FOUND.values() if [*each.row] != keys] == []


def test_what_the_page_concludes_holds() -> None:
    kept = {name: each.row["explanations_kept"] for name, each in FOUND.items()}
    assert min(kept["int8-static"], kept["clip-percentile"]) > 0.99
    assert FOUND["clip-int4"].accuracy < FOUND["obs-80"].accuracy
    assert kept["clip-int4"] > kept["obs-80"] + 0.02
    assert abs(kept["obs-80"] - kept["obs-80-int8"]) < 0.01
    assert kept["thin-ft"] > kept["thin"] + 0.02
    for name in (each for each in kept if each.endswith("-int8")):
        assert abs(kept[name] - kept[name.removesuffix("-int8")]) < 0.005
    lost = {name: FOUND["teacher"].accuracy - each.accuracy for name, each in FOUND.items()}
    assert 4 <= lost["clip-int4"] / lost["obs-80"] <= 5
    assert abs(lost["student"] - lost["obs-80"]) < 0.001
    assert kept["student"] < kept["obs-80"] - 0.02
    assert all(each.side > 0 for each in FOUND.values())
    assert min(kept, key=lambda name: kept[name]) == "thin-ft-binary"
    assert all(each.row["explanations_deletion"] > 0.15 for each in FOUND.values())
    methods = FOUND["teacher"].details["methods"]
    assert max(methods, key=lambda name: methods[name]["floor"]) == "lime"
    assert min(methods, key=lambda name: methods[name]["floor"]) == "integrated_gradients"
