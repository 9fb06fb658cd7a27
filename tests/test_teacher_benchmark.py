"""The benchmark of the teacher's recipe: its plan, its arithmetic, its page."""

from benchmarks import teacher
from benchmarks.teacher import BEST, DEFAULT, PLAN, RECIPES, SEEDS, left, name_of, page, spread, training_of

ROW = {"validation_accuracy": 0.94, "validation_loss": 0.25, "train_accuracy": 0.95}


def test_mean_and_deviation_by_hand() -> None:
    assert spread([93.0, 94.0, 95.0]) == "94.00 ± 1.00 (93.00, 94.00, 95.00)"


def test_a_recipe_is_the_default_one_but_for_what_it_changes() -> None:
    default, best = training_of(DEFAULT), training_of(BEST)
    assert (best.epochs, best.precision) == (24, "bfloat16")
    same = default.model_dump(exclude={"epochs", "precision"})
    assert best.model_dump(exclude={"epochs", "precision"}) == same


def test_rows_are_trained_once_and_all_seeds_are_compared() -> None:
    assert {recipe for recipe, _ in PLAN} == set(RECIPES)
    rows = {name_of(*each): ROW for each in PLAN[:2]}
    assert left(rows) == PLAN[2:]
    assert teacher.compared(rows) == []
    assert teacher.compared({name_of(*each): ROW for each in PLAN}) == [
        (recipe, seed) for recipe in (DEFAULT, BEST) for seed in SEEDS
    ]


def test_the_page_says_what_was_found() -> None:
    of = {"test_accuracy": 0.935, "seconds": 300, "threads": 2, "machine": "a machine"}
    rows = {name_of(*each): ROW | of for each in PLAN[:3]}
    text = page(rows)
    cells = ["94.00 ± 0.00 (94.00, 94.00, 94.00)", "93.50 ± 0.00 (93.50, 93.50, 93.50)"]
    assert f"| {BEST} | {cells[0]} | {cells[1]} | 300 (2), 300 (2), 300 (2) |" in text
    assert "`precision: bfloat16, epochs: 24`" in text
    assert "on a machine. Seconds" in text
