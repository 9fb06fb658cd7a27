"""Models against a revision: verdicts by hand, real repositories, every way in which there is no verdict."""

import io
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
from rich.console import Console

from decant.errors import DecantError
from decant.evidence.significance import wilson_interval
from decant.schema import mistakes
from flows.compare import compare, main
from flows.judgement import (
    Change,
    Comparison,
    Verdict,
    differing_devices,
    differing_settings,
    judge,
)
from flows.snapshots import CannotCompare
from flows.staleness import stale_models
from flows.tables import as_json, cells, markdown, show
from tasks.pipeline.metrics import COSTS, OF_CLASSES, OF_OUTPUTS, STABILITY
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
    shares = {"calibration_error": 0.02, "agreement": 0.97, "sparsity": 0.0, "top5_accuracy": 0.98}
    shares |= {"balanced_accuracy": 0.91, "macro_f1": 0.9}
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
        row = json.loads(file.read_text())
        assert sorted(row) == sorted(metric.key for metric in OF_CLASSES.of(row))
    assert len(OF_CLASSES.keys) == 16


def test_each_metric_knows_its_better_direction() -> None:
    higher = {metric for metric, up in OF_CLASSES.higher.items() if up}
    rare = {"balanced_accuracy", "macro_f1"}
    assert higher == {"accuracy", "top5_accuracy", "agreement", "ratio", "sparsity"} | rare


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
    again = gates(nll={"rise": str(tolerance)}).of("any")["nll"]
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
        (
            {"all": {"accuracy": {"drop": 5}}},
            "gates.all: accuracy is from 0 to 1, and may change by 5, so that its gate cannot fail",
        ),
        ({"all": {"cosine": {"drop": 2}}}, "gates.all: cosine is from -1 to 1, and may change by 2"),
        (
            {"models": {"int8": {"accuracy": {"drop": "500%"}}}},
            "gates.models.int8: accuracy is never below 0, and may lose 500%, so that its gate cannot fail",
        ),
        ({"all": {"ratio": {"drop": "100%"}}}, "gates.all: ratio is never below 0, and may lose 100%"),
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


@pytest.mark.parametrize("metric", OF_CLASSES.higher)
def test_without_a_gate_nothing_fails_and_the_direction_is_told(metric: str) -> None:
    old = row()
    more = old | {metric: old[metric] + 0.01}
    assert verdicts(old, more) == {metric: "better" if OF_CLASSES.higher[metric] else "worse, no gate"}
    assert verdicts(more, old) == {metric: "worse, no gate" if OF_CLASSES.higher[metric] else "better"}


@pytest.mark.parametrize("metric", [metric for metric in OF_CLASSES.higher if metric != "accuracy"])
def test_without_an_interval_the_tolerance_decides(metric: str) -> None:
    keys = (
        "calibration_error",
        "agreement",
        "sparsity",
        "nll",
        "top5_accuracy",
        "balanced_accuracy",
        "macro_f1",
    )
    old = row(**dict.fromkeys(keys, 0.4))
    sign, word = (-1, "drop") if OF_CLASSES.higher[metric] else (1, "rise")
    new = old | {metric: old[metric] + sign * 0.1}
    assert verdicts(old, new, gates(**{metric: {word: 0.1}})) == {metric: "within tolerance"}
    assert verdicts(old, new, gates(**{metric: {word: 0.0999}})) == {metric: "regression"}


def test_a_number_that_one_side_lacks_is_no_change() -> None:
    """Models of an older revision have no top 5; those of few classes have none either, and no gate on it."""
    few = {key: value for key, value in row().items() if key != "top5_accuracy"}
    assert verdicts(few, row()) == verdicts(row(), few) == verdicts(few, few) == {}


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


