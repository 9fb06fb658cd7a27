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
from decant.clip.operation import clip
from decant.clip.params import ClipParams
from decant.compression.finish import Result
from decant.distill.operation import distill
from decant.distill.params import DistillParams
from decant.errors import DecantError
from decant.examples import Examples, Rows, Splits
from decant.finetune.operation import finetune
from decant.finetune.params import FinetuneParams
from decant.networks import devices
from decant.networks.architectures import Resnet, build
from decant.networks.devices import find, moved, place_, pooled, sent
from decant.prune.operation import prune
from decant.prune.params import PruneParams
from decant.quantize.operation import quantize
from decant.quantize.params import QuantizeParams
from decant.row_groups import RowGroups
from decant.schema import mistakes
from decant.training import fit
from decant.training.fit import fit_
from decant.training.fresh import train
from decant.training.recipe import Training
from decant.training.resume import Scratch
from decant.training.run import Run
from tasks.teacher.params import TeacherParams
from tests.elsewhere import Elsewhere, device_that_computes
from tests.nets import striped
from tests.slow import slow_but

SPLITS = Splits(striped(0), striped(1, 48))
FEW = Splits(striped(0, 48), striped(1, 20))
"""For what does not depend on how many steps there are."""
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


def trained(**changes: Any) -> Callable[[Checkpoint, str, Run], Result]:
    training = Training.model_validate(TRAINING | changes)
    return lambda _, device, run: train(NET, training, SPLITS, run, device=device)


def distilled(teacher: Checkpoint, device: str, run: Run) -> Result:
    recipe = {
        "op": "distill",
        "from": "p",
        "student": {"kind": "mlp", "hidden": [16]},
        "loss": SOFT,
        "training": ADAM,
    }
    return distill(teacher, on(DistillParams, recipe, device), SPLITS, run=run)


def from_features(teacher: Checkpoint, device: str, run: Run) -> Result:
    """Distill what layers give, with maps and memories beside the student."""
    of = {"stages.0": "stages.0"}
    parts = [{"kind": "hints", "layers": of}, {"kind": "contrastive", "layers": of, "negatives": 8}, SOFT]
    recipe = {
        "op": "distill",
        "from": "p",
        "student": NET.model_dump(mode="json") | {"widths": [4, 4]},
        "loss": {"kind": "mix", "parts": [{"loss": each} for each in parts]},
        "training": ADAM | {"clip_gradients": 1.0, "accumulate": 2, "epochs": 1},
        "start": "teacher",
    }
    return distill(teacher, on(DistillParams, recipe, device), SPLITS, run=run)


