"""Trainings on another device: nothing lies in the wrong place, and the same recipe gives the same bits."""

import copy
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decant.checkpoints.activations import attach_
from decant.checkpoints.checkpoint import Checkpoint, state
from decant.checkpoints.constraints import Constraints, Range
from decant.compression.finish import Result
from decant.distill.operation import distill
from decant.distill.params import DistillParams
from decant.errors import DecantError
from decant.examples import Examples, Splits
from decant.finetune.operation import finetune
from decant.finetune.params import FinetuneParams
from decant.networks import devices
from decant.networks.architectures import Resnet, build
from decant.networks.devices import find, moved, place_, pooled
from decant.prune.operation import prune
from decant.prune.params import PruneParams
from decant.quantize.operation import quantize
from decant.quantize.params import QuantizeParams
from decant.row_groups import RowGroups
from decant.schema import mistakes
from decant.training.fit import fit_
from decant.training.fresh import train
from decant.training.recipe import Training
from decant.training.resume import Scratch
from decant.training.run import Run
from tasks.teacher.params import TeacherParams
from tests.elsewhere import Elsewhere, device_that_computes
from tests.nets import striped

SPLITS = Splits(striped(0), striped(1, 48))
NET = Resnet(widths=(8, 8), blocks=(0, 1), pool=2)
TRAINING = {
    "epochs": 3,
    "batch_size": 16,
    "optimizer": {"kind": "sgd", "learning_rate": 0.02},
    "augmentation": {"flip": True, "shift": 1},
    "average": 0.9,
    "patience": 2,
}
ADAM = TRAINING | {"optimizer": {"kind": "adamw", "learning_rate": 0.002}, "patience": None}
SOFT = {"kind": "temperature", "temperature": 2.0}
SPARSE: dict[str, Any] = {"criterion": {"kind": "magnitude"}, "budget": {"sparsity": 0.5}}


@pytest.fixture(scope="module")
def teacher() -> Checkpoint:
    module = build(NET, (1, 8, 8), 3, seed=1).eval()
    return Checkpoint(NET, (1, 8, 8), SPLITS.train.classes, module)


def trained(_: Checkpoint, device: str, run: Run) -> Result:
    return train(NET, Training.model_validate(TRAINING), SPLITS, run, device=device)


def distilled(teacher: Checkpoint, device: str, run: Run) -> Result:
    recipe = {
        "op": "distill",
        "from": "p",
        "student": {"kind": "mlp", "hidden": [16]},
        "loss": SOFT,
        "training": ADAM,
    }
    return distill(teacher, on(DistillParams, recipe, device), SPLITS, run=run)


def masked(teacher: Checkpoint, device: str, run: Run) -> Result:
    """Fine-tune a pruned model whose layers clamp and round their inputs."""
    pruned = prune(teacher, SPARSE, SPLITS).model
    recipe = {"op": "finetune", "from": "p", "training": TRAINING | {"epochs": 2, "l1": 1e-5}, "loss": SOFT}
    return finetune(pruned, on(FinetuneParams, recipe, device), SPLITS, teacher=teacher, run=run)


def scheduled(**schedule: Any) -> Callable[[Checkpoint, str, Run], Result]:
    recipe = {"op": "prune", "from": "p", **SPARSE, "schedule": {"training": ADAM, "every": 3, **schedule}}
    if schedule["kind"] == "iterative":
        recipe["schedule"] = {"training": ADAM, "rounds": 2, **schedule}
    return lambda teacher, device, run: prune(teacher, on(PruneParams, recipe, device), SPLITS, run=run)


def on_levels(kind: str, scheme: dict[str, Any], **more: Any) -> Callable[[Checkpoint, str, Run], Result]:
    recipe = {"op": "quantize", "from": "p", "scheme": scheme, "images": 32, **more}
    recipe["train"] = {"kind": kind, "training": ADAM | {"weight_decay": 0.0}, "loss": SOFT}
    return lambda teacher, device, run: quantize(teacher, on(QuantizeParams, recipe, device), SPLITS, run=run)


def on(schema: Any, recipe: dict[str, Any], device: str) -> Any:
    """Return a block with a device that params.yaml need not know."""
    return schema.model_validate(recipe).model_copy(update={"device": device})


