"""Every operation on every network of the zoo, each result held to a computation of its own.

What an operation makes of a network is right, or it refuses with one sentence (a DecantError). Anything
else, an answer that is not what it says or another error, is a fault.
"""

from __future__ import annotations

import copy
import math
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import onnx
import torch
from torch import Tensor, nn

from decant.adoption.adopting import Source, adopt
from decant.checkpoints.activations import RecurrentGrid
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.files import load, save
from decant.clip.operation import clip
from decant.compression.coupling import groups_of
from decant.compression.finish import Result
from decant.costs import counts
from decant.errors import DecantError
from decant.examples import Examples, Rows, Splits
from decant.export.deploy import Deployed, deploy
from decant.export.runtime import open_session, run
from decant.finetune.operation import finetune
from decant.lowering.folding import folded
from decant.networks.calls import Kind
from decant.networks.execution import as_rows, predict
from decant.networks.python import Python
from decant.networks.record import record_of
from decant.networks.structure import compressible, observable
from decant.prune.channels.ladder import ChannelPlan
from decant.prune.operation import prune
from decant.quantize.equalization import equalized
from decant.quantize.operation import quantize
from decant.training import fit
from decant.training.resume import Scratch
from decant.training.run import Run
from tests.zoo import ZOO, build

TRAIN, VALIDATION = 16, 8
CLOSE = {"int8": 0.02, "int8 static": 0.08, "int8 dynamic": 0.08, "int4 gptq": 0.4}
"""How far outputs may be from the float model's, as a share of their size."""


def splits(name: str) -> Splits:
    """Return inputs without labels."""
    net = ZOO[name]
    return Splits(Examples(net.rows(TRAIN), None, ()), Examples(net.rows(VALIDATION, 2), None, ()))


@cache
def adopted(name: str) -> Checkpoint:
    """Return a network of the zoo as a model."""
    return adopt(Source(Python.of(build, name=name)), splits(name).train).model


def rows(name: str) -> Rows:
    return ZOO[name].rows(VALIDATION, 3)


def exact(module: nn.Module, given: Rows) -> Tensor:
    """Return a network's answers in float64 [N, M]."""
    return predict(copy.deepcopy(module).double(), given, dtype=torch.float64)


def error(found: Tensor, expected: Tensor) -> float:
    """Return the size of what is wrong as a share of the outputs' size."""
    return ((found - expected).norm() / expected.norm()).item()


def same(one: Tensor, other: Tensor, share: float) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= share * other.abs().max())


# --- what every result is held to


def hold_ledger(before: nn.Module, result: Result) -> None:
    """The ledger names each parameter once, with the numbers of a count, and is silent on no weight."""
    now, was = dict(result.model.module.named_parameters()), dict(before.named_parameters())
    assert [entry.name for entry in result.ledger] == list(now) or {e.name for e in result.ledger} == {*now}
    assert len(result.ledger) == len(now)
    for entry in result.ledger:
        parameter = now[entry.name]
        assert entry.count == parameter.numel()
        assert entry.zeros == int((parameter == 0).sum())
        if entry.name in was and was[entry.name].shape == parameter.shape:
            assert entry.changed == int((parameter != was[entry.name]).sum()), entry
        if entry.untouched:
            assert entry.changed == 0, entry
        elif entry.weight and not any(each.removed for each in result.ledger):
            assert entry.changed or entry.holds, entry


def hold_on_disk(model: Checkpoint, given: Rows) -> None:
    """What is read back is the same to the bit: tensors, their types, and answers."""
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder))
        again = load(Path(folder), build=build)
    one, other = model.module.state_dict(), again.module.state_dict()
    unread = {name for name in one if name.endswith("num_batches_tracked")}
    assert one.keys() == other.keys()
    for name in one.keys() - unread:
        assert one[name].dtype == other[name].dtype, name
        assert torch.equal(one[name], other[name]), name
    assert torch.equal(predict(model.module, given), predict(again.module, given))


def hold_levels(before: nn.Module, model: Checkpoint, bits: int, *, nearest: bool) -> None:
    """Each weight is one of 2^bits - 1 multiples of a step by channel; the nearest one, where asked."""
    weights, most = record_of(before).weights, 2 ** (bits - 1) - 1
    assert {name for name, held in model.constraints.items() if held.levels is not None} == {*weights}
    for name, weight in weights.items():
        was, now = (m.get_parameter(name).detach().double() for m in (before, model.module))
        others = [dim for dim in range(was.dim()) if dim != weight.axis]
        step = was.abs().amax(others, keepdim=True) / most
        codes = now / torch.where(step == 0, 1, step)
        assert bool((codes - codes.round()).abs().max() < 1e-3), name
        assert bool(codes.abs().max() <= most + 1e-3), name
        if nearest:
            assert bool((codes - was / torch.where(step == 0, 1, step)).abs().max() <= 0.5 + 1e-3), name


