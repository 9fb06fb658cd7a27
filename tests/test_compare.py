"""Models against a revision: verdicts by hand, real repositories, every way in which there is no verdict."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from decant.errors import DecantError
from decant.schema import mistakes
from flows.compare import main
from flows.judgement import (
    BETTER_HIGHER,
    Change,
    Comparison,
    Verdict,
    differing_settings,
    examples,
    judge,
    newcombe_reach,
    paired_reach,
    reach_of_chance,
)
from flows.snapshots import KEYS
from flows.staleness import stale_models
from flows.tables import as_json, markdown
from tasks.evaluate.accuracy import wilson_interval
from tasks.pipeline.params import validate
from tasks.validate.gates import Gates, Tolerance
from tests.clones import commit, isolated
from tests.imports import ROOT

Row = dict[str, float]


def row(accuracy: float = 0.93, images: int = 10_000, **others: float) -> Row:
    low, high = (float(f"{end:.6g}") for end in wilson_interval(accuracy, images))
    sizes = {
        "size_bytes": 300_000,
        "ratio": 4.0,
        "parameters": 293_354,
        "nonzeros": 293_354,
        "macs": 6_541_440,
    }
    shares = {"calibration_error": 0.02, "agreement": 0.97, "sparsity": 0.0}
    ends = {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high}
    return ends | shares | sizes | {"nll": 0.25, "bits_per_weight": 8.0} | others


def gates(**limits: Any) -> Gates:
    checked: Gates = validate({"all": limits}, Gates)
    return checked


def verdicts(old: Row, new: Row, judged_by: Gates | None = None, /, **teachers: Row) -> dict[str, str]:
    sides = {"old": {"m": old}, "new": {"m": new}}
    for side, teacher in teachers.items():
        sides[side]["teacher"] = teacher
    return {change.metric: change.verdict.value for change in judge("m", **sides, gates=judged_by)}


# The schema


def test_the_metrics_are_those_that_evaluate_writes() -> None:
    for file in (ROOT / "metrics").glob("*.json"):
        assert sorted(json.loads(file.read_text())) == sorted(KEYS)
    assert len(KEYS) == 13


def test_each_metric_knows_its_better_direction() -> None:
    higher = {metric for metric, up in BETTER_HIGHER.items() if up}
    assert higher == {"accuracy", "agreement", "ratio", "sparsity"}


@pytest.mark.parametrize(
    ("written", "amount", "relative"),
    [
        (0.005, "0.005", False),
        (0, "0", False),
        ("1%", "0.01", True),
        ("2.5 %", "0.025", True),
        (1e-05, "1e-5", False),
    ],
)
def test_a_tolerance_is_an_amount_or_a_share(written: Any, amount: str, relative: bool) -> None:
    tolerance = gates(accuracy={"drop": written}).of("any")["accuracy"]
    assert (str(float(tolerance.amount)), tolerance.relative) == (str(float(amount)), relative)


@given(amount=st.decimals(min_value=0, max_value=10, places=4), relative=st.booleans())
def test_a_tolerance_survives_being_written(amount: Any, relative: bool) -> None:
    tolerance = Tolerance(amount / 100 if relative else amount, relative)
    again = gates(accuracy={"drop": str(tolerance)}).of("any")["accuracy"]
    assert again == tolerance


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"al": {}}, "gates: unknown key 'al'; did you mean 'all'?"),
        ({"all": {"acuracy": {"drop": 0}}}, "gates.all: unknown key 'acuracy'; did you mean 'accuracy'?"),
        (
            {"all": {"accuracy_low": {"drop": 0}}},
            "gates.all: unknown key 'accuracy_low'; did you mean 'accuracy'?",
        ),
        ({"all": {"accuracy": {"rise": 0.1}}}, "gates.all.accuracy: unknown key 'rise'; known are drop"),
        ({"all": {"nll": {"drop": 0.1}}}, "gates.all.nll: unknown key 'drop'; known are rise"),
        ({"all": {"accuracy": {}}}, "gates.all.accuracy.drop: is missing"),
        ({"all": {"accuracy": 0.1}}, "gates.all.accuracy: must be a mapping of keys to values, got 0.1"),
        ({"all": {"accuracy": {"drop": True}}}, "gates.all.accuracy.drop: must not be true or false"),
        ({"models": {"A b": {}}}, "gates.models.A b: a name has lower-case letters"),
        ({"removed": "old"}, "gates.removed: must be a list, got 'old'"),
    ]
    + [
        (
            {"all": {"nll": {"rise": value}}},
            "gates.all.nll.rise: must be a number such as 0.005 or a share such as 1%",
        )
        for value in (-0.1, math.nan, math.inf, "one", "1 percent", None, [1], "-1%")
    ],
)
def test_mistakes_are_told_with_their_place(content: Any, line: str) -> None:
    told = mistakes(content, Gates, "gates")
    assert any(found.startswith(line) for found in told), told


def test_a_model_s_own_gate_replaces_that_of_all_and_null_switches_it_off() -> None:
    content = {
        "all": {"accuracy": {"drop": 0.01}, "nll": {"rise": "5%"}},
        "models": {"int8": {"accuracy": {"drop": 0.5}, "nll": None, "size_bytes": {"rise": 0}}},
    }
    checked: Gates = validate(content, Gates)
    assert {k: str(v) for k, v in checked.of("int8").items()} == {"accuracy": "0.5", "size_bytes": "0"}
    assert {k: str(v) for k, v in checked.of("other").items()} == {"accuracy": "0.01", "nll": "5%"}
    assert checked.strangers(["int8"]) == []
    assert checked.strangers(["int4"]) == [
        "gates.models.int8: there is no model 'int8'; did you mean 'int4'?"
    ]


def test_the_whole_of_params_is_checked_with_its_gates() -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["gates"] = {"models": {"int8-statik": {}}, "removed": ["mixed"]}
    from tasks.validate.recipes import check

    with pytest.raises(DecantError) as told:
        check(content)
    assert "gates.models.int8-statik: there is no model 'int8-statik'; did you mean 'int8-static'?" in str(
        told.value
    )
    assert "gates.removed: the model 'mixed' is still there" in str(told.value)
    del content["gates"]
    assert check(content).gates == Gates()


# Verdicts


def test_the_same_numbers_are_no_change() -> None:
    assert verdicts(row(), row(), gates(accuracy={"drop": 0})) == {}


@pytest.mark.parametrize("metric", BETTER_HIGHER)
def test_without_a_gate_nothing_fails_and_the_direction_is_told(metric: str) -> None:
    old = row()
    more = old | {metric: old[metric] + 0.01}
    assert verdicts(old, more) == {metric: "better" if BETTER_HIGHER[metric] else "worse, no gate"}
    assert verdicts(more, old) == {metric: "worse, no gate" if BETTER_HIGHER[metric] else "better"}


@pytest.mark.parametrize("metric", [metric for metric in BETTER_HIGHER if metric != "accuracy"])
def test_without_an_interval_the_tolerance_decides(metric: str) -> None:
    old = row(calibration_error=0.4, agreement=0.4, sparsity=0.4, nll=0.4)
    sign, word = (-1, "drop") if BETTER_HIGHER[metric] else (1, "rise")
    new = old | {metric: old[metric] + sign * 0.1}
    assert verdicts(old, new, gates(**{metric: {word: 0.1}})) == {metric: "within tolerance"}
    assert verdicts(old, new, gates(**{metric: {word: 0.0999}})) == {metric: "regression"}


def test_a_share_is_of_the_old_value() -> None:
    limit = gates(size_bytes={"rise": "1%"})
    assert verdicts(row(), row(size_bytes=303_000), limit) == {"size_bytes": "within tolerance"}
    assert verdicts(row(), row(size_bytes=303_001), limit) == {"size_bytes": "regression"}
    assert verdicts(row(sparsity=0.8), row(sparsity=0.4), gates(sparsity={"drop": "50%"})) == {
        "sparsity": "within tolerance"
    }


def test_what_is_exactly_the_tolerance_passes_though_binary_fractions_say_more() -> None:
    assert 0.93 - 0.925 > 0.005
    old, new = row(0.93, images=10**9), row(0.925, images=10**9)
    assert verdicts(old, new, gates(accuracy={"drop": 0.005})) == {"accuracy": "within tolerance"}
    assert verdicts(old, new, gates(accuracy={"drop": 0.00499})) == {"accuracy": "regression"}


def test_a_drop_that_chance_explains_is_noise_and_no_regression() -> None:
    limit = gates(accuracy={"drop": 0.001})
    assert verdicts(row(0.93), row(0.9295), limit) == {"accuracy": "within tolerance"}
    assert verdicts(row(0.93), row(0.926), limit) == {"accuracy": "within noise"}
    assert verdicts(row(0.93), row(0.92), limit) == {"accuracy": "regression"}
    assert verdicts(row(0.93, images=500), row(0.92, images=500), limit) == {"accuracy": "within noise"}


def test_newcombe_s_own_example() -> None:
    """56 of 70 against 48 of 80: table II of the paper gives 0.0524 as the lower end of the difference."""
    reach = newcombe_reach(row(56 / 70, images=70), row(48 / 80, images=80))
    assert 56 / 70 - 48 / 80 - reach == pytest.approx(0.0524, abs=5e-5)


@given(share=st.integers(0, 2000), images=st.sampled_from([2000, 10_000, 50_000]))
def test_the_number_of_images_comes_back_out_of_the_interval(share: int, images: int) -> None:
    assert examples(row(share / images, images)) == pytest.approx(images, rel=0.01)


@pytest.mark.parametrize(("differing", "real"), [(3, False), (5, False), (6, True), (40, True)])
def test_six_answers_that_all_got_worse_are_more_than_chance(differing: int, real: bool) -> None:
    """As the exact test has it: each is a fair coin, and 2 / 2^6 is the first below 5 %."""
    assert (2 / 2**differing < 0.05) == real
    old, new = row(0.93, agreement=1.0), row(0.93 - differing / 10_000, agreement=1 - differing / 10_000)
    assert (0.93 - new["accuracy"] > paired_reach(old, new)) == real


def test_the_same_teacher_tells_two_models_apart_more_surely() -> None:
    old, new = row(0.93, agreement=0.999), row(0.925, agreement=0.993)
    limit, teacher = gates(accuracy={"drop": 0.001}), row(0.931, agreement=1.0)
    assert verdicts(old, new, limit, old=teacher, new=teacher) == {
        "agreement": "worse, no gate",
        "accuracy": "regression",
    }
    other = teacher | {"nll": 0.26}
    assert verdicts(old, new, limit, old=teacher, new=other)["accuracy"] == "within noise"
    assert verdicts(old, new, limit)["accuracy"] == "within noise"


def test_more_than_can_have_changed_was_measured_on_other_images() -> None:
    teacher = {"teacher": row()}
    old, new = row(0.93, agreement=1.0), row(0.925, agreement=1.0)
    assert reach_of_chance("m", {"m": old} | teacher, {"m": new} | teacher) == newcombe_reach(old, new)


@given(
    old=st.integers(0, 10_000),
    new=st.integers(0, 10_000),
    agreements=st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)),
    tolerance=st.decimals(min_value=0, max_value=1, places=4),
)
def test_a_wider_gate_never_fails_more_and_a_gain_never_fails(
    old: int, new: int, agreements: tuple[int, int], tolerance: Any
) -> None:
    before = row(old / 10_000, agreement=agreements[0] / 10_000)
    after = row(new / 10_000, agreement=agreements[1] / 10_000)
    teacher = row()
    found = [
        verdicts(before, after, gates(accuracy={"drop": str(limit)}), old=teacher, new=teacher).get(
            "accuracy"
        )
        for limit in (tolerance, tolerance + 1)
    ]
    assert found[1] != "regression"
    if new > old:
        assert found == ["better", "better"]
    if found[0] in ("within noise", "regression"):
        assert (old - new) / 10_000 > tolerance


def test_settings_differ_by_value_and_by_type() -> None:
    old, new = {"a": 1, "b": True, "c": None, "d": [1, 2]}, {"a": 1, "b": 1, "d": [1, 3], "e": None}
    assert differing_settings(old, new) == {
        "b": {"old": True, "new": 1},
        "c": {"old": None},
        "d": {"old": [1, 2], "new": [1, 3]},
        "e": {"new": None},
    }


def test_a_changed_recipe_makes_its_descendants_stale() -> None:
    lock = {
        "stages": {
            "teacher": {"params": {"params.yaml": {"seed": 1, "teacher": {"epochs": 3}}}},
            "compress@a": {
                "params": {"params.yaml": {"models.a": {"from": "teacher", "bits": 8}, "seed": 1}}
            },
            "report": {"params": {"params.yaml": {"models": {}}}},
            "validate": {"deps": []},
        }
    }
    models = {"a": {"from": "teacher", "bits": 8}, "b": {"from": "a"}, "c": {"from": "teacher"}}
    params = {"seed": 1, "teacher": {"epochs": 3}, "models": models}
    assert stale_models(params, lock) == []
    assert stale_models(params | {"models": models | {"a": {"from": "teacher", "bits": 4}}}, lock) == [
        "a",
        "b",
    ]
    assert stale_models(params | {"seed": 2}, lock) == ["teacher", "a", "b", "c"]
    assert stale_models(params | {"models": {"a": {"from": "b"}, "b": {"from": "a"}}}, lock) == ["a", "b"]
    assert stale_models(params, {}) == []


# Pages


def comparison(**others: Any) -> Comparison:
    plain = Comparison(revision="main", commit="0" * 40, models={}, new={}, removed=(), settings={}, gates=3)
    return replace(plain, **others)


def columns(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line)) - 1


@given(st.text(), st.text())
def test_whatever_stands_in_params_is_one_cell_of_the_table(place: str, value: str) -> None:
    page = markdown(comparison(settings={f"x{place}": {"old": value, "new": 1}}))
    table = [line for line in page.split("\n") if line.startswith("|")]
    assert len(table) == 3
    assert {columns(line) for line in table} == {3}
    assert not re.search("<(?!/?details>|/?summary>)", page)


def test_a_regression_is_marked_on_every_page() -> None:
    failed = Change("accuracy", 0.93, 0.9, Verdict.REGRESSION, Tolerance(Decimal("0.005")))
    found = comparison(models={"int|8": (failed,), "same": ()})
    page = markdown(found)
    assert r"int\|8" in page
    assert "regression" in page.lower()
    content = json.loads(as_json(found), parse_constant=lambda word: pytest.fail(f"{word} is no strict JSON"))
    assert content["passed"] is False
    assert found.code == 1


# The command line, in real repositories


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository with a teacher and one model, committed on main; it is the current folder."""
    (tmp_path / "metrics").mkdir()
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PROJECT))
    (tmp_path / "dvc.yaml").write_text('stages: {a: {cmd: "true"}}\n')
    for model in ("teacher", "int8"):
        write(tmp_path, model, row())
    git(tmp_path, "init", "--quiet", "--initial-branch", "main")
    commit(tmp_path, "first")
    monkeypatch.chdir(tmp_path)
    return tmp_path


