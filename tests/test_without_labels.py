"""Every operation on a network whose outputs are no classes, on rows without labels."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decant.adoption.adopting import Source, adopt
from decant.calibration.range_search import choose
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.files import load, save
from decant.clip import clip
from decant.compression.finish import Result
from decant.costs.divergence import squared_error
from decant.costs.drift import drift_from
from decant.costs.likeness import cosines
from decant.distill import distill
from decant.errors import DecantError
from decant.examples import Examples, Rows, Splits
from decant.export import deploy as deploy_module
from decant.finetune import finetune
from decant.networks.execution import predict
from decant.networks.python import Python
from decant.networks.record import give_example_
from decant.prune import prune
from decant.prune.criteria import Fisher
from decant.quantize import quantize
from decant.training import fit as fit_module
from decant.training.fresh import train
from decant.training.recipe import Adamw, Training
from decant.training.resume import Scratch
from decant.training.run import Run

WORDS, LENGTH = 20, 5


class Encoder(nn.Module):
    """Tokens [N, L] and weights [N, L] to vectors [N, L, 3] and their weighted mean [N, 3]."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.inner = nn.Linear(width, 12)
        self.outer = nn.Linear(12, 3)

    def forward(self, tokens: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        each = self.outer(torch.relu(self.inner(self.words(tokens))))
        return each, (each * weights[:, :, None]).mean(1)


def encoder(width: int = 8) -> nn.Module:
    torch.manual_seed(width)
    return Encoder(width)


def rows(seed: int, count: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, WORDS, (count, LENGTH), generator=generator)
    weights = torch.rand(count, LENGTH, generator=generator)
    return Examples(Rows({"tokens": tokens, "weights": weights}), None, ())


TRAIN, VALIDATION = rows(0, 192), rows(1, 48)
SPLITS = Splits(TRAIN, VALIDATION)


@cache
def teacher() -> Checkpoint:
    return adopt(Source(Python.of(encoder)), TRAIN).model


def training(**changes: Any) -> dict[str, Any]:
    return {"epochs": 3, "batch_size": 32, "optimizer": {"kind": "adamw", "learning_rate": 0.01}} | changes


def error(model: Checkpoint) -> float:
    expected = predict(teacher().module, VALIDATION.images)
    return squared_error(predict(model.module, VALIDATION.images), expected).item()


def pruned() -> Result:
    recipe = {"criterion": {"kind": "magnitude"}, "budget": {"sparsity": 0.6}}
    return prune(teacher(), recipe, SPLITS)


def test_a_pruned_network_is_fine_tuned_on_its_teachers_outputs() -> None:
    before = pruned().model
    result = finetune(before, {"training": training(epochs=6)}, SPLITS, teacher=teacher())
    assert [list(row) for row in result.curve] == 6 * [
        ["epoch", "loss", "learning_rate", "validation_loss", "validation_cosine"]
    ]
    found, expected = (predict(each.module, VALIDATION.images) for each in (result.model, teacher()))
    assert found.shape == (48, LENGTH * 3 + 3)
    assert result.curve[-1]["validation_loss"] == pytest.approx(
        squared_error(found, expected).item(), rel=1e-4
    )
    assert result.curve[-1]["validation_cosine"] == pytest.approx(cosines(found, expected).mean().item())
    assert error(result.model) < 0.5 * error(before)
    for name, held in before.constraints.items():
        weight = result.model.module.get_parameter(name)
        assert held.mask is not None
        assert not bool(weight[~held.mask].any())


def test_the_curve_has_the_loss_of_each_batch_by_hand() -> None:
    """One epoch of one batch: the loss is that of the network as it was."""
    before = pruned().model
    result = finetune(before, {"training": training(epochs=1, batch_size=192)}, SPLITS, teacher=teacher())
    found, expected = (predict(each.module, TRAIN.images).double() for each in (before, teacher()))
    by_hand = sum(
        (f - e) ** 2 for f, e in zip(found.flatten().tolist(), expected.flatten().tolist(), strict=True)
    )
    mean = expected.mean().item()
    by_hand /= sum((e - mean) ** 2 for e in expected.flatten().tolist())
    assert result.curve[0]["loss"] == pytest.approx(by_hand, rel=1e-5)


def test_half_and_half_equals_whole_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, recipe = pruned().model, {"training": training(average=0.5, patience=2)}

    def tuned(folder: str) -> Result:
        run = Run("m", 3, lambda: Scratch(tmp_path / folder, "id"))
        return finetune(before, recipe, SPLITS, teacher=teacher(), run=run)

    whole, original, count = tuned("whole"), fit_module._epoch, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal count
        if (count := count + 1) > 1:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tuned("halves")
    halves = tuned("halves")
    assert halves.curve == whole.curve
    found, expected = (predict(each.model.module, VALIDATION.images) for each in (halves, whole))
    assert torch.equal(found, expected)


INTEGER = {"scheme": {"kind": "integer", "bits": 4}}
STE = {"kind": "ste", "training": training()}
OPERATIONS: dict[str, Callable[[], Result]] = {
    "int8": lambda: quantize(teacher(), {"scheme": {"kind": "integer", "bits": 8}}, SPLITS),
    "static": lambda: quantize(teacher(), INTEGER | {"activations": {"bits": 8}, "images": 64}, SPLITS),
    "best": lambda: quantize(
        teacher(),
        {"scheme": {"kind": "integer", "bits": 4, "range": {"kind": "best", "images": 32}}},
        SPLITS,
    ),
    "mixed": lambda: quantize(
        teacher(),
        INTEGER | {"mixed": {"budget": {"bit_operations": 0.15}, "bits": [2, 4, 8], "images": 48}},
        SPLITS,
    ),
    "gptq": lambda: quantize(teacher(), INTEGER | {"rounding": {"kind": "gptq"}, "images": 64}, SPLITS),
    "trained": lambda: quantize(teacher(), INTEGER | {"train": STE}, SPLITS),
    "trained on outputs": lambda: quantize(
        teacher(), INTEGER | {"train": STE | {"loss": {"kind": "outputs"}}}, SPLITS
    ),
    "wanda": lambda: prune(teacher(), {"criterion": {"kind": "wanda"}, "budget": {"sparsity": 0.4}}, SPLITS),
    "fisher": lambda: prune(
        teacher(), {"criterion": {"kind": "fisher"}, "budget": {"sparsity": 0.4}}, SPLITS
    ),
    "obs": lambda: prune(teacher(), {"criterion": {"kind": "obs"}, "budget": {"sparsity": 0.4}}, SPLITS),
    "drift": lambda: prune(teacher(), {"criterion": {"kind": "wanda"}, "budget": {"drift": 0.01}}, SPLITS),
    "adaptive": lambda: prune(
        teacher(),
        {
            "criterion": {"kind": "wanda"},
            "allocation": {"kind": "adaptive", "images": 48, "points": 4},
            "budget": {"sparsity": 0.4},
        },
        SPLITS,
    ),
    "gradual": lambda: prune(
        teacher(),
        {
            "criterion": {"kind": "magnitude"},
            "budget": {"sparsity": 0.5},
            "schedule": {"kind": "gradual", "training": training()},
        },
        SPLITS,
    ),
    "movement": lambda: prune(
        teacher(),
        {
            "criterion": {"kind": "movement"},
            "budget": {"sparsity": 0.3},
            "schedule": {"kind": "gradual", "training": training()},
        },
        SPLITS,
    ),
    "clip": lambda: clip(teacher(), {"cut": {"kind": "percentile", "keep": 0.95}}, SPLITS),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_need_neither_labels_nor_classes(name: str, tmp_path: Path) -> None:
    result = OPERATIONS[name]()
    assert result.model.classes == ()
    assert 0 < error(result.model) < 1
    save(result.model, tmp_path)
    again = load(tmp_path, encoder)
    found, expected = (predict(each.module, VALIDATION.images) for each in (again, result.model))
    assert torch.equal(found, expected)


def test_a_drift_budget_is_kept_to_and_used() -> None:
    model = OPERATIONS["drift"]().model
    assert 0.001 < drift_from(teacher(), TRAIN.images)(model) <= 0.01


def test_the_range_that_moves_the_outputs_least_is_taken() -> None:
    choice = choose(teacher(), ["inner.weight"], VALIDATION.images, half_rounded, bits=4, per_channel=False)[
        "inner.weight"
    ]
    costs = [cost for cost in choice.tried.values() if cost is not None]
    assert choice.tried[choice.kind] == min(costs)
    assert len(set(costs)) > 1


def half_rounded(name: str, span: Any) -> Checkpoint:
    """Return the teacher with one weight moved by as much as the range's kind has letters."""
    module = copy.deepcopy(teacher().module)
    with torch.no_grad():
        module.get_parameter(name).mul_(1 + len(span.kind) / 100)
    return replace(teacher(), module=module)


def test_ranges_that_make_outputs_nan_are_not_taken() -> None:
    def spoilt(name: str, span: Any) -> Checkpoint:
        model = half_rounded(name, span)
        if span.kind != "percentile":
            with torch.no_grad():
                model.module.get_parameter(name).fill_(math.nan)
        return model

    found = choose(teacher(), ["inner.weight"], VALIDATION.images, spoilt, bits=4, per_channel=False)
    assert found["inner.weight"].kind == "percentile"
    assert sum(cost is not None for cost in found["inner.weight"].tried.values()) == 1


def test_a_student_learns_the_outputs() -> None:
    recipe = {
        "student": Python.of(encoder, width=4),
        "loss": {"kind": "outputs"},
        "training": training(epochs=20),
    }
    result = distill(teacher(), recipe, SPLITS)
    assert result.model.module.get_parameter("inner.weight").shape == (12, 4)
    assert error(result.model) < 0.3
    assert result.curve[-1]["validation_cosine"] > result.curve[0]["validation_cosine"]


def test_a_student_with_other_outputs_is_refused() -> None:
    recipe = {"student": Python.of(other), "loss": {"kind": "outputs"}, "training": training()}
    with pytest.raises(DecantError, match="returns 5 numbers for a row, and the teacher 18; a network"):
        distill(teacher(), recipe, SPLITS)


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(LENGTH, 5)

    def forward(self, tokens: Tensor, weights: Tensor) -> Tensor:
        found: Tensor = self.layer(weights)
        return found


def other() -> nn.Module:
    torch.manual_seed(0)
    return Other()


@pytest.mark.parametrize("kind", ["softmax", "temperature"])
def test_losses_on_classes_are_refused(kind: str) -> None:
    told = rf"loss\.kind: {kind} compares probabilities of classes, .* take loss: {{kind: outputs}}"
    with pytest.raises(DecantError, match=told):
        finetune(pruned().model, {"training": training(), "loss": {"kind": kind}}, SPLITS)
    with pytest.raises(DecantError, match=told):
        quantize(teacher(), INTEGER | {"train": STE | {"loss": {"kind": kind}}}, SPLITS)


@pytest.mark.parametrize("kind", ["taylor", "snip"])
def test_criteria_that_need_labels_are_refused(kind: str) -> None:
    with pytest.raises(
        DecantError, match=rf"criterion {kind} scores weights by the gradient|snip and rewind go"
    ):
        prune(teacher(), {"criterion": {"kind": kind}, "budget": {"sparsity": 0.5}}, SPLITS)


def test_nothing_is_trained_from_fresh_weights_without_labels_or_a_teacher() -> None:
    with pytest.raises(DecantError, match="have no labels and there is no teacher whose outputs"):
        train(Python.of(encoder), Training(epochs=1, optimizer=Adamw()), SPLITS)


def test_labels_on_one_side_alone_are_refused() -> None:
    labelled = replace(VALIDATION, labels=torch.zeros(48, dtype=torch.int64), classes=("a",))
    with pytest.raises(DecantError, match="examples need labels both, or none"):
        finetune(pruned().model, {"training": training()}, Splits(TRAIN, labelled))


def test_fisher_by_signs_is_the_sum_over_outputs_on_the_average() -> None:
    """Of a linear network y = W x, E[(sum of s_i y_i)'s gradient squared] is x_j^2 for each w_ij."""
    module = nn.Linear(3, 2, bias=False)
    inputs = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    give_example_(module, (inputs[:1],))
    examples = Examples(Rows({"x": inputs}), None, ())
    scores = Fisher().scores(module, examples, seed=0)["weight"]
    variance = module(inputs).detach().var(correction=0)
    expected = module.weight.detach().square() * inputs.square().mean(0) / (2 * variance)
    assert torch.allclose(scores, expected, rtol=1e-4)


@pytest.mark.parametrize("outputs", [1, 4])
def test_exports_of_outputs_that_are_no_classes_are_compared_as_numbers(
    outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two outputs change places nothing is predicted otherwise, and a row that is far off is told."""
    expected = torch.randn(300, outputs, generator=torch.Generator().manual_seed(0))
    step = (expected.max() - expected.min()) / deploy_module.LOGIT_STEPS
    noise = torch.rand(expected.shape, generator=torch.Generator().manual_seed(1)) * 0.02 * step
    monkeypatch.setattr(deploy_module, "_truth", lambda checkpoint, images: expected.double())
    apart = deploy_module._rounding_apart
    assert apart(teacher(), VALIDATION.images, expected, expected + noise) == ""
    moved = expected.clone()
    moved[:9, 0] += 2 * step
    told = apart(teacher(), VALIDATION.images, expected, moved)
    assert told.startswith("outputs differ by up to")
    assert "predictions" not in told
    assert apart(teacher(), VALIDATION.images, expected, expected * math.nan) != ""
