"""The training loop: it learns, it holds what it must hold, and half plus half equals whole to the bit."""

import copy
import hashlib
import io
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from decant.checkpoints.checkpoint import state
from decant.checkpoints.constraints import Constraints
from decant.errors import DecantError
from decant.examples import Examples, Rows, pixels
from decant.networks.architectures import Mlp, Resnet, build
from decant.networks.augmentation import Augmentation
from decant.networks.structure import compressible
from decant.quantize.schemes import Binary, Integer
from decant.training import fit as fit_module
from decant.training import steps, validation
from decant.training.averages import reader
from decant.training.batches import batches
from decant.training.fit import fit_
from decant.training.held import Held
from decant.training.layout import lay_out_, layout
from decant.training.recipe import Adamw, Cosine, OneCycle, Sgd, Training
from decant.training.resume import Scratch
from decant.training.tally import NoNumberError, Tally
from decant.training.trainee import Trainee, copied
from tests.nets import striped

TRAIN, VALIDATION = striped(0), striped(1, 48)
RECIPE: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 16,
    "optimizer": Sgd(learning_rate=0.05),
    "augmentation": Augmentation(flip=True, shift=0),
    "average": 0.9,
}


def train(
    module: nn.Module,
    folder: Path,
    constraints: dict[str, Constraints] | None = None,
    seed: int = 5,
    **changes: Any,
) -> list[dict[str, float]]:
    training = Training(**(RECIPE | changes))
    return fit_(
        module,
        training,
        training.hard_loss(),
        TRAIN,
        VALIDATION,
        scratch=Scratch(folder, "id"),
        seed=seed,
        constraints=constraints or {},
        title="test",
    )


def resnet() -> nn.Module:
    return build(Resnet(widths=(4, 8), blocks=(1, 1)), (1, 8, 8), 3, seed=1)


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(tensor, state(other)[name]) for name, tensor in state(one).items())


def test_it_learns_and_the_curve_says_so(tmp_path: Path) -> None:
    module = resnet()
    curve = train(module, tmp_path, epochs=8)
    assert [row["epoch"] for row in curve] == list(range(1, 9))
    assert curve[-1]["validation_accuracy"] == 1.0
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert not module.training


@pytest.mark.parametrize(
    ("optimizer", "stop_after", "patience"),
    [
        (Sgd(learning_rate=0.05), 1, None),
        pytest.param(Sgd(learning_rate=0.05), 2, 2, marks=pytest.mark.slow),
        pytest.param(Adamw(learning_rate=0.005), 3, None, marks=pytest.mark.slow),
        (Adamw(learning_rate=0.005), 1, 2),
    ],
)
def test_half_and_half_equals_whole_to_the_bit(
    optimizer: Sgd | Adamw,
    stop_after: int,
    patience: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = {"optimizer": optimizer, "patience": patience, "epochs": 5}
    whole, halves = resnet(), resnet()
    curve = train(whole, tmp_path / "whole", **changes)
    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "_epoch", interrupt_after(stop_after, fit_module._epoch))
        with pytest.raises(KeyboardInterrupt):
            train(halves, tmp_path / "halves", **changes)
    fresh = resnet()
    assert train(fresh, tmp_path / "halves", **changes) == curve
    assert equal(fresh, whole)


