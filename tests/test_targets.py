"""Targets: losses by hand, the curve's numbers, and what a fresh network knows of its training examples."""

import math

import pytest
import torch
from torch import Tensor, nn

from decant.errors import DecantError
from decant.examples import Examples, Rows
from decant.networks.record import give_example_
from decant.networks.statistics import deviations, fit_statistics_, means
from decant.prune.criteria import Fisher, Taylor
from decant.targets import CLASSES, Classes, Labels, Numbers, SmoothL1, Squared, Target
from decant.training.fit import fit_
from decant.training.goals import goal_of
from decant.training.losses import Outputs, loss_of
from decant.training.recipe import Adamw, Training
from decant.training.soft import Answers

GENERATOR = torch.Generator().manual_seed(0)
OUTPUTS = torch.randn(7, 3, generator=GENERATOR) * 3
TRUTH = torch.randn(7, 3, generator=GENERATOR)
MARKS = (TRUTH > 0).float()
NUMBERS = Numbers(names=("a", "b", "c"), scale=(1.0, 2.0, 0.5))
NAN = float("nan")


def by_hand(target: Target) -> list[float]:
    """Return the loss of each row, in a loop of Python's."""
    rows = []
    for outputs, truth, marks in zip(OUTPUTS.tolist(), TRUTH.tolist(), MARKS.tolist(), strict=True):
        found = []
        for place in range(3):
            if isinstance(target, Labels):
                share = 1 / (1 + math.exp(-outputs[place]))
                found.append(-math.log(share if marks[place] else 1 - share))
                continue
            assert isinstance(target, Numbers)
            error = abs(outputs[place] - truth[place]) / target.scale[place]
            if isinstance(target.penalty, Squared):
                found.append(error**2)
            else:
                beta = target.penalty.beta
                found.append(error**2 / (2 * beta) if error < beta else error - beta / 2)
        rows.append(sum(found) / 3)
    return rows


@pytest.mark.parametrize(
    "target",
    [NUMBERS, NUMBERS.model_copy(update={"penalty": SmoothL1(beta=0.7)}), Labels(names=("a", "b", "c"))],
    ids=["mse", "smooth-l1", "labels"],
)
def test_losses_by_hand(target: Target) -> None:
    labels = MARKS if target.kind == "labels" else TRUTH
    rows = by_hand(target)
    assert target.loss(OUTPUTS, labels).item() == pytest.approx(sum(rows) / 7, rel=1e-5)
    assert target.loss(OUTPUTS, labels, reduction="sum").item() == pytest.approx(sum(rows), rel=1e-5)
    assert target.width == 3


def test_smooth_l1_is_torchs() -> None:
    target = Numbers(names=("a", "b", "c"), scale=(1.0, 1.0, 1.0), penalty=SmoothL1(beta=0.3))
    expected = nn.functional.smooth_l1_loss(OUTPUTS, TRUTH, beta=0.3)
    assert torch.allclose(target.loss(OUTPUTS, TRUTH), expected, rtol=1e-6)


def test_smoothing_pulls_marks_to_a_half_and_leaves_numbers_alone() -> None:
    labels = Labels(names=("a", "b", "c"))
    expected = nn.functional.binary_cross_entropy_with_logits(OUTPUTS, MARKS * 0.8 + 0.1)
    assert torch.allclose(labels.loss(OUTPUTS, MARKS, smoothing=0.2), expected)
    assert torch.equal(NUMBERS.loss(OUTPUTS, TRUTH, smoothing=0.2), NUMBERS.loss(OUTPUTS, TRUTH))


def test_the_loss_of_classes_is_to_the_bit_what_it_was() -> None:
    classes = TRUTH.argmax(1)
    for smoothing in (0.0, 0.1):
        expected = nn.functional.cross_entropy(OUTPUTS, classes, label_smoothing=smoothing)
        assert torch.equal(CLASSES.loss(OUTPUTS, classes, smoothing=smoothing), expected)
        training = Training(epochs=1, label_smoothing=smoothing)
        assert torch.equal(training.hard_loss()((), OUTPUTS, classes), expected)


def test_what_curves_watch() -> None:
    assert NUMBERS.watch(OUTPUTS, TRUTH) == pytest.approx((OUTPUTS - TRUTH).abs().mean().item())
    said, true = OUTPUTS > 0, MARKS > 0
    hits = int((said & true).sum())
    precision, recall = hits / int(said.sum()), hits / int(true.sum())
    expected = 2 * precision * recall / (precision + recall)
    assert Labels(names=("a", "b", "c")).watch(OUTPUTS, MARKS) == pytest.approx(expected)
    assert Labels(names=("a",)).watch(torch.tensor([[-1.0]]), torch.zeros(1, 1)) == 1


# --- statistics


class Knowing(nn.Module):
    def __init__(self, numbers: int, width: int = 1) -> None:
        super().__init__()
        self.register_buffer("numbers_mean", torch.zeros(numbers))
        self.register_buffer("numbers_deviation", torch.ones(numbers))
        self.register_buffer("target_mean", torch.zeros(width))
        self.register_buffer("target_deviation", torch.ones(width))
        self.hidden, self.head = nn.Linear(numbers, 8), nn.Linear(8, width)

    def forward(self, numbers: Tensor) -> Tensor:
        scaled = (numbers - self.numbers_mean) / self.numbers_deviation
        scaled = torch.where(torch.isnan(scaled), 0.0, scaled)
        found: Tensor = self.head(torch.relu(self.hidden(scaled))) * self.target_deviation + self.target_mean
        return found


