"""The stage `stability`: what it writes of chains of models, of other targets, and of what is broken."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decant.checkpoints.checkpoint import Checkpoint
from decant.errors import DecantError
from decant.evidence.behaviour import divergences
from decant.evidence.corruptions import fitting
from decant.examples import Examples, Rows
from decant.inputs import TensorInput
from decant.networks.architectures import Mlp, build
from decant.networks.execution import predict
from decant.targets import CLASSES, Labels, Numbers, Target, Tokens
from tasks.evaluate.__main__ import main as evaluate
from tasks.pipeline import predictions, splits
from tasks.pipeline.metrics import STABILITY
from tasks.pipeline.models import load_model
from tasks.stability import corrupted, measures, report
from tasks.stability.__main__ import CORRUPTED
from tasks.stability.__main__ import main as stability
from tasks.stability.damage import Answers
from tasks.stability.norms import compared
from tasks.stability.sample import chosen
from tests import homes

SHAPE = (1, 6, 6)
MODELS = ("pruned", "int8")
PARAMS: dict[str, Any] = {
    "seed": 1,
    "threads": {"teacher": 1, "prune": 1, "quantize": 1, "evaluate": 1},
    "teacher": {"architecture": {"kind": "mlp", "hidden": [4]}, "training": {"epochs": 2}},
    "models": {
        "pruned": {
            "op": "prune",
            "from": "teacher",
            "criterion": {"kind": "magnitude"},
            "budget": {"sparsity": 0.5},
        },
        "int8": {"op": "quantize", "from": "pruned", "scheme": {"kind": "integer", "bits": 8}},
    },
}


def network(seed: int, classes: int = 10) -> Checkpoint:
    recipe = Mlp(hidden=(4,))
    names = tuple("0123456789"[:classes])
    return Checkpoint(recipe, SHAPE, names, build(recipe, SHAPE, classes, seed).eval())


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[int], None]]:
    """A folder with a chain of three models; what fills it with so many test pictures, and evaluates all."""
    with homes.home(tmp_path, params=PARAMS):

        def filled(test: int) -> None:
            with homes.home(tmp_path, homes.noise(SHAPE, train=20, validation=20, test=test)):
                for seed, name in enumerate(("teacher", *MODELS)):
                    homes.put_model(name, network(seed))
            for name in ("teacher", *MODELS):
                evaluate(name)

        yield filled


def written(name: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Return what the stage writes of a model: strict JSON, without NaN."""

    def refuse(word: str) -> float:
        raise AssertionError(word)

    files = [Path("stability", f"{name}{end}.json").read_text() for end in ("", ".details")]
    row, details = (json.loads(file, parse_constant=refuse) for file in files)
    return row, details


def test_a_chain_is_measured_beside_its_teacher(make: Callable[[int], None]) -> None:
    make(600)
    for name in ("teacher", *MODELS):
        stability(name)
    keys = [metric.key for metric in STABILITY["classes"]]
    assert len(keys) <= 12
    teacher, details = written("teacher")
    assert list(teacher) == keys
    assert {key: teacher[key] for key in keys[1:4]} == dict.fromkeys(keys[1:4], 1.0)
    assert teacher["negative_flips"] == teacher["logit_drift"] == teacher["classes_worse"] == 0
    assert teacher["mcnemar_p"] == teacher["lipschitz_ratio"] == 1.0
    assert details["flips"] == details["examples"] == []
    row, details = written("pruned")
    assert list(row) == keys
    assert details["sample"]["corrupted"] == 250
    assert {len(each) for each in details["corruptions"].values()} == {5}
    assert [each["strength"] for each in details["corruptions"]["blur"]] == [1, 2, 3, 4, 5]
    cells = [each for strengths in details["corruptions"].values() for each in strengths]
    assert row["corruption_accuracy"] == pytest.approx(
        sum(c["accuracy"] for c in cells) / len(cells), rel=1e-5
    )
    assert details["mean_corruption_error"]["low"] <= row["mean_corruption_error"]
    assert row["mean_corruption_error"] <= details["mean_corruption_error"]["high"]
    assert sum(each["count"] for each in details["classes"]) == 600
    first = Path("stability/pruned.details.json").read_bytes()
    stability("pruned")
    assert Path("stability/pruned.details.json").read_bytes() == first