@given(
    old=st.integers(0, 10_000),
    new=st.integers(0, 10_000),
    agreements=st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)),
    tolerances=st.tuples(*[st.decimals(min_value=0, max_value="0.9999", places=4)] * 2),
)
def test_a_wider_gate_never_fails_more_and_a_gain_never_fails(
    old: int, new: int, agreements: tuple[int, int], tolerances: tuple[Any, Any]
) -> None:
    before = row(old / 10_000, agreement=agreements[0] / 10_000)
    after = row(new / 10_000, agreement=agreements[1] / 10_000)
    teacher = row()
    found = [
        verdicts(before, after, gates(accuracy={"drop": str(limit)}), old=teacher, new=teacher).get(
            "accuracy"
        )
        for limit in sorted(tolerances)
    ]
    assert found[1] != "regression" or found[0] == "regression"
    if new > old:
        assert found == ["better", "better"]
    if found[0] in ("within noise", "regression"):
        assert (old - new) / 10_000 > min(tolerances)


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


FAILED = Change("accuracy", 0.93, 0.9, Verdict.REGRESSION, Tolerance(Decimal("0.005")))


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
    found = comparison(models={"int|8": (FAILED,), "same": ()})
    page = markdown(found)
    assert r"int\|8" in page
    assert "regression" in page.lower()
    content = json.loads(as_json(found), parse_constant=lambda word: pytest.fail(f"{word} is no strict JSON"))
    assert content["passed"] is False
    assert found.code == 1


def test_numbers_out_of_date_are_no_verdict_even_where_a_gate_fails() -> None:
    assert comparison(models={"a": (FAILED,)}, stale=("a",)).code == 2
    assert comparison(stale=("a",)).code == 2


def test_the_tables_fit_into_eighty_columns() -> None:
    """The widest numbers there are, and a long name: no cell is cut."""
    tolerance = Tolerance(Decimal("0.0125"))
    changes = (
        Change("accuracy", 0.93123, 0.92512, Verdict.NOISE, tolerance, 0.0074512),
        Change("calibration_error", 0.0890063, 0.123456, Verdict.TOLERATED, tolerance),
        Change("macs", 1_819_066_368, 18_190_663_681, Verdict.WORSE),
        Change("size_bytes", 11_179_343, 11_179_344, Verdict.REGRESSION, tolerance),
    )
    settings = {"models.a.training.rates": {"old": [0.1] * 30, "new": 0.2}}
    page = io.StringIO()
    found = comparison(
        models={"student-60-ft-int8-named-at-length": changes}, settings=settings, stale=("a",)
    )
    show(found, Console(file=page, highlight=False))
    lines = page.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "~ noise ±0.0075" in page.getvalue()
    for change in changes:
        (line,) = (line for line in lines if line.startswith(f" {change.metric} "))
        assert line.split()[: len(" ".join(cells(change)).split())] == " ".join(cells(change)).split()


# Models without labels


def like(cosine: float = 0.99, half: float = 0.001, **others: float) -> Row:
    """Return the numbers of a model that is measured by its teacher's outputs."""
    ends = {"cosine": cosine, "cosine_low": cosine - half, "cosine_high": min(cosine + half, 1.0)}
    errors = {"relative_error": 0.1, "relative_error_low": 0.09, "relative_error_high": 0.11}
    lows = {"cosine_p1": 0.95, "cosine_least": 0.9}
    costs = {key: value for key, value in row().items() if key in OF_OUTPUTS.keys}
    return ends | lows | errors | costs | others


def test_a_cosine_has_noise_and_its_worst_row_has_none() -> None:
    limit = gates(cosine={"drop": 0.001}, cosine_least={"drop": 0.01})
    assert verdicts(like(0.99), like(0.9895), limit) == {"cosine": "within tolerance"}
    assert verdicts(like(0.99), like(0.9885), limit) == {"cosine": "within noise"}
    assert verdicts(like(0.99), like(0.987), limit) == {"cosine": "regression"}
    assert verdicts(like(), like(cosine_least=0.88), limit) == {"cosine_least": "regression"}
    assert verdicts(like(0.98), like(0.99), limit) == {"cosine": "better"}


def test_a_relative_error_is_worse_when_it_rises() -> None:
    limit, far = (
        gates(relative_error={"rise": "10%"}),
        {"relative_error_low": 0.29, "relative_error_high": 0.31},
    )
    assert verdicts(like(), like(relative_error=0.109), limit) == {"relative_error": "within tolerance"}
    assert verdicts(like(), like(relative_error=0.115, relative_error_high=0.125), limit) == {
        "relative_error": "within noise"
    }
    assert verdicts(like(), like(relative_error=0.3, **far), limit) == {"relative_error": "regression"}
    assert verdicts(like(relative_error=0.3, **far), like(), limit) == {"relative_error": "better"}