PROJECT: dict[str, Any] = {
    "models": {"int8": {"op": "quantize", "from": "teacher"}},
    "gates": {"all": {"accuracy": {"drop": 0.005}, "size_bytes": {"rise": "1%"}}},
}


def write(folder: Path, model: str, content: Row) -> None:
    (folder / "metrics" / f"{model}.json").write_text(json.dumps(content))


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("style", [[], ["--md"], ["--json"]])
def test_no_change_passes(style: list[str], project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["main", *style]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"accuracy": 0.92}, 1),
        ({"accuracy": 0.927}, 0),  # inside the tolerance
        ({"accuracy": 0.94}, 0),
        ({"size_bytes": 303_001}, 1),
        ({"size_bytes": 303_000}, 0),
        ({"macs": 9e9}, 0),  # has no gate
    ],
)
def test_gates_decide(change: Row, code: int, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = row(accuracy=change.pop("accuracy", 0.93), **change)
    write(project, "int8", changed)
    assert main(["main", "--md"]) == code
    page = capsys.readouterr().out
    assert "int8" in page


def test_a_drop_beyond_the_tolerance_inside_the_noise_passes(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in ("teacher", "int8"):
        write(project, model, row(images=200))
    commit(project, "few images")
    write(project, "int8", row(accuracy=0.92, images=200))  # two answers of two hundred
    assert main(["main", "--json"]) == 0
    assert "within noise" in capsys.readouterr().out


def test_a_new_model_is_told_and_is_no_mistake(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = PROJECT | {"models": PROJECT["models"] | {"int4": {"op": "quantize", "from": "teacher"}}}
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    write(project, "int4", row())
    assert main(["main", "--md"]) == 0
    assert "int4" in capsys.readouterr().out


def without(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).unlink()


def with_text(path: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / path).write_text(text)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (without("metrics/int8.json"), "metrics/int8.json"),
        (with_text("metrics/int8.json", "{"), "metrics/int8.json"),
        (with_text("metrics/int8.json", json.dumps(row()).replace("0.97", "NaN")), "agreement"),
        (with_text("metrics/int8.json", json.dumps({k: v for k, v in row().items() if k != "nll"})), "nll"),
        (with_text("metrics/int8.json", json.dumps(row() | {"nll": None})), "nll"),
        (with_text("params.yaml", yaml.safe_dump(PROJECT | {"models": {}})), "int8"),  # it vanished
        (with_text("params.yaml", "models: ["), "params.yaml"),
        (with_text("params.yaml", yaml.safe_dump(PROJECT | {"gates": {"al": {}}})), "al"),
        (without("params.yaml"), "params.yaml"),
        (with_text("dvc.yaml", "stages: ["), "dvc.yaml"),
        (without("dvc.yaml"), "dvc.yaml"),
    ],
)
def test_what_cannot_be_compared_is_no_pass(
    harm: Callable[[Path], object], told: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harm(project)
    assert main(["main"]) == 2
    shown = capsys.readouterr()
    assert told in shown.err
    assert "Traceback" not in shown.err


def test_an_unknown_revision_or_model_cannot_be_compared(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert main(["main", "int88"]) == 2
    assert "did you mean 'int8'" in capsys.readouterr().err


def test_a_broken_revision_cannot_be_compared(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "metrics" / "int8.json").write_text("{}")
    commit(project, "broken")
    write(project, "int8", row())
    assert main(["main"]) == 2
    assert "accuracy" in capsys.readouterr().err


def test_outside_of_a_repository_nothing_can_be_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["main"]) == 2
    assert "error: " in capsys.readouterr().err


def test_the_module_runs_without_prefect_dvc_or_torch(project: Path) -> None:
    code = "import sys, flows.compare; print({'prefect', 'dvc', 'torch'} & set(sys.modules))"
    environment = isolated() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=project, text=True, capture_output=True, check=True
    )
    assert done.stdout == "set()\n"
