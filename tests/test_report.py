"""The report: who is best, who is on the front, and that the same numbers give the same bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from decant.checkpoints.lineage import write_lineage
from decant.errors import DecantError
from tasks.illustrate.curves import CORRUPTIONS, DELETION, RELIABILITY
from tasks.pipeline.metrics import OF_CLASSES, OF_NUMBERS, OF_OUTPUTS
from tasks.report.__main__ import main
from tasks.report.pictures import draw, floor, save, styles
from tasks.report.rows import ModelRow, pareto_front, read_curves, read_rows
from tasks.report.tables import columns_of, curves_csv, readme, table, tradeoff

COLUMNS = OF_CLASSES.curve
TEMPLATES = Path(__file__).parent.parent / ".dvc" / "plots"


def row(name: str, accuracy: float, size: int, *operations: str, **others: float) -> ModelRow:
    numbers = dict.fromkeys(OF_CLASSES.keys, 1.0)
    numbers |= {"accuracy": accuracy, "accuracy_low": accuracy - 0.005, "accuracy_high": accuracy + 0.005}
    numbers |= {"size_bytes": size, "ratio": 1000 / size, "macs": 5e6, **others}
    return ModelRow(name, ("teacher", *operations), numbers)


FOUR = [
    row("teacher", 0.93, 1000),
    row("small", 0.90, 100, "prune", "quantize"),  # the smallest
    row("beaten", 0.89, 200, "prune"),  # by small, in both
    row("middle", 0.92, 200, "distill"),
]


def write_models(rows: Sequence[ModelRow], trained: Sequence[str] = ()) -> None:
    """Write what the stages before the report leave behind."""
    Path("metrics").mkdir()
    blocks = [f"  {r.name}: {{op: {r.operation}, from: teacher}}\n" for r in rows if r.name != "teacher"]
    Path("params.yaml").write_text("models:\n" + "".join(blocks))
    for r in rows:
        folder = Path("models") / r.name
        folder.mkdir(parents=True)
        Path("metrics", f"{r.name}.json").write_text(json.dumps(r.metrics))
        put_lineage(folder, r.operations, CURVE if r.name in trained else None)


CURVE = (
    "epoch,loss,accuracy,learning_rate,validation_loss,validation_accuracy\n"
    "1,0.9,0.7,0.1,0.8,0.75\n2,0.5,0.8,0.05,0.6,0.79\n"
)


def put_lineage(folder: Path, operations: Sequence[object], curve: str | None = None) -> None:
    steps = [{"name": "x", "op": operation} for operation in operations]
    write_lineage(folder, "", steps, {"curve.csv": curve} if curve else {})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_front_of_four_points() -> None:
    assert pareto_front(FOUR) == {"teacher", "small", "middle"}


def test_equal_models_are_both_on_the_front_and_a_worse_one_of_equal_size_is_not() -> None:
    rows = [row("teacher", 0.9, 500), row("twin", 0.9, 500), row("worse", 0.89, 500)]
    assert pareto_front(rows) == {"teacher", "twin"}


def cells(text: str, name: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith((f"| {name} |", f"| {name} ★ |"))]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_of_the_table() -> None:
    assert cells(table(FOUR, {"small"}), "small") == [
        "small ★",
        "teacher → prune → quantize",
        "90.00",
        "89.50 to 90.50",
        "-3.00",
        "100.00",
        "1.000",
        "100.00",
        "**0.1**",
        "**10.0**",
        "100.0",
        "1.00",
        "5.00",
    ]


def test_a_change_that_is_no_more_than_chance_says_so(here: Path) -> None:
    write_models(FOUR)
    Path("stability").mkdir()
    for name, p in {"teacher": 1.0, "small": 0.05, "middle": 0.0501}.items():
        figures = {"mcnemar_p": p, "smallest_difference": p / 10}
        Path("stability", f"{name}.json").write_text(json.dumps(figures))
    rows = read_rows(["teacher", "small", "middle", "beaten"])
    assert "shows in four of five cases: 0.50 to 0.50 points, model by model." in readme(rows, set())
    assert "four of five" not in readme(FOUR, set())
    text = table(rows, set())
    assert [cells(text, name)[4] for name in ("teacher", "small", "middle", "beaten")] == [
        "+0.00",
        "-3.00",
        "-1.00 (chance)",
        "-4.00",
    ]
    Path("stability/small.json").write_text('{"mcnemar_p": NaN}')
    with pytest.raises(DecantError, match=r"stability/small\.json .*; run `dvc repro stability@small`$"):
        read_rows(["teacher", "small"])


def test_the_best_of_the_compressed_models_is_bold_and_the_teacher_never() -> None:
    text = table(FOUR, set())
    assert cells(text, "middle")[2] == "**92.00**"
    assert "**" not in "".join(cells(text, "teacher"))
    assert "**" not in "".join(cells(text, "beaten"))


def test_cells_that_read_the_same_are_bold_together() -> None:
    rows = [
        row("teacher", 0.93, 1000),
        row("a", 0.9, 100_040),
        row("b", 0.8, 100_000),
        row("c", 0.7, 200_000),
    ]
    text = table(rows, set())
    assert [cells(text, name)[8] for name in "abc"] == ["**100.0**", "**100.0**", "200.0"]


def test_a_column_in_which_all_are_equal_has_no_best() -> None:
    assert "**5.00**" not in table(FOUR, set())


def test_the_page_explains_every_column_and_embeds_the_picture() -> None:
    page = readme(FOUR, pareto_front(FOUR))
    assert all(f"- **{column.title}**: {column.meaning}" in page for column in columns_of(OF_CLASSES))
    assert "](tradeoff.svg)" in page
    assert "On the front, from large to small: teacher, small, middle." in page


def test_rows_come_from_the_largest_to_the_smallest_the_teacher_before_equals(here: Path) -> None:
    write_models([*FOUR, row("alike", 0.9, 1000, "clip")])
    rows = read_rows(["alike", "beaten", "middle", "small", "teacher"])
    assert [r.name for r in rows] == ["teacher", "alike", "beaten", "middle", "small"]
    assert rows[-1] == FOUR[1]


def test_a_model_without_metrics_is_named_with_what_to_do(here: Path) -> None:
    write_models(FOUR)
    Path("metrics/small.json").unlink()
    with pytest.raises(DecantError, match=r"No metrics/small\.json; run `dvc repro evaluate@small`"):
        read_rows(["teacher", "small"])


@pytest.mark.parametrize(
    ("measure", "value"),
    [
        ("nll", None),
        ("nll", "high"),
        ("nll", True),
        ("nll", -0.1),
        ("nll", 10**400),
        ("accuracy", 1.0000002),
        ("accuracy_low", -1e-17),
        ("size_bytes", 0),
        ("ratio", 0.0),
    ],
)
def test_a_measure_that_is_no_number_in_its_range_is_named(here: Path, measure: str, value: object) -> None:
    write_models(FOUR)
    Path("metrics/teacher.json").write_text(json.dumps({**FOUR[0].metrics, measure: value}))
    with pytest.raises(DecantError, match=rf"in its range for {measure}; run `dvc repro evaluate-teacher`"):
        read_rows(["teacher"])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "{}",
        "[]",
        "5",
        "null",
        "[" * 100_000,
        '{"nll": NaN}',
        '{"nll": 1, "nll": 2}',
        "9" * 9999,
        "\xff",
    ],
)
def test_metrics_that_cannot_be_read_are_one_sentence(here: Path, content: str) -> None:
    write_models(FOUR)
    Path("metrics/teacher.json").write_text(content, encoding="latin1")
    with pytest.raises(DecantError, match=r"^metrics/teacher\.json .*; run `dvc repro evaluate-teacher`$"):
        read_rows(["teacher"])


def test_broken_files_are_named(here: Path) -> None:
    write_models(FOUR, trained=["small", "middle"])
    Path("models/middle/lineage.json").unlink()
    with pytest.raises(DecantError, match=r"No model at models/middle/lineage\.json; run `dvc repro`"):
        read_rows(["middle"])
    for operations in ([], ["teacher", 5]):
        put_lineage(Path("models/middle"), operations)
        with pytest.raises(DecantError, match=r"models/middle/lineage\.json does not name the steps"):
            read_rows(["middle"])
    Path("models/small/curve.csv").write_text(CURVE.replace("0.9", "0.8"))
    with pytest.raises(DecantError, match=r"models/small/curve\.csv does not hold what it should"):
        read_curves(["small"], COLUMNS)
    for curve in ("epoch,loss\n1,2\n", CURVE + "3,0.4\n"):
        put_lineage(Path("models/small"), ["teacher"], curve)
        with pytest.raises(DecantError, match=r"curve\.csv lacks the columns .*validation_accuracy"):
            read_curves(["small"], COLUMNS)


def test_curves_are_in_long_form_and_models_without_training_have_none(here: Path) -> None:
    write_models(FOUR, trained=["teacher", "middle"])
    assert curves_csv(read_curves(["beaten", "middle", "teacher"], COLUMNS), COLUMNS) == (
        "model,epoch,loss,validation_loss,accuracy,validation_accuracy\n"
        "middle,1,0.9,0.8,0.7,0.75\nmiddle,2,0.5,0.6,0.8,0.79\n"
        "teacher,1,0.9,0.8,0.7,0.75\nteacher,2,0.5,0.6,0.8,0.79\n"
    )


def test_the_stage_writes_the_same_bytes_twice(here: Path) -> None:
    write_models(FOUR, trained=["teacher"])
    main()
    names = ["README.md", "curves.csv", "tradeoff.json", "tradeoff.png", "tradeoff.svg"]
    first = {name: Path("report", name).read_bytes() for name in names}
    assert sorted(path.name for path in Path("report").iterdir()) == names
    main()
    assert {name: Path("report", name).read_bytes() for name in names} == first
    assert first["tradeoff.png"].startswith(b"\x89PNG")
    for content in first.values():
        assert b"<dc:date>" not in content
        assert str(here).encode() not in content


def test_other_numbers_give_another_picture(here: Path) -> None:
    for name, rows in {"a.svg": FOUR, "b.svg": [*FOUR[:3], row("middle", 0.91, 200, "distill")]}.items():
        save(draw(rows, pareto_front(rows)), Path(name))
    assert Path("a.svg").read_bytes() != Path("b.svg").read_bytes()


def test_the_axis_is_broken_above_collapsed_models_and_only_then() -> None:
    assert floor(FOUR) is None
    cut = floor([*FOUR, row("chance", 0.1, 150, "prune")])
    assert cut is not None
    assert 10 < cut < 89


def names_in(figure_rows: Sequence[ModelRow]) -> list[list[str]]:
    figure = draw(figure_rows, pareto_front(figure_rows))
    return [[text.get_text() for text in panel.texts] for panel in figure.axes]


def test_every_model_is_named_once_and_a_collapsed_one_with_its_value() -> None:
    (names,) = names_in(FOUR)
    assert sorted(names) == ["beaten", "middle", "small", "teacher"]
    upper, lower = names_in([*FOUR, row("chance", 0.1, 150, "prune")])
    assert sorted(upper) == ["beaten", "middle", "small", "teacher"]
    assert lower == ["chance  10.0 %"]


def test_names_do_not_cover_one_another() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    rows = [row("teacher", 0.93, 1_200_000)]
    rows += [row(f"model-of-some-{i}", 0.93 - 0.002 * (i % 6), 60_000 * (1 + i), "prune") for i in range(15)]
    figure = draw(rows, pareto_front(rows))
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [Text.get_window_extent(text, renderer) for text in figure.axes[0].texts]
    assert len(boxes) == 16
    for index, one in enumerate(boxes):
        assert all(Bbox.intersection(one, other) is None for other in boxes[index + 1 :])


def test_every_operation_has_a_style_also_one_that_is_new() -> None:
    rows = [*FOUR, row("new", 0.9, 300, "fold")]
    assert set(styles(rows)) == {"teacher", "quantize", "prune", "distill", "fold"}
    assert len(set(styles(rows).values())) == 5


def test_the_teacher_alone_can_be_drawn(here: Path) -> None:
    save(draw(FOUR[:1], {"teacher"}), Path("alone.png"))
    assert Path("alone.png").stat().st_size > 0


# --- models without labels


def like(name: str, cosine: float, size: int, *operations: str) -> ModelRow:
    """Return a model that is measured by its teacher's outputs."""
    numbers = dict.fromkeys(OF_OUTPUTS.keys, 1.0) | {"size_bytes": size, "ratio": 1000 / size, "macs": 5e6}
    numbers |= {"cosine": cosine, "cosine_low": cosine - 0.002, "cosine_high": min(cosine + 0.002, 1.0)}
    return ModelRow(
        name, ("teacher", *operations), numbers | {"cosine_p1": cosine - 0.1, "relative_error": 0.25}
    )