def interrupt_after(epochs: int, original: Callable[..., Any]) -> Callable[..., Any]:
    count = 0

    def epoch(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > epochs:
            raise KeyboardInterrupt
        return original(*arguments)

    return epoch


@pytest.mark.parametrize("widths", [(4, 8), (6, 10), (8, 16), (32, 64)])
def test_gradients_in_the_chosen_layout_are_those_of_double_precision(widths: tuple[int, int]) -> None:
    module = build(Resnet(widths=widths, blocks=(1, 1)), (1, 8, 8), 3, seed=1)
    exact = copy.deepcopy(module).double()
    memory = layout(module)
    lay_out_(module, memory)
    inputs = TRAIN.images[:16].float() / 255
    F.cross_entropy(exact(inputs.double()), TRAIN.labels[:16]).backward()
    for _ in range(10):  # a race shows now and then
        module.zero_grad()
        F.cross_entropy(module(inputs.contiguous(memory_format=memory)), TRAIN.labels[:16]).backward()
        for parameter, reference in zip(module.parameters(), exact.parameters(), strict=True):
            assert parameter.grad is not None
            assert reference.grad is not None
            torch.testing.assert_close(parameter.grad.double(), reference.grad, rtol=1e-3, atol=1e-5)


def test_channels_lie_last_only_where_that_is_safe() -> None:
    safe = build(Resnet(widths=(8, 16), blocks=(1, 1)), (1, 8, 8), 3, seed=1)
    assert layout(safe) == torch.channels_last
    assert layout(resnet()) == torch.contiguous_format
    assert layout(build(Mlp(hidden=(8,)), (1, 8, 8), 3, seed=1)) == torch.contiguous_format


def test_a_broken_state_is_passed_over_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, again = resnet(), resnet()
    train(whole, tmp_path / "whole")
    broken = Scratch(tmp_path / "broken", "id")
    broken.folder.mkdir()
    broken.file.write_bytes(b"no state at all")
    train(again, tmp_path / "broken")
    assert f"{broken.file} is not used (its sum is another training's" in capsys.readouterr().err
    assert equal(whole, again)


NO_NUMBER = torch.tensor(math.nan)
UNFIT: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "no optimizer": lambda content: {key: content[key] for key in content if key != "optimizer"},
    "an empty module": lambda content: content | {"module": {}},
    "another curve": lambda content: content | {"curve": 5},
    "rows of nothing": lambda content: content | {"curve": [{}]},
    "another epoch": lambda content: content | {"curve": [content["curve"][0] | {"epoch": 7}]},
    "no average": lambda content: content | {"averaged": {}},
    "another network's weight": lambda content: changed(content, "module", "head.bias", torch.zeros(4)),
    "doubles": lambda content: changed(content, "averaged", "head.bias", torch.zeros(3).double()),
    "not finite": lambda content: changed(content, "module", "head.bias", NO_NUMBER.repeat(3)),
    "another best epoch": lambda content: content | {"best": {"tensors": {}, "masks": {}}},
    "a moment of another shape": lambda content: changed(
        content, "optimizer", "state", {0: {"momentum_buffer": torch.zeros(2, 2)}}
    ),
    "a word in place of a moment": lambda content: changed(
        content, "optimizer", "state", {0: {"momentum_buffer": "x"}}
    ),
    "another optimizer's moments": lambda content: changed(
        content, "optimizer", "state", {0: {"step": torch.tensor(1.0)}}
    ),
    "no such parameter": lambda content: changed(
        content, "optimizer", "state", {99: {"momentum_buffer": torch.zeros(2, 2)}}
    ),
    "another optimizer": lambda content: changed(
        content,
        "optimizer",
        "param_groups",
        [group | {"momentum": -1.0} for group in content["optimizer"]["param_groups"]],
    ),
    "a mask of another shape": lambda content: content | {"sparsifier": {"masks": {"head.bias": NO_NUMBER}}},
}


def changed(content: dict[str, Any], part: str, key: str, value: Any) -> dict[str, Any]:
    return content | {part: content[part] | {key: value}}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """Return where the state after the first epoch lies, and what the whole training ends with."""
    folder, whole = tmp_path_factory.mktemp("interrupted"), resnet()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scratch, "write", stopping(Scratch.write))
        with pytest.raises(KeyboardInterrupt):
            train(resnet(), folder / "half", epochs=2)
    train(whole, folder / "whole", epochs=2)
    return folder / "half", whole


def stopping(write: Callable[..., None]) -> Callable[..., None]:
    def stop(self: Scratch, content: Any) -> None:
        write(self, content)
        raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("what", UNFIT)
