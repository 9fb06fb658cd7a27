"""What docs/own-data.md shows: each section `data` can be read, each piece of Python does what is said."""

import random
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tasks.pipeline.params import validate
from tasks.prepare import generators, own_rows
from tasks.prepare.params import DataParams, PythonParams
from tests.homes import home
from tests.imports import ROOT
from tests.test_own_networks import git

PAGE = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")


def blocks(first: str) -> Iterator[str]:
    """Yield each indented block that begins with this line."""
    for found in re.finditer(rf"(?m)^    {re.escape(first)}\n(?:    .*\n|\n(?=    ))*", PAGE):
        yield textwrap.dedent(found[0])


SECTIONS = [yaml.safe_load(block)["data"] for block in blocks("data:")]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section["source"])
def test_each_section_of_params_can_be_read(section: dict[str, Any]) -> None:
    validate(section, DataParams, "data")


def test_each_source_of_ones_own_has_a_section() -> None:
    assert {section["source"] for section in SECTIONS} >= {"table", "folder", "sound", "python", "arrays"}


def test_the_network_that_hears_answers_for_sounds_of_that_length() -> None:
    (code,) = blocks("from torch import nn")
    there: dict[str, Any] = {}
    exec(code, there)
    (section,) = (each for each in SECTIONS if each["source"] == "sound")
    sound = torch.zeros(2, section["channels"], section["length"])
    assert there["build"]()(sound).shape == (2, 2)


def test_the_function_yields_rows_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("import numpy as np")
    (section,) = (each for each in SECTIONS if each["source"] == "python")
    params = validate(section, DataParams, "data")
    assert isinstance(params, PythonParams)
    monkeypatch.setattr(
        generators, "_second_run", lambda _: [*map(generators.sum_of, generators.run_once(params, 1))]
    )
    lines = [f"day{day} {'ab'[day % 2]}" + " 0.5" * random.Random(day).randint(1, 40) for day in range(40)]
    with home(tmp_path):
        git("init", "--quiet")
        Path("networks").mkdir()
        Path("data/own").mkdir(parents=True)
        Path("data/own/series.txt").write_text("\n".join(lines))
        Path(params.file).write_text(code)
        git("add", params.file)
        drawn, _ = own_rows.draw(params, 1)
    train = drawn.splits["train"]
    assert train.classes == ("a", "b") and len(train) == 28