LIKE = [like("teacher", 1, 1000), like("int8", 0.995, 250, "quantize"), like("int4", 0.98, 130, "quantize")]


def test_models_without_labels_have_columns_of_their_own() -> None:
    text = table(LIKE, pareto_front(LIKE))
    heads = cells(text, "model")
    assert heads[2:7] == ["cosine", "95 % interval", "1st percentile", "least", "error %"]
    assert "accuracy" not in text
    assert cells(text, "int8")[2:5] == ["**0.9950**", "0.9930 to 0.9970", "**0.8950**"]
    assert cells(text, "int8")[6] == "25.00"
    page = readme(LIKE, pareto_front(LIKE))
    assert "![Cosine against size of every model]" in page
    assert "no other model is at least as near to the teacher and at most as large" in page


def test_models_without_labels_are_drawn(here: Path) -> None:
    (names,) = names_in(LIKE)
    assert sorted(names) == ["int4", "int8", "teacher"]
    assert floor(LIKE) is None
    upper, lower = names_in([*LIKE, like("ruined", 0.2, 100, "quantize")])
    assert lower == ["ruined  0.200"]
    assert sorted(upper) == ["int4", "int8", "teacher"]
    whole = like("teacher", 1, 1000)
    whole.metrics["cosine_low"] = 1.0
    save(draw([whole], {"teacher"}), Path("alone.png"))
    points = tradeoff(LIKE, {"int4"})
    assert list(points[0])[4:8] == ["size_bytes", "cosine", "cosine_low", "cosine_high"]
    assert list(points[0])[8:] == ["cosine_p1", "cosine_least", "relative_error", "ratio"]


