"""The operations in any order: whatever one did holds after all later ones, on disk as in memory."""

import importlib
import itertools
import json
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from decant.calibration.ranges import CANDIDATES
from decant.checkpoints.activations import InputGrid
from decant.checkpoints.checkpoint import Checkpoint, state
from decant.checkpoints.constraints import FREE
from decant.checkpoints.files import save
from decant.compression.finish import begun
from decant.compression.invariants import check_invariants
from decant.compression.surgery import Kept, removed
from decant.costs.counts import macs
from decant.errors import DecantError
from decant.export.deploy import check_same, to_onnx
from decant.export.runtime import open_session
from decant.lowering.folding import folded
from decant.lowering.integers import settled
from decant.networks.architectures import Resnet, build
from decant.networks.execution import predict
from decant.networks.layers import fit_normalization_
from decant.networks.structure import compressible
from decant.schema import Section
from tasks.pipeline.models import load_model
from tasks.pipeline.splits import read
from tasks.pipeline.step import begin, write
from tests import homes
from tests.homes import noise, write_params
from tests.imports import OPERATIONS
from tests.slow import every_second, slow_but

BLOCKS: dict[str, dict[str, Any]] = {
    "clip": {"op": "clip", "cut": {"kind": "percentile", "keep": 0.9}},
    "threshold": {"op": "clip", "cut": {"kind": "threshold", "threshold": 0.09}},
    "sparsity": {"op": "clip", "cut": {"kind": "sparsity", "sparsity": 0.3}},
    "channels": {"op": "clip", "cut": {"kind": "deviation", "multiple": 1.5, "per_channel": True}},
    "inputs": {"op": "clip", "target": "activations", "cut": {"kind": "percentile", "keep": 0.9}},
    "input-channels": {
        "op": "clip",
        "target": "activations",
        "cut": {"kind": "deviation", "multiple": 1.5, "per_channel": True},
    },
    "best": {"op": "clip", "cut": {"kind": "best", "bits": 3, "images": 24}},
    "best-inputs": {
        "op": "clip",
        "target": "activations",
        "images": 40,
        "cut": {"kind": "best", "bits": 3, "images": 24},
    },
    "prune": {
        "op": "prune",
        "criterion": {"kind": "magnitude"},
        "allocation": {"kind": "layer"},
        "budget": {"sparsity": 0.6},
    },
    "thin": {
        "op": "prune",
        "criterion": {"kind": "magnitude"},
        "allocation": {"kind": "layer"},
        "structure": {"kind": "channels"},
        "budget": {"macs": 0.6},
    },
    "integer": {"op": "quantize", "scheme": {"kind": "integer", "bits": 4}},
    "static": {"op": "quantize", "scheme": {"kind": "integer", "bits": 8}, "activations": {"bits": 8}},
    "ranged": {
        "op": "quantize",
        "scheme": {"kind": "integer", "bits": 3, "range": {"kind": "mse"}},
        "activations": {"bits": 4, "range": {"kind": "aciq"}},
    },
    "best-ranged": {
        "op": "quantize",
        "scheme": {"kind": "integer", "bits": 3, "range": {"kind": "best", "images": 24}},
        "activations": {"bits": 4, "range": {"kind": "best", "images": 20}},
        "images": 40,
    },
    "binary": {"op": "quantize", "scheme": {"kind": "binary"}, "first_and_last": "same", "skip": ["head"]},
    "finetune": {
        "op": "finetune",
        "loss": {"kind": "temperature", "temperature": 2.0},
        "training": {"epochs": 2, "batch_size": 16, "optimizer": {"kind": "sgd", "learning_rate": 0.05}},
    },
    "distill": {
        "op": "distill",
        "student": {"kind": "mlp", "hidden": [6]},
        "loss": {"kind": "softmax"},
        "training": {"epochs": 1, "batch_size": 16},
    },
}


def orders(*kinds: str) -> list[tuple[str, ...]]:
    """Return orders of the operations in which each one follows each other one directly at least once."""
    # A pruned layer's signs are all larger than the threshold, which would change nothing and be refused.
    possible = [
        order
        for order in itertools.permutations(kinds)
        if "threshold" not in order or not {"prune", "binary"} <= {*order[: order.index("threshold")]}
    ]
    chosen, missing = [], set(itertools.permutations(kinds, 2))
    while missing:
        chosen.append(max(possible, key=lambda order: len(missing & {*pairwise(order)})))
        missing -= {*pairwise(chosen[-1])}
    return chosen


