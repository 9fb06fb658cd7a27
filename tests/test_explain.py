"""Stages `explain` and `illustrate`: a chain of models, and whatever may be wrong with them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from decant.checkpoints.checkpoint import Checkpoint
from decant.errors import DecantError
from decant.examples import Examples, Rows
from decant.explanations import perturbations
from decant.explanations.features import features_of
from decant.targets import Tokens
from tasks.explain import deployed, kept, sample
from tasks.explain.__main__ import main as explain
from tasks.illustrate.__main__ import main as illustrate
from tasks.pipeline.metrics import EXPLANATIONS
from tests import homes
from tests.test_illustrate import put
from tests.test_stability import MODELS, PARAMS, SHAPE, network

ASKED = sample.EXAMPLES
KEYS = [metric.key for metric in EXPLANATIONS]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A folder with a chain of three models; what fills it with so many test pictures."""
    with homes.home(tmp_path, params=PARAMS):
        # The exporter takes seconds for each graph; `test_the_deployed_function_is_the_exported_one` has it.
        monkeypatch.setattr(
            "tasks.explain.__main__.function_of",
            lambda model, threads: deployed.DeployedFunction(model.module, "onnxruntime"),
        )

        monkeypatch.setattr(sample, "EXAMPLES", 16)
        monkeypatch.setattr(perturbations, "DRAWS", 30)
        monkeypatch.setattr(perturbations, "PER_FEATURE", 1)

        def filled(test: int, **models: Checkpoint) -> None:
            with homes.home(tmp_path, homes.noise(SHAPE, train=20, validation=20, test=test)):
                for seed, name in enumerate(("teacher", *MODELS)):
                    homes.put_model(name, models.get(name, network(seed)))

        yield filled


def written(name: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Return what the stage writes of a model: strict JSON, without NaN."""

    def refuse(word: str) -> float:
        raise AssertionError(word)

    files = [Path("explain", f"{name}{end}.json").read_text() for end in ("", ".details")]
    row, details = (json.loads(file, parse_constant=refuse) for file in files)
    return row, details


def test_a_chain_is_compared_with_its_teacher(make: Callable[..., None]) -> None:
    assert ASKED == 64
    make(40, int8=network(0))  # the teacher's own network, whatever its recipe says
    for name in ("teacher", *MODELS):
        explain(name)
    teacher, details = written("teacher")
    assert list(teacher) == KEYS
    assert teacher["explanations_kept"] == teacher["explanations_top"] == 1.0
    assert -1 <= teacher["explanations_floor"] < 1
    assert list(details["methods"]) == ["lime", "kernel_shap", "occlusion", "integrated_gradients"]
    assert (details["examples_explained"], details["features"], details["layout"]) == (16, 25, [5, 5])
    assert [len(each["attributions"]["lime"]) for each in details["examples"]] == [25] * 4
    assert [[*map(len, each["image"])] for each in details["examples"]] == [[6] * 6] * 4
    assert written("int8")[0] == teacher
    row, details = written("pruned")
    assert abs(row["explanations_kept"]) < 0.5  # another network
    assert row["explanations_floor"] == teacher["explanations_floor"]
    methods = details["methods"].values()
    above = details["above_floor"]
    assert above["low"] < above["value"] < above["high"]
    assert above["value"] == pytest.approx(row["explanations_kept"] - row["explanations_floor"], abs=1e-5)
    assert row["explanations_kept"] == pytest.approx(sum(each["kept"] for each in methods) / 4, rel=1e-5)
    assert "image" not in details["examples"][0]
    first = Path("explain/pruned.details.json").read_bytes()
    explain("pruned")
    assert Path("explain/pruned.details.json").read_bytes() == first
    for name in ("teacher", *MODELS):
        put(name)
    illustrate()
    picture = Path("report/explanations.png").read_bytes()
    lines = Path("report/explanations.csv").read_text().splitlines()
    assert lines[0] == "model,ranking,removed,left"
    assert len(lines) == 1 + 3 * 5 * 6  # models, rankings with the random one, shares
    illustrate()
    assert Path("report/explanations.png").read_bytes() == picture


def test_one_example_and_a_model_of_one_class_have_numbers(make: Callable[..., None]) -> None:
    constant = network(3)
    with torch.no_grad():
        for weight in constant.module.parameters():
            weight.zero_()
    make(1, pruned=constant)
    explain("teacher")
    explain("pruned")
    row, details = written("pruned")
    assert row["explanations_kept"] == 0.0
    assert row["explanations_deletion"] == row["explanations_insertion"] == 0.0
    assert details["examples_explained"] == 1


def test_what_is_wrong_is_told_in_a_sentence(make: Callable[..., None]) -> None:
    broken = network(1)
    with torch.no_grad():
        next(iter(broken.module.parameters())).fill_(3e38)
    make(5, pruned=broken, int8=network(2, classes=7))
    explain("teacher")
    with pytest.raises(
        DecantError, match="answers NaN or infinity to examples of which features are removed"
    ):
        explain("pruned")
    with pytest.raises(DecantError, match="answers 7 numbers for each example and its teacher 10"):
        explain("int8")
    kept.TEACHER.write_text("{}")
    with pytest.raises(
        DecantError, match=r"explanations/teacher\.json .* run `dvc repro -f explain-teacher`"
    ):
        explain("int8")
    kept.TEACHER.unlink()
    with pytest.raises(
        DecantError, match=r"No explanations/teacher\.json; run `dvc repro -f explain-teacher`"
    ):
        explain("int8")
    with pytest.raises(DecantError, match=r"No explain/int8\.details\.json; run `dvc repro explain@int8`"):
        illustrate()
    assert not Path("explain/int8.json").exists()


def test_the_teacher_s_explanations_are_those_of_these_examples(make: Callable[..., None]) -> None:
    make(5)
    explain("teacher")
    make(6)  # other test pictures
    with pytest.raises(DecantError, match=r"teacher\.json .*not the sum that it ends with"):
        explain("pruned")


def test_what_no_explanation_fits_says_so(
    make: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = Rows({"x": torch.zeros(3, 2)})
    test = Examples(rows, torch.zeros(3, 2).long(), (), Tokens(vocabulary=3))
    teacher = Checkpoint(None, test.shape, (), torch.nn.Linear(2, 4))
    found = sample.take(teacher, test, 1)
    assert found == "no explanation fits the target 'tokens', which has no one answer to an example"
    monkeypatch.setattr("decant.explanations.features.KINDS", ())
    assert features_of(rows, torch.tensor([0])) is None
    make(3)
    for name in ("teacher", *MODELS):
        explain(name)
    assert "teacher is not explained: no explanation fits inputs of this type" in capsys.readouterr().out
    row, details = written("pruned")
    assert (row, details["methods"]) == ({}, {})
    for name in ("teacher", *MODELS):
        put(name)
    illustrate()
    assert Path("report/explanations.csv").read_text() == "model,ranking,removed,left\n"


def test_the_deployed_function_is_the_exported_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = network(0)
    pictures = torch.rand(3, *SHAPE)
    found = deployed.function_of(model, 1)
    assert found.runtime == "onnxruntime"
    assert found.function(pictures)[0] == pytest.approx(model.module(pictures).detach(), abs=1e-5)

    def refuse(_: Checkpoint) -> None:
        raise DecantError("ONNX has no operator for it")

    monkeypatch.setattr(deployed, "deploy", refuse)
    instead = deployed.function_of(replace(model), 1)
    assert instead.runtime == "pytorch"
    assert torch.equal(instead.function(pictures), model.module(pictures))
    assert "as it has no ONNX file: ONNX has no operator for it" in capsys.readouterr().out
