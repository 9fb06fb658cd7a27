"""Trainings in float16: the scale of gradients, what is skipped, and what is told where nothing helps."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decant.errors import DecantError
from decant.finetune.params import FinetuneParams
from decant.networks.architectures import Mlp, build
from decant.prune.params import PruneParams
from decant.schema import mistakes
from decant.training import scaling
from decant.training.fit import epochs_run, fit_
from decant.training.fresh import train
from decant.training.recipe import Training
from decant.training.resume import Scratch
from decant.training.run import Run
from decant.training.scaling import Scaler
from tests.test_devices import SPLITS, TRAINING, same

NET = Mlp(hidden=(16,))
HALF = TRAINING | {"precision": "float16"}


def with_gradients(*gradients: float) -> nn.Module:
    module = nn.Linear(len(gradients), 1, bias=False)
    module.weight.grad = torch.tensor([gradients])
    return module


def test_the_scale_moves_as_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a random run of steps with and without infinity, beside torch.amp.GradScaler."""
    monkeypatch.setattr(scaling, "GROWTH", 3)
    ours = Scaler(on=True, scale=64.0)
    theirs = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        wrong = torch.rand((), generator=generator).item() < 0.25
        taken = math.inf if wrong else 3.0
        one, other = with_gradients(taken, 1.0), with_gradients(taken, 1.0)
        optimizer = torch.optim.SGD(other.parameters(), 0.0)
        theirs.scale(torch.tensor(1.0))
        theirs.unscale_(optimizer)
        usable = ours.usable_(one.parameters())
        theirs.step(optimizer)
        theirs.update()
        assert usable is not wrong
        assert ours.scale == theirs.get_scale()
        for left, right in zip(one.parameters(), other.parameters(), strict=True):
            assert left.grad is not None and right.grad is not None
            assert wrong or torch.equal(left.grad, right.grad)
    assert ours.skipped > 3


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan])
def test_a_step_that_is_not_finite_is_skipped_and_halves_the_scale(wrong: float) -> None:
    scaler = Scaler(on=True)
    assert not scaler.usable_(with_gradients(1.0, wrong).parameters())
    assert (scaler.scale, scaler.skipped) == (2.0**15, 1)
    assert scaler.row_() == {"skipped_steps": 1.0}
    assert scaler.row_() == {"skipped_steps": 0.0}


def test_without_float16_gradients_are_left_as_they_come() -> None:
    scaler, module = Scaler(), with_gradients(math.inf, 1.0)
    assert scaler.usable_(module.parameters())
    loss = torch.tensor(2.0)
    assert scaler.scaled(loss) is loss
    assert scaler.row_() == scaler.content() == {}


def test_a_training_in_float16_comes_near_one_in_float32() -> None:
    ends = {
        precision: train(NET, Training.model_validate(HALF | {"precision": precision}), SPLITS, Run(seed=3))
        for precision in ("float32", "float16")
    }
    for row, expected in zip(ends["float16"].curve, ends["float32"].curve, strict=True):
        assert row["validation_loss"] == pytest.approx(expected["validation_loss"], rel=0.02)
        assert "skipped_steps" not in expected
    facts = ends["float16"].facts
    assert facts["skipped_steps"] == sum(row["skipped_steps"] for row in ends["float16"].curve)


def test_half_plus_half_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "GROWTH", 4)  # so that the scale moves within it
    training, place = Training.model_validate(HALF), Scratch(tmp_path, "id")
    whole = train(NET, training, SPLITS, Run(seed=3))
    written = Scratch.write

    def stopping(scratch: Scratch, content: Any) -> None:
        written(scratch, content)
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(Scratch, "write", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(NET, training, SPLITS, Run(seed=3, place=lambda: place))
    content = torch.load(place.file, weights_only=True)
    assert content["scaler"]["scale"] != scaling.FIRST
    assert same(train(NET, training, SPLITS, Run(seed=3, place=lambda: place)), whole)


def test_a_state_of_a_scaler_that_cannot_be_is_refused() -> None:
    for wrong in ({"scale": 0.5}, {"scale": 2.0**30}, {"steady": -1}):
        with pytest.raises(ValueError, match="its scaler stands at"):
            Scaler(on=True).restore_({"scaler": {"scale": 2.0, "steady": 0, "skipped": 0} | wrong})


def failing(loss: Any) -> str:
    settings: dict[str, Any] = {"scratch": None, "seed": 1, "constraints": {}, "title": "t"}
    training = Training.model_validate(HALF | {"epochs": 9, "batch_size": 4})
    with pytest.raises(DecantError) as caught:
        fit_(build(NET, (1, 8, 8), 3, seed=1), training, loss, SPLITS.train, SPLITS.validation, **settings)
    return str(caught.value)


def test_gradients_that_no_scale_makes_finite_are_told_with_the_scalers_steps() -> None:
    def steep(_: object, logits: Tensor, __: object) -> Tensor:
        return (logits - logits.detach()).abs().clamp(min=0).sqrt().sum()  # whose slope at 0 is infinite

    assert failing(steep) == (
        "In float16 gradients are NaN or infinite at a scale of 1 too (the scaler skipped 17 steps and "
        "stands at 1); take precision: bfloat16, or lower the learning rate"
    )


def test_a_loss_that_is_not_a_number_is_told_with_the_scalers_steps() -> None:
    told = failing(lambda _, logits, __: logits.sum() * math.nan)
    assert told == (
        "The loss became nan in epoch 1, step 1 of 24; take precision: bfloat16, or lower the learning "
        "rate, 0.000231481 there (the scaler skipped 1 step and stands at 32768); "
        "weights are those before this step"
    )


def test_facts_of_other_precisions_are_what_they_were() -> None:
    assert epochs_run(Training.model_validate(TRAINING | {"patience": None}), [{"epoch": 1.0}]) == {}


def test_tf32_is_for_gpus() -> None:
    expected = (
        "training.precision: tf32 is how GPUs multiply, and this runs on cpu: take float32, or a device"
    )
    recipe = {"op": "finetune", "from": "p", "training": TRAINING | {"precision": "tf32"}}
    assert mistakes(recipe, FinetuneParams) == [f"top level: {expected}"]
    assert mistakes(recipe | {"device": "cuda"}, FinetuneParams) == []
    schedule = {"kind": "gradual", "training": TRAINING | {"precision": "tf32"}}
    pruning = {"op": "prune", "from": "p", "criterion": {"kind": "magnitude"}, "budget": {"sparsity": 0.5}}
    assert mistakes(pruning | {"schedule": schedule}, PruneParams) == [f"top level: schedule.{expected}"]
    with pytest.raises(DecantError, match="tf32 is how GPUs multiply"):
        train(NET, Training.model_validate(TRAINING | {"precision": "tf32"}), SPLITS)
