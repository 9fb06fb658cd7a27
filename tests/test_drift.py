"""Drift in use: shifts by hand and by naive loops, features, ranges, and the verdict on disturbed inputs."""

import json
import logging
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from decant.checkpoints.activations import DynamicGrid, Grid, InputGrid
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import Range
from decant.errors import DecantError
from decant.examples import Batch, Rows
from decant.inputs import TensorInput
from decant.networks.architectures import Mlp, build
from flows import drift as flow
from tasks.drift import cuts, judge, page
from tasks.drift.__main__ import main
from tasks.drift.features import features
from tasks.drift.shifts import Shift, adjusted, chi_square, jensen_shannon, of_codes, of_numbers, psi, shifts
from tests.nets import striped

TESTED = striped(0, 2000).images


def whole() -> Checkpoint:
    """Return a network of drawn weights for pictures [1, 8, 8] and three classes."""
    recipe, shape = Mlp(hidden=(6,)), (1, 8, 8)
    return Checkpoint(recipe, shape, tuple("abc"), build(recipe, shape, 3, seed=0).eval())


def test_the_distance_of_distribution_functions_is_the_naive_one() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=40).round(1), generator.normal(0.5, size=30).round(1)
    naive = max(abs((one <= x).mean() - (other <= x).mean()) for x in np.concatenate([one, other]))
    assert of_numbers("x", one, other).size == pytest.approx(naive, abs=1e-15)


def test_the_stability_index_by_hand() -> None:
    """p = (1.5, 2.5) / 4, q = (2.5, 1.5) / 4: (q - p) ln(q / p) is 0.25 ln(5 / 3), twice."""
    assert psi(np.array([1, 2]), np.array([2, 1])) == pytest.approx(0.5 * math.log(5 / 3))


def test_the_distance_of_codes_by_hand() -> None:
    assert jensen_shannon(np.array([3, 0]), np.array([0, 5])) == pytest.approx(1.0)
    assert jensen_shannon(np.array([3, 6]), np.array([1, 2])) == pytest.approx(0.0, abs=1e-8)
    # (1, 0) and (1/2, 1/2): the middle is (3/4, 1/4); (log2(4/3) + (log2(2/3) + log2(2)) / 2) / 2
    halves = math.log2(4 / 3), (math.log2(2 / 3) + math.log2(2)) / 2
    assert jensen_shannon(np.array([4, 0]), np.array([2, 2])) == pytest.approx(math.sqrt(sum(halves) / 2))


def test_the_chi_square_test_by_hand() -> None:
    """Of (30, 10) and (20, 20): 80 * (30 * 20 - 10 * 20)^2 / (40 * 40 * 50 * 30) = 16 / 3."""
    expected = math.erfc(math.sqrt(16 / 3 / 2))  # one degree of freedom
    assert chi_square(np.array([30, 10]), np.array([20, 20])) == pytest.approx(expected)


def test_rare_codes_are_counted_together() -> None:
    reference, today = np.array([500, *[1] * 50]), np.array([500, *[0] * 50])
    assert chi_square(reference, today) == pytest.approx(chi_square(np.array([500, 50]), np.array([500, 0])))
    assert chi_square(np.array([4]), np.array([9])) == 1.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_rates_of_false_discoveries_are_those_of_the_step_up_procedure(found: list[float]) -> None:
    """Benjamini and Hochberg reject the k smallest, k the largest with p_(k) <= alpha k / m."""
    rates = {each.feature: each.p for each in adjusted([of_p(n, p) for n, p in enumerate(found)])}
    for alpha in (0.01, 0.05, 0.5):
        ordered, count = sorted(found), len(found)
        last = max((k for k in range(1, count + 1) if ordered[k - 1] <= alpha * k / count), default=0)
        limit = ordered[last - 1] if last else -1.0
        for number, p in enumerate(found):
            rate = rates[str(number)]
            assert (rate <= alpha) == (p <= limit) or math.isclose(rate, alpha)


def of_p(number: int, p: float) -> Shift:
    return Shift(str(number), "ks", 0.0, 0.0, p)