def test_a_state_that_does_not_fit_costs_a_sentence(
    what: str, interrupted: tuple[Path, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = Scratch(interrupted[0], "id").read()
    assert content is not None
    Scratch(tmp_path, "id").write(UNFIT[what](content))
    train(again := resnet(), tmp_path, epochs=2)
    refused = re.findall(r"id\.pt is not used \(.*\); starting from the first epoch", capsys.readouterr().err)
    assert len(refused) == 1
    assert equal(interrupted[1], again)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_state_that_was_cut_or_is_another_training_s_costs_a_sentence(
    share: float, interrupted: tuple[Path, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (interrupted[0] / "id.pt").read_bytes()
    (tmp_path / "id.pt").write_bytes(content[: int(share * len(content))])
    (tmp_path / "other.pt").write_bytes(content)
    (tmp_path / "folder.pt").mkdir()
    torch.save([1], listed := io.BytesIO())
    (tmp_path / "list.pt").write_bytes(
        hashlib.sha256(b"list" + listed.getvalue()).digest() + listed.getvalue()
    )
    for identity in ("id", "other", "folder", "list"):
        assert Scratch(tmp_path, identity).read() is None
    assert capsys.readouterr().err.count("starting from the first epoch") == 4


def test_reading_a_state_executes_nothing(tmp_path: Path) -> None:
    class Mischief:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    place = Scratch(tmp_path / "folder", "id")
    place.folder.mkdir()
    torch.save({"module": Mischief()}, place.file)
    assert place.read() is None
    assert not (tmp_path / "executed").exists()


def test_the_seed_decides_and_the_global_generator_does_not(tmp_path: Path) -> None:
    one, same, other = resnet(), resnet(), resnet()
    train(one, tmp_path / "1")
    torch.manual_seed(123)
    train(same, tmp_path / "2")
    train(other, tmp_path / "3", seed=6)
    assert equal(one, same)
    assert not equal(one, other)


def held_by(module: nn.Module, scheme: Integer | Binary, sparsity: float = 0.5) -> dict[str, Constraints]:
    name = "stages.1.conv1.weight"
    weight = module.get_parameter(name).detach()
    return {
        name: Constraints(
            levels=scheme.levels(weight),
            mask=weight.abs() > weight.abs().quantile(sparsity),
        )
    }


@pytest.mark.parametrize(
    ("scheme", "average"),
    [(Integer(bits=4), 0.9), (Integer(bits=2, per_channel=False), 0.0), (Binary(), 0.9), (Binary(), 0.0)],
)
def test_masks_and_levels_are_held_while_the_weight_is_trained(
    scheme: Integer | Binary, average: float, tmp_path: Path
) -> None:
    module = resnet()
    constraints = held_by(module, scheme)
    (name, held), *_ = constraints.items()
    with torch.no_grad():
        module.get_parameter(name).copy_(held.project(module.get_parameter(name)))
    before = module.get_parameter(name).detach().clone()
    train(module, tmp_path, constraints, epochs=8, average=average)
    after = module.get_parameter(name)
    assert held.broken_by(after, held) == []
    assert not torch.equal(after, before)


def test_early_stopping_ends_with_the_best_epoch(tmp_path: Path) -> None:
    module = build(Mlp(hidden=(32,)), (1, 8, 8), 3, seed=0)
    curve = train(module, tmp_path, epochs=60, patience=2, average=0.0, optimizer=Adamw(learning_rate=0.1))
    losses = [row["validation_loss"] for row in curve]
    best = losses.index(min(losses))
    assert len(curve) == best + 3 < 60
    logits = module(VALIDATION.images.float() / 255)
    assert F.cross_entropy(logits, VALIDATION.labels).item() == pytest.approx(losses[best], rel=1e-5)


def test_of_equal_losses_the_first_is_the_best_one(tmp_path: Path) -> None:
    still = {"epochs": 9, "average": 0.0, "weight_decay": 0.0, "optimizer": Sgd(learning_rate=1e-30)}
    curve = train(build(Mlp(hidden=(8,)), (1, 8, 8), 3, seed=0), tmp_path, patience=2, **still)
    assert len({row["validation_loss"] for row in curve}) == 1
    assert len(curve) == 3


class Hopping(nn.Module):
    """Draws from every global generator, in eval mode too."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * (1 + 0.01 * torch.rand(()) + 0.01 * np.random.random() + 0.01 * random.random())


def drawing_net() -> nn.Module:
    """Return a network of layers that draw: dropout, attention's, a randomized rectifier, one of ours."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(2),
            nn.Unflatten(2, (4, 16)),
            nn.Flatten(0, 1),
            nn.TransformerEncoderLayer(16, 2, 8, dropout=0.3, batch_first=True),
            nn.RReLU(),
            nn.Dropout(0.3),
            Hopping(),
            nn.Flatten(),
            nn.Linear(64, 3),
        )


def test_what_layers_draw_is_the_seeds_and_the_global_generators_stay(tmp_path: Path) -> None:
    one, same, other = drawing_net(), drawing_net(), drawing_net()
    train(one, tmp_path / "1")
    torch.manual_seed(123)
    np.random.seed(123)
    random.seed(123)
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    train(same, tmp_path / "2")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1][1])
    assert random.getstate() == before[2]
    train(other, tmp_path / "3", seed=6)
    assert equal(one, same)
    assert not equal(one, other)


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_what_layers_draw_is_the_same_after_an_interruption(
    stop_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, halves = drawing_net(), drawing_net()
    curve = train(whole, tmp_path / "whole", patience=3)
    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "_epoch", interrupt_after(stop_after, fit_module._epoch))
        with pytest.raises(KeyboardInterrupt):
            train(halves, tmp_path / "halves", patience=3)
    torch.rand(7)
    fresh = drawing_net()
    assert train(fresh, tmp_path / "halves", patience=3) == curve
    assert equal(fresh, whole)


class Remembering(nn.Module):
    """Keeps a number that no state holds: what it answers later is not what was measured."""

    seen = 0.0

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.seen += 0.1
        return inputs * (1 + self.seen)


def test_a_network_that_is_not_the_one_that_was_measured_is_refused(tmp_path: Path) -> None:
    still = {"epochs": 9, "average": 0.0, "weight_decay": 0.0, "optimizer": Sgd(learning_rate=1e-30)}
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), Remembering())
    with pytest.raises(DecantError, match=r"once its weights are put back: a layer keeps something beside"):
        train(module, tmp_path, patience=2, **still)