INPUTS = {"activations": {"bits": 4}}
CASES: dict[str, Callable[[Checkpoint, str, Run], Result]] = {
    "teacher": trained,
    "distill": distilled,
    "masks": masked,
    "gradual": scheduled(kind="gradual"),
    "surgery": scheduled(kind="surgery"),
    "rigl": scheduled(kind="rigl"),
    "iterative": scheduled(kind="iterative"),
    "steps": on_levels("lsq", {"kind": "integer", "bits": 4}, **INPUTS),
    "clips": on_levels("pact", {"kind": "integer", "bits": 4, "symmetric": False}, **INPUTS),
    "groups": on_levels("ste", {"kind": "integer", "bits": 4, "group": 16}),
    "signs": on_levels("error-decay", {"kind": "binary", "balanced": True}),
    "ternary": on_levels("ste", {"kind": "ternary"}),
    "two scales": on_levels("ttq", {"kind": "ternary"}),
    "entries": on_levels("centroids", {"kind": "codebook", "entries": 8}),
}


def numbers(result: Result) -> dict[str, Tensor]:
    """Return all that is written of a model: tensors of its state, levels and grids."""
    found = dict(state(result.model.module))
    for name, held in result.model.constraints.items():
        if held.levels is not None:
            found |= {f"{name} values": held.levels.values, f"{name} scale": held.levels.scale}
        if held.mask is not None:
            found[f"{name} mask"] = held.mask
    for name, grid in result.model.grids.items():
        found[f"{name} step"] = torch.tensor(getattr(grid, "scale", 0.0))
    return found


def same(one: Result, other: Result) -> bool:
    found, expected = numbers(one), numbers(other)
    equal = all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    return equal and found.keys() == expected.keys() and one.curve == other.curve


# --- on processors


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with device_that_computes(monkeypatch) as name:
        yield name


