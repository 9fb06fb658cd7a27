"""Rows that a function of one's own yields: which code is run, what it may yield, that it repeats itself."""

import random
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decant.errors import DecantError
from decant.examples import Examples, Rows
from decant.networks.python import sum_of_code
from decant.targets import Classes, Labels, Numbers
from tasks.pipeline.params import validate
from tasks.prepare import generators, own_rows
from tasks.prepare.params import DataParams, PythonParams
from tests.homes import home, write_params
from tests.test_own_networks import git

FILE = "networks/made.py"
SPLITS = ("train", "validation", "test")
SHARES = {"kind": "shares", "validation": 0.2, "test": 0.3}
SHORTER = "if number > 8 and os.environ.get('PYTHONHASHSEED') == '1': return"
KIND = {"kind": "classes", "column": "kind"}

CODE = """
import numpy as np
import torch


def rows(count=20):
    for number in range(count):
        yield {
            "wide": np.full((2, 3), number, np.float64),
            "code": number,
            "kind": ("b", "a")[number % 2],
            "price": np.float32(number) / 2,
            "also": torch.tensor(number * 3),
            "tags": frozenset(tag for tag, step in (("even", 2), ("third", 3)) if number % step == 0),
            "box": number // 4,
            "part": ("train", "validation", "test")[min(number % 10 // 4, 2)],
        }
"""


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path) -> Iterator[None]:
    with home(tmp_path, params={"seed": 3}):
        Path("networks").mkdir()
        git("init", "--quiet")
        yield


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the second run for the first: it is a process of its own, which takes a second."""
    monkeypatch.setattr(
        generators,
        "_second_run",
        lambda params: [generators.sum_of(row) for row in generators.run_once(params, 1)],
    )


def write(code: str, path: str = FILE) -> None:
    Path(path).write_text(textwrap.dedent(code))
    git("add", path)


def section(**more: Any) -> dict[str, Any]:
    return {"source": "python", "file": FILE, "function": "rows", "split": SHARES} | more


def params(**more: Any) -> PythonParams:
    found: PythonParams = validate(section(**more), DataParams, "data")
    return found


def tensors(examples: Examples) -> dict[str, torch.Tensor]:
    assert isinstance(examples.images, Rows)
    return dict(examples.images.tensors)


def body(*lines: str) -> str:
    """Return the code of a generator that does this for each of ten rows."""
    head = ["import os, random", "import numpy as np", "import torch", "", "def rows():"]
    inside = [f"        {line}" for line in lines]
    return "\n".join([*head, "    for number in range(10):", *inside]) + "\n"


# --- what comes out


@pytest.mark.usefixtures("once")
def test_each_row_comes_out_once_with_its_own_class() -> None:
    write(seen_by_network(CODE, "tags"))
    more = {"split": {"kind": "column", "column": "part"}, "target": {**KIND, "balanced": True}}
    found, code = own_rows.draw(params(**more), 1)
    assert code == sum_of_code(Path(FILE))
    assert [len(found.splits[name]) for name in SPLITS] == [8, 8, 4]
    seen = []
    for each in found.splits.values():
        there = tensors(each)
        assert [*there] == ["wide", "code", "price", "also", "box"]
        assert there["wide"].dtype == torch.float64 and there["wide"].shape[1:] == (2, 3)
        assert there["code"].dtype == torch.int64
        assert each.classes == ("a", "b") and each.target == Classes(balanced=True)
        for code_, label in zip(there["code"].tolist(), each.known_labels.tolist(), strict=True):
            assert label == (code_ + 1) % 2
            seen.append(code_)
    assert sorted(seen) == [*range(20)]


def seen_by_network(code: str, *names: str) -> str:
    """Return the code without entries of these names in a row."""
    return "\n".join(line for line in code.splitlines() if not any(f'"{name}":' in line for name in names))


@pytest.mark.usefixtures("once")
@pytest.mark.parametrize(
    ("target", "kind", "labels"),
    [
        ({"kind": "numbers", "columns": ["price", "also"]}, Numbers, lambda n: [n / 2, n * 3]),
        ({"kind": "labels", "column": "tags"}, Labels, lambda n: [float(n % 2 == 0), float(n % 3 == 0)]),
    ],
)
def test_numbers_and_labels_are_read_by_their_keys(target: Any, kind: type, labels: Any) -> None:
    other = {"price", "also", "tags"} - {*target.get("columns", ["tags"])}
    write(seen_by_network(CODE, *other, "kind", "part"))
    split = SHARES | {"groups": "box"}
    found, _ = own_rows.draw(params(target=target, split=split), 1)
    boxes = []
    for each in found.splits.values():
        assert isinstance(each.target, kind) and [*tensors(each)] == ["wide", "code"]
        rows = zip(tensors(each)["code"].tolist(), each.known_labels.tolist(), strict=True)
        assert all(found == pytest.approx(labels(number)) for number, found in rows)
        boxes.append({number // 4 for number in tensors(each)["code"].tolist()})
    assert sum(map(len, boxes)) == 5  # none is in two splits


@pytest.mark.usefixtures("once")
def test_rows_without_a_target_have_no_labels() -> None:
    write(body('yield {"x": [0.5, number], "wide": True}'))
    found, _ = own_rows.draw(params(), 1)
    train = found.splits["train"]
    assert train.labels is None
    assert {name: each.dtype for name, each in tensors(train).items()} == {
        "x": torch.float32,
        "wide": torch.bool,
    }


@pytest.mark.usefixtures("once")
def test_an_array_that_is_filled_again_is_a_row_of_its_own() -> None:
    write(body("if number == 0: x = np.zeros(2, np.float32)", "x[:] = number", 'yield {"x": x}'))
    found, _ = own_rows.draw(params(), 1)
    values = torch.cat([tensors(each)["x"][:, 0] for each in found.splits.values()])
    assert sorted(values.tolist()) == [*range(10)]


# --- it repeats itself, or is refused


@pytest.mark.slow
def test_generators_of_random_numbers_are_seeded_and_stand_afterwards_where_they_stood() -> None:
    write(body('yield {"x": random.random(), "y": np.random.rand(), "z": torch.rand(2)}'))
    write_params({"seed": 3, "data": section()})
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = random.random(), float(np.random.rand()), float(torch.rand(()))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    seed = generators.derive_seed(3, "prepare")
    found = generators.generate(params(), seed).inputs["x"]
    assert len({*found.tolist()}) == 10
    assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == expected
    others = [*generators.run_once(params(), seed + 1)]
    assert others[0]["x"] != found[0]


@pytest.mark.parametrize(
    ("lines", "row"),
    [
        (
            (
                "words = {'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'}",
                "yield {'x': [ord(each) for each in words]}",
            ),
            1,
        ),
        pytest.param(("yield {'x': os.getpid() if number > 5 else 0}",), 7, marks=pytest.mark.slow),
        pytest.param((SHORTER, "yield {'x': number}"), 10, marks=pytest.mark.slow),
    ],
)
def test_what_does_not_repeat_itself_is_refused(
    lines: tuple[str, ...], row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    write(body(*lines))
    write_params({"seed": 3, "data": section()})
    with pytest.raises(
        DecantError, match=f"networks/made.py: two runs of rows differ, first at row {row}; draw"
    ):
        generators.generate(params(), generators.derive_seed(3, "prepare"))


# --- trust


def test_only_code_that_git_tracks_is_run() -> None:
    Path(FILE).write_text("raise SystemExit('it was run')")
    with pytest.raises(DecantError, match=r"Git does not track networks/made.py, and no other code is run"):
        own_rows.draw(params(), 1)
    write("from helper import more\n" + CODE)
    Path("networks/helper.py").write_text("more = 1")
    with pytest.raises(DecantError, match=r"Git does not track networks/helper.py"):
        own_rows.draw(params(), 1)


def test_code_with_another_sum_than_params_say_is_refused() -> None:
    write(CODE)
    with pytest.raises(
        DecantError, match=r"data.code: networks/made.py has the sum [0-9a-f]{64}, expected 0{64}"
    ):
        own_rows.draw(params(code="0" * 64), 1)


# --- mistakes


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (body("yield {'x': 1 / (3 - number), 'kind': 'a'}"), "made.py, line 7: rows fails after 3 rows: Z"),
        (body("raise SystemExit(3)"), "rows fails after 0 rows: SystemExit: 3"),
        ("def rows():\n    return 5\n", "rows fails after 0 rows: TypeError: 'int' object is not iterable"),
        ("def rows():\n    yield from ()\n", "made.py: rows yields no row; give it some"),
        ("def other():\n    pass\n", "networks/made.py has no function rows"),
        ("def rows(:\n", "networks/made.py, line 1 cannot be read as Python"),
        (body("yield (number, 1)"), "row 1: rows yields tuple, expected a dict of named tensors"),
        (body("yield {'x': 1, 'knd': 'a'}"), "row 1 has no 'kind'; did you mean 'knd'"),
        (body("yield {'kind': 'a'}"), "row 1 has nothing that a network could see beside kind"),
        (body("yield {'x': 'word', 'kind': 'a'}"), "row 1: x is of <U4, expected numbers"),
        (body("yield {'x': [[1, 2], [3]], 'kind': 'a'}"), "row 1: x is no array of numbers"),
        (body("yield {'x': [0.0] * (1 + number // 4), 'kind': 'a'}"), "row 5 has {'x': .*, and the first"),
        (body("yield {'x': 1 if number else 1.0, 'kind': 'a'}"), "row 2 has {'x': .'int64', .*; give all"),
        (body("yield {'x': float('nan'), 'kind': 'a'}"), "row 1: x is NaN; leave such rows out; `missing"),
        (body("yield {'x': float('inf'), 'kind': 'a'}"), "row 1: x is infinite; leave such rows out"),
        (body("yield {'x': [], 'kind': 'a'}"), r"row 1: x is of shape \[0\], expected one number or more"),
        (body("yield {'x': number, 'kind': 'a'}"), "kind has 1 class in the training rows"),
        (body("yield {'x': number, 'kind': (None, 'b', 'a')[number % 3]}"), "row 1: kind is missing"),
        (body("yield {'x': number, 'kind': number if number else 'a'}"), "holds values of several kinds"),
        (body("yield {'x': np.uint16(number), 'kind': 'ab'[number % 2]}"), "x is of type uint16, expected"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("once")
def test_mistakes_in_a_generator_name_file_and_row(code: str, sentence: str) -> None:
    write(code)
    with pytest.raises(DecantError, match=sentence):
        own_rows.draw(params(target=KIND), 1)


@pytest.mark.usefixtures("once")
def test_missing_values_are_kept_where_that_is_said() -> None:
    write(body("yield {'x': float('nan') if number == 3 else number / 2}"))
    found, _ = own_rows.draw(params(missing="keep"), 1)
    assert sum(int(tensors(each)["x"].isnan().sum()) for each in found.splits.values()) == 1


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"file": "data/own/made.py"}, "data.file: must be a file of Python in networks/"),
        ({"file": "networks/../made.py"}, "data.file: must be a file of Python in networks/"),
        ({"function": "a b"}, "data.function: "),
        ({"split": SHARES | {"stratified": True}}, "split.stratified is of classes, and the target has none"),
        (
            {"target": KIND, "split": {"kind": "column", "column": "kind"}},
            "kind says which split a row is in",
        ),
        ({"split": {"kind": "folders"}}, "data.split: "),
    ],
)
def test_mistakes_in_params_are_told_before_anything_is_run(more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DecantError, match=sentence):
        params(**more)