@pytest.mark.parametrize("patience", [None, 3])
def test_at_the_end_some_examples_are_answered_again_and_all_where_none_were_here(
    patience: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, original = [], validation.answers

    def counted(network: Any, images: Any, *others: Any) -> Tensor:
        answered.append(len(images))
        return original(network, images, *others)

    monkeypatch.setattr(fit_module, "answers", counted)
    monkeypatch.setattr(validation, "answers", counted)
    monkeypatch.setattr(validation, "CHECKED", 7)
    module, again = resnet(), resnet()
    train(module, tmp_path, patience=patience, epochs=2)
    assert answered[-3:] == [48, 48, 7]
    train(again, tmp_path, patience=patience, epochs=2)  # all of its epochs were trained before
    assert answered[-1] == 48
    assert equal(again, module)


def test_weight_decay_pulls_at_weights_alone() -> None:
    module = resnet()
    decayed, free = fit_module._groups(module, 0.1)
    assert {p.dim() for p in decayed["params"]} == {2, 4}
    assert {p.dim() for p in free["params"]} == {1}
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)


def test_l1_drives_weights_towards_zero(tmp_path: Path) -> None:
    plain, pulled = resnet(), resnet()
    train(plain, tmp_path / "plain", weight_decay=0.0)
    train(pulled, tmp_path / "pulled", weight_decay=0.0, l1=0.01)

    def size(module: nn.Module) -> float:
        return module.get_parameter("stages.1.conv1.weight").abs().sum().item()

    assert size(pulled) < 0.7 * size(plain)


def test_the_smoothed_loss_is_torchs() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    value = Training(epochs=1, label_smoothing=0.1).hard_loss()((logits,), logits, labels)
    assert value == F.cross_entropy(logits, labels, label_smoothing=0.1)