def test_the_stage_reports_models_without_labels(here: Path) -> None:
    write_models(LIKE)
    curve = "epoch,loss,learning_rate,validation_loss,validation_cosine\n1,0.9,0.1,0.8,0.75\n"
    put_lineage(Path("models/int8"), ("teacher", "quantize"), curve)
    main()
    assert Path("report/curves.csv").read_text() == (
        "model,epoch,loss,validation_loss,validation_cosine\nint8,1,0.9,0.8,0.75\n"
    )


def test_models_that_are_measured_by_different_things_are_refused(here: Path) -> None:
    write_models([*LIKE, row("prune-50", 0.9, 500, "prune")])
    with pytest.raises(DecantError, match="different things: int8 by its cosine, prune-50 by its accuracy"):
        main()


@pytest.mark.parametrize("name", ["tradeoff", "curves", "deletion", "corruptions", "reliability"])
def test_the_plot_templates_are_filled_by_dvc_and_name_fields_that_there_are(name: str) -> None:
    text = (TEMPLATES / f"{name}.json").read_text(encoding="utf-8")
    assert all(f"<DVC_METRIC_{anchor}>" in text for anchor in ("DATA", "X", "Y", "TITLE"))
    fields = {
        "tradeoff": tradeoff(FOUR, set())[0].keys(),
        "curves": curves_csv([], COLUMNS).strip().split(","),
        "deletion": DELETION,
        "corruptions": CORRUPTIONS,
        "reliability": RELIABILITY,
    }[name]
    assert set(_fields(json.loads(text))) <= {*fields, "rev", "<DVC_METRIC_X>", "<DVC_METRIC_Y>"}


