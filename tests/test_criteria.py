"""Every criterion on every kind of model that the project makes: finite scores, or one sentence why not."""

import itertools
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from decant.checkpoints.activations import DynamicGrid
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import Constraints, Levels, Range
from decant.errors import DecantError
from decant.examples import Examples, Splits
from decant.networks.structure import compressible
from decant.prune.channels.channel_pruning import ChannelPruning
from decant.prune.criteria import Asked, Criterion, Fisher, Obs, Scoring, Taylor, Wanda
from decant.prune.mask_pruning import MaskPruning
from decant.prune.masks import masks_of
from decant.prune.params import PruneParams
from decant.quantize.schemes import Binary, Codebook, Integer, Ternary
from tasks.pipeline.params import validate
from tests.nets import CLASSES, NETS, drawn, images, net
from tests.slow import slow_but
from tests.test_export import EIGHT, RESIDUAL, clamped, dynamic, grids, held_by, network, static

CRITERIA: dict[str, type[Scoring]] = {
    kind.model_fields["kind"].default: kind for kind in get_args(get_args(Criterion)[0])
}
SEEN = 24


@cache
def splits() -> Splits:
    labels = torch.arange(SEEN) % len(CLASSES)
    examples = Examples(images(SEEN), labels, CLASSES)
    return Splits(examples, examples)


def masked(model: Checkpoint) -> Checkpoint:
    """Return the model with half of each weight held at zero, whatever else it has to satisfy."""
    held = {}
    for name, weight in compressible(model.module).items():
        generator = torch.Generator().manual_seed(len(name))
        mask = torch.rand(weight.shape, generator=generator) < 0.5
        before = model.constraints.get(name, Constraints())
        held[name] = before.narrow(mask=mask)
    return model.narrowed(held)


def clipped(model: Checkpoint) -> Checkpoint:
    sizes = {n: w.detach().abs().mean().item() for n, w in compressible(model.module).items()}
    return model.narrowed({name: Constraints(Range(-size, 1.2 * size)) for name, size in sizes.items()})


def learned() -> Checkpoint:
    """Return a model with levels as learners leave them: two scales of their own, a step below zero."""
    model = network(RESIDUAL)
    held = {
        name: Constraints(
            levels=Levels(torch.tensor([-0.31, 0.0, 0.17]), torch.tensor(1.0))
            if number % 2
            else Levels(torch.arange(-3.0, 4), torch.full((len(weight), *[1] * (weight.dim() - 1)), -0.07))
        )
        for number, (name, weight) in enumerate(compressible(model.module).items())
    }
    return model.narrowed(held, grids(model, 4))


def silent() -> Checkpoint:
    """Return a model whose second layer receives zeros alone, and whose third is shut."""
    model = network(RESIDUAL)
    names = list(compressible(model.module))
    zeros = {n: Constraints(mask=torch.zeros_like(model.module.get_parameter(n)).bool()) for n in names[:1]}
    with torch.no_grad():
        model.module.get_parameter(names[0].replace("weight", "bias")).fill_(-1.0)
    return model.narrowed(zeros)


PARENTS: dict[str, Callable[[], Checkpoint]] = {
    **{kind: lambda kind=kind: net(NETS[kind]) for kind in NETS},  # type: ignore[misc]
    "folded": lambda: network(RESIDUAL),
    "channels removed": lambda: drawn(net(RESIDUAL), 1).model,
    "masked": lambda: masked(net(RESIDUAL)),
    "clipped": lambda: clipped(net(RESIDUAL)),
    "clamps": lambda: clamped(0),
    "clamps and grids": lambda: clamped(4),
    "static": lambda: static(RESIDUAL),
    "static, 1 bit": lambda: static(RESIDUAL, EIGHT, 1),
    "static, masked": lambda: masked(static(RESIDUAL)),
    "dynamic": lambda: dynamic(RESIDUAL),
    "dynamic, not folded": lambda: net(RESIDUAL).narrowed(
        {}, {name.removesuffix(".weight"): DynamicGrid(8) for name in compressible(net(RESIDUAL).module)}
    ),
    "dynamic, clipped": lambda: clipped(net(RESIDUAL)).narrowed({}, {"head": DynamicGrid(2)}),
    "codebook": lambda: held_by(network(RESIDUAL), Codebook(entries=5)),
    "signs": lambda: held_by(network(RESIDUAL), Binary()),
    "ternary, masked": lambda: held_by(network(RESIDUAL), Ternary(), masked=True),
    "groups": lambda: held_by(network(RESIDUAL), Integer(bits=4, group=16)),
    "learned": learned,
    "silent": silent,
}


