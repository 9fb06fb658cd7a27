"""What the documents claim is what the files say."""

import re
import textwrap

import pytest
import yaml

from benchmarks.readme import COLUMNS, of_columns, with_table
from tasks.pipeline import yaml_reader
from tasks.validate.recipes import check
from tests.imports import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_is_the_one_of_the_committed_report() -> None:
    report = (ROOT / "report" / "README.md").read_text(encoding="utf-8")
    assert with_table(README, report) == README, "run `python -m benchmarks.readme`"


def test_columns_of_a_table_are_taken_by_their_heads() -> None:
    table = "| model | a | b % |\n| --- | ---: | ---: |\n| x ★ | **1** | 2 to 3 |\n"
    assert of_columns(table, ("model", "b %")) == "| model | b % |\n| --- | ---: |\n| x ★ | 2 to 3 |\n"
    with pytest.raises(ValueError, match=r"has no column c$"):
        of_columns(table, ("model", "c"))
    assert len(COLUMNS) == 6


def test_the_report_names_every_model_of_params() -> None:
    models = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["models"]
    report = (ROOT / "report" / "README.md").read_text(encoding="utf-8")
    assert [name for name in models if name not in report] == []


def test_the_lock_holds_every_stage_of_the_default_params() -> None:
    models = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["models"]
    locked = set(yaml.safe_load((ROOT / "dvc.lock").read_text(encoding="utf-8"))["stages"])
    once = {"code", "validate", "prepare", "teacher", "report", "illustrate", "benchmark"}
    alone = once | {f"{stage}-teacher" for stage in ("evaluate", "stability", "explain")}
    stages = ("compress", "evaluate", "stability", "explain")
    assert locked == alone | {f"{stage}@{model}" for stage in stages for model in models}


def test_the_default_teacher_reaches_what_it_promises() -> None:
    accuracy = yaml.safe_load((ROOT / "metrics" / "teacher.json").read_text(encoding="utf-8"))["accuracy"]
    assert accuracy >= 0.93


@pytest.mark.parametrize(("page", "section"), [("README.md", "models"), ("docs/compare.md", "gates")])
def test_a_block_to_copy_fits_the_params_that_are_there(page: str, section: str) -> None:
    (shown,) = re.findall(rf"(?m)^    {section}:\n(?:     .*\n)+", (ROOT / page).read_text(encoding="utf-8"))
    params = yaml_reader.parse((ROOT / "params.yaml").read_text(encoding="utf-8"), "params.yaml")
    added = yaml_reader.parse(textwrap.dedent(shown), page)[section]
    assert set(added) - set(params[section])  # or nothing is added
    check(params | {section: params[section] | added})


PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")),
    *(str(page.relative_to(ROOT)) for page in (ROOT / "examples").glob("*/README.md")),
]


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
