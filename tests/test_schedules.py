"""Whole prune stages on a small trained network: budgets are met, masks hold, half and half is whole."""

import importlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import nn

from decant.checkpoints.checkpoint import Checkpoint, state
from decant.checkpoints.files import size_bytes
from decant.compression.promises import check_promises
from decant.costs.counts import macs, nonzeros, parameters
from decant.errors import DecantError
from decant.networks.architectures import Resnet, build
from decant.networks.execution import predict
from decant.networks.structure import compressible, filters
from decant.prune.mask_pruning import MaskPruning
from decant.prune.origins import fresh
from decant.prune.params import PruneParams
from decant.training import fit
from decant.training.recipe import Training
from decant.training.resume import Scratch
from decant.training.steps import group_norms
from tasks.pipeline.models import load_model
from tasks.pipeline.params import validate
from tasks.pipeline.splits import TRAIN, VALIDATION, read, read_splits
from tasks.prepare.splits import Split
from tests import homes
from tests.homes import write_params
from tests.slow import slow_but

T = TypeVar("T")

TRAINING = {
    "epochs": 2,
    "batch_size": 16,
    "optimizer": {"kind": "sgd", "learning_rate": 0.05},
    "average": 0.5,
}
TEACHER = {"architecture": {"kind": "resnet", "widths": [8, 8], "blocks": [1, 1]}, "training": TRAINING}
BLOCK: dict[str, Any] = {"op": "prune", "from": "teacher", "criterion": {"kind": "magnitude"}}
HALF = {"budget": {"sparsity": 0.5}}