def hold_inputs(model: Checkpoint, given: Rows) -> None:
    """Each layer that can have a grid has one, and what has one gets at most 256 different numbers."""
    multiplying = {
        weight.layer
        for weight in record_of(model.module).weights.values()
        if weight.layer and weight.kind is not Kind.EMBEDDING
    }
    assert multiplying <= model.grids.keys()
    module, seen = copy.deepcopy(model.module), dict[str, int]()

    def count(name: str, found: Tensor) -> None:
        seen[name] = max(seen.get(name, 0), len(found.unique()))

    for name in model.grids:
        watch(module.get_submodule(name), partial(count, name))
    predict(module, given)
    assert seen.keys() == model.grids.keys()
    within = {name for name, grid in model.grids.items() if isinstance(grid, RecurrentGrid)}
    assert all(number <= 256 for name, number in seen.items() if name not in within)


def watch(layer: nn.Module, told: Callable[[Tensor], object]) -> None:
    """Have somebody told what a layer receives, whether by place or by name."""

    def hook(_: nn.Module, placed: tuple[Any, ...], named: dict[str, Any]) -> None:
        told(next(iter((*placed, *named.values()))).detach())

    layer.register_forward_pre_hook(hook, with_kwargs=True)


def received(module: nn.Module, layer: str, given: Rows) -> Tensor:
    """Return what a layer receives for a batch, in all of its calls, in float64."""
    caught: list[Tensor] = []
    module = copy.deepcopy(module)
    watch(module.get_submodule(layer), caught.append)
    predict(module, given)
    return torch.cat(caught).double()


def hold_better(before: nn.Module, model: Checkpoint, name: str, plain: Tensor, given: Rows) -> None:
    """On what it receives now, a weight comes as near to what the layer gave before as another one would."""
    layer = record_of(before).weights[name].layer
    now, was = received(model.module, layer, given), received(before, layer, given)
    right = copy.deepcopy(before.get_submodule(layer)).double()
    other: Any = copy.deepcopy(right)
    errors = []
    with torch.no_grad():
        for weight in (model.module.get_parameter(name), plain):
            other.weight.copy_(weight)
            errors.append((other(now) - right(was)).square().sum().item())
    assert errors[0] <= 1.01 * errors[1] + 1e-9, errors


def answered(made: Deployed, given: Rows) -> Tensor:
    """Return what ONNX Runtime answers [N, M]."""
    outputs = run(open_session(made.content, 1), *given.tensors.values())
    return as_rows(tuple(each.float() for each in outputs), len(given))


# --- the operations


def check_files(name: str) -> None:
    """Adoption keeps the function; a model on disk is the same to the bit."""
    model, given = adopted(name), rows(name)
    with torch.no_grad():
        expected = as_rows(build(name)(*given.tensors.values()), VALIDATION)
    assert same(predict(model.module, given), expected, 1e-5)
    hold_on_disk(model, given)


def check_costs(name: str) -> None:
    """Multiplications are those found by hand, and parameters are counted once each."""
    module = adopted(name).module
    assert counts.macs(module) == ZOO[name].macs
    tensors = {id(p): p for p in module.parameters()}
    assert counts.parameters(module) == sum(p.numel() for p in tensors.values())
    assert counts.nonzeros(module) == sum(int((p != 0).sum()) for p in tensors.values())


def check_folding(name: str) -> None:
    """In float64 nothing moves, and the batch norms that are left are those that the facts leave."""
    parent = adopted(name)
    double = copy.deepcopy(parent.module).double()
    after = folded(Checkpoint(parent.architecture, parent.shape, (), double))
    expected = predict(double, rows(name), dtype=torch.float64)
    assert same(predict(after.module, rows(name), dtype=torch.float64), expected, 1e-11)
    prefix = "inner." if ZOO[name].named else ""
    gone = {f"{prefix}{norm}" for norm in ZOO[name].pairs.values()}
    norms = nn.modules.batchnorm._BatchNorm
    left = {each for each, module in after.module.named_modules() if isinstance(module, norms)}
    were = {each for each, module in parent.module.named_modules() if isinstance(module, norms)}
    assert left == were - gone