def test_numbers_that_are_missing_are_told_apart_from_those_that_move() -> None:
    reference, today = torch.zeros(100, 2), torch.zeros(100, 2)
    reference[:, 0] = today[:, 0] = torch.arange(100.0)
    today[:50, 1] = math.nan
    found = {each.feature: each for each in looked(Rows({"x": reference}), Rows({"x": today}))}
    assert found["x[1] is missing"].size > 0.5
    assert found["x[1] is missing"].p < 1e-9
    assert found["x[0]"].size == found["x[1]"].size == 0


def looked(reference: Batch, today: Batch) -> list[Shift]:
    return shifts(features(reference, reference), features(today, reference))


def test_a_feature_of_one_side_alone_is_zero_on_every_row_of_the_other() -> None:
    reference = {"x": np.arange(100.0)}
    today = {"x": np.full(40, np.nan), "x is missing": np.ones(40, np.int64)}
    for one, other, counts in (
        (reference, today, ([100, 0], [0, 40])),
        (today, reference, ([0, 40], [100, 0])),
    ):
        found = {each.feature: each for each in shifts(one, other)}
        assert found["x is missing"].size == pytest.approx(1.0)
        assert found["x is missing"].psi == pytest.approx(psi(*map(np.array, counts)))
        assert (found["x"].size, found["x"].psi, found["x"].p) == (0.0, 0.0, 1.0)


def test_features_of_a_picture_are_means_and_deviations_of_its_blocks() -> None:
    picture = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    picture[0, 0, 2, 4:6] = torch.tensor([255, 51])
    found = features(picture, picture)
    assert len(found) == 32
    assert found["mean of block 1,2"] == pytest.approx(1.2 / 4)
    assert found["deviation of block 1,2"] == pytest.approx(np.std([1, 0.2, 0, 0]))
    assert found["mean of block 0,0"] == 0
    assert len(features(torch.zeros(2, 3, 1, 1, dtype=torch.uint8), torch.zeros(2, 3, 1, 1))) == 6


def test_features_of_codes_are_lengths_and_counts_of_what_is_frequent() -> None:
    rows = torch.tensor([[5, 5, 7, 0], [5, 0, 0, 0]])
    found = features(Rows({"words": rows}), Rows({"words": rows}))
    assert {name: list(column) for name, column in found.items()} == {
        "length of words": [3, 1],
        "count of 5 in words": [2, 1],
        "count of 7 in words": [1, 0],
    }


def test_long_rows_are_looked_at_in_parts() -> None:
    rows = torch.arange(256.0).repeat(2, 1)
    found = features(Rows({"x": rows}), Rows({"x": rows}))
    assert len(found) == 64
    assert list(found["mean of part 1 of x"]) == [5.5, 5.5]


def test_what_ranges_cut_is_counted_as_a_loop_counts_it() -> None:
    parent = whole()
    first, last = (
        name for name, layer in parent.module.named_modules() if isinstance(layer, torch.nn.Linear)
    )
    grids: dict[str, Grid] = {first: InputGrid(2, 0.2, 0), last: DynamicGrid(8)}
    model = parent.narrowed({}, grids, {last: Range(0.0, 0.25)})
    pictures = striped(1, 40).images
    assert isinstance(pictures, torch.Tensor)
    inputs = (pictures.double() / 255).flatten()
    rounded = model.module.get_submodule(first)((pictures / 255).flatten(1)).relu()
    assert cuts.shares_cut(model, pictures) == {
        first: sum(x > 0.7 for x in inputs.tolist()) / len(inputs),
        last: sum(x > 0.25 for x in rounded.flatten().tolist()) / rounded.numel(),
    }


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, Checkpoint]:
    """Return the models that params.yaml would name."""
    parent = whole()
    first = next(name for name, layer in parent.module.named_modules() if isinstance(layer, torch.nn.Linear))
    found = {"teacher": parent, "small": parent.narrowed({}, {first: InputGrid(8, 1 / 255, 0)})}
    monkeypatch.setattr(judge, "load_models", lambda *names: {name: found[name] for name in names})
    monkeypatch.setattr(judge, "read_section", lambda *_: 1)
    monkeypatch.setattr(judge, "make_deterministic", lambda _: None)
    return found


def written(path: Path, pictures: NDArray[np.uint8]) -> Path:
    np.savez(path, image=pictures)
    return path