def line(count: int, seed: int = 0) -> Examples:
    """Return numbers of which one is missing now and then, and a target that follows from the first."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(count, 3, generator=generator) * torch.tensor([1.0, 50.0, 0.0]) + 100
    target = Numbers(names=("y",), scale=(300.0,))
    labels = 300 * (numbers[:, :1] - 100) + 1000
    numbers[::5, 1] = NAN
    return Examples(Rows({"numbers": numbers}), labels, (), target)


def test_statistics_leave_missing_values_out_and_go_into_the_networks_buffers() -> None:
    examples, module = line(50), Knowing(3)
    fit_statistics_(module, examples)
    assert isinstance(examples.images, Rows)
    there = [v for v in examples.images.tensors["numbers"][:, 1].tolist() if v == v]
    mean = sum(there) / len(there)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in there) / len(there))
    buffers = dict(module.named_buffers())
    assert buffers["numbers_mean"][1].item() == pytest.approx(mean, rel=1e-6)
    assert buffers["numbers_deviation"][1].item() == pytest.approx(deviation, rel=1e-6)
    assert buffers["numbers_mean"][2] == 100 and buffers["numbers_deviation"][2] == 1  # it does not vary
    assert buffers["target_mean"].item() == pytest.approx(examples.known_labels.mean().item(), rel=1e-6)


def test_statistics_of_a_column_without_any_value() -> None:
    nothing = torch.full((4, 2), NAN)
    assert means(nothing).tolist() == [0, 0] and deviations(nothing).tolist() == [1, 1]


def test_a_buffer_of_another_shape_is_refused() -> None:
    with pytest.raises(DecantError, match=r"numbers_mean has the shape \[2\], and a row of the data \[3\]"):
        fit_statistics_(Knowing(2), line(10))


# --- training


def test_a_network_learns_numbers_and_its_curve_has_their_error() -> None:
    train, validation, module = line(400), line(100, 1), Knowing(3)
    fit_statistics_(module, train)
    training = Training(epochs=20, batch_size=20, optimizer=Adamw(learning_rate=0.02), weight_decay=0)
    curve = fit_(
        module, training, training.hard_loss(train.target), train, validation,
        scratch=None, seed=0, constraints={}, title="line",
    )  # fmt: skip
    assert list(curve[0]) == ["epoch", "loss", "learning_rate", "validation_loss", "validation_mae"]
    assert curve[-1]["validation_mae"] < 0.1 * curve[0]["validation_mae"]
    assert isinstance(validation.images, Rows)
    with torch.no_grad():
        error = (module(**validation.images.tensors) - validation.known_labels).abs().mean().item()
    assert curve[-1]["validation_mae"] == pytest.approx(error, rel=1e-4)


def test_a_network_of_another_width_is_refused_before_it_is_trained() -> None:
    train, validation = line(20), line(20)
    with pytest.raises(DecantError, match="returns 2 numbers for a row, and the labels have 1"):
        goal_of(train, validation, None).check(Knowing(3, 2), lambda: torch.zeros(1, 2))


def test_hard_targets_beside_a_teacher_are_the_targets_own_loss() -> None:
    examples, teacher = line(12), Knowing(3)
    loss = loss_of(Outputs(hard=0.25), Training(epochs=1), teacher, examples, 0)
    assert isinstance(examples.images, Rows)
    inputs, outputs = tuple(examples.images.tensors.values()), torch.linspace(0, 2000, 12)[:, None]
    with torch.no_grad():
        soft = Outputs().soft(Answers(outputs, teacher(*inputs)))
        hard = ((outputs - examples.known_labels) / 300).square().mean()
        value = loss(inputs, outputs, examples.known_labels)
    assert value.item() == pytest.approx((0.25 * hard + 0.75 * soft).item(), rel=1e-5)


@pytest.mark.parametrize("criterion", [Taylor(images=12), Fisher(images=12)], ids=lambda each: each.kind)
def test_criteria_take_the_gradient_of_the_targets_loss(criterion: Taylor | Fisher) -> None:
    examples, module = line(12), Knowing(3)
    fit_statistics_(module, examples)
    give_example_(module, (torch.zeros(1, 3),))
    found = criterion.scores(module, examples, 0)["head.weight"]
    assert isinstance(examples.images, Rows)
    inputs, weight = examples.images.tensors["numbers"], module.head.weight
    errors = [
        ((module(inputs[row : row + 1]) - examples.known_labels[row]) / 300).square().mean()
        for row in range(12)
    ]
    gradients = torch.stack([torch.autograd.grad(error, weight, retain_graph=True)[0] for error in errors])
    if isinstance(criterion, Fisher):
        expected = weight.detach().square() * gradients.square().mean(0) / 2
    else:
        expected = (weight * gradients.mean(0)).detach().abs()
    assert torch.allclose(found, expected, rtol=1e-4)


def test_plain_classes_are_the_target_of_examples_that_name_none() -> None:
    assert Examples(Rows({"x": torch.zeros(2, 1)}), torch.zeros(2).long(), ("a", "b")).target == Classes()
    kept = line(10).first(4)
    assert len(kept) == len(kept.known_labels) == 4 and isinstance(kept.target, Numbers)
