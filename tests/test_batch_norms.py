"""Statistics of batch norms, estimated anew: against float64, training mode, and in each operation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decant.calibration.batch_norms import Norm, moments, reestimated, with_statistics
from decant.checkpoints.checkpoint import Checkpoint
from decant.clip.operation import clip
from decant.compression.finish import Result
from decant.errors import DecantError
from decant.examples import Examples, Splits, pixels
from decant.finetune.operation import finetune
from decant.networks.architectures import Mlp, Resnet, build
from decant.networks.execution import predict
from decant.prune.operation import prune
from decant.quantize.operation import quantize
from tests.nets import NETS, SHAPE, Net, images, net, striped

STATISTICS = {"statistics": True}
PRUNED = {"criterion": {"kind": "magnitude"}, "allocation": {"kind": "layer"}, "budget": {"sparsity": 0.6}}
INTEGERS = {"scheme": {"kind": "integer", "bits": 4}}


def naive(module: nn.Module, inputs: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return mean and variance of what each batch norm receives in evaluation, in float64.

    All are set together, and looked at anew until nothing can change: this needs no order of layers.
    """
    module, seen = copy.deepcopy(module).double(), dict[str, tuple[Tensor, Tensor]]()
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, Norm)}
    norms = {name: layer for name, layer in layers.items() if layer.track_running_stats}
    for name, layer in norms.items():

        def look(_: nn.Module, arguments: tuple[Tensor], name: str = name) -> None:
            rows = [arguments[0][:, channel].flatten() for channel in range(arguments[0].shape[1])]
            means = [row.sum() / len(row) for row in rows]
            squares = [((row - mean) ** 2).sum() / len(row) for row, mean in zip(rows, means, strict=True)]
            seen[name] = torch.stack(means), torch.stack(squares)

        layer.register_forward_pre_hook(look)
    for _ in range(len(norms) + 1):
        with torch.no_grad():
            module(inputs.double() / 255)
        for name, layer in norms.items():
            layer.running_mean, layer.running_var = seen[name]
    return seen