@pytest.mark.parametrize("case", CASES)
def test_nothing_lies_in_the_wrong_place(
    case: str, teacher: Checkpoint, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = CASES[case](teacher, "cpu", Run(seed=3))
    with monkeypatch.context() as patch:
        patch.setattr(Elsewhere, "made", 0)
        there = CASES[case](teacher, elsewhere, Run(seed=3))
        assert Elsewhere.made > 1_000
    assert all(tensor.device.type == "cpu" for tensor in numbers(there).values())
    assert same(here, there)


def in_row_groups(examples: Examples) -> Examples:
    """Return the same pictures in row groups, as a mapped file has them."""
    images = examples.images
    assert isinstance(images, Tensor)
    content = images.reshape(len(images), -1)
    return replace(examples, images=RowGroups(content.split(20), tuple(images.shape[1:]), images.dtype))


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_rows_in_groups_are_learned_from_wherever_they_lie(elsewhere: str) -> None:
    grouped = Splits(in_row_groups(SPLITS.train), in_row_groups(SPLITS.validation))
    recipe = Training.model_validate(TRAINING)
    here, *others = (
        train(NET, recipe, each, Run(seed=3), device=device)
        for each, device in ((SPLITS, "cpu"), (grouped, "cpu"), (grouped, elsewhere))
    )
    assert all(same(here, each) for each in others)


def test_the_device_of_the_tests_refuses_what_a_gpu_refuses(elsewhere: str) -> None:
    far = moved(torch.ones(3), elsewhere)
    assert far.device == torch.device(elsewhere)
    assert (far + 1).sum().item() == 6
    with pytest.raises(AssertionError, match="mixes"):
        far + torch.ones(3)


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")  # it is one that computes
@pytest.mark.parametrize("case", ["teacher", "rigl", "steps"])
def test_a_training_that_was_stopped_goes_on_to_the_same_bits(
    case: str, teacher: Checkpoint, elsewhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_resuming(CASES[case], teacher, elsewhere, tmp_path, monkeypatch)


def check_resuming(
    case: Callable[[Checkpoint, str, Run], Result],
    teacher: Checkpoint,
    device: str,
    folder: Path,
    patch: pytest.MonkeyPatch,
) -> None:
    """Check that a training that is stopped after its first epoch ends as the whole one."""
    whole, place = case(teacher, device, Run(seed=3)), Scratch(folder / "scratch", "id")
    written = Scratch.write

    def stopping(scratch: Scratch, content: Any) -> None:
        written(scratch, content)
        raise KeyboardInterrupt

    with patch.context() as stopped:
        stopped.setattr(Scratch, "write", stopping)
        with pytest.raises(KeyboardInterrupt):
            case(teacher, device, Run(seed=3, place=lambda: place))
    (file,) = place.folder.iterdir()
    content = torch.load(file, weights_only=True)
    assert len(content["curve"]) == 1
    assert all(tensor.device.type == "cpu" for tensor in content["module"].values())
    assert all(tensor.device.type == "cpu" for tensor in content["averaged"].values())
    assert same(case(teacher, device, Run(seed=3, place=lambda: place)), whole)


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(
        DecantError, match=r"device: cuda:99 is not there; this machine has cpu \(the processor\)"
    ):
        find("cuda:99")


def test_sums_that_would_not_repeat_are_refused(elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(devices.SUMS, ":0:0")
    with pytest.raises(DecantError, match="CUBLAS_WORKSPACE_CONFIG is :0:0; set it to :4096:8 before"):
        find(elsewhere)


@pytest.mark.parametrize("wrong", ["gpu", "cuda:", "cuda:x", "CPU", "cuda:-1", "cuda:²", "meta"])
def test_words_that_are_no_device_are_refused(wrong: str) -> None:
    recipe = {"op": "finetune", "from": "p", "training": TRAINING, "device": wrong}
    assert mistakes(recipe, FinetuneParams) == [
        f"device: must be cpu, cuda, or cuda: and the number of one, such as cuda:1, got {wrong!r}"
    ]


def test_a_device_without_a_training_is_refused() -> None:
    expected = "device: cuda is where a training runs, and there is none: leave it out"
    cases: list[tuple[Any, dict[str, Any]]] = [
        (FinetuneParams, {"op": "finetune", "from": "p", "training": {"epochs": 0}, "statistics": True}),
        (PruneParams, {"op": "prune", "from": "p", **SPARSE}),
        (QuantizeParams, {"op": "quantize", "from": "p", "scheme": {"kind": "integer"}}),
        (
            TeacherParams,
            {
                "architecture": {"kind": "python", "file": "networks/n.py", "build": "net"},
                "weights": "networks/n.pt",
            },
        ),
    ]
    for schema, recipe in cases:
        assert mistakes(recipe, schema) == []
        assert any(expected in line for line in mistakes(recipe | {"device": "cuda"}, schema)), schema


def test_the_processor_is_not_said_and_another_device_is() -> None:
    recipe = {"op": "finetune", "from": "p", "training": TRAINING}
    plain = FinetuneParams.model_validate(recipe).model_dump(mode="json")
    assert FinetuneParams.model_validate(recipe | {"device": "cpu"}).model_dump(mode="json") == plain
    told = FinetuneParams.model_validate(recipe | {"device": "cuda:1"}).model_dump(mode="json")
    assert told == plain | {"device": "cuda:1"}


def failing(error: Exception | Callable[[], Tensor], device: str, batch_size: int) -> str:
    """Return what is told where a loss fails: by itself, or by what it asks for."""

    def loss(*_: object) -> Tensor:
        if isinstance(error, Exception):
            raise error
        return error()

    module = build(NET, (1, 8, 8), 3, seed=1)
    training = Training.model_validate(TRAINING | {"batch_size": batch_size})
    settings: dict[str, Any] = {"scratch": None, "seed": 1, "constraints": {}, "title": "t", "device": device}
    with pytest.raises(DecantError) as caught:
        fit_(module, training, loss, SPLITS.train, SPLITS.validation, **settings)
    assert all(tensor.device.type == "cpu" for tensor in state(module).values())
    return str(caught.value)


def test_too_little_memory_says_which_batch_size_to_try(elsewhere: str) -> None:
    told = failing(torch.OutOfMemoryError("CUDA out of memory"), elsewhere, 24)
    assert told.endswith("for batches of 24; try training.batch_size: 12")
    told = failing(torch.OutOfMemoryError("CUDA out of memory"), elsewhere, 1)
    assert told.endswith("for a single example; train on cpu, or on a larger device")


def test_a_kernel_that_does_not_repeat_its_bits_is_refused(elsewhere: str) -> None:
    error = RuntimeError("some_kernel_cuda does not have a deterministic implementation, but you set …")
    told = failing(error, elsewhere, 8)
    assert told == (
        "On meta:0 there is no kernel of some_kernel_cuda that gives the same bits each time; train on cpu"
    )


@pytest.mark.parametrize("size", [(7, 7), (6, 5), (1, 9)])
@pytest.mark.parametrize("wanted", [2, (3, 1), (None, 4), 1])
def test_pooling_by_products_is_torchs(size: tuple[int, int], wanted: Any) -> None:
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    one, other = images.clone().requires_grad_(), images.clone().requires_grad_()
    found, expected = pooled(one, wanted), F.adaptive_avg_pool2d(other, wanted)
    weights = torch.rand(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    for answer in (found, expected):
        (answer * weights).sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-14)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.one.register_buffer("table", torch.ones(3))
        self.two.register_buffer("table", self.one.table)
        self.beside = {"positions": torch.arange(3)}
        self.recurrent = nn.LSTM(3, 3)


def test_all_that_hangs_at_a_network_is_moved_and_comes_back(elsewhere: str) -> None:
    module = Tied()
    attach_(module, {}, {"one": Range(torch.zeros(3), torch.ones(3))})
    before = copy.deepcopy(state(module))
    place_(module, elsewhere)
    (hook,) = module.one._forward_pre_hooks.values()
    hanging = [*state(module).values(), module.beside["positions"], hook.clamp.low, hook.clamp.high]  # type: ignore[attr-defined]
    assert {str(tensor.device) for tensor in hanging} == {elsewhere}
    assert module.two.weight is module.one.weight
    assert module.two.table is module.one.table
    place_(module, "cpu")
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(module).items())
    assert module.two.weight is module.one.weight
    assert module.beside["positions"].device.type == "cpu"


def test_what_is_there_already_is_not_copied() -> None:
    held = {"w": Constraints(mask=torch.ones(3, dtype=torch.bool))}
    assert moved(held, "cpu") is held


# --- on a GPU

GPU = "cuda"
needs_gpu = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


def gpu_test(test: Callable[..., None]) -> Callable[..., None]:
    for mark in needs_gpu:
        test = mark(test)
    return test


@gpu_test
def test_rows_in_groups_are_learned_from_on_the_gpu() -> None:
    grouped = Splits(in_row_groups(SPLITS.train), in_row_groups(SPLITS.validation))
    recipe = Training.model_validate(TRAINING)
    one, other = (train(NET, recipe, each, Run(seed=3), device=GPU) for each in (SPLITS, grouped))
    assert same(one, other)


@gpu_test
@pytest.mark.parametrize("case", CASES)
def test_the_gpu_repeats_its_bytes(case: str, teacher: Checkpoint) -> None:
    one, other = (CASES[case](teacher, GPU, Run(seed=3)) for _ in range(2))
    assert same(one, other)
    assert all(tensor.device.type == "cpu" for tensor in numbers(one).values())


@gpu_test
@pytest.mark.parametrize("case", ["teacher", "distill", "masks", "groups"])
def test_the_gpu_and_the_processor_agree_within_rounding(case: str, teacher: Checkpoint) -> None:
    here, there = (CASES[case](teacher, device, Run(seed=3)) for device in ("cpu", GPU))
    for row, expected in zip(there.curve, here.curve, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=0.02)
        assert row["validation_loss"] == pytest.approx(expected["validation_loss"], rel=0.05)


@gpu_test
def test_a_first_step_on_the_gpu_is_the_processors_within_rounding() -> None:
    ends = []
    for device in ("cpu", GPU):
        recipe = TRAINING | {"epochs": 1, "batch_size": len(SPLITS.train), "patience": None, "average": 0.0}
        ends.append(
            state(
                train(NET, Training.model_validate(recipe), SPLITS, Run(seed=3), device=device).model.module
            )
        )
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=1e-3, atol=1e-5)


@gpu_test
@pytest.mark.parametrize("case", ["teacher", "rigl", "steps", "distill"])
def test_on_the_gpu_half_plus_half_is_whole(
    case: str, teacher: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_resuming(CASES[case], teacher, GPU, tmp_path, monkeypatch)


@gpu_test
def test_what_layers_draw_on_the_gpu_is_the_seeds() -> None:
    def digest(noise: int) -> str:
        torch.cuda.manual_seed(noise)
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 3))
        torch.nn.init.constant_(module[1].weight, 0.1)
        torch.nn.init.constant_(module[3].weight, 0.1)
        for layer in (module[1], module[3]):
            torch.nn.init.zeros_(layer.bias)
        training = Training.model_validate(TRAINING)
        settings: dict[str, Any] = {
            "scratch": None,
            "seed": 1,
            "constraints": {},
            "title": "t",
            "device": GPU,
        }
        fit_(module, training, training.hard_loss(), SPLITS.train, SPLITS.validation, **settings)
        return hashlib.sha256(b"".join(t.numpy().tobytes() for t in state(module).values())).hexdigest()

    assert digest(1) == digest(2)


@gpu_test
def test_a_gpu_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(DecantError, match=r"this machine has cpu \(the processor\), cuda:0 \("):
        find("cuda:99")
    assert os.environ[devices.SUMS] in devices.STEADY_SUMS


@gpu_test
def test_a_gpu_without_room_says_which_batch_size_to_try() -> None:
    whole = torch.cuda.mem_get_info()[1]
    told = failing(lambda: torch.empty(whole + 1, dtype=torch.uint8, device=GPU), GPU, 24)
    assert "not enough memory" in told and told.endswith("try training.batch_size: 12")
