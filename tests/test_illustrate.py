"""The curves of the stage `illustrate`: line by line, whatever is predicted, and as DVC draws them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import vl_convert
import yaml

from decant.errors import DecantError
from tasks.illustrate import picture
from tasks.illustrate.curves import corruptions_csv, reliability_csv
from tasks.illustrate.reasons import Example, Reasons, Shown
from tasks.illustrate.stable import read
from tests.imports import ROOT
from tests.toys import git, workspace
from tests.warm_dvc import dvc

STEP = {"confidence": 0.75, "accuracy": 0.5, "count": 4}


def put(name: str, **content: Any) -> None:
    """Write what `stability` says of a model, as far as it is drawn, and something that is not."""
    Path("stability").mkdir(exist_ok=True)
    Path("stability", f"{name}.details.json").write_text(json.dumps({"model": name, "flips": []} | content))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_curves_have_a_line_for_each_number() -> None:
    blur = [{"strength": i, "amount": 0.1 * i, "accuracy": 1 - i / 4, "agreement": 1 - i / 8} for i in (1, 2)]
    put("teacher", corruptions={"blur": blur}, reliability=[STEP])
    put("numbers", corruptions={"noise": [{"strength": 1, "amount": 0.5, "mae": 2.5}]}, reliability=[])
    put("tokens")
    found = read(["teacher", "numbers", "tokens"])
    assert corruptions_csv(found).splitlines() == [
        "model,corruption,measure,strength,value",
        "teacher,blur,accuracy,1,0.75",
        "teacher,blur,agreement,1,0.875",
        "teacher,blur,accuracy,2,0.5",
        "teacher,blur,agreement,2,0.75",
        "numbers,noise,mae,1,2.5",
    ]
    assert reliability_csv(found) == "model,confidence,accuracy,count\nteacher,0.75,0.5,4\n"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"reliability": [STEP | {"accuracy": float("nan")}]}, "NaN"),
        ({"reliability": [STEP | {"count": None}]}, r"reliability\.0\.count"),
        ({"corruptions": {"blur": [{"strength": 1, "amount": 1, "accuracy": "high"}]}}, r"blur\.0\.accuracy"),
        ({"corruptions": {"blur": [{"amount": 1, "accuracy": 0.5}]}}, r"blur\.0\.strength"),
    ],
)
def test_what_stability_did_not_write_is_told_in_a_sentence(content: dict[str, Any], fault: str) -> None:
    put("int8", **content)
    with pytest.raises(
        DecantError, match=rf"int8\.details\.json .*{fault}.*; run `dvc repro stability@int8`"
    ):
        read(["int8"])


def test_a_model_without_details_is_told_with_the_stage_that_writes_them() -> None:
    with pytest.raises(
        DecantError, match=r"^No stability/teacher\.details\.json; run `dvc repro stability-teacher`$"
    ):
        read(["teacher"])
    Path("stability").mkdir()
    Path("stability/int8.details.json").write_text("[]")
    with pytest.raises(DecantError, match=r"does not hold what it should .*run `dvc repro stability@int8`$"):
        read(["int8"])


def test_of_many_models_the_first_are_drawn_and_the_others_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "MOST", 2)
    seen = Example(row=3, attributions={picture.METHOD: [0.5, -0.25]})
    every = [Reasons(model=name, methods={}, examples=[seen], layout=(1, 2)) for name in "abcde"]
    figure = picture.draw([Shown(each, 0.5) for each in every])
    assert [axes.get_title() for axes in figure.axes] == ["", "a\n0.50", "b\n0.50", "c\n0.50"]
    assert figure.get_supxlabel() == "and 2 more models, whose reasons are less the teacher's"
    assert picture.draw([Shown(each, 0.5) for each in every[:3]]).get_supxlabel() == ""


def test_dvc_lays_two_revisions_of_every_plot_over_one_another(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "project", {})
    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["plots"]
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"plots": plots}), encoding="utf-8")
    shutil.copytree(ROOT / "report", folder / "report", ignore=shutil.ignore_patterns("*.html", "*.png"))
    shutil.copytree(ROOT / ".dvc" / "plots", folder / ".dvc" / "plots")
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=D", "-c", "user.email=d@example.org", "commit", "--quiet", "-m", "plots")
    (folder / "report" / "corruptions.csv").write_text(
        "model,corruption,measure,strength,value\nteacher,blur,accuracy,1,0.125\n"
    )
    found = json.loads(dvc(folder, "plots", "diff", "HEAD", "--json"))["data"]
    assert [*found] == [name for plot in plots for name in plot]
    for name, (drawn,) in found.items():
        assert sorted(drawn["revisions"]) == ["HEAD", "workspace"], name
        content = json.loads(drawn["content"]) if isinstance(drawn["content"], str) else drawn["content"]
        values = content["data"]["values"]
        assert {each["rev"] for each in values} == {"HEAD", "workspace"}, name
        # Vega refuses what Vega-Lite's schema allows, such as a selection that facets have twice.
        values[:] = [each for each in values if each["model"] in ("teacher", "student")]
        assert vl_convert.vegalite_to_svg(json.dumps(content), "5.20").startswith("<svg"), name
    changed = [each for each in found["corruptions"][0]["content"]["data"]["values"] if each["rev"][0] == "w"]
    assert [each["value"] for each in changed] == ["0.125"]