def test_nan_ends_the_training_in_words(tmp_path: Path) -> None:
    words = r"The loss became (nan|inf) in epoch \d+, step \d+ of \d+; lower the learning rate, "
    with pytest.raises(DecantError, match=words):
        train(resnet(), tmp_path, optimizer=Sgd.model_construct(learning_rate=1e30, momentum=0.9))


class Exploding(nn.Module):
    """Answers what is finite in training mode, and else what is not."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs if self.training else inputs - torch.tensor([0.0, 0.0, math.inf])


class Counting(nn.Module):
    """Keeps a statistic that overflows; nothing that it answers shows it."""

    statistic: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("statistic", torch.tensor(1e38))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.statistic *= 10
        return inputs


@pytest.mark.parametrize("patience", [None, 2])
@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize(
    ("layer", "rate", "words"),
    [
        (
            nn.Identity(),
            1e38,
            r"weight held NaN or infinity after epoch 1|validation images were NaN or infinite",
        ),
        (Exploding(), 0.05, "Logits of validation images were NaN or infinite after epoch 1; lower"),
        (Counting(), 0.05, r"3\.statistic held NaN or infinity after epoch 1; lower"),
    ],
)
def test_nothing_that_is_not_finite_is_kept_wherever_it_first_shows(
    layer: nn.Module, rate: float, words: str, average: float, patience: int | None, tmp_path: Path
) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 3), copy.deepcopy(layer))
    absurd = Sgd.model_construct(learning_rate=rate, momentum=0.9)
    last = {"epochs": 1, "batch_size": 1000, "schedule": Cosine(), "optimizer": absurd}
    with pytest.raises(DecantError, match=words):
        train(module, tmp_path, average=average, patience=patience, **last)
    assert not list(tmp_path.iterdir())


def test_flips_and_shifts_agree_with_a_loop() -> None:
    images = torch.randint(1, 256, (40, 2, 5, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    moved = Augmentation(flip=True, shift=2).apply(images, torch.Generator().manual_seed(3))
    found = {
        (flip, dy, dx) for image, new in zip(images, moved, strict=True) for flip, dy, dx in fits(image, new)
    }
    assert {flip for flip, _, _ in found} == {False, True}
    assert {dy for _, dy, _ in found} == {dx for _, _, dx in found} == {-2, -1, 0, 1, 2}
    assert all(len(fits(image, new)) == 1 for image, new in zip(images, moved, strict=True))


@pytest.mark.parametrize(("flip", "shift"), [(True, 2), (False, 1), (True, 0), (False, 0)])
def test_flips_and_shifts_are_those_that_the_seed_draws_also_of_a_share(flip: bool, shift: int) -> None:
    images = torch.randint(1, 256, (9, 3, 5, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    by_hand, ours, again = (torch.Generator().manual_seed(3) for _ in range(3))
    flips = (torch.rand(9, generator=by_hand) < 0.5).tolist()
    dx, dy = torch.randint(-shift, shift + 1, (2, 9, 1), generator=by_hand).squeeze(2).tolist()
    expected = torch.stack(
        [moved_by_hand(*each) for each in zip(images, [flip and f for f in flips], dy, dx, strict=True)]
    )
    change, mine = Augmentation(flip=flip, shift=shift), torch.arange(9) % 2 == 0
    lying_otherwise = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(change.apply(lying_otherwise, ours), expected)
    assert torch.equal(change.apply(images[mine], again, mine), expected[mine])
    assert torch.equal(ours.get_state(), by_hand.get_state())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", [torch.channels_last, torch.contiguous_format])
def test_pictures_become_fractions_in_a_layout_as_a_copy_of_them_would(
    channels: int, form: torch.memory_format
) -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(channels * 3).reshape(3, channels, 16, 16)
    found, expected = pixels(images, form), (images.to(torch.float32) / 255).clone(memory_format=form)
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()


def fits(image: Tensor, new: Tensor) -> list[tuple[bool, int, int]]:
    """Return every flip and shift that turns the image into the new one."""
    return [
        (flip, dy, dx)
        for flip in (False, True)
        for dy in range(-2, 3)
        for dx in range(-2, 3)
        if torch.equal(moved_by_hand(image, flip, dy, dx), new)
    ]


def moved_by_hand(image: Tensor, flip: bool, dy: int, dx: int) -> Tensor:
    _, height, width = image.shape
    new = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            from_y, from_x = y + dy, x + dx if not flip else width - 1 - x + dx
            if 0 <= from_y < height and 0 <= from_x < width:
                new[:, y, x] = image[:, from_y, from_x]
    return new


def test_schedules_by_hand() -> None:
    assert [OneCycle(warmup=0.5).factor(p) for p in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx(
        [0, 0.5, 1, 0.5, 0]
    )
    assert [Cosine().factor(p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert OneCycle(warmup=0).factor(0) == 1


def test_the_average_is_the_one_of_a_loop() -> None:
    module = build(Mlp(hidden=(2,)), (1, 2, 2), 2, seed=0)
    trainee = Trainee(
        module, Sgd().build([{"params": module.parameters()}]), torch.contiguous_format, {}, [], {}
    )
    trainee.averaged = copied(state(module))
    expected = copy.deepcopy(trainee.averaged)
    for step in range(5):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += step
        steps.average_(trainee, 0.4, step)
        decay = min(0.4, (step + 1) / (step + 10))
        expected = {n: decay * t + (1 - decay) * state(module)[n] for n, t in expected.items()}
    assert all(torch.allclose(trainee.averaged[name], tensor) for name, tensor in expected.items())


def test_a_batch_of_one_image_is_refused_where_a_batch_norm_sees_one_number(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    with pytest.raises(DecantError, match=r"batch of one image cannot be trained on .*; raise batch_size"):
        train(module, tmp_path, batch_size=1)


# --- more batches in a step, and gradients that are shortened


def in_double(**changes: Any) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train a network without batch norms in double precision; return it and its curve."""
    generator = torch.Generator().manual_seed(1)

    def examples(count: int) -> Examples:
        rows = Rows({"x": torch.randn(count, 6, generator=generator, dtype=torch.float64)})
        return Examples(rows, torch.randint(0, 3, (count,), generator=generator), ("a", "b", "c"))

    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    training = Training(**({"epochs": 3, "optimizer": Sgd(learning_rate=0.05)} | changes))
    settings: dict[str, Any] = {"scratch": None, "seed": 5, "constraints": {}, "title": "test"}
    curve = fit_(module, training, training.hard_loss(), examples(36), examples(8), **settings)
    return module, curve


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "whole"),
    [(8, 2, 16), (4, 4, 16), (8, 9, 36)],  # the last one has more room than there are images: 8, 8, 8, 8, 4
)
def test_batches_of_one_step_are_one_larger_batch(batch_size: int, accumulate: int, whole: int) -> None:
    terms = {"l1": 0.001, "group_lasso": 0.002, "clip_gradients": 0.5, "average": 0.9}
    one, expected = in_double(batch_size=whole, **terms)
    parts, curve = in_double(batch_size=batch_size, accumulate=accumulate, **terms)
    for parameter, reference in zip(parts.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(parameter, reference, rtol=0, atol=1e-12)
    for row, other in zip(curve, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-6)


def test_batches_of_one_step_have_the_pictures_of_the_larger_batch() -> None:
    recipe = {"epochs": 1, "augmentation": Augmentation(flip=True, shift=2)}
    seen = [
        [images for images, _ in batches(TRAIN, Training(**recipe, **sizes), 3, torch.device("cpu"))]
        for sizes in ({"batch_size": 32}, {"batch_size": 8, "accumulate": 4})
    ]
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True))