def check_equalization(name: str) -> None:
    """Nothing moves but by float32's rounding, and the two layers of a pair have equal ranges."""
    parent = folded(adopted(name))
    after, pairs, _ = equalized(parent, splits(name).train.images)
    assert same(exact(after.module, rows(name)), exact(parent.module, rows(name)), 1e-5)
    for pair in pairs:
        weights = [parent.module.get_parameter(each) for each in (pair.first, pair.second)]
        moved = [after.module.get_parameter(each) for each in (pair.first, pair.second)]
        assert any(not torch.equal(one, other) for one, other in zip(weights, moved, strict=True))


def half(name: str, criterion: Mapping[str, Any] | None = None) -> Result:
    recipe = {"criterion": criterion or {"kind": "magnitude"}, "allocation": {"kind": "layer"}}
    return prune(adopted(name), {**recipe, "budget": {"sparsity": 0.5}}, splits(name))


def hold_masks(parent: Checkpoint, model: Checkpoint, names: set[str], *, repaired: bool = False) -> None:
    """Half of each weight is zero under its mask, and the rest is as it was, to the bit."""
    for name in names:
        mask = model.constraints[name].mask
        assert mask is not None
        was, now = parent.module.get_parameter(name), model.module.get_parameter(name)
        assert not bool(now[~mask].any())
        assert abs(int((~mask).sum()) - mask.numel() / 2) <= 1, name
        if not repaired:
            assert torch.equal(now[mask], was[mask])


def check_magnitude(name: str) -> None:
    """The smaller half of each weight that multiplies is zero, and nothing else has changed."""
    parent, result = adopted(name), half(name)
    names = {*compressible(parent.module)}
    assert result.model.constraints.keys() == names
    hold_masks(parent, result.model, names)
    for each in names:
        was, mask = parent.module.get_parameter(each).abs(), result.model.constraints[each].mask
        assert mask is not None
        assert bool(was[~mask].max() <= was[mask].min())
    for each, parameter in parent.module.named_parameters():
        if each not in names:
            assert torch.equal(parameter, result.model.module.get_parameter(each))
    hold_ledger(parent.module, result)
    hold_on_disk(result.model, rows(name))


def check_obs(name: str) -> None:
    """Half of each weight whose inputs are seen is zero, and the first one answers no worse than by size."""
    parent = adopted(name)
    result = half(name, {"kind": "obs", "images": TRAIN})
    pruned, seen = {*result.model.constraints}, observable(parent.module)
    assert pruned == {*seen}
    hold_masks(parent, result.model, pruned, repaired=True)
    hold_ledger(parent.module, result)
    hold_on_disk(result.model, rows(name))
    first, given = next(iter(seen)), splits(name).train.images
    by_size = half(name).model.module.get_parameter(first)
    hold_better(parent.module, result.model, first, by_size, given)


INT = {"kind": "integer"}
QUANTIZED: dict[str, dict[str, Any]] = {
    "int8": {"scheme": INT | {"bits": 8}},
    "int8 static": {"scheme": INT | {"bits": 8}, "activations": {"bits": 8}},
    "int8 dynamic": {"scheme": INT | {"bits": 8}, "activations": {"bits": 8, "dynamic": True}},
    "int4 gptq": {"scheme": INT | {"bits": 4}, "rounding": {"kind": "gptq"}},
}


@cache
def quantized(name: str, form: str) -> Result:
    return quantize(adopted(name), {"images": TRAIN, **QUANTIZED[form]}, splits(name))


def check_quantized(name: str, form: str) -> Result:
    """Weights and inputs are on levels, the outputs are near, the ledger and the file are true."""
    result, given = quantized(name, form), rows(name)
    before = folded(adopted(name))
    hold_levels(before.module, result.model, 4 if "4" in form else 8, nearest="gptq" not in form)
    hold_ledger(before.module, result)
    if "activations" in QUANTIZED[form]:
        hold_inputs(result.model, given)
    hold_on_disk(result.model, given)
    found = error(predict(result.model.module, given), predict(adopted(name).module, given))
    assert found <= CLOSE[form], found
    return result


def check_gptq(name: str) -> None:
    """Beside that, the first layer answers no worse than with each weight on the nearest level."""
    result, before = check_quantized(name, "int4 gptq"), folded(adopted(name))
    if seen := observable(before.module):
        first, given = next(iter(seen)), splits(name).train.images
        held = result.model.constraints[first].levels
        assert held is not None
        nearest = held.project(before.module.get_parameter(first).detach())
        hold_better(before.module, result.model, first, nearest, given)