def test_the_figures_are_those_of_the_answers(make: Callable[[int], None]) -> None:
    make(300)
    for name in ("teacher", "pruned"):
        stability(name)
    row, details = written("pruned")
    test = splits.read(splits.TEST)
    ours, theirs = (predict(load_model(name).module, test.images) for name in ("pruned", "teacher"))
    labels = test.known_labels
    right, expected = ours.argmax(1) == labels, theirs.argmax(1) == labels
    assert row["negative_flips"] == pytest.approx((expected & ~right).double().mean().item())
    assert row["logit_drift"] == pytest.approx(divergences(ours, theirs).mean().item(), rel=1e-5)
    assert details["flips_of_all"] == int((ours.argmax(1) != theirs.argmax(1)).sum())
    assert sum(each["count"] for each in details["flips"]) == details["flips_of_all"]
    worst = details["examples"][0]
    assert worst["index"] == int(divergences(ours, theirs).argmax())
    assert worst["model"] == test.classes[int(ours[worst["index"]].argmax())]
    difference = details["difference"]
    assert difference["model_alone_right"] - difference["teacher_alone_right"] == int(
        right.sum() - expected.sum()
    )
    blur = fitting(test.images[:1]).corruptions[2]
    places = chosen(300, 2, 8)
    moved = blur.apply(test.images[places], places, blur.strengths[3])
    said = predict(load_model("pruned").module, moved).argmax(1)
    shown = details["corruptions"]["blur"][3]
    assert shown["accuracy"] == pytest.approx((said == labels[places]).double().mean().item())
    taught = predict(load_model("teacher").module, moved).argmax(1)
    assert shown["agreement"] == pytest.approx((said == taught).double().mean().item())


def test_examples_of_each_corruption_are_others_spread_over_the_split() -> None:
    samples = [chosen(10_000, part, 8) for part in range(8)]
    assert len(torch.cat(samples).unique()) == 2000
    for sample in samples:
        assert bool((sample.diff() == 40).all())
    assert chosen(250, 3, 8).tolist() == list(range(250))
    for total in (251, 999, 12_345):
        assert len(chosen(total, 7, 8).unique()) == 250
        assert int(chosen(total, 7, 8).max()) < total


def test_one_test_example_is_enough(make: Callable[[int], None]) -> None:
    make(1)
    for name in ("teacher", "int8"):
        stability(name)
    row, details = written("int8")
    assert row["mcnemar_p"] == row["smallest_difference"] == 1.0
    assert "no difference from the teacher beyond chance" in details["difference"]["verdict"]
    assert len(details["classes"]) == 1


def test_a_model_that_says_one_class_only(make: Callable[[int], None]) -> None:
    make(40)
    model = network(1)
    for parameter in model.module.parameters():
        parameter.data.zero_()
    [*model.module.parameters()][-1].data[3] = 5.0
    homes.put_model("pruned", model)
    evaluate("pruned")
    stability("teacher")
    stability("pruned")
    row, details = written("pruned")
    assert {each["to"] for each in details["flips"]} == {"3"}
    assert row["corruption_accuracy"] == pytest.approx(0.1, abs=0.001)
    assert row["l2_ratio"] == row["lipschitz_ratio"] == 0.0
    assert compared(network(0), model)[0] == {}  # nothing is a multiple of nothing


def test_what_the_stages_before_did_not_write_is_named(make: Callable[[int], None]) -> None:
    make(20)
    with pytest.raises(DecantError, match=r"stability/teacher\.npy.*run `dvc repro -f stability-teacher`"):
        stability("pruned")
    stability("teacher")
    CORRUPTED.write_bytes(CORRUPTED.read_bytes()[:-1] + b"x")
    with pytest.raises(DecantError, match=r"its sum is of other outputs.*stability-teacher"):
        stability("pruned")
    stability("teacher")
    predictions.path_of("pruned").unlink()
    with pytest.raises(DecantError, match=r"No predictions/pruned\.npy; run `dvc repro -f evaluate@pruned`"):
        stability("pruned")


# --- other inputs and targets, and what is broken: no stage, the report alone


class Answering(nn.Module):
    """A linear network of three numbers, with one answer for each output."""

    def __init__(self, outputs: int, scale: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(3, outputs)
        self.layer.weight.data = scale * torch.arange(3.0 * outputs).reshape(outputs, 3).sin()
        self.layer.bias.data.zero_()

    def forward(self, numbers: Tensor) -> Tensor:
        return self.layer(numbers)


def answering(outputs: int, scale: float, classes: tuple[str, ...] = ()) -> Checkpoint:
    takes = {"numbers": TensorInput.model_validate({"shape": (3,)})}
    return Checkpoint(None, takes, classes, Answering(outputs, scale).eval())


def reported(
    target: Target,
    labels: Callable[[Tensor], Tensor] | None,
    change: Callable[[Tensor], Tensor] = lambda outputs: outputs,
    names: tuple[str, ...] = (),
    rows: int = 300,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return what is reported of a model of half its teacher's weights, whose answers are changed."""
    numbers = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))
    teacher, model = answering(2, 1.0, names), answering(2, 0.5, names)
    truth = predict(teacher.module, Rows({"numbers": numbers}))
    test = Examples(Rows({"numbers": numbers}), labels(truth) if labels else None, names, target)
    fit = corrupted.fitting_of(test)
    every = corrupted.cells(fit, rows)

    def answers(of: Checkpoint) -> Answers:
        return Answers(predict(of.module, test.images), corrupted.answers(of.module, test.images, every))

    ours = answers(model)
    ours = replace(ours, clean=change(ours.clean), corrupted=change(ours.corrupted))
    return report.report("half", (model, teacher), (ours, answers(teacher)), test, fit, every)