def pictures(rows: slice) -> NDArray[np.uint8]:
    """Return some of the tested pictures, not as bright as they could be."""
    assert isinstance(TESTED, torch.Tensor)
    return (TESTED[rows].numpy() * 0.7).astype(np.uint8)


def test_nothing_is_told_of_twenty_undisturbed_draws(tmp_path: Path, models: dict[str, Checkpoint]) -> None:
    reference = written(tmp_path / "reference.npz", pictures(slice(0, 1000)))
    rest, generator = pictures(slice(1000, 2000)), np.random.default_rng(0)
    for draw in range(20):
        today = written(tmp_path / "today.npz", generator.choice(rest, 500, replace=False))
        assert not judge.judge(reference, today, "small").moved, draw


def test_brighter_pictures_are_told(
    tmp_path: Path, models: dict[str, Checkpoint], capsys: pytest.CaptureFixture[str]
) -> None:
    reference = written(tmp_path / "reference.npz", pictures(slice(0, 1000)))
    brighter = np.clip(pictures(slice(1000, 1500)) * 1.3, 0, 255).astype(np.uint8)
    words = [str(reference), str(written(tmp_path / "today.npz", brighter)), "--model", "small"]
    assert main([*words, "--json", str(tmp_path / "drift.json")]) == 1
    told, content = capsys.readouterr().out, json.loads((tmp_path / "drift.json").read_text())
    assert told.splitlines()[0] == "small: 500 rows today, 1,000 in the reference"
    assert told.splitlines()[-1] == "moved"
    moved = [each["feature"] for each in content["shifts"] if each["moved"]]
    assert any(name.startswith("mean of block") for name in moved)
    assert content["rows"] == {"reference": 1000, "today": 500}
    assert main([words[0], words[0], "--model", "teacher"]) == 0


def test_inputs_beyond_the_calibrated_range_are_told(tmp_path: Path, models: dict[str, Checkpoint]) -> None:
    first = next(iter(models["small"].grids))
    models["small"] = models["teacher"].narrowed({}, {first: InputGrid(8, 0.7 / 255, 0)})
    reference = written(tmp_path / "reference.npz", pictures(slice(0, 500)))
    brighter = np.clip(pictures(slice(500, 1000)) * 1.3, 0, 255).astype(np.uint8)
    found = judge.judge(reference, written(tmp_path / "today.npz", brighter), "small")
    assert found.cut[first][0] == 0
    assert found.cut_more == [first]
    assert f"{100 * found.cut[first][1]:.2f} %  {first}" in "\n".join(page.lines(found))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"image": np.zeros((50, 1, 8, 8), np.float32)}, "image is float32 [50, 1, 8, 8], expected uint8"),
        (
            {"image": np.zeros((50, 3, 8, 8), np.uint8)},
            "has pictures of 3 x 8 x 8, and the model takes pictures of 1 x 8 x 8",
        ),
        ({"image": np.zeros((29, 1, 8, 8), np.uint8)}, "has 29 rows, of which nothing can be said"),
        ({"picture": np.zeros((50, 1, 8, 8), np.uint8)}, "has no image; it has picture"),
    ],
)
def test_files_that_cannot_be_judged_are_told(
    tmp_path: Path,
    models: dict[str, Checkpoint],
    capsys: pytest.CaptureFixture[str],
    content: dict[str, Any],
    told: str,
) -> None:
    np.savez(tmp_path / "today.npz", **content)
    reference = written(tmp_path / "reference.npz", pictures(slice(0, 50)))
    assert main([str(reference), str(tmp_path / "today.npz"), "--model", "small"]) == 2
    assert told in capsys.readouterr().err
    assert main([str(reference), str(tmp_path / "none.npz"), "--model", "small"]) == 2
    assert "No " in capsys.readouterr().err
    assert main([str(reference), str(reference), "--model", "small", "--rows", "0"]) == 2
    assert "0 rows of each file, of which nothing can be said" in capsys.readouterr().err


def test_outputs_that_are_no_numbers_are_told(tmp_path: Path, models: dict[str, Checkpoint]) -> None:
    with torch.no_grad():
        next(models["small"].module.parameters())[:] = math.nan
    reference = written(tmp_path / "reference.npz", pictures(slice(0, 50)))
    with pytest.raises(DecantError, match="small answers NaN or infinity to row 0"):
        judge.judge(reference, reference, "small")