def check_channels(name: str) -> None:
    """Without half of the channels it answers what it does where nobody reads them."""
    parent, given = adopted(name), rows(name)
    groups = groups_of(parent)
    plan = ChannelPlan(parent, groups, {group.name: torch.arange(group.count) % 2 == 1 for group in groups})
    unread = copy.deepcopy(parent.module)
    for each, weight in record_of(parent.module).weights.items():
        for dim, left in plan.kept.get(each, {}).items():
            if dim != weight.axis:
                gone = torch.ones(unread.get_parameter(each).shape[dim], dtype=torch.bool)
                gone[left] = False
                unread.get_parameter(each).detach().movedim(dim, 0)[gone] = 0
    assert same(exact(plan.model.module, given), exact(unread, given), 1e-6)
    assert counts.macs(plan.model.module) < counts.macs(parent.module)
    asked = counts.macs(plan.model.module) / ZOO[name].macs
    recipe = {"criterion": {"kind": "magnitude"}, "structure": {"kind": "channels"}}
    result = prune(parent, recipe | {"budget": {"macs": asked}}, splits(name))
    assert counts.macs(result.model.module) <= asked * ZOO[name].macs
    hold_ledger(parent.module, result)
    hold_on_disk(result.model, given)


def check_clip(name: str) -> None:
    """What lies in the range is as it was, to the bit, and what lies outside is at its ends."""
    parent = adopted(name)
    result = clip(parent, {"cut": {"kind": "percentile", "keep": 0.9}}, splits(name))
    names = {*result.model.constraints}
    assert names == {*compressible(parent.module)}
    for each in names:
        was, now = (m.get_parameter(each).detach() for m in (parent.module, result.model.module))
        low, high = now.min(), now.max()
        assert torch.equal(now, was.clamp(low, high))
        assert 0 < int((now != was).sum()) <= 0.1 * was.numel() + 2
    hold_ledger(parent.module, result)
    hold_on_disk(result.model, rows(name))


TUNING = {"epochs": 2, "batch_size": TRAIN // 2, "optimizer": {"kind": "adamw", "learning_rate": 0.03}}


def tuned(name: str, parent: Checkpoint, folder: Path) -> Result:
    place = Run("m", 3, lambda: Scratch(folder, "id"))
    return finetune(parent, {"training": TUNING}, splits(name), teacher=adopted(name), run=place)


def check_finetuning(name: str) -> None:
    """Half and half is the whole, to the bit; masks hold, what is frozen or unread stays as it is."""
    pruned, original, count = half(name).model, fit._epoch, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal count
        if (count := count + 1) > 1:
            raise KeyboardInterrupt
        return original(*arguments)

    with tempfile.TemporaryDirectory() as folder:
        whole = tuned(name, pruned, Path(folder) / "whole")
        try:
            with patch.object(fit, "_epoch", interrupted):
                tuned(name, pruned, Path(folder) / "halves")
        except KeyboardInterrupt:
            pass
        halves = tuned(name, pruned, Path(folder) / "halves")
    assert count == 2
    assert halves.curve == whole.curve
    assert len(whole.curve) == 2
    for each, parameter in whole.model.module.state_dict().items():
        assert torch.equal(parameter, halves.model.module.state_dict()[each]), each
    for each, held in pruned.constraints.items():
        assert held.mask is not None
        assert not bool(whole.model.module.get_parameter(each)[~held.mask].any())
    still = {*record_of(pruned.module).unused}
    still |= {each for each, p in pruned.module.named_parameters() if not p.requires_grad}
    for each in still:
        assert torch.equal(whole.model.module.get_parameter(each), pruned.module.get_parameter(each)), each
    hold_ledger(pruned.module, whole)
    hold_on_disk(whole.model, rows(name))


def check_export(name: str) -> None:
    """ONNX Runtime answers what PyTorch does, for another number of rows too."""
    model = adopted(name)
    made = deploy(model)
    for count in (VALIDATION, 1, 3):
        given = ZOO[name].rows(count, 4)
        assert same(answered(made, given), predict(model.module, given), 1e-4)


SMALL = 256
"""Weights with fewer numbers may stay float32 in a file: what unpacks them would take as many bytes."""


def in_float(made: Deployed) -> set[str]:
    """Return the parameters that lie in a file in float32, but for small ones."""
    floats = [each for each in made.model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT]
    return {each.name for each in floats if math.prod(each.dims) >= SMALL}


def check_integer_export(name: str, form: str) -> None:
    """Weights lie in the file as integers, and ONNX Runtime answers what PyTorch does with these levels."""
    model = quantized(name, form).model
    made = deploy(model)
    names = {each for weight in record_of(model.module).weights.values() for each in weight.names}
    assert not names & in_float(made), names & in_float(made)
    for count in (VALIDATION, 3):
        given = ZOO[name].rows(count, 4)
        found, expected = answered(made, given), predict(model.module, given)
        assert error(found, expected) < (1e-4 if form == "int4 gptq" else 0.03), error(found, expected)


OPERATIONS: dict[str, Callable[[str], object]] = {
    "save and load": check_files,
    "costs": check_costs,
    "fold": check_folding,
    "equalize": check_equalization,
    "magnitude": check_magnitude,
    "OBS": check_obs,
    "channels": check_channels,
    "clip": check_clip,
    "int8": lambda name: check_quantized(name, "int8"),
    "int8 static": lambda name: check_quantized(name, "int8 static"),
    "int8 dynamic": lambda name: check_quantized(name, "int8 dynamic"),
    "int4 GPTQ": check_gptq,
    "fine-tune": check_finetuning,
    "export": check_export,
    "export int8 static": lambda name: check_integer_export(name, "int8 static"),
    "export int8 dynamic": lambda name: check_integer_export(name, "int8 dynamic"),
    "export int4": lambda name: check_integer_export(name, "int4 gptq"),
}
"""What is done to a network and held to a computation of its own, by name."""


# --- two operations, one after the other

BY_SIZE = {"criterion": {"kind": "magnitude"}}
BY_LAYER = {"allocation": {"kind": "layer"}}
RECIPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "magnitude": (prune, BY_SIZE | BY_LAYER),
    "OBS": (prune, {"criterion": {"kind": "obs", "images": TRAIN}} | BY_LAYER),
    "channels": (prune, BY_SIZE | {"structure": {"kind": "channels"}}),
    "clip": (clip, {}),
    "int8 static": (quantize, {"images": TRAIN, **QUANTIZED["int8 static"]}),
    "int4 GPTQ": (quantize, {"images": TRAIN, **QUANTIZED["int4 gptq"]}),
    "fine-tune": (finetune, {"training": TUNING}),
}
"""What makes a model of a model, and with which recipe, but for how much."""