def answered_once(teacher: Checkpoint, device: str, run: Run) -> Result:
    plain = ADAM | {"augmentation": {"flip": False}}
    student = {"kind": "mlp", "hidden": [16]}
    recipe = {
        "op": "distill",
        "from": "p",
        "student": student,
        "loss": SOFT,
        "training": plain,
        "cache": True,
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


def learned(teacher: Checkpoint, device: str, run: Run) -> Result:
    """Fine-tune on the teacher's outputs, as there are no labels."""
    unlabelled = Splits(*(replace(each, labels=None) for each in (SPLITS.train, SPLITS.validation)))
    recipe = {"op": "finetune", "from": "p", "training": ADAM | {"epochs": 1}}
    other = prune(teacher, SPARSE, SPLITS).model
    return finetune(other, on(FinetuneParams, recipe, device), unlabelled, teacher=teacher, run=run)


def estimated(teacher: Checkpoint, device: str, run: Run) -> Result:
    recipe = {"op": "finetune", "from": "p", "training": {"epochs": 0}, "statistics": True}
    return finetune(teacher, on(FinetuneParams, recipe, device), SPLITS, run=run)


def clipped(teacher: Checkpoint, device: str, run: Run) -> Result:
    recipe = {"op": "clip", "from": "p", "cut": {"kind": "percentile", "keep": 0.9}, "target": "activations"}
    return clip(teacher, on(ClipParams, recipe, device), SPLITS, run=run)


def pruned(criterion: dict[str, Any], **more: Any) -> Callable[[Checkpoint, str, Run], Result]:
    """Prune at once, with a criterion that runs the network."""
    recipe = {"op": "prune", "from": "p", **SPARSE, "criterion": criterion, **more}
    return lambda teacher, device, run: prune(teacher, on(PruneParams, recipe, device), SPLITS, run=run)


def rounded(
    rounding: dict[str, Any], scheme: dict[str, Any] | None = None, **more: Any
) -> Callable[[Checkpoint, str, Run], Result]:
    """Round by the outputs of layers."""
    scheme = {"kind": "integer", "bits": 3, **(scheme or {})}
    recipe = {"op": "quantize", "from": "p", "scheme": scheme, "rounding": rounding, "images": 48, **more}
    return lambda teacher, device, run: quantize(teacher, on(QuantizeParams, recipe, device), SPLITS, run=run)


WHOLE = {"kind": "channels"}
INPUTS = {"activations": {"bits": 4}}
CASES: dict[str, Callable[[Checkpoint, str, Run], Result]] = {
    "teacher": trained(),
    "float16": trained(precision="float16"),
    "distill": distilled,
    "features": from_features,
    "cache": answered_once,
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
    "outputs": learned,
    "statistics": estimated,
    "clip": clipped,
    "obs": pruned({"kind": "obs", "images": 48, "rounds": 3}),
    "obs, costs": pruned({"kind": "obs", "images": 20, "rounds": 2, "costs": "logits"}),
    "obs, 2:4": pruned({"kind": "obs", "images": 48, "rounds": 3}, structure={"kind": "n-of-m"}, budget=None),
    "taylor": pruned({"kind": "taylor"}),
    "fisher": pruned({"kind": "fisher", "images": 4}),
    "wanda": pruned({"kind": "wanda"}, statistics=True),
    "channels": pruned({"kind": "reconstruction", "images": 48}, structure=WHOLE, budget={"macs": 0.7}),
    "channels, costs": pruned(
        {"kind": "reconstruction", "images": 20, "costs": "logits"}, structure=WHOLE, budget={"macs": 0.7}
    ),
    "drift": pruned({"kind": "drift", "images": 8}, structure=WHOLE, budget={"macs": 0.7}),
    "gptq": rounded({"kind": "gptq"}, activations={"bits": 8}),
    "gptq, groups": rounded({"kind": "gptq", "order": "index"}, {"group": 16}),
    "adaround": rounded({"kind": "adaround", "steps": 8, "search": 2}, correct_bias=True),
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


SLOW = {"float16", "obs, 2:4", "drift", "gptq, groups"}
"""Cases whose tensors lie where those of others do."""


@pytest.mark.parametrize("case", slow_but(CASES.keys() - SLOW, CASES))
def test_nothing_lies_in_the_wrong_place(
    case: str, teacher: Checkpoint, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "SPLITS", FEW)
    here = CASES[case](teacher, "cpu", Run(seed=3))
    with monkeypatch.context() as patch:
        patch.setattr(Elsewhere, "made", 0)
        there = CASES[case](teacher, elsewhere, Run(seed=3))
        assert Elsewhere.made > 100
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


@pytest.mark.parametrize("name", ["cuda:99", "cuda:99999999999999"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(
        DecantError, match=rf"device: {name} is not there; this machine has cpu \(the processor\)"
    ):
        find(name)


def test_sums_that_would_not_repeat_are_refused(elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(devices.SUMS, ":0:0")
    with pytest.raises(DecantError, match="CUBLAS_WORKSPACE_CONFIG is :0:0; set it to :4096:8 before"):
        find(elsewhere)


def test_a_device_that_cannot_be_begun_with_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> dict[str, str]:
        raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be …")

    monkeypatch.setattr(devices, "there", full)
    monkeypatch.setenv(devices.SUMS, devices.STEADY_SUMS[0])
    with pytest.raises(DecantError) as caught:
        find("cuda")
    assert str(caught.value) == (
        "device: cuda cannot be begun with (CUDA error: out of memory): another process may hold all of it; "
        "wait for that, or take cpu"
    )


@pytest.mark.parametrize("wrong", ["gpu", "cuda:", "cuda:x", "CPU", "cuda:-1", "cuda:²", "cuda:01", "meta"])
def test_words_that_are_no_device_are_refused(wrong: str) -> None:
    recipe = {"op": "finetune", "from": "p", "training": TRAINING, "device": wrong}
    assert mistakes(recipe, FinetuneParams) == [
        f"device: must be cpu, cuda, or cuda: and the number of one, such as cuda:1, got {wrong!r}"
    ]


def test_a_device_that_has_nothing_to_do_is_refused() -> None:
    expected = "device: cuda is where networks run and layers are solved, and here is neither: leave it out"
    cases: list[tuple[Any, dict[str, Any]]] = [
        (ClipParams, {"op": "clip", "from": "p", "cut": {"kind": "min-max"}}),
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
    assert told.endswith(
        "for batches of 24; try training.batch_size: 12 and training.accumulate: 2, the same steps but for "
        "batch norms"
    )
    told = failing(torch.OutOfMemoryError("CUDA out of memory"), elsewhere, 25)
    assert told.endswith(
        "training.batch_size: 12 and training.accumulate: 2, nearly the same steps but for batch norms"
    )
    told = failing(torch.OutOfMemoryError("CUDA out of memory"), elsewhere, 10_000)  # there are fewer
    half = len(SPLITS.train) // 2
    assert f"for batches of {2 * half}; try training.batch_size: {half} and" in told
    told = failing(torch.OutOfMemoryError("CUDA out of memory"), elsewhere, 1)
    assert told.endswith("for a single example; try cpu, or a larger device")


def test_too_little_memory_of_the_processor_is_told_too() -> None:
    told = failing(lambda: torch.empty(1 << 60), "cpu", 24)
    assert told == (
        "The processor has not enough memory for batches of 24; try training.batch_size: 12 and "
        "training.accumulate: 2, the same steps but for batch norms"
    )
    here = torch.device("cpu")
    told = "a pass over 250 examples; try a machine with more memory"
    with pytest.raises(DecantError, match=told), devices.computing_on(here, devices.A_PASS):
        raise MemoryError
    with pytest.raises(RuntimeError, match="of another kind"), devices.computing_on(here, devices.A_PASS):
        raise RuntimeError("of another kind, deterministic or not")


class Greedy(nn.Module):
    """Asks for more memory than there is in a pass that has gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1)
        return self.head(rows) + (torch.empty(1 << 60)[:1] if self.training else 0)


def test_a_network_that_has_no_room_is_no_fault_of_its_code() -> None:
    training = Training.model_validate(TRAINING | {"batch_size": 24})
    settings: dict[str, Any] = {"scratch": None, "seed": 1, "constraints": {}, "title": "t"}
    with pytest.raises(DecantError, match=r"^The processor has not enough memory for batches of 24; try"):
        fit_(
            Greedy(),
            training,
            training.hard_loss(),
            SPLITS.train,
            SPLITS.validation,
            **settings,
        )


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_batches_whose_gradients_are_summed_are_halved_again(elsewhere: str) -> None:
    module, full = nn.Linear(1, 1), torch.OutOfMemoryError("CUDA out of memory")
    with (
        pytest.raises(DecantError, match=r"batch_size: 4 and training\.accumulate: 6, the same steps"),
        devices.training_on(module, torch.device(elsewhere), 8, accumulate=3),
    ):
        raise full


def test_a_batch_is_not_halved_to_less_than_its_processes_share() -> None:
    here = torch.device("cpu")
    for size, todo in ((7, "a machine with more memory"), (8, "training.batch_size: 4 and training.acc")):
        with (
            pytest.raises(DecantError, match=f"for batches of {size}; try {todo}"),
            devices.training_on(nn.Linear(1, 1), here, size, processes=4),
        ):
            raise MemoryError


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize(("others", "told"), [(70.0, ", 70.0 are held by other processes)"), (0.4, "free)")])
def test_a_device_that_others_fill_is_told_with_what_they_hold(
    others: float, told: str, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_memory", lambda _: (79.5 - others, 80.0, 0.5))
    sentence = failing(torch.OutOfMemoryError("CUDA out of memory"), elsewhere, 24)
    assert f"not enough memory ({79.5 - others:.1f} of 80.0 GiB are free" in sentence and told in sentence


def full_for(what: str, patch: pytest.MonkeyPatch) -> None:
    """Let the device have no room for any network that a module places there."""

    def refused(*_: object) -> nn.Module:
        raise torch.OutOfMemoryError("CUDA out of memory")

    patch.setattr(what, refused)


@pytest.mark.parametrize(
    ("case", "place", "told"),
    [
        ("distill", "decant.training.teaching.place_", "for the teacher that answers each batch; try cpu"),
        ("outputs", "decant.training.teaching.place_", "for the teacher that answers each batch; try cpu"),
        (
            "obs",
            "decant.reconstruction.obs.placed",
            "for the weights and what one layer's inputs are summed up to; try",
        ),
        (
            "gptq",
            "decant.quantize.rounding.layers.placed",
            "what one layer's inputs are summed up to; try cpu",
        ),
        ("taylor", "decant.prune.mask_pruning.placed", "for a pass over 250 examples; try cpu"),
        ("statistics", "decant.calibration.batch_norms.place_", "for a pass over 250 examples; try cpu"),
    ],
)
def test_no_room_for_a_network_is_told(
    case: str, place: str, told: str, teacher: Checkpoint, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_for(place, monkeypatch)
    with pytest.raises(DecantError, match=f"meta:0 has not enough memory .* {told}"):
        CASES[case](teacher, elsewhere, Run(seed=3))


def test_a_kernel_that_does_not_repeat_its_bits_is_refused(elsewhere: str) -> None:
    error = RuntimeError("some_kernel_cuda does not have a deterministic implementation, but you set …")
    told = failing(error, elsewhere, 8)
    assert told == (
        "On meta:0 there is no kernel of some_kernel_cuda that gives the same bits each time; take cpu"
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
        self.two.register_buffer("table", self.one.get_buffer("table"))
        self.beside = {"positions": torch.arange(3)}
        self.recurrent = nn.LSTM(3, 3)


def test_all_that_hangs_at_a_network_is_moved_and_comes_back(elsewhere: str) -> None:
    module: Any = Tied()
    attach_(module, {}, {"one": Range(torch.zeros(3), torch.ones(3))})
    before = copy.deepcopy(state(module))
    place_(module, elsewhere)
    (hook,) = module.one._forward_pre_hooks.values()
    hanging = [*state(module).values(), module.beside["positions"], hook.clamp.low, hook.clamp.high]
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


def test_what_is_sent_within_the_processor_is_not_copied() -> None:
    batch = (torch.ones(3), None)
    assert sent(batch, torch.device("cpu")) is batch


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
    if case in ("channels", "drift"):
        pytest.importorskip("torch_pruning")
    one, other = (CASES[case](teacher, GPU, Run(seed=3)) for _ in range(2))
    assert same(one, other)
    assert all(tensor.device.type == "cpu" for tensor in numbers(one).values())


@gpu_test
@pytest.mark.parametrize("case", ["teacher", "distill", "masks", "groups", "outputs"])
def test_the_gpu_and_the_processor_agree_within_rounding(case: str, teacher: Checkpoint) -> None:
    here, there = (CASES[case](teacher, device, Run(seed=3)) for device in ("cpu", GPU))
    for row, expected in zip(there.curve, here.curve, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=0.02)
        assert row["validation_loss"] == pytest.approx(expected["validation_loss"], rel=0.05)


@gpu_test
@pytest.mark.parametrize("case", ["statistics", "obs", "obs, 2:4", "wanda", "gptq", "adaround"])
def test_layers_on_the_gpu_are_the_processors_within_rounding(case: str, teacher: Checkpoint) -> None:
    """A choice between two that are nearly as good may turn; the others are the same.

    AdaRound makes a choice for each weight: of the stem's 72, 8 turned on an H100.
    """
    here, there = (state(CASES[case](teacher, device, Run(seed=3)).model.module) for device in ("cpu", GPU))
    for name, expected in here.items():
        near = torch.isclose(there[name], expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
        assert near.float().mean() > (0.8 if case == "adaround" else 0.9), name


@gpu_test
@pytest.mark.parametrize("precision", ["tf32", "bfloat16", "float16"])
def test_a_training_of_fewer_bits_repeats_them_and_comes_near(precision: str, teacher: Checkpoint) -> None:
    one, other = (trained(precision=precision)(teacher, GPU, Run(seed=3)) for _ in range(2))
    assert same(one, other)
    plain = trained()(teacher, GPU, Run(seed=3))
    assert precision == "tf32" or not same(one, plain)  # small products may have no kernel of TF32
    for row, expected in zip(one.curve, plain.curve, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=0.3)


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
        layers = nn.Linear(64, 16), nn.Linear(16, 3)
        module = nn.Sequential(nn.Flatten(), layers[0], nn.Dropout(0.5), layers[1])
        for layer in layers:
            torch.nn.init.constant_(layer.weight, 0.1)
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
def test_what_is_sent_arrives_although_the_source_is_used_again() -> None:
    device = find(GPU)
    for number in range(50):
        source = torch.full((1000, 1000), float(number))
        there, nothing, rows = sent((source, None, Rows({"x": source})), device)
        source.fill_(-1)
        assert nothing is None
        assert there.device == rows.tensors["x"].device == device
        assert there.min().item() == there.max().item() == number


@gpu_test
def test_a_gpu_waits_for_nothing_in_a_step(monkeypatch: pytest.MonkeyPatch, teacher: Checkpoint) -> None:
    """torch refuses here whatever would wait for the device."""
    original, watched_steps = fit.step_, 0

    def watched(*arguments: Any) -> Any:
        nonlocal watched_steps
        watched_steps += 1
        torch.cuda.set_sync_debug_mode("error")
        try:
            return original(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(fit, "step_", watched)
    for case in ("teacher", "masks", "rigl", "steps", "clips"):
        before = watched_steps
        CASES[case](teacher, GPU, Run(seed=3))
        assert watched_steps > before, case


@gpu_test
def test_a_gpu_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(DecantError, match=r"this machine has cpu \(the processor\), cuda:0 \("):
        find("cuda:99")
    assert os.environ[devices.SUMS] in devices.STEADY_SUMS


@gpu_test
def test_a_gpu_without_room_says_which_batch_size_to_try() -> None:
    whole = torch.cuda.mem_get_info()[1]
    told = failing(lambda: torch.empty(whole + 1, dtype=torch.uint8, device=GPU), GPU, 24)
    assert "not enough memory" in told and "try training.batch_size: 12 and training.accumulate: 2" in told