def test_texts_and_codes_need_not_be_those_of_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: dict[str, Checkpoint]
) -> None:
    class Reader(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(9, 2)

        def forward(self, words: Tensor) -> Tensor:
            return self.table(words).mean(1)

    takes = TensorInput(kind="text", shape=("length",), dtype="int64", below=9, example=(4,))
    models |= {name: Checkpoint(None, {"words": takes}, (), Reader().eval()) for name in ("teacher", "small")}
    draw = np.random.Generator(np.random.PCG64(0))
    files = {"reference": (4, 9), "today": (6, 5), "unknown": (6, 12), "short": (4, 9)}
    for name, (length, codes) in files.items():
        words = draw.integers(0, codes, (90, length))
        np.savez(tmp_path / f"{name}.npz", words=words.astype(np.int32) if name == "short" else words)
    paths = {name: tmp_path / f"{name}.npz" for name in files}
    verdict = judge.judge(paths["reference"], paths["today"], "small")
    assert "length of words" in {each.feature for each in verdict.shifted}
    with pytest.raises(DecantError, match=r"fails on such inputs, as it does where a code .*out of range"):
        judge.judge(paths["reference"], paths["unknown"], "small")
    with pytest.raises(
        DecantError, match=r"has words \[4\] of int32, and the model takes \[length\] of int64$"
    ):
        judge.judge(paths["reference"], paths["short"], "small")


def test_one_number_is_held_to_the_teacher_s_by_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: dict[str, Checkpoint]
) -> None:
    def of(slope: float, outputs: int = 1) -> Checkpoint:
        layer = torch.nn.Linear(1, outputs, bias=False)
        torch.nn.init.constant_(layer.weight, slope)
        return Checkpoint(None, {"x": TensorInput.model_validate({"shape": (1,)})}, (), layer)

    models |= {"teacher": of(1.0), "small": of(1.5), "wide": of(1.0, outputs=2)}
    values = torch.linspace(1, 3, 101)[:, None]
    for name, factor in (("reference", 1), ("today", 2)):
        np.savez(tmp_path / f"{name}.npz", x=factor * values.numpy())
    paths = tmp_path / "reference.npz", tmp_path / "today.npz"
    verdict = judge.judge(*paths, "small")
    assert (verdict.agreement, verdict.difference) == (None, (pytest.approx(1.0), pytest.approx(2.0)))
    assert "difference from the teacher" in {each.feature for each in verdict.shifted}
    assert "  difference from the teacher 1 -> 2" in page.lines(verdict)
    assert judge.judge(*paths, "teacher").content()["difference"] is None
    with pytest.raises(DecantError, match="wide answers 2 numbers for each row and its teacher 1"):
        judge.judge(*paths, "wide")


def test_a_code_that_is_new_is_told() -> None:
    found = of_codes("x", np.zeros(200, np.int64), np.repeat([0, 9], 100))
    assert found.size > 0.4
    assert found.p < 1e-9


@pytest.mark.parametrize(
    ("code", "told"),
    [(0, None), (1, "What small gets has moved; see the artifact `drift`"), (2, "No today.npz here")],
)
def test_the_flow_fails_where_something_has_moved_or_nothing_can_be_said(
    monkeypatch: pytest.MonkeyPatch, code: int, told: str | None
) -> None:
    asked: list[list[str]] = []
    artifacts: list[str] = []

    def run(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(words)
        return subprocess.CompletedProcess(words, code, "figures\n", "error: No today.npz here\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(flow, "get_run_logger", lambda: logging.getLogger())
    monkeypatch.setattr(flow, "create_markdown_artifact", lambda **given: artifacts.append(given["markdown"]))
    if told is None:
        assert flow.drift.fn(Path("tested.npz"), Path("today.npz"), "small").is_completed()
    else:
        with pytest.raises(DecantError, match=told):
            flow.drift.fn(Path("tested.npz"), Path("today.npz"), "small")
    assert asked[0][1:6] == ["-m", "tasks.drift", "tested.npz", "today.npz", "--model"]
    assert artifacts == (["```\nfigures\n```\n"] if code < 2 else [])
