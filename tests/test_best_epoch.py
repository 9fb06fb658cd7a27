"""What a training with patience ends with: one state that was measured, and all that the recipe asks."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from decant.checkpoints.checkpoint import Checkpoint, state
from decant.compression.finish import Result
from decant.costs.counts import nonzeros
from decant.costs.size import stored
from decant.errors import DecantError
from decant.examples import Examples, Splits
from decant.networks.architectures import Mlp
from decant.networks.execution import predict
from decant.networks.structure import compressible
from decant.prune.masks import masks_of
from decant.prune.operation import prune
from decant.training.fresh import train
from decant.training.recipe import Training
from decant.training.resume import Scratch
from decant.training.run import Run
from tests.nets import striped
from tests.slow import chessboard


def noisy(seed: int, count: int) -> Examples:
    """Images of which every third has a label by chance, so that a network soon learns too much."""
    examples, generator = striped(seed, count), torch.Generator().manual_seed(seed)
    labels = examples.labels.clone()
    labels[::3] = torch.randint(0, 3, (len(labels[::3]),), generator=generator)
    return replace(examples, labels=labels)


SPLITS = Splits(noisy(0, 96), noisy(1, 48))
TRAINING: dict[str, Any] = {
    "epochs": 5,
    "batch_size": 16,
    "optimizer": {"kind": "sgd", "learning_rate": 0.5},
    "schedule": {"kind": "cosine"},
    "patience": 1,
}
DURING = {"training": TRAINING, "every": 2, "end": 0.35}
"""Masks are final in the second of five epochs."""

SCHEDULES: dict[str, dict[str, Any]] = {
    "gradual": {"kind": "gradual", **DURING},
    "surgery": {"kind": "surgery", **DURING},
    "rigl": {"kind": "rigl", **DURING},
    "iterative": {"kind": "iterative", "rounds": 2, "training": TRAINING},
    "rewind": {"kind": "rewind", "epoch": 1},
}
MAGNITUDE = {"op": "prune", "from": "teacher", "criterion": {"kind": "magnitude"}}


@pytest.fixture(scope="module")
def teacher() -> Checkpoint:
    """A network whose lineage says how it was trained, with patience."""
    training = Training.model_validate(TRAINING | {"epochs": 3, "optimizer": {"kind": "adamw"}})
    made = train(Mlp(hidden=(16, 12)), training, SPLITS, Run("teacher", 3)).model
    return replace(made, lineage=({"op": "teacher", "training": training.model_dump(), "seed": 3},))


def pruned(teacher: Checkpoint, kind: str, run: Run | None = None, **changes: Any) -> Result:
    recipe = MAGNITUDE | {"budget": {"sparsity": 0.8}, "schedule": SCHEDULES[kind]} | changes
    return prune(teacher, recipe, SPLITS, run=run)


def validation_loss(model: Checkpoint) -> float:
    return F.cross_entropy(predict(model.module, SPLITS.validation.images), SPLITS.validation.labels).item()


def zeros(model: Checkpoint) -> int:
    return sum(int((~mask).sum()) for mask in masks_of(model).values())


def two_of_four(model: Checkpoint) -> bool:
    weights = compressible(model.module)
    return all(bool(((w.reshape(-1, 4) == 0).sum(1) == 2).all()) for w in weights.values())


def blocks_of_four(model: Checkpoint) -> bool:
    fours = [mask.reshape(-1, 4) for mask in masks_of(model).values()]
    return zeros(model) in (1000, 1004) and all(torch.equal(four.any(1), four.all(1)) for four in fours)


BUDGETS: dict[str, tuple[dict[str, Any], Callable[[Checkpoint], bool]]] = {
    "sparsity": ({"budget": {"sparsity": 0.8}}, lambda model: zeros(model) == round(0.8 * 1252)),
    "nonzeros": ({"budget": {"nonzeros": 400}}, lambda model: nonzeros(model.module) <= 400),
    "bytes": ({"budget": {"bytes": 3000}}, lambda model: stored(model) <= 3000),
    "n-of-m": ({"budget": None, "structure": {"kind": "n-of-m"}}, two_of_four),
    "blocks": ({"budget": {"sparsity": 0.8}, "structure": {"kind": "blocks"}}, blocks_of_four),
}
REFUSED = {
    "gradual": {"bytes"},
    "surgery": {"bytes"},
    "rigl": {"bytes", "n-of-m", "blocks"},
    "iterative": {"n-of-m"},
    "rewind": set(),
}
"""Budgets that the schema does not let a schedule have."""


@pytest.mark.parametrize(
    ("kind", "budget"),
    [pair for pair in chessboard(SCHEDULES, BUDGETS) if pair.values[1] not in REFUSED[pair.values[0]]],
)
def test_whatever_ends_a_training_its_model_has_what_was_asked_and_was_measured(
    kind: str, budget: str, teacher: Checkpoint
) -> None:
    changes, kept = BUDGETS[budget]
    result = pruned(teacher, kind, **changes)
    assert kept(result.model)
    first = 1 if kind in ("gradual", "surgery", "rigl") else last_round(result.curve)
    best = min(row["validation_loss"] for row in result.curve[first:])
    assert validation_loss(result.model) == pytest.approx(best, rel=1e-5)
    assert result.facts["epochs_run"] == len(result.curve)


def last_round(curve: Sequence[Any]) -> int:
    """Return the index of the first row of the last round, where the learning rate rises again."""
    rates = [row["learning_rate"] for row in curve]
    return max((index for index in range(1, len(rates)) if rates[index] > rates[index - 1]), default=0)


@pytest.mark.parametrize("end", [0.9, 1.0])
def test_a_patience_without_a_choice_is_refused_before_the_training(end: float, teacher: Checkpoint) -> None:
    with pytest.raises(DecantError, match="masks are final after the last of 5 epochs alone"):
        pruned(teacher, "gradual", schedule={"kind": "gradual", **DURING, "end": end})


def test_movement_without_a_step_to_score_is_refused(teacher: Checkpoint) -> None:
    changes = {"criterion": {"kind": "movement"}, "schedule": {"kind": "gradual", **DURING, "end": 0.01}}
    with pytest.raises(DecantError, match=r"schedule\.end: 0\.01 of 30 steps is before the first one"):
        pruned(teacher, "gradual", **changes)
    with pytest.raises(DecantError, match="take schedule gradual or surgery"):
        pruned(teacher, "rigl", criterion={"kind": "movement"})


def test_weights_of_before_the_folding_are_not_gone_back_to(teacher: Checkpoint) -> None:
    with pytest.raises(
        DecantError, match="schedule rewind: the model to prune has its batch norms folded in"
    ):
        pruned(replace(teacher, folded=True), "rewind")


def test_a_budget_in_nonzeros_counts_what_a_training_may_move_off_zero(teacher: Checkpoint) -> None:
    empty = teacher.narrowed({})
    with torch.no_grad():
        empty.module.get_parameter("layers.0.bias").zero_()
    assert (
        pruned(empty, "iterative", budget={"nonzeros": 400}).model.module.get_parameter("layers.0.bias").any()
    )


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_training_that_is_killed_after_each_epoch_ends_with_the_same_bits(
    kind: str, teacher: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = SCHEDULES[kind]
    if kind != "rewind":  # which trains as the teacher was
        schedule = schedule | {"training": TRAINING | {"average": 0.5, "patience": 2}}
    whole = pruned(teacher, kind, schedule=schedule)
    written = Scratch.write

    def killed(scratch: Scratch, content: Any) -> None:
        written(scratch, content)
        raise KeyboardInterrupt

    def place() -> Scratch:
        return Scratch(tmp_path, "identity")

    if kind == "rewind":  # its way to the weights of then is a training of its own
        with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
            patch.setattr(Scratch, "write", killed)
            pruned(teacher, kind, Run("model", 0, place), schedule=schedule)
    monkeypatch.setattr(Scratch, "write", killed)
    for _ in whole.curve:
        with pytest.raises(KeyboardInterrupt):
            pruned(teacher, kind, Run("model", 0, place), schedule=schedule)
    parts = pruned(teacher, kind, Run("model", 0, place), schedule=schedule)
    assert parts.curve == whole.curve
    assert all(
        torch.equal(tensor, state(parts.model.module)[n]) for n, tensor in state(whole.model.module).items()
    )
    assert all(torch.equal(mask, masks_of(parts.model)[n]) for n, mask in masks_of(whole.model).items())