STEPS = tuple(RECIPES)


def step(name: str, model: Checkpoint, network: str, share: float) -> Result:
    """Return what one operation makes of a model, where this share of weights or channels is to go."""
    operation, recipe = RECIPES[name]
    if operation is prune:
        recipe = recipe | {"budget": {"sparsity": share}}
    if operation is clip:
        recipe = recipe | {"cut": {"kind": "percentile", "keep": 1 - share / 5}}
    result: Result = operation(model, recipe, splits(network), teacher=adopted(network))
    return result


def check_pair(name: str, first: str, second: str) -> None:
    """After both, what the first one did still holds, the file is the same to the bit, and ONNX agrees."""
    given = rows(name)
    one = step(first, adopted(name), name, 0.4).model
    both = step(second, one, name, 0.7)
    model = both.model
    assert bool(torch.isfinite(predict(model.module, given)).all())
    for each, held in one.constraints.items():
        now, after = model.module.get_parameter(each), model.constraints[each]
        if held.mask is not None:
            assert after.mask is not None
            assert not bool(now[~after.mask].any())
            if after.mask.shape == held.mask.shape:
                assert not bool((after.mask & ~held.mask).any())
        if held.levels is not None:
            assert after.levels is not None
            assert after.levels.bits <= held.levels.bits
    hold_on_disk(model, given)
    assert {entry.name for entry in both.ledger} == {each for each, _ in model.module.named_parameters()}
    assert error(answered(deploy(model), given), predict(model.module, given)) < 0.05


def pairs() -> list[tuple[str, str, str]]:
    """Return networks and two steps: each network with each first, with each second, and each two steps."""
    return [
        (name, first, STEPS[(index + place) % len(STEPS)])
        for index, name in enumerate(ZOO)
        for place, first in enumerate(STEPS)
    ]


# --- outcomes


class Verdict(StrEnum):
    """What came of it."""

    WORKS = "works"
    REFUSED = "refused"
    WRONG = "wrong"
    ERROR = "error"


@dataclass(frozen=True)
class Outcome:
    """What came of one operation on one network, and the words for it."""

    verdict: Verdict
    words: str = ""


def outcome(check: Callable[..., object], *arguments: str) -> Outcome:
    """Carry out a check; what it found is no exception."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(*arguments)
    except DecantError as refusal:
        return Outcome(Verdict.REFUSED, str(refusal))
    except AssertionError:
        return Outcome(Verdict.WRONG, traceback.format_exc())
    except Exception:
        return Outcome(Verdict.ERROR, traceback.format_exc())
    return Outcome(Verdict.WORKS)