class Backwards(nn.Module):
    """Batch norms of several dimensions, registered against the order in which they run; one never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)
        self.third = nn.BatchNorm1d(5)
        self.middle = nn.Linear(4 * 36, 5)
        self.second = nn.BatchNorm3d(2)
        self.first = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.without = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, inputs: Tensor) -> Tensor:
        found = self.first(self.conv(inputs)).relu()
        found = self.second(found.unflatten(1, (2, 2))).flatten(1).relu()
        return self.head(self.third(self.middle(found)).relu())


@pytest.mark.parametrize("make", [*NETS.values(), Backwards], ids=[*NETS, "backwards"])
def test_each_has_the_moments_of_what_it_receives_in_evaluation(make: Net | type[Backwards]) -> None:
    model = net(NETS["residual"])
    model = (
        Checkpoint(model.architecture, SHAPE, ("a", "b", "c"), make().eval())
        if isinstance(make, type)
        else net(make)
    )
    before, inputs = copy.deepcopy(model.module.state_dict()), images(300)
    found = reestimated(model, inputs).module
    for name, (mean, variance) in naive(model.module, inputs).items():
        norm = found.get_submodule(name)
        torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-5, atol=1e-9)
    assert not found.training
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(tensor, before[name]), "the given model is untouched"
        if "running" not in name:
            assert torch.equal(tensor, found.state_dict()[name]), "only statistics are estimated"


@pytest.mark.parametrize("name", ["residual", "depthwise", "flattened"])
def test_evaluation_answers_as_training_mode_does_with_all_images_in_one_batch(name: str) -> None:
    model, inputs = net(NETS[name]), images(500)
    with torch.no_grad():
        expected = copy.deepcopy(model.module).train()(pixels(inputs))
    found = predict(reestimated(model, inputs).module, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_moments_keep_their_digits_far_from_zero() -> None:
    values = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e6
    mean, variance = moments(values.split(7), torch.full((3,), 1e6, dtype=torch.float64))
    torch.testing.assert_close(mean, values.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(variance, values.var(0, correction=0), rtol=1e-9, atol=0)


def test_a_channel_of_one_value_has_no_variance() -> None:
    mean, variance = moments([torch.full((5, 1, 3), 0.1)], torch.zeros(1, dtype=torch.float64))
    assert mean.item() == pytest.approx(0.1)
    assert variance.item() == pytest.approx(0.0, abs=1e-15)


class Twice(nn.Module):
    """A batch norm that normalizes what two convolutions give, and one that normalizes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.spare, self.norm = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.second, self.first = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 1)
        self.head = nn.Linear(2, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(sum(self.norm(conv(inputs)).mean((2, 3)) for conv in (self.first, self.second)))


def test_a_batch_norm_that_runs_twice_gets_the_means_of_both_calls() -> None:
    module = Twice().eval()
    model = Checkpoint(Mlp(hidden=(3,)), (1, 8, 8), ("a", "b", "c"), module)
    inputs = torch.randint(0, 256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = reestimated(model, inputs).module
    with torch.no_grad():
        given = [conv(pixels(inputs)).double() for conv in (module.first, module.second)]
    mean = torch.stack([each.mean((0, 2, 3)) for each in given]).mean(0)
    variance = torch.stack([each.var((0, 2, 3), correction=0) for each in given]).mean(0)
    assert isinstance(found, Twice)
    torch.testing.assert_close(found.norm.running_mean, mean.float())
    torch.testing.assert_close(found.norm.running_var, variance.float())
    assert torch.equal(found.spare.running_mean, module.spare.running_mean)  # type: ignore[arg-type]
    assert torch.equal(found.spare.running_var, module.spare.running_var)  # type: ignore[arg-type]


# --- what cannot be estimated


def test_a_network_without_batch_norms_is_refused() -> None:
    model = Checkpoint(Mlp(hidden=(3,)), SHAPE, ("a", "b"), build(Mlp(hidden=(3,)), SHAPE, 2, 0).eval())
    with pytest.raises(DecantError, match=r"^statistics: the model has no batch norms"):
        reestimated(model, images(10))


# --- in operations


@pytest.fixture(scope="module")
def splits() -> Splits:
    return Splits(striped(0, 300), striped(1, 60))


@pytest.fixture(scope="module")
def parent(splits: Splits) -> Checkpoint:
    """A network that has learned something, by its own statistics."""
    architecture = Resnet(widths=(4, 8), blocks=(1, 1))
    model = Checkpoint(
        architecture, (1, 8, 8), splits.train.classes, build(architecture, (1, 8, 8), 3, 0).eval()
    )
    return finetune(model, {"training": {"epochs": 6, "batch_size": 30}}, splits).model


def losses(splits: Splits, *models: Checkpoint) -> list[float]:
    examples = splits.validation
    return [
        nn.functional.cross_entropy(predict(model.module, examples.images), examples.labels).item()
        for model in models
    ]


OPERATIONS: dict[str, tuple[Callable[..., Result], Mapping[str, Any]]] = {
    "prune": (prune, PRUNED),
    "prune channels": (
        prune,
        PRUNED
        | {"allocation": {"kind": "global"}, "structure": {"kind": "channels"}, "budget": {"macs": 0.6}},
    ),
    "clip": (clip, {"cut": {"kind": "percentile", "keep": 0.8}}),
    "clip inputs": (clip, {"cut": {"kind": "percentile", "keep": 0.7}, "target": "activations"}),
    "quantize": (quantize, INTEGERS | {"fold": False}),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_changes_statistics_and_nothing_else_of_what_it_makes(
    name: str, parent: Checkpoint, splits: Splits
) -> None:
    operation, recipe = OPERATIONS[name]
    before, after = operation(parent, recipe, splits), operation(parent, {**recipe, **STATISTICS}, splits)
    assert after.facts["statistics_images"] == 300
    assert "statistics_images" not in before.facts
    if name != "quantize":  # it rounds the weights of a network whose statistics are estimated first
        expected = reestimated(before.model, splits.train.images).module.state_dict()
        assert all(torch.equal(found, expected[n]) for n, found in after.model.module.state_dict().items())
        assert after.ledger == before.ledger
    again = reestimated(after.model, splits.train.images)
    for n, found in after.model.module.state_dict().items():
        torch.testing.assert_close(found, again.module.state_dict()[n], rtol=1e-6, atol=1e-7)


def test_pruning_at_once_loses_less_with_statistics_of_the_pruned_network(
    parent: Checkpoint, splits: Splits
) -> None:
    plain, better = (prune(parent, PRUNED | more, splits).model for more in ({}, STATISTICS))
    of_plain, of_better, of_parent = losses(splits, plain, better, parent)
    assert of_plain > 2 * of_parent
    assert of_better < of_plain / 2


@pytest.mark.parametrize("activations", [{}, {"activations": {"bits": 8}}], ids=["weights", "inputs too"])
def test_quantizing_folds_the_statistics_of_the_rounded_network(
    activations: Mapping[str, Any], parent: Checkpoint, splits: Splits
) -> None:
    pruned, recipe = prune(parent, PRUNED, splits).model, {**INTEGERS, **activations}
    alive = quantize(pruned, recipe | STATISTICS | {"fold": False}, splits)
    found = quantize(pruned, recipe | STATISTICS, splits)
    assert found.model.folded
    assert {**found.facts} == {"statistics_images": 300}
    logits = [predict(model.module, splits.validation.images) for model in (found.model, alive.model)]
    # An input that lies between two points of its grid may go to either.
    torch.testing.assert_close(*logits, rtol=1e-3, atol=0.05 if activations else 1e-3)
    plain = quantize(pruned, recipe, splits).model
    of_found, of_plain = losses(splits, found.model, plain)
    assert of_found < of_plain / 2
    names = {name for name, _ in found.model.module.named_parameters()}
    assert {entry.name for entry in found.ledger} == names
    assert all(held.levels is not None for held in found.model.constraints.values())
    with pytest.raises(DecantError, match=r"^statistics: the model has no batch norms"):
        clip(found.model, {"cut": {"kind": "percentile", "keep": 0.8}} | STATISTICS, splits)


def test_finetuning_without_epochs_estimates_statistics_alone(parent: Checkpoint, splits: Splits) -> None:
    pruned = prune(parent, PRUNED, splits).model
    result = finetune(pruned, {"training": {"epochs": 0}} | STATISTICS, splits)
    expected = prune(parent, PRUNED | STATISTICS, splits).model
    assert all(
        torch.equal(tensor, expected.module.state_dict()[name])
        for name, tensor in result.model.module.state_dict().items()
    )
    assert (result.curve, dict(result.facts)) == ((), {"statistics_images": 300})
    assert not any(entry.changed for entry in result.ledger)
    with pytest.raises(DecantError, match="changed nothing"):
        finetune(result.model, {"training": {"epochs": 0}} | STATISTICS, splits)


TRAINED = {"epochs": 1}


@pytest.mark.parametrize(
    ("operation", "recipe", "message"),
    [
        (
            prune,
            PRUNED | {"schedule": {"kind": "gradual", "training": TRAINED}} | STATISTICS,
            "schedule gradual",
        ),
        (prune, PRUNED | {"schedule": {"kind": "rewind", "epoch": 0}} | STATISTICS, "schedule rewind trains"),
        (
            quantize,
            INTEGERS | {"train": {"kind": "ste", "training": TRAINED}} | STATISTICS,
            "undone by training",
        ),
        (quantize, INTEGERS | {"equalize": True} | STATISTICS, "equalize needs batch norms folded"),
        (quantize, INTEGERS | {"mixed": {"budget": {"bytes": 0.2}}} | STATISTICS, "mixed needs batch norms"),
        (finetune, {"training": TRAINED} | STATISTICS, "take epochs: 0"),
        (finetune, {"training": {"epochs": 0}}, "epochs: 0 trains nothing"),
        (finetune, {"training": {"epochs": 0}, "loss": {"kind": "temperature"}} | STATISTICS, "leave it out"),
        (finetune, {"training": {"epochs": -1}}, "training.epochs"),
        (clip, {"cut": {"kind": "percentile", "keep": 0.8}, "statistics": "new"}, "must be true or false"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(
    operation: Callable[..., Result],
    recipe: Mapping[str, Any],
    message: str,
    parent: Checkpoint,
    splits: Splits,
) -> None:
    with pytest.raises(DecantError, match=message):
        operation(parent, recipe, splits)


def test_the_number_of_images_is_bounded_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = Examples(images(50), torch.zeros(50).long(), ("a",))
    monkeypatch.setattr("decant.calibration.batch_norms.IMAGES", 40)
    model, facts = with_statistics(net(NETS["depthwise"]), examples)
    assert facts == {"statistics_images": 40}
    expected = reestimated(net(NETS["depthwise"]), examples.first(40).images).module.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.module.state_dict().items())
