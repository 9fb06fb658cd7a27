"""Real series of unequal length, yielded by a function: who of nine speakers says a vowel.

The data are in the package aeon (UCI archive; Kudo, Toyama and Shimbo, Multidimensional Curve Classification
Using Passing-Through Regions, 1999). It is looked for among the packages that can be imported and in the
folders that DECANT_STRANGERS lists, as tests/strangers/models.py says, and nothing of it is run.
"""

import shutil
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest

from tasks.benchmark.exports import export
from tasks.pipeline import splits
from tasks.pipeline.models import load_model
from tests.imports import ROOT
from tests.strangers.models import FOLDERS, folders
from tests.test_own_networks import project
from tests.test_own_sources_in_stages import content, through

FILES = ("JapaneseVowels_TRAIN.ts", "JapaneseVowels_TEST.ts")
BASELINE = 0.9865
"""Accuracy of logistic regression on means, deviations and ends of the series."""

CODE = ROOT / "tests" / "strangers" / "vowels.py"


def data() -> list[Path]:
    """Return the files of the data set; none where the package is nowhere."""
    found = PathFinder.find_spec("aeon", [*map(str, folders()), *sys.path])
    places = [] if found is None else list(found.submodule_search_locations or [])
    paths = [Path(place, "datasets/data/JapaneseVowels", name) for place in places for name in FILES]
    return [path for path in paths if path.is_file()]


def params() -> dict[str, Any]:
    training = {
        "epochs": 60,
        "batch_size": 16,
        "optimizer": {"kind": "adamw", "learning_rate": 0.01},
        "schedule": {"kind": "cosine"},
        "weight_decay": 0.001,
    }
    source = {"source": "python", "file": "networks/vowels.py", "function": "rows"}
    source |= {"reads": [f"data/own/{name}" for name in FILES]}
    source |= {"target": {"kind": "classes", "column": "speaker"}}
    source |= {"split": {"kind": "column", "column": "part"}}
    architecture = {"kind": "python", "file": "networks/vowels.py", "build": "build"}
    return content(source, teacher={"architecture": architecture, "training": training})


@pytest.mark.slow
@pytest.mark.skipif(len(data()) < 2, reason=f"no package aeon, and none in a folder that {FOLDERS} lists")
def test_speakers_are_told_apart_as_well_as_by_the_baseline(tmp_path: Path) -> None:
    with project(tmp_path, params(), "data/own", "networks/vowels.py", CODE.read_text()):
        for path in data():
            shutil.copy(path, "data/own")
        found = through("int8")
        sizes = [len(splits.read(path)) for path in (splits.TRAIN, splits.VALIDATION, splits.TEST)]
        assert sizes == [225, 45, 370]
        assert found["teacher"]["accuracy"] >= BASELINE
        assert found["int8"]["accuracy"] >= BASELINE and found["int8"]["ratio"] > 3
        exports, failed = export(("teacher", "int8"), load_model, splits.read(splits.TEST), 1)
        assert not failed and {*exports} == {"teacher", "int8"}