WEIGHTS = [*orders("clip", "threshold", "prune", "integer"), *orders("threshold", "prune", "binary")]
RANGES = [*orders("channels", "inputs", "ranged"), *orders("sparsity", "input-channels", "static")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two tables and a teacher of fresh weights."""
    splits = noise((1, 8, 8), train=64, validation=20)
    with homes.home(tmp_path_factory.mktemp("home"), splits) as folder:
        teach()
        yield folder


def teach() -> None:
    architecture, images = Resnet(widths=(4, 8), blocks=(1, 1)), read(Path("data/train.parquet")).images
    module = build(architecture, (1, 8, 8), 10, seed=0)
    fit_normalization_(module, images.float() / 255)
    for _ in range(20):
        module(images.float() / 255)  # statistics of the batch norms
    teacher = Checkpoint(architecture, (1, 8, 8), tuple("0123456789"), module.eval())
    write_blocks({})
    step = begin("teacher", "teacher", "teacher", _Nothing)
    written_by("teacher", lambda: write(step, begun(teacher, [])))


def write_blocks(models: dict[str, Any]) -> None:
    """Write params.yaml of these models, whose teacher `teach` made."""
    threads = dict.fromkeys(("teacher", *OPERATIONS), 1)
    write_params({"seed": 1, "threads": threads, "teacher": {}, "models": models})


class _Nothing(Section):
    pass


def written_by(name: str, make: Callable[[], None]) -> Checkpoint:
    """Call `make` and return the checkpoint in memory that it wrote as `name`."""
    saved = []

    def watched(checkpoint: Checkpoint, folder: Path, beside: dict[str, str]) -> None:
        saved.append(checkpoint)
        save(checkpoint, folder, beside)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.pipeline.step.save", watched)
        make()
    (checkpoint,) = saved
    assert Path("models", name).is_dir()
    return checkpoint


def images() -> Tensor:
    return read(Path("data/validation.parquet")).images


def apply(kinds: list[str], **changes: dict[str, Any]) -> list[Checkpoint]:
    """Run the operations one after another from the teacher; return what each held in memory."""
    names = [f"m{index}-{kind}" for index, kind in enumerate(kinds)]
    models = {
        name: {**BLOCKS[kind], **changes.get(name.replace("-", "_"), {}), "from": parent}
        for name, kind, parent in zip(names, kinds, ["teacher", *names], strict=False)
    }
    write_blocks(models)
    checkpoints = []
    for name in names:
        main = importlib.import_module(f"tasks.{models[name]['op']}.__main__").main
        checkpoints.append(written_by(name, lambda main=main, name=name: main(name)))
    return checkpoints


def hold_all(ancestors: list[Checkpoint], model: Checkpoint) -> None:
    for ancestor in ancestors:
        # Folding multiplies ranges and scales by what batch norms multiply.
        held = folded(ancestor).constraints if model.folded else ancestor.constraints
        for name, earlier in held.items():
            later = model.constraints.get(name, FREE)
            assert earlier.broken_by(model.module.get_parameter(name), later) == []
        assert ancestor.grids.items() <= model.grids.items()
        assert all(model.clamps[layer].within(clamp) for layer, clamp in ancestor.clamps.items())


def same_on_disk(name: str, model: Checkpoint) -> None:
    images, loaded = read(Path("data/validation.parquet")).images, load_model(name)
    assert torch.equal(predict(loaded.module, images), predict(model.module, images))
    kept = state(model.module)
    assert all(torch.equal(t, kept[n]) for n, t in state(loaded.module).items())
    assert loaded.constraints.keys() == model.constraints.keys()
    for weight, held in loaded.constraints.items():
        assert held.describe() == model.constraints[weight].describe()
    assert loaded.grids == model.grids
    assert loaded.clamps == model.clamps
    # Biases are as integer kernels add them, whatever the last operation was.
    again = state(settled(loaded).module)
    assert all(torch.equal(t, again[n]) for n, t in state(loaded.module).items())


@pytest.mark.parametrize("order", slow_but(WEIGHTS[::3], WEIGHTS), ids="-".join)
def test_any_order_holds_everything(order: tuple[str, ...], home: Path) -> None:
    at = order.index("threshold")
    # Where batch norms are folded, what pruning has left is larger than the usual threshold.
    larger = {"cut": {"kind": "threshold", "threshold": 0.2}}
    changes = {f"m{at}_threshold": larger} if {"prune", "integer"} <= {*order[:at]} else {}
    made = apply(list(order), **changes)
    for index, (kind, model) in enumerate(zip(order, made, strict=True)):
        hold_all(made[: index + 1], model)
        same_on_disk(f"m{index}-{kind}", model)
    last = made[-1]
    weights = compressible(last.module)
    assert all(last.constraints[name].mask is not None for name in weights)
    pruned = compressible(made[order.index("prune")].module).values()
    assert sum(int((weight == 0).sum()) for weight in pruned) == round(0.6 * sum(w.numel() for w in pruned))
    for name, weight in weights.items():
        if name == "head.weight" and "binary" in order:
            continue
        bound = 1 if "binary" in order else 7
        levels = last.constraints[name].levels
        assert levels is not None
        codes = weight / levels.scale
        assert torch.allclose(codes, codes.round(), atol=1e-4)
        assert codes.abs().max() <= bound + 1e-4
    assert [entry["op"] for entry in last.lineage[1:]] == [BLOCKS[kind]["op"] for kind in order]


@pytest.mark.parametrize("order", every_second(RANGES), ids="-".join)
def test_ranges_of_weights_and_of_inputs_hold_in_any_order(order: tuple[str, ...], home: Path) -> None:
    made = apply(list(order))
    for index, (kind, model) in enumerate(zip(order, made, strict=True)):
        hold_all(made[: index + 1], model)
        same_on_disk(f"m{index}-{kind}", model)
    assert made[-1].clamps.keys() == {name.removesuffix(".weight") for name in compressible(made[-1].module)}


def test_a_clamp_after_a_grid_is_before_it_when_the_model_runs(home: Path) -> None:
    rounded, both = apply(["static", "inputs"])
    layer = both.module.get_submodule("head")
    inputs = torch.linspace(-9, 9, 50 * layer.in_features).reshape(50, -1)
    weight, bias = layer.weight.double(), layer.bias.double()
    expected = both.grids["head"](both.clamps["head"].project(inputs)).double() @ weight.T + bias
    assert torch.allclose(layer(inputs).double(), expected, atol=1e-5)
    assert not torch.equal(layer(inputs), rounded.module.get_submodule("head")(inputs))


def test_a_grid_after_a_clamp_spans_what_was_left(home: Path) -> None:
    clipped, both = apply(["inputs", "static"])
    assert len(clipped.clamps) == len(compressible(clipped.module))
    for layer, clamp in clipped.clamps.items():
        low, high = clamp.ends()
        grid, reach = both.grids[layer], max(high, 0) - min(low, 0)
        assert isinstance(grid, InputGrid)
        assert 0 < grid.scale * 255 <= reach * 1.0001


def test_clipping_inputs_twice_intersects(home: Path) -> None:
    first, both = apply(["inputs", "input-channels"])
    assert both.clamps.keys() == first.clamps.keys() != set()
    for layer, clamp in both.clamps.items():
        assert clamp.per_channel
        assert clamp.within(first.clamps[layer])


@pytest.mark.parametrize(
    ("kind", "prefixes"),
    [
        ("best", [""]),
        ("best-inputs", ["inputs: "]),
        pytest.param("best-ranged", ["", "inputs: "], marks=pytest.mark.slow),
    ],
)
def test_best_takes_the_least_of_all_and_keeps_the_table(
    kind: str, prefixes: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model,) = apply([kind])
    same_on_disk(f"m0-{kind}", model)
    printed = capsys.readouterr().out
    entries = {e["name"]: e for e in json.loads(Path(f"models/m0-{kind}/ledger.json").read_text())}
    for name, entry in entries.items():
        assert ("tried" in entry) == ("chosen" in entry) == (name in compressible(model.module))
        if "tried" not in entry:
            continue
        assert list(entry["tried"]) == [f"{prefix}{kind}" for prefix in prefixes for kind in CANDIDATES]
        least = [
            min((k for k in entry["tried"] if k.startswith("inputs") == bool(p)), key=entry["tried"].get)
            for p in prefixes
        ]
        assert entry["chosen"] == "; ".join(least)
        assert f"(chosen: {entry['chosen']})" in printed


def test_the_divergence_in_the_table_is_that_of_one_tensor_rounded_alone(home: Path) -> None:
    apply(["best"])
    (entry,) = (
        e for e in json.loads(Path("models/m0-best/ledger.json").read_text()) if e["name"] == "head.weight"
    )
    teacher, images = load_model("teacher"), read(Path("data/train.parquet")).images[:24]
    before = predict(teacher.module, images).double()
    weight = teacher.module.get_parameter("head.weight")
    step = weight.abs().max() / 3  # three bits, per tensor
    with torch.no_grad():
        weight.copy_((weight / step).round() * step)
    p, log_q = before.softmax(1), predict(teacher.module, images).double().log_softmax(1)
    by_hand = (p * (p.log() - log_q)).sum(1).mean().item()
    assert entry["tried"]["min-max"] == pytest.approx(by_hand, rel=1e-6)


def test_best_wants_images_that_no_range_was_taken_from(home: Path) -> None:
    with pytest.raises(DecantError, match=r"needs 24 training images beside the 41 .* there are 64"):
        apply(["best-inputs"], m0_best_inputs={"images": 41})


def test_a_mask_is_no_range_for_activations(home: Path) -> None:
    with pytest.raises(DecantError, match="'sparsity' holds weights at zero, and activations are other ones"):
        apply(["sparsity"], m0_sparsity={"target": "activations"})


def test_inputs_outside_a_fixed_range_are_told_by_layer(home: Path) -> None:
    far = {"cut": {"kind": "bounds", "minimum": -900, "maximum": -800}}
    with pytest.raises(DecantError, match=r"cannot be clipped so: inputs of stem\.0, .* would all be -800"):
        apply(["inputs", "inputs"], m1_inputs=far)
    beyond = {"activations": {"range": {"kind": "bounds", "minimum": 800}}}
    with pytest.raises(DecantError, match=r"cannot be rounded so: inputs of stem\.0, which lie in range \["):
        apply(["static"], m0_static=beyond)


@pytest.mark.parametrize("order", [("prune", "integer"), ("integer", "prune"), ("clip", "prune")])
def test_the_sparsity_is_exact_wherever_pruning_stands(order: tuple[str, ...], home: Path) -> None:
    made = apply(list(order))[order.index("prune")]
    for name in compressible(made.module):
        mask = made.constraints[name].mask
        assert mask is not None
        assert int((~mask).sum()) == round(0.6 * mask.numel())


@pytest.mark.parametrize(
    "kinds",
    slow_but(
        (["static", "finetune"], ["binary", "threshold", "finetune", "prune"]),
        [
            ["clip", "prune", "integer", "finetune"],
            ["static", "finetune"],
            ["binary", "threshold", "finetune", "prune"],
            ["channels", "input-channels", "ranged", "finetune", "inputs"],
            ["distill", "prune", "finetune", "integer"],
        ],
    ),
    ids="-".join,
)
def test_training_holds_what_was_done_before(kinds: list[str], home: Path) -> None:
    made = apply(kinds)
    for index, (kind, model) in enumerate(zip(kinds, made, strict=True)):
        hold_all(made[: index + 1], model)
        same_on_disk(f"m{index}-{kind}", model)
        trained = BLOCKS[kind]["op"] in ("finetune", "distill")
        assert Path(f"models/m{index}-{kind}/curve.csv").exists() == trained
    at = kinds.index("finetune")
    before, after = made[at - 1].module, made[at].module
    assert any(not torch.equal(p, before.get_parameter(name)) for name, p in after.named_parameters())
    assert not list(Path(".scratch").glob("*"))


@pytest.mark.parametrize(
    "kinds",
    slow_but(
        (["channels", "input-channels", "prune", "thin"], ["binary", "thin", "threshold", "finetune"]),
        [
            ["thin", "finetune", "prune", "integer"],
            ["prune", "thin", "finetune", "static"],
            ["channels", "input-channels", "prune", "thin"],
            ["integer", "thin", "finetune"],
            ["binary", "thin", "threshold", "finetune"],
            ["ranged", "thin", "inputs", "thin", "prune"],
            ["thin", "distill", "prune"],
        ],
    ),
    ids="-".join,
)
def test_channels_go_at_any_place_of_a_chain(
    kinds: list[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = []

    def check(parent: Checkpoint, child: Checkpoint, kept: Kept | None = None) -> None:
        lost.append(kept or {})
        check_invariants(parent, child, kept)

    monkeypatch.setattr("decant.compression.finish.check_invariants", check)
    second = {"m3_thin": {"budget": {"macs": 0.4}}} if kinds.count("thin") == 2 else {}
    made = apply(kinds, **second)
    for index, (kind, model) in enumerate(zip(kinds, made, strict=True)):
        same_on_disk(f"m{index}-{kind}", model)
    # The last one alone: the widths of each are a graph of their own, and tracing one takes seconds.
    check_same(kinds[-1], made[-1], open_session(to_onnx(made[-1]).SerializeToString(), 1), images())
    if "distill" in kinds:
        return
    for index, kept in enumerate(lost):
        assert bool(kept) == (kinds[index] == "thin")
        if kept:
            parent = made[index - 1] if index else load_model("teacher")
            assert macs(made[index].module) < macs(parent.module)
            made[:index] = [removed(model, kept) for model in made[:index]]
    hold_all(made[:-1], made[-1])


def test_a_whole_chain_gives_the_same_bytes_again(home: Path) -> None:
    kinds = ["clip", "prune", "finetune", "static"]
    contents = []
    for _ in range(2):
        apply(kinds)
        contents.append({path: path.read_bytes() for path in sorted(home.glob("models/m?-*/*"))})
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("first", "second"), [("integer", "binary"), ("binary", "integer"), ("integer", "static")]
)
def test_quantizing_twice_is_refused_by_name(first: str, second: str, home: Path) -> None:
    with pytest.raises(
        DecantError,
        match=rf"stem\.0\.weight of m0-{first} is quantized already; quantize one of its ancestors instead",
    ):
        apply([first, second])
    assert not list(home.glob("models/.*"))


def test_what_the_first_quantization_skipped_may_be_quantized_later(home: Path) -> None:
    others = [name.removesuffix(".weight") for name in compressible(apply(["binary"])[0].module)]
    skip = {"skip": [layer for layer in others if layer != "head"]}
    both = apply(["binary", "integer"], m1_integer=skip)[-1]
    head, stem = both.constraints["head.weight"].levels, both.constraints["stem.0.weight"].levels
    assert head is not None
    assert stem is not None
    assert (len(head.values), len(stem.values)) == (15, 2)


@pytest.mark.parametrize("allocation", ["global", "layer"])
@pytest.mark.parametrize("kind", ["magnitude", "random"])
def test_pruning_less_than_there_is_is_refused(allocation: str, kind: str, home: Path) -> None:
    with pytest.raises(DecantError, match=r"sparsity 0\.4 is exceeded already: 650 of the 1,300 .*is 0\.5;"):
        apply(
            ["prune", "prune"],
            m0_prune={"allocation": {"kind": allocation}, "budget": {"sparsity": 0.5}},
            m1_prune={
                "allocation": {"kind": allocation},
                "budget": {"sparsity": 0.4},
                "criterion": {"kind": kind},
            },
        )


def test_pruning_twice_equals_pruning_once(home: Path) -> None:
    twice = apply(
        ["prune", "prune"], m0_prune={"budget": {"sparsity": 0.3}}, m1_prune={"budget": {"sparsity": 0.7}}
    )[-1]
    once = apply(["prune"], m0_prune={"budget": {"sparsity": 0.7}})[-1]
    for name, weight in compressible(once.module).items():
        assert torch.equal(weight, twice.module.get_parameter(name))


def test_clipping_again_as_wide_changes_nothing(home: Path) -> None:
    cut = {"cut": {"kind": "bounds", "minimum": -0.1, "maximum": 0.1}}
    with pytest.raises(DecantError, match="changed nothing"):
        apply(["clip", "clip"], m0_clip=cut, m1_clip={"cut": {"kind": "bounds", "minimum": -0.1}})


def test_the_step_shrinks_when_the_range_was_cut_first(home: Path) -> None:
    alone, after = apply(["integer"])[-1], apply(["clip", "integer"])[-1]
    for name in compressible(alone.module):
        one, other = alone.constraints[name].levels, after.constraints[name].levels
        assert one is not None
        assert other is not None
        assert (other.scale <= one.scale).all()
        assert math.isclose(
            other.scale.max().item() * 7,
            after.module.get_parameter(name).abs().max().item(),
            rel_tol=1e-5,
        )


def test_the_teacher_is_read_and_never_written(home: Path) -> None:
    before = {path: path.read_bytes() for path in home.glob("models/teacher/*")}
    apply(["clip", "prune", "finetune"])
    assert {path: path.read_bytes() for path in home.glob("models/teacher/*")} == before


def test_a_missing_parent_says_what_to_do(home: Path) -> None:
    model = BLOCKS["prune"] | {"from": "nobody"}
    write_blocks({"m": model})
    main = importlib.import_module("tasks.prune.__main__").main
    with pytest.raises(DecantError, match=r"params\.yaml has no model 'nobody'; known are m, teacher"):
        main("m")