def stripes(seed: int, count: int) -> Split:
    """Ten classes, told apart by where a stripe is."""
    generator = np.random.Generator(np.random.PCG64(seed))
    labels = (np.arange(count) % 10).astype(np.uint8)
    images = generator.integers(0, 90, (count, 1, 10, 10), np.uint8)
    images[np.arange(count), 0, labels] += 120
    return Split(images, labels)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two tables and a teacher that was trained for two epochs."""
    splits = {"train": stripes(0, 160), "validation": stripes(1, 40)}
    with homes.home(tmp_path_factory.mktemp("home"), splits) as folder:
        params({})
        importlib.import_module("tasks.teacher.__main__").main()
        yield folder


def params(models: dict[str, Any]) -> None:
    threads = {"teacher": 1, "prune": 1}
    write_params({"seed": 1, "threads": threads, "teacher": TEACHER, "models": models})


def prune(name: str = "child", **changes: Any) -> Checkpoint:
    """Run the stage and return what it wrote."""
    params({name: BLOCK | changes})
    importlib.import_module("tasks.prune.__main__").main(name)
    return load_model(name)


def watched(monkeypatch: pytest.MonkeyPatch, look: Callable[[Any], T]) -> list[T]:
    """Return a list to which every step of a training from here on adds what `look` sees before it."""
    seen, original = list[T](), fit.step_

    def watch(trainee: Any, *more: Any) -> Any:
        seen.append(look(trainee))
        return original(trainee, *more)

    monkeypatch.setattr(fit, "step_", watch)
    return seen


def masks_now(progress: Any) -> dict[str, torch.Tensor]:
    return dict(progress.sparsifier.masks)


def zeros(model: Checkpoint) -> int:
    return sum(int((weight == 0).sum()) for weight in compressible(model.module).values())


def total(model: Checkpoint) -> int:
    return sum(weight.numel() for weight in compressible(model.module).values())


SCHEDULES: dict[str, dict[str, Any]] = {
    "one-shot": {"kind": "one-shot"},
    "iterative": {"kind": "iterative", "rounds": 2, "training": TRAINING},
    "gradual": {"kind": "gradual", "training": TRAINING, "every": 3},
    "surgery": {"kind": "surgery", "training": TRAINING, "every": 3},
    "rigl": {"kind": "rigl", "training": TRAINING, "every": 3},
    "rewind": {"kind": "rewind", "epoch": 1},
    "fresh": {"kind": "rewind", "epoch": 0},
    "rate": {"kind": "rewind", "epoch": 1, "weights": False},
}


@pytest.mark.parametrize(
    ("kind", "budget"),
    [
        *((kind, ({"sparsity": 0.7}, {"nonzeros": 700})[at % 2]) for at, kind in enumerate(SCHEDULES)),
        *(pytest.param(kind, {"nonzeros": 700}, marks=pytest.mark.slow) for kind in ("gradual", "rigl")),
    ],
    ids=lambda each: each if isinstance(each, str) else next(iter(each)),
)
def test_every_schedule_meets_its_budget_and_holds_its_masks(
    kind: str, budget: dict[str, float], home: Path
) -> None:
    model = prune(budget=budget, schedule=SCHEDULES[kind], allocation={"kind": "layer"})
    if "sparsity" in budget:
        assert zeros(model) == round(0.7 * total(model))
    else:
        assert 690 <= nonzeros(model.module) <= 700
    for name, weight in compressible(model.module).items():
        mask = model.constraints[name].mask
        assert mask is not None
        assert not weight[~mask].any()
    curve = Path("models/child/curve.csv")
    epochs = {"one-shot": 0, "iterative": 4, "rewind": 1, "rate": 1}.get(kind, 2)
    assert (len(curve.read_text().splitlines()) - 1 if curve.exists() else 0) == epochs
    assert not list(Path(".scratch").glob("*"))


@pytest.mark.parametrize(
    ("kind", "criterion"),
    [
        ("iterative", "magnitude"),
        ("gradual", "movement"),  # scored in a training
        *(pytest.param(kind, "magnitude", marks=pytest.mark.slow) for kind in ("surgery", "rigl", "rewind")),
    ],
)
def test_an_interrupted_schedule_goes_on_to_the_same_bytes(
    kind: str, criterion: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = HALF | {"schedule": SCHEDULES[kind], "criterion": {"kind": criterion}}
    prune(**recipe)
    whole = {path.name: path.read_bytes() for path in Path("models/child").iterdir()}
    written = Scratch.write

    def interrupt(self: Scratch, content: Any) -> None:
        written(self, content)
        raise KeyboardInterrupt

    for _ in range(2):
        monkeypatch.setattr(Scratch, "write", interrupt)
        try:
            prune(**recipe)
        except KeyboardInterrupt:
            continue
    monkeypatch.setattr(Scratch, "write", written)
    prune(**recipe)
    assert {path.name: path.read_bytes() for path in Path("models/child").iterdir()} == whole


def test_a_gradual_schedule_removes_more_and_more_and_surgery_gives_back(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, revives in (("gradual", False), ("surgery", True)):
        training = TRAINING | {"epochs": 4, "optimizer": {"kind": "sgd", "learning_rate": 0.3}}
        schedule = SCHEDULES[kind] | {"training": training, "every": 1}
        with monkeypatch.context() as patch:
            seen = watched(patch, masks_now)
            prune(budget={"sparsity": 0.9}, schedule=schedule, allocation={"kind": "layer"})
        gone = [sum(int((~mask).sum()) for mask in masks.values()) for masks in seen]
        assert gone == sorted(gone)
        assert len(set(gone)) > 10
        changes = [
            int((~before[name] & after[name]).sum()) for before, after in pairwise(seen) for name in before
        ]
        assert (sum(changes) > 0) == revives


def test_rigl_moves_weights_and_keeps_the_number_in_each_layer(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched(monkeypatch, masks_now)
    prune(**HALF, schedule=SCHEDULES["rigl"], allocation={"kind": "erk"})
    counts = [{name: int(mask.sum()) for name, mask in masks.items()} for masks in seen]
    assert all(count == counts[0] for count in counts)
    assert any(not torch.equal(seen[0][name], seen[-1][name]) for name in seen[0])


@pytest.mark.parametrize("kind", slow_but(("one-shot", "surgery", "rewind"), SCHEDULES))
def test_masks_of_an_already_pruned_model_hold_through_every_schedule(kind: str, home: Path) -> None:
    block = BLOCK | {"budget": {"sparsity": 0.4}}
    first = prune("first", **block)
    later = BLOCK | {"from": "first", "budget": {"sparsity": 0.6}, "schedule": SCHEDULES[kind]}
    params({"first": block, "second": later})
    importlib.import_module("tasks.prune.__main__").main("second")
    second = load_model("second")
    assert zeros(second) == round(0.6 * total(second))
    for name, held in first.constraints.items():
        assert held.mask is not None
        assert not second.module.get_parameter(name)[~held.mask].any()


def test_fresh_weights_are_those_that_the_teacher_began_with(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Path("models/teacher/model.safetensors").read_bytes()
    began = watched(monkeypatch, lambda progress: {n: t.clone() for n, t in state(progress.module).items()})
    importlib.import_module("tasks.teacher.__main__").main()
    assert Path("models/teacher/model.safetensors").read_bytes() == before
    drawn = state(fresh(load_model("teacher"), read(TRAIN)))
    assert all(torch.equal(tensor, began[0][name]) for name, tensor in drawn.items())


def test_rewinding_without_pruning_anything_would_be_the_teacher_s_training(home: Path) -> None:
    # One weight of all is removed: the curve of the last epoch is nearly the teacher's own.
    prune(budget={"nonzeros": nonzeros(load_model("teacher").module) - 1}, schedule=SCHEDULES["rewind"])
    own = Path("models/teacher/curve.csv").read_text().splitlines()
    again = Path("models/child/curve.csv").read_text().splitlines()
    rate = own[0].split(",").index("learning_rate")
    assert own[2].split(",")[rate] == again[1].split(",")[rate]
    loss = own[0].split(",").index("loss")
    assert float(own[2].split(",")[loss]) == pytest.approx(float(again[1].split(",")[loss]), rel=0.2)


def test_a_model_without_the_teacher_s_beginning_is_refused(home: Path) -> None:
    other = replace(load_model("teacher"), lineage=({"op": "teacher"},))
    with pytest.raises(DecantError, match=r"its lineage\.json has no such beginning"):
        fresh(other, read(TRAIN))
    with pytest.raises(DecantError, match="has 2 epochs, so the last that can be gone back to is 1, got 2"):
        prune(**HALF, schedule={"kind": "rewind", "epoch": 2})


def test_snip_scores_the_fresh_network(home: Path) -> None:
    model = prune(**HALF, criterion={"kind": "snip"}, schedule=SCHEDULES["fresh"])
    assert zeros(model) == round(0.5 * total(model))


# --- budgets


def test_bytes_are_those_on_disk_and_no_more_is_lost_than_must_be(home: Path) -> None:
    model = prune(budget={"bytes": 0.6})
    limit = 0.6 * size_bytes(Path("models/teacher"))
    assert limit - 60 < size_bytes(Path("models/child")) <= limit
    assert zeros(model) > 0


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_drift_stops_before_the_logits_move_further(criterion: str, home: Path) -> None:
    model, teacher = prune(budget={"drift": 0.02}, criterion={"kind": criterion}), load_model("teacher")
    images = read(TRAIN).images[-1000:]
    p = predict(teacher.module, images).double().softmax(1)
    q = predict(model.module, images).double().softmax(1)
    drift = (p * (p / q).log()).sum(1).mean().item()
    assert 0.01 < drift <= 0.02 + 1e-6


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"nonzeros": 10}, r"nonzeros 10 cannot be met: the least that can be left has (\d+)"),
        ({"bytes": 500}, r"bytes 500 cannot be met: the least that can be left has ([\d,]+)"),
        ({"bytes": 10_000_000}, "bytes 10,000,000 is met already"),
        ({"drift": 1e-12}, "drift 1e-12 allows no removal"),
        ({"sparsity": 0.9999}, r"the nearest possible is 0\.99"),
    ],
)
def test_impossible_budgets_name_the_nearest(budget: dict[str, float], words: str, home: Path) -> None:
    with pytest.raises(DecantError, match=words):
        prune("never", budget=budget, criterion={"kind": "random"})
    assert not Path("models/never").exists()


def test_a_training_that_breaks_the_budget_is_told(home: Path) -> None:
    teacher = load_model("teacher")
    block = validate(BLOCK | {"budget": {"nonzeros": 700}}, PruneParams)
    pruning = MaskPruning(block, teacher, teacher, read_splits(), 1)
    assert not pruning.met(pruning.pruned().model)
    with pytest.raises(DecantError, match="nonzeros 700 was met before the training and is not after it"):
        check_promises(teacher, [pruning.met])


def test_the_nearest_possible_budget_is_possible(home: Path) -> None:
    with pytest.raises(DecantError) as told:
        prune(budget={"nonzeros": 10}, allocation={"kind": "layer"})
    nearest = int(str(told.value).split("has ")[1].split(";")[0].replace(",", ""))
    # One weight in each layer is the least, which only an allocation that knows leaves everywhere.
    model = prune(budget={"nonzeros": nearest}, allocation={"kind": "lamp"})
    assert nonzeros(model.module) == nearest


@pytest.mark.parametrize(
    "schedule", slow_but(("one-shot", "gradual"), ("one-shot", "gradual", "surgery", "rewind"))
)
def test_two_of_four_in_all_layers_that_have_four_inputs(schedule: str, home: Path) -> None:
    model = prune(structure={"kind": "n-of-m", "n": 2, "m": 4}, schedule=SCHEDULES[schedule])
    for name, weight in compressible(model.module).items():
        if name == "stem.0.weight":
            assert name not in model.constraints
            continue
        fours = weight.movedim(1, -1).reshape(-1, 4)
        assert ((fours == 0).sum(1) == 2).all()
    ledger = {entry["name"]: entry for entry in json.loads(Path("models/child/ledger.json").read_text())}
    assert ledger["stem.0.weight"]["untouched"] == "1 input channels are no multiple of 4"


def test_adaptive_reads_validation_images_and_meets_the_budget(home: Path) -> None:
    model = prune(budget={"sparsity": 0.7}, allocation={"kind": "adaptive", "images": 40, "points": 6})
    uniform = prune("uniform", budget={"sparsity": 0.7}, allocation={"kind": "layer"})
    assert zeros(model) == zeros(uniform) == round(0.7 * total(model))
    validation, teacher = read(VALIDATION).images, load_model("teacher")
    p = predict(teacher.module, validation).double().softmax(1)
    drift = [
        (p * (p / predict(m.module, validation).double().softmax(1)).log()).sum(1).mean().item()
        for m in (model, uniform)
    ]
    assert drift[0] < drift[1]


def test_obs_loses_less_than_magnitude(home: Path) -> None:
    teacher, images = load_model("teacher"), read(VALIDATION).images
    p = predict(teacher.module, images).double().softmax(1)
    drift = {}
    for kind in ("obs", "magnitude"):
        model = prune(budget={"sparsity": 0.8}, allocation={"kind": "layer"}, criterion={"kind": kind})
        assert zeros(model) == round(0.8 * total(model))
        q = predict(model.module, images).double().softmax(1)
        drift[kind] = (p * (p / q).log()).sum(1).mean().item()
    assert drift["obs"] < 0.5 * drift["magnitude"]


# --- channels

CHANNELS = {"structure": {"kind": "channels", "minimum": 2}, "allocation": {"kind": "layer"}}


@pytest.mark.parametrize(
    "kind",
    slow_but(
        ("magnitude", "fisher", "reconstruction"),
        ("magnitude", "taylor", "fisher", "random", "reconstruction", "drift"),
    ),
)
def test_channels_are_gone_and_the_budget_is_met(kind: str, home: Path) -> None:
    teacher = load_model("teacher")
    model = prune(**CHANNELS, criterion={"kind": kind}, budget={"macs": 0.5})
    assert macs(model.module) <= 0.5 * macs(teacher.module)
    assert parameters(model.module) < 0.6 * parameters(teacher.module)
    ledger = json.loads(Path("models/child/ledger.json").read_text())
    assert sum(entry.get("removed", 0) for entry in ledger) == parameters(teacher.module) - parameters(
        model.module
    )
    again = load_model("child")
    images = read(VALIDATION).images
    assert torch.equal(predict(again.module, images), predict(model.module, images))


@pytest.mark.parametrize(
    "budget",
    [{"sparsity": 0.5}, {"nonzeros": 0.6}, {"bytes": 0.6}, {"drift": 0.3}],
    ids=lambda b: next(iter(b)),
)
def test_channels_to_every_budget(budget: dict[str, float], home: Path) -> None:
    teacher, (measure, amount) = load_model("teacher"), next(iter(budget.items()))
    model = prune(**CHANNELS, budget=budget)
    if measure == "sparsity":
        widths = [layer.num_features for layer in model.module.modules() if isinstance(layer, nn.BatchNorm2d)]
        assert widths[0] < 8
    elif measure == "nonzeros":
        assert nonzeros(model.module) <= amount * nonzeros(teacher.module)
    elif measure == "bytes":
        assert size_bytes(Path("models/child")) <= amount * size_bytes(Path("models/teacher"))
    else:
        images = read(TRAIN).images[-1000:]
        p = predict(teacher.module, images).double().softmax(1)
        q = predict(model.module, images).double().softmax(1)
        assert 0 < (p * (p / q).log()).sum(1).mean().item() <= amount + 1e-6


@pytest.mark.parametrize("schedule", ["iterative", "rate", "rewind"])
def test_channels_with_schedules_that_train(schedule: str, home: Path) -> None:
    if schedule == "rewind":  # the weights of then do not fit what is left
        with pytest.raises(DecantError, match="rewind of channels keeps the weights"):
            prune(**CHANNELS, budget={"macs": 0.5}, schedule=SCHEDULES[schedule])
        return
    model, teacher = (
        prune(**CHANNELS, budget={"macs": 0.5}, schedule=SCHEDULES[schedule]),
        load_model("teacher"),
    )
    assert macs(model.module) <= 0.5 * macs(teacher.module)
    assert Path("models/child/curve.csv").exists()


def test_reconstruction_repairs_what_it_removes(home: Path) -> None:
    teacher, images = load_model("teacher"), read(VALIDATION).images
    p = predict(teacher.module, images).double().softmax(1)
    drift = {}
    for kind in ("reconstruction", "magnitude"):
        model = prune(**CHANNELS, criterion={"kind": kind}, budget={"macs": 0.5})
        q = predict(model.module, images).double().softmax(1)
        drift[kind] = (p * (p / q).log()).sum(1).mean().item()
    assert drift["reconstruction"] < 0.5 * drift["magnitude"]


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"macs": 10}, r"macs 10 cannot be met: .*the least that can be left has [\d,]+"),
        ({"macs": 10**9}, "macs 1,000,000,000 is met already"),
    ],
)
def test_impossible_budgets_of_channels_name_the_nearest(
    budget: dict[str, float], words: str, home: Path
) -> None:
    with pytest.raises(DecantError, match=words):
        prune("never", **CHANNELS, budget=budget)


# --- regularization


def test_group_norms_by_hand() -> None:
    module = build(Resnet(widths=(2,), blocks=(0,)), (1, 8, 8), 3, seed=0)
    with torch.no_grad():
        module.get_parameter("stem.1.weight").copy_(torch.tensor([-0.5, 2.0]))
        module.get_parameter("head.weight").copy_(torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.6, 0.8]]))
    assert group_norms(module).item() == pytest.approx(2.5 + math.sqrt(2) * (5 + 1), rel=1e-5)
    assert list(filters(module)) == ["stem.1.weight", "head.weight"]


def test_regularization_shrinks_what_it_says(home: Path, tmp_path: Path) -> None:
    def size(**terms: float) -> tuple[float, float]:
        module: nn.Module = build(Resnet(widths=(8, 8), blocks=(1, 1)), (1, 10, 10), 10, seed=0)
        training = Training.model_validate(TRAINING | {"epochs": 4} | terms)
        fit.fit_(
            module,
            training,
            training.hard_loss(),
            read(TRAIN),
            read(VALIDATION),
            scratch=Scratch(tmp_path / "-".join(terms), "id"),
            seed=1,
            constraints={},
            title="regularized",
        )
        weights = torch.cat([weight.flatten() for weight in compressible(module).values()])
        channels = torch.cat([weight.abs() for weight in filters(module).values() if weight.dim() == 1])
        return weights.abs().median().item(), channels.min().item()

    median, channel = size()
    assert size(l1=0.003)[0] < 0.9 * median
    assert size(group_lasso=0.02)[1] < 0.9 * channel