def numbers(mae: float = 12.0, half: float = 0.1, **others: float) -> Row:
    """Return the numbers of a model that predicts numbers."""
    found = {"r2": 0.85, "r2_low": 0.84, "r2_high": 0.86, "rmse": 18.0, "from_teacher": 0.5}
    costs = {key: value for key, value in row().items() if key in {cost.key for cost in COSTS}}
    return found | {"mae": mae, "mae_low": mae - half, "mae_high": mae + half} | costs | others


def test_an_error_in_minutes_is_worse_when_it_rises() -> None:
    limit = gates(mae={"rise": "2%"}, r2={"drop": 0.001})
    assert verdicts(numbers(), numbers(12.2), limit) == {"mae": "within tolerance"}
    assert verdicts(numbers(half=0.2), numbers(12.3, 0.2), limit) == {"mae": "within noise"}
    assert verdicts(numbers(), numbers(12.5), limit) == {"mae": "regression"}
    assert verdicts(numbers(), numbers(11.0), limit) == {"mae": "better"}
    worse = numbers(r2=-0.1, r2_low=-0.2, r2_high=0.0)
    assert verdicts(numbers(), worse, limit) == {"r2": "regression"}


def test_models_of_numbers_are_judged(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = PROJECT | {"gates": {"all": {"mae": {"rise": "2%"}, "from_teacher": {"rise": 0.3}}}}
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    write(project, "teacher", numbers(from_teacher=0.0))
    write(project, "int8", numbers())
    commit(project, "numbers")
    assert main(["main"]) == 0
    write(project, "int8", numbers(14.0))
    assert main(["main", "--md"]) == 1
    assert "| int8 | mae | 12 | 14 | +16.67% | +2% | ✗ regression |" in capsys.readouterr().out
    write(project, "int8", numbers(mae_low=13.0))
    assert main(["main"]) == 2
    assert "expected 0 <= mae_low <= mae <= mae_high" in capsys.readouterr().err
    write(project, "int8", row())
    assert main(["main"]) == 2
    assert "measured by its r2 in main and by its accuracy here" in capsys.readouterr().err


@pytest.fixture
def unlabelled(project: Path) -> Path:
    """Return the repository below with models that are measured by their teacher's outputs."""
    content = PROJECT | {"gates": {"all": {"cosine": {"drop": 0.002}, "relative_error": {"rise": "10%"}}}}
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    write(
        project,
        "teacher",
        like(1.0, 0.0, relative_error=0.0, relative_error_low=0.0, relative_error_high=0.0),
    )
    write(project, "int8", like())
    commit(project, "no labels")
    return project


def test_models_without_labels_are_judged(unlabelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["main"]) == 0
    write(unlabelled, "int8", like(0.95))
    assert main(["main", "--md"]) == 1
    page = capsys.readouterr().out
    assert "| int8 | cosine | 0.99 | 0.95 | -0.04 | -0.002 | ✗ regression |" in page


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (like(cosine_low=0.995), "-1 <= cosine_low <= cosine <= cosine_high <= 1, found 0.995, 0.99"),
        (like(cosine_least=-1.5), "expected cosine_least in [-1, 1], found -1.5"),
        (
            like(relative_error=-0.1),
            "0 <= relative_error_low <= relative_error <= relative_error_high, found",
        ),
        (like(relative_error=math.nan), "NaN is no number of JSON"),
        ({k: v for k, v in like().items() if k != "cosine_p1"}, "expected 15 metrics, found no cosine_p1"),
        (row(), "int8 is measured by its cosine in main and by its accuracy here; compare with a revision"),
    ],
)
def test_numbers_that_are_none_of_these_are_no_pass(
    content: Row, told: str, unlabelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(unlabelled, "int8", content)
    assert main(["main"]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_a_gate_on_what_no_model_has_is_no_pass(unlabelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (unlabelled / "params.yaml").write_text(yaml.safe_dump(PROJECT))
    assert main(["main"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "gates: teacher has no accuracy, as it is measured by its cosine; take a gate of cosine," in error


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


def put_stability(project: Path, **changed: float) -> None:
    """Write what the stage `stability` does of the model int8, of numbers that are in range."""
    found = {metric.key: metric.least for metric in STABILITY["classes"] if metric.always} | changed
    (project / "stability").mkdir(exist_ok=True)
    (project / "stability" / "int8.json").write_text(json.dumps(found))


def gate_on(project: Path, **limits: Any) -> None:
    (project / "params.yaml").write_text(yaml.safe_dump(PROJECT | {"gates": {"models": {"int8": limits}}}))


def test_what_other_stages_measure_can_have_a_gate(project: Path) -> None:
    gate_on(project, mean_corruption_error={"rise": 0.02})
    put_stability(project, mean_corruption_error=1.01)
    commit(project, "stable")
    put_stability(project, mean_corruption_error=1.02)
    (change,) = compare(project, "main").models["int8"]
    assert (change.metric, change.verdict) == ("mean_corruption_error", Verdict.TOLERATED)
    put_stability(project, mean_corruption_error=1.04)
    found = compare(project, "main")
    assert found.models["int8"][0].verdict is Verdict.REGRESSION
    assert found.code == 1
    put_stability(project, mean_corruption_error=1.01, logit_drift=0.1)  # no gate
    assert [each.metric for each in compare(project, "main").models["int8"]] == ["logit_drift"]


def test_where_another_stage_has_not_run_its_numbers_are_not_compared(project: Path) -> None:
    put_stability(project)
    assert compare(project, "main").models["int8"] == ()
    (project / "stability" / "int8.json").unlink()
    gate_on(project, negative_flips={"rise": 0})
    with pytest.raises(CannotCompare, match="gates: int8 has no negative_flips"):
        compare(project, "main")


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (
            {"negative_flips": 1.5},
            r"stability/int8\.json here: expected negative_flips in \[0, 1\], found 1",
        ),
        ({"logit_drift": None}, r"stability/int8\.json here: expected logit_drift in \[0, inf\], found None"),
    ],
)
def test_broken_numbers_of_another_stage_give_no_verdict(
    changed: dict[str, Any], line: str, project: Path
) -> None:
    put_stability(project, **changed)
    with pytest.raises(CannotCompare, match=line):
        compare(project, "main")


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


@pytest.mark.parametrize("style", [[], ["--md"], ["--json"]])
def test_models_of_other_devices_are_told(
    style: list[str], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = {"architecture": {"kind": "mlp"}}
    for device in ({}, {"device": "cuda"}):
        (project / "params.yaml").write_text(yaml.safe_dump(PROJECT | {"teacher": teacher | device}))
        if not device:
            commit(project, "a teacher of the processor")
    assert main(["main", *style]) == 0
    page = capsys.readouterr().out
    if style == ["--json"]:
        assert json.loads(page)["devices"] == {
            "teacher": {"old": "cpu", "new": "cuda"},
            "int8": {"old": "cpu", "new": "cuda then cpu"},
        }
    else:
        shown = " ".join(page.split())
        assert (
            "Made on other devices: teacher (cpu there, cuda here); int8 (cpu there, cuda then cpu here)"
            in shown.replace("\\", "")
        )
        assert "rounding, which a training multiplies" in shown


@pytest.mark.parametrize(
    ("there", "here", "told"),
    [
        (
            "cpu cpu cpu",
            "cpu cuda cpu",
            {"a": ("cpu", "cpu then cuda"), "b": ("cpu", "cpu then cuda then cpu")},
        ),
        ("cpu cpu cuda", "cpu cuda cuda", {"a": ("cpu", "cpu then cuda"), "b": (1, 2)}),
        ("cuda cpu cpu", "cuda cpu cuda", {"b": ("cuda then cpu", "cuda then cpu then cuda")}),
        ("cuda cuda:1 cpu", "cuda cuda:1 cpu", {}),
    ],
)
def test_each_step_on_another_device_is_told(there: str, here: str, told: dict[str, Any]) -> None:
    def params(devices: str) -> dict[str, Any]:
        teacher, a, b = ({"device": each} for each in devices.split())
        return {"teacher": teacher, "models": {"a": a | {"from": "teacher"}, "b": b | {"from": "a"}}}

    steps = {1: "cpu then cpu then cuda", 2: "cpu then cuda then cuda"}
    found = differing_devices(["a", "b"], params(there), params(here))
    assert found == {m: tuple(steps.get(each, each) for each in sides) for m, sides in told.items()}


def test_a_step_that_is_left_out_is_on_no_other_device() -> None:
    old = {"models": {"a": {"from": "teacher"}, "b": {"from": "a"}}}
    assert differing_devices(["b"], old, {"models": {"b": {"from": "teacher"}}}) == {}


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
        (with_text("metrics/int8.json", json.dumps(row()).replace("0.97", "NaN")), "NaN is no number"),
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


NARROW = {"accuracy_low": 0.92999999, "accuracy_high": 0.93000001}
LOCK = "stages: {teacher: {params: {params.yaml: {seed: 1}}}}"


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("dvc.lock", "stages: [1, 2]\n", "a mapping in stages, found [1, 2]"),
        ("dvc.lock", "stages: {teacher: 5}\n", "a mapping in stages.teacher, found 5"),
        ("dvc.lock", "stages: {teacher: {params: [seed]}}", "a mapping in stages.teacher.params"),
        ("dvc.lock", LOCK.replace("{seed: 1}", "[seed]"), "params.params.yaml, found ['seed']"),
        ("dvc.lock", LOCK[:-3], "dvc.lock"),
        ("dvc.lock", "", "named sections"),
        ("params.yaml", yaml.safe_dump(PROJECT) + "seed: 2026-02-30\n", "put it in quotes"),
        ("params.yaml", yaml.safe_dump(PROJECT) + "seed: " + "9" * 5000, "5,000 characters; "),
        ("params.yaml", yaml.safe_dump(PROJECT) + "seed: " + "[" * 3000, "deep"),
        ("params.yaml", "models: {int8: &a {op: quantize}, b: *a}\n", "share"),
        ("dvc.yaml", "stages: {a: []}", "the stage 'a' has no `cmd`"),
        ("metrics/int8.json", json.dumps(row()).replace("0.25", "9" * 400), "a finite number for nll"),
        ("metrics/int8.json", json.dumps(row()).replace("0.25", "9" * 9000), "metrics/int8.json here is not"),
        ("metrics/int8.json", json.dumps(row()).replace("0.25", "1e999"), "a finite number for nll"),
        ("metrics/int8.json", json.dumps(row()).replace('"nll"', '"macs": 5, "nll"'), "a key stands twice"),
        ("metrics/int8.json", json.dumps(row() | {"more": math.nan}), "NaN is no number of JSON"),
        ("metrics/int8.json", json.dumps(row() | {"agreement": 1.5}), "expected agreement in [0, 1]"),
        ("metrics/int8.json", json.dumps(row() | NARROW), "of at most 1,000,000,000 images"),
        ("metrics/int8.json", "[" * 100_000, "metrics/int8.json"),
        ("metrics/int8.json", json.dumps(row() | {"accuracy": "0.93"}), "a finite number for accuracy"),
    ],
)  # fmt: skip
def test_whatever_is_broken_is_no_verdict_and_one_sentence(
    file: str, text: str, told: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / file).write_text(text)
    assert main(["main"]) == 2
    shown = capsys.readouterr().err
    assert told in shown
    assert "Traceback" not in shown
    assert len(shown) < 1000


def test_a_defect_of_ours_is_no_failed_gate(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("of nothing")

    for place in ("judge", "_show"):
        with monkeypatch.context() as patch:
            patch.setattr(f"flows.compare.{place}", fail)
            assert main(["main"]) == 2
        assert (
            "Could not be compared: ZeroDivisionError: of nothing (in test_compare.py"
            in capsys.readouterr().err
        )


def test_numbers_out_of_date_are_told_whatever_the_gates_say(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "dvc.lock").write_text("stages: {evaluate@int8: {params: {params.yaml: {seed: 1}}}}\n")
    (project / "params.yaml").write_text(yaml.safe_dump(PROJECT | {"seed": 2}))
    write(project, "int8", row(accuracy=0.5))
    assert main(["main"]) == 2
    assert "1 of 4 gates failed" in (shown := capsys.readouterr().out)
    assert "Out of date: int8" in shown


def test_a_page_is_written_in_whatever_encoding_the_terminal_has(project: Path) -> None:
    write(project, "int8", row(accuracy=0.5))
    done = compared(project, "main", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (1, "")
    assert "? regression" in done.stdout


def compared(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "flows.compare", *words]
    environment = isolated() | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(command, env=environment, cwd=folder, text=True, capture_output=True)


@pytest.fixture
def branches(project: Path) -> Path:
    """Return the project, now with a tag and two more commits, the last of them on the branch work."""
    git(project, "tag", "v1")
    commit(project, "second")
    git(project, "switch", "--quiet", "--create", "work")
    commit(project, "third")
    return project


@pytest.mark.parametrize("name", ["main", "v1", "HEAD~2", "origin/main"])
@pytest.mark.parametrize("depth", [["--depth", "1"], ["--single-branch"]], ids=lambda words: words[0])
def test_the_advised_fetch_brings_what_a_clone_lacks(
    name: str,
    depth: list[str],
    branches: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clone = branches.parent / f"{branches.name}-clone"
    words = ["--quiet", "--branch", "work", "--no-tags", *depth]
    git(branches, "clone", *words, f"file://{branches}", str(clone))
    monkeypatch.chdir(clone)
    if name == "HEAD~2" and "--single-branch" in depth:
        assert main([name]) == 0
        return
    assert main([name]) == 2
    advised = re.findall(r"`(git fetch [^`]*)`", capsys.readouterr().err)
    command = next((one for one in advised if (" tag " in one) == (name == "v1")), advised[0])
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert main([name]) == 0


def test_a_branch_of_the_remote_is_suggested_where_only_that_is_here(
    branches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clone = tmp_path.parent / f"{tmp_path.name}-clone"
    git(branches, "clone", "--quiet", "--branch", "work", str(branches), str(clone))
    monkeypatch.chdir(clone)
    assert main(["main"]) == 2
    told = capsys.readouterr().err
    assert "did you mean 'origin/main'?" in told
    assert "git fetch" not in told
    assert main(["origin/main"]) == 0
    git(clone, "remote", "remove", "origin")
    assert main(["main"]) == 2
    assert "git fetch" not in capsys.readouterr().err


def experiment(folder: Path, name: str, accuracy: float) -> str:
    """Keep a commit on top of HEAD as DVC keeps an experiment; return its hash."""
    base = git(folder, "rev-parse", "HEAD").strip()
    write(folder, "int8", row(accuracy=accuracy))
    commit(folder, name)
    made = git(folder, "rev-parse", "HEAD").strip()
    git(folder, "update-ref", f"refs/exps/{base[:2]}/{base[2:]}/{name}", made)
    git(folder, "reset", "--quiet", "--hard", base)
    return made


def test_an_experiment_is_compared_by_its_name(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = experiment(project, "toned-lamb", 0.99)
    git(project, "update-ref", "refs/exps/stash", made)
    assert main(["toned-lamb"]) == 1  # here it is worse than there
    assert f"Against toned-lamb ({made[:7]})" in capsys.readouterr().out
    assert main(["toned-lam"]) == 2
    assert "did you mean 'toned-lamb'?" in capsys.readouterr().err
    assert main(["stash"]) == 2
    commit(project, "goes on")
    assert main(["toned-lamb"]) == 1
    other = experiment(project, "toned-lamb", 0.93)
    assert main(["toned-lamb"]) == 0  # the one on top of HEAD
    commit(project, "goes on again")
    capsys.readouterr()
    assert main(["toned-lamb"]) == 2
    told = capsys.readouterr().err
    assert made[:12] in told
    assert other[:12] in told


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