def test_gradients_are_shortened_together() -> None:
    """One step of plain arithmetic: Nesterov's first one is 1.9 times the gradient."""
    start, _ = in_double(batch_size=36, epochs=1, optimizer=Sgd(learning_rate=1e-30))
    recipe: dict[str, Any] = {"batch_size": 36, "epochs": 1, "schedule": Cosine(), "weight_decay": 0.0}
    steps = [
        [
            (before - after).detach()
            for before, after in zip(
                start.parameters(), in_double(**recipe, **more)[0].parameters(), strict=True
            )
        ]
        for more in ({}, {"clip_gradients": 0.01}, {"clip_gradients": 1e5})
    ]
    free, short, long = (torch.cat([each.flatten() for each in step]) for step in steps)
    gradient = free / (0.05 * 0.5 * 1.9)
    assert gradient.norm() > 0.1
    torch.testing.assert_close(short, free * 0.01 / gradient.norm(), rtol=1e-4, atol=0)
    assert torch.equal(long, free)


def test_what_is_not_asked_for_is_not_written() -> None:
    assert {"accumulate", "clip_gradients"}.isdisjoint(Training(epochs=1).model_dump())
    written = Training(epochs=1, accumulate=2, clip_gradients=1.0).model_dump()
    assert (written["accumulate"], written["clip_gradients"]) == (2, 1.0)