def _fields(content: object) -> list[str]:
    if isinstance(content, list):
        return [field for part in content for field in _fields(part)]
    if not isinstance(content, dict):
        return []
    own = [content["field"]] if isinstance(content.get("field"), str) else []
    return own + [field for part in content.values() for field in _fields(part)]


# --- models of numbers


def number(name: str, r2: float, mae: float, size: int, *operations: str) -> ModelRow:
    """Return a model that predicts numbers."""
    values = dict.fromkeys(OF_NUMBERS.keys, 1.0) | {"size_bytes": size, "ratio": 1000 / size, "macs": 5e6}
    values |= {"r2": r2, "r2_low": r2 - 0.01, "r2_high": min(r2 + 0.01, 1.0), "mae": mae, "rmse": 17.913}
    return ModelRow(name, ("teacher", *operations), values)


NUMBERS = [
    number("teacher", 0.85, 12.41, 1000),
    number("int8", 0.849, 12.43, 250, "quantize"),
    number("int2", -3.5, 80.0, 90, "quantize"),
]


def test_models_of_numbers_have_columns_of_their_own_and_a_picture(here: Path) -> None:
    text = table(NUMBERS, pareto_front(NUMBERS))
    assert cells(text, "model")[2:7] == ["R²", "95 % interval", "MAE", "RMSE", "from teacher"]
    assert cells(text, "int8")[2:6] == ["**0.8490**", "0.8390 to 0.8590", "**12.43**", "17.91"]
    assert cells(text, "teacher")[4] == "12.41"
    assert cells(text, "int2")[2] == "-3.5000"
    figure = draw(NUMBERS, {"teacher", "int8"})
    assert figure.axes[0].get_ylabel() == "R² on the test split (bars: 95 % interval)"
    save(figure, here / "numbers.svg")
    assert (here / "numbers.svg").stat().st_size > 1000