NUMBERS = Numbers(names=("a", "b"), scale=(1.0, 1.0))
TARGETS: dict[str, tuple[Target, Callable[[Tensor], Tensor] | None]] = {
    "numbers": (NUMBERS, lambda truth: truth + 0.1),
    "labels": (Labels(names=("a", "b")), lambda truth: (truth > 0.2).float()),
    "same": (CLASSES, None),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_targets_that_are_no_classes_are_measured_by_their_own(kind: str) -> None:
    row, details = reported(*TARGETS[kind])
    assert list(row) == [metric.key for metric in STABILITY[kind]]
    assert details["target"] == kind
    assert [*details["corruptions"]] == ["noise", "missing-values"]
    assert "flips, accuracy per class" in details["left_out"][0]
    assert row["l2_ratio"] == row["lipschitz_ratio"] == 0.5
    if kind == "same":
        assert row["corruption_cosine"] == pytest.approx(1.0)
    if kind == "labels":  # half of a logit has its sign
        assert row["corruption_agreement"] == row["mean_corruption_error"] == 1.0
    if kind == "numbers":
        assert row["mean_corruption_error"] != 1.0
        assert details["mean_corruption_error"]["low"] < row["mean_corruption_error"]


def test_the_texts_of_next_tokens_are_not_corrupted() -> None:
    ids = {"input_ids": torch.ones(4, 3).long(), "attention_mask": torch.ones(4, 3).long()}
    test = Examples(Rows(ids), torch.zeros(4, 3).long(), (), Tokens(vocabulary=5))
    fit = corrupted.fitting_of(test)
    assert corrupted.cells(fit, 4) == []
    same = Answers(torch.zeros(4, 6), torch.zeros(0, 6))
    model = answering(2, 1.0)
    row, details = report.report("words", (model, model), (same, same), test, fit, [])
    assert row == {"l2_ratio": 1.0, "lipschitz_ratio": 1.0}
    assert [line.partition(":")[0] for line in details["left_out"]][1:] == ["tokens"]


def test_answers_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(DecantError, match="answers NaN or infinity on the 300 test rows; make it anew"):
        reported(NUMBERS, TARGETS["numbers"][1], lambda outputs: outputs / 0)
    with pytest.raises(DecantError, match=r"answers 1 numbers for each row, the teacher 2: they tell other"):
        reported(NUMBERS, TARGETS["numbers"][1], lambda outputs: outputs[:, :1])


def unknown(outputs: Tensor) -> Tensor:
    """Return outputs of which those to large inputs, as of severe noise, are NaN."""
    return torch.where(outputs.abs().amax(1, keepdim=True) > 1.05 * LARGEST, float("nan"), outputs)


LARGEST = (
    predict(
        Answering(2, 0.5), Rows({"numbers": torch.randn(300, 3, generator=torch.Generator().manual_seed(0))})
    )
    .abs()
    .max()
)


def test_a_corruption_that_a_model_has_no_answer_to_is_told() -> None:
    _, details = reported(NUMBERS, TARGETS["numbers"][1], unknown)
    assert [*details["corruptions"]] == ["missing-values"]
    assert details["left_out"][-1].startswith("noise: the model or its teacher answers NaN or infinity")
    truth = (CLASSES, lambda truth: truth.argmax(1))
    row, whole = (reported(*truth, change, ("a", "b"))[0] for change in (unknown, lambda outputs: outputs))
    assert row["corruption_accuracy"] < whole["corruption_accuracy"]  # no answer is a wrong one
    assert row["mean_corruption_error"] > whole["mean_corruption_error"] == 1.0  # half of a logit is as right


def test_numbers_are_written_with_six_digits() -> None:
    assert measures.rounded({"a": [1 / 3, {"b": -0.0}], "c": 7, "d": None}) == {
        "a": [0.333333, {"b": 0.0}],
        "c": 7,
        "d": None,
    }