# --- what a step waits for, and what it holds


def test_a_step_reads_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each one read would end what runs ahead of it."""
    reads: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "_local_scalar_dense" in str(func):
                reads.append(str(func))
            return func(*args, **(kwargs or {}))

    original = fit_module.step_

    def watched(*arguments: Any) -> Any:
        with Watch():
            return original(*arguments)

    monkeypatch.setattr(fit_module, "step_", watched)
    may, there = steps._may_step, torch.device("cuda")
    monkeypatch.setattr(steps, "_may_step", lambda passes, _: may(passes, there))
    train(resnet(), tmp_path, {"head.weight": halved(resnet())}, epochs=1, accumulate=2)
    assert reads == []


def halved(module: nn.Module) -> Constraints:
    return Constraints(mask=module.get_parameter("head.weight").detach() > 0)


@pytest.mark.parametrize("optimizer", [Sgd(learning_rate=0.05), Adamw(learning_rate=0.005)])
def test_masks_that_stay_give_the_bits_of_masks_in_each_pass(
    optimizer: Sgd | Adamw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    for still in (True, False):
        module = resnet()
        if not still:
            monkeypatch.setattr(Held, "_still", set())
        masks = {name: Constraints(mask=w.detach() > 0) for name, w in compressible(module).items()}
        curve = train(module, tmp_path / str(still), masks, optimizer=optimizer)
        ends.append((module, curve))
        for name, held in masks.items():
            assert not module.get_parameter(name)[~held.mask].any()
    (one, expected), (other, curve) = ends
    assert curve == expected
    assert equal(one, other)


def test_a_loss_that_waits_is_read_at_the_end_and_refused() -> None:
    tally = Tally(told=True, room=4)
    for loss, count in ((1.0, 4), (3.0, 2)):
        tally.add(
            torch.tensor(loss), torch.eye(3)[:2].repeat(count // 2, 1), torch.tensor([0, 2] * (count // 2))
        )
    assert (tally.seen, len(tally.waiting)) == (0, 2)
    tally.read()
    assert tally.means() == {"loss": (4 * 1.0 + 2 * 3.0) / 6, "accuracy": 0.5}
    for _ in range(3):
        tally.add(torch.tensor(1.0), torch.eye(3), torch.tensor([0, 1, 2]))
    with pytest.raises(NoNumberError, match="nan"):
        tally.add(torch.tensor(math.nan), torch.eye(3), torch.tensor([0, 1, 2]))


def test_the_state_is_read_as_it_is_now() -> None:
    module = resnet()
    read = reader(module)
    with torch.no_grad():
        module.get_parameter("head.weight").add_(1)
    buffer = next(layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d))
    buffer.running_mean = torch.full_like(buffer.running_mean, 7.0)  # another tensor than before
    assert read().keys() == state(module).keys()
    assert all(torch.equal(tensor, state(module)[name]) for name, tensor in read().items())


def test_a_module_that_makes_its_state_is_asked_for_it() -> None:
    class Doubled(nn.Linear):
        def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            destination[f"{prefix}weight"] = self.weight.detach() * 2

    module = nn.Sequential(Doubled(2, 2))
    assert torch.equal(reader(module)()["0.weight"], module[0].weight * 2)


class Trap(nn.Module):
    """A network that answers in eval mode and cannot be trained."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first, self.second = kind, nn.Linear(64, 8), nn.Linear(8, 3)
        if kind == "frozen":
            self.requires_grad_(False)

    def forward(self, images: Tensor) -> Any:
        hidden = self.first(images.flatten(1)).sigmoid()
        if self.kind == "in place":
            square = hidden * hidden
            hidden += 1
            hidden = hidden * square
        if self.kind == "fails" and self.training:
            hidden = hidden.reshape(5, -1)
        if self.kind == "without gradients":
            hidden = hidden.detach()
            with torch.no_grad():
                return self.second(hidden)
        if self.kind == "two heads" and self.training:
            return self.second(hidden), self.second(hidden * 2)
        return self.second(hidden)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("in place", r"no gradients through the network \(one of the variables .* inplace operation"),
        ("without gradients", r"no gradients through the network \(element 0 .*nor use no_grad"),
        ("frozen", r"no gradients through the network \(element 0 .*requires_grad"),
        ("fails", r"fails when it is trained: RuntimeError: shape '\[5, -1\]' .*test_fit\.py, line \d+"),
        ("two heads", "In a training the network returns 6 numbers for a row, and 3 otherwise; have it"),
    ],
)
def test_a_network_that_cannot_be_trained_says_why(kind: str, sentence: str, tmp_path: Path) -> None:
    """A second head would go into the softmax of the first one, and nothing would tell."""
    with pytest.raises(DecantError, match=sentence):
        train(Trap(kind), tmp_path)