def block(kind: str) -> dict[str, Any]:
    criterion: dict[str, Any] = {"kind": kind}
    fields = CRITERIA[kind].model_fields
    criterion |= {name: value for name, value in {"images": SEEN, "rounds": 2}.items() if name in fields}
    recipe: dict[str, Any] = {
        "op": "prune",
        "from": "parent",
        "criterion": criterion,
        "budget": {"sparsity": 0.8},
        "allocation": {"kind": "layer"},  # all layers alike, so that none is emptied
    }
    if CRITERIA[kind].structures == ("channels",):
        recipe |= {"structure": {"kind": "channels"}, "budget": {"sparsity": 0.3}}
    return recipe


QUICK = ("residual", "masked", "dynamic, clipped", "groups")


@pytest.mark.parametrize("parent", slow_but(QUICK, PARENTS))
def test_every_criterion_prunes_every_model_or_says_why_not(parent: str) -> None:
    model = PARENTS[parent]()
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    refused = {}
    for kind in CRITERIA:
        if CRITERIA[kind].accumulates:
            continue  # it has scores in a training alone
        recipe = validate(block(kind), PruneParams)
        pruning = ChannelPruning if CRITERIA[kind].structures == ("channels",) else MaskPruning
        try:
            result = pruning(recipe, model, model, splits(), 3).pruned().model
        except DecantError as error:
            assert "\n" not in str(error)
            refused[kind] = str(error)
            continue
        for name, weight in result.module.named_parameters():
            assert torch.isfinite(weight).all(), (kind, name)
        for name, held in result.constraints.items():
            weight = result.module.get_parameter(name)
            assert torch.equal(held.project(weight), weight), (kind, name)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())
    assert refused.pop("snip").startswith("snip and rewind go back to how the teacher began")
    assert refused.keys() <= REFUSED.get(parent, {}).keys()
    for kind, reason in refused.items():
        assert REFUSED[parent][kind] in reason


REFUSED: dict[str, Mapping[str, str]] = {
    "groups": dict.fromkeys(("reconstruction", "drift"), "cannot lose inputs"),
}
"""What cannot be done, and a part of the sentence that says so; snip is for descendants of a teacher."""


@pytest.mark.parametrize(
    "parent", ["static", "dynamic", "dynamic, not folded", "clamps and grids", "learned"]
)
def test_gradients_are_those_of_a_loop_over_images(parent: str) -> None:
    model, seen = PARENTS[parent](), splits().train.first(5)
    weights = compressible(model.module)
    squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for image, label in zip(seen.images, seen.labels, strict=True):
        loss = F.cross_entropy(model.module(image[None] / 255), label[None])
        for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            squares[name] += gradient.square() / len(seen)
    found = Fisher(images=5).scores(model.module, seen, 0)
    for name, weight in weights.items():
        expected = weight.detach().square() * squares[name] / 2
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-12)
    loss = F.cross_entropy(model.module(seen.images / 255), seen.labels)
    gradients = torch.autograd.grad(loss, list(weights.values()))
    first = Taylor(images=5).scores(model.module, seen, 0)
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        torch.testing.assert_close(first[name], (weight * gradient).detach().abs(), rtol=1e-4, atol=1e-9)


def received_by(model: Checkpoint, layer: str, pictures: Tensor) -> Tensor:
    """Return what a linear layer multiplies, by a hook behind all that it does to its inputs."""
    seen: list[Tensor] = []
    handle = model.module.get_submodule(layer).register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    with torch.no_grad():
        model.module(pictures / 255)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("parent", ["static", "dynamic", "clamps and grids", "masked"])
def test_inputs_are_those_that_a_layer_multiplies(parent: str) -> None:
    model, seen = PARENTS[parent](), splits().train
    inputs = received_by(model, "head", seen.images).double()
    weight = model.module.get_parameter("head.weight").detach().double()
    found = Wanda(images=SEEN).scores(model.module, seen, 0)["head.weight"]
    torch.testing.assert_close(found.double(), weight.abs() * inputs.norm(dim=0), rtol=1e-5, atol=1e-9)
    hessian = inputs.mT @ inputs / SEEN
    alive = hessian.diagonal() > 0
    hessian += torch.diag(torch.where(alive, 0.01 * hessian.diagonal().sum() / alive.sum(), 1.0))
    masks = masks_of(model)
    scores = Obs(images=SEEN).scores(model.module, seen, 0, Asked(masks))["head.weight"]
    for row, column in itertools.product(range(len(weight)), range(weight.shape[1])):
        kept = torch.ones(weight.shape[1]).bool() if "head.weight" not in masks else masks["head.weight"][row]
        expected = 0.0
        if kept[column] and alive[column]:
            inverse = torch.linalg.inv(hessian[kept][:, kept])
            place = int(kept[:column].sum())
            expected = (weight[row, column] ** 2 / inverse[place, place]).item()
        assert math.isclose(scores[row, column].item(), expected, rel_tol=1e-3, abs_tol=1e-9)