class Steps(nn.Module):
    """As many numbers for a row as it has steps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, series: Tensor) -> Tensor:
        return self.layer(series)[..., 0]


def test_rows_to_learn_from_may_be_longer_than_those_to_validate_on(tmp_path: Path) -> None:
    long, short = (Examples(Rows({"series": torch.randn(16, steps, 4)}), None, ()) for steps in (9, 5))
    training, teacher = Training(epochs=1, batch_size=8, optimizer=Sgd(learning_rate=0.01)), Steps()

    def loss(inputs: tuple[Tensor, ...], outputs: Tensor, _: Tensor | None) -> Tensor:
        return F.mse_loss(outputs, teacher(*inputs).detach())

    curve = fit_(
        Steps(), training, loss, long, short, scratch=None, seed=1, constraints={}, title="t", teacher=teacher
    )
    assert len(curve) == 1


class Aliased(nn.Module):
    """A block of two names, and a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.again, self.one, self.other = self.first, nn.Linear(8, 8), nn.Linear(8, 8)
        self.other.weight, self.head = self.one.weight, nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.other(self.one(self.again(images.flatten(1))).relu()))


def test_a_module_of_two_names_is_trained_as_one(tmp_path: Path) -> None:
    """Against the same network without the second name, to the bit."""
    torch.manual_seed(0)
    module = Aliased()
    plain = copy.deepcopy(module)
    plain.forward = lambda images: plain.head(  # type: ignore[method-assign]
        plain.other(plain.one(plain.first(images.flatten(1))).relu())
    )
    del plain.again
    held = {
        name: Constraints(mask=module.get_parameter(name).abs() > 0.05)
        for name in ("first.0.weight", "one.weight")
    }
    curves = [train(each, tmp_path / str(at), held, epochs=2) for at, each in enumerate((module, plain))]
    assert curves[0] == curves[1]
    assert isinstance(module.first[0].weight, nn.Parameter)
    assert module.other.weight is module.one.weight
    for name, constraint in held.items():
        assert not module.get_parameter(name)[~constraint.mask].any()
        assert torch.equal(module.get_parameter(name), plain.get_parameter(name))
