"""What a recipe promises holds of the model that is written, and something is left of each layer."""

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import Constraints, Range
from decant.clip.operation import clip
from decant.compression.promises import check_promises, check_written, nothing_lost
from decant.errors import DecantError
from decant.examples import Examples, Splits
from decant.finetune.operation import finetune
from decant.networks.architectures import Mlp, build
from decant.networks.structure import compressible
from decant.prune.allocations import Allocation
from decant.prune.mask_pruning import MaskPruning, Pruned
from decant.prune.masks import Candidates, masks_of, ranked
from decant.prune.operation import prune
from decant.prune.params import PruneParams
from decant.prune.structures import Blocks, Masked, Weights
from decant.quantize.operation import quantize
from decant.recipes import counted, recipe_of
from tasks.pipeline import step
from tasks.pipeline.models import load_model
from tasks.pipeline.params import validate
from tasks.validate.recipes import check
from tests import homes
from tests.homes import noise, write_params
from tests.imports import ROOT

ALLOCATIONS = [kind.model_fields["kind"].default for kind in get_args(get_args(Allocation)[0])]
STRUCTURES: list[Masked] = [Weights(), Blocks(rows=1, columns=4), Blocks(rows=2, columns=2)]
HIDDEN = 16


def examples(count: int = 40) -> Examples:
    images = torch.randint(0, 256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(count))
    return Examples(images.to(torch.uint8), torch.arange(count) % 4, tuple("abcd"))


SPLITS = Splits(examples(40), examples(24))


@pytest.fixture(scope="module")
def parent() -> Checkpoint:
    """A network of 16 * 16 + 4 * 16 = 320 weights."""
    architecture = Mlp(hidden=(HIDDEN,))
    return Checkpoint(
        architecture, (1, 4, 4), tuple("abcd"), build(architecture, (1, 4, 4), 4, seed=0).eval()
    )


def with_masks(parent: Checkpoint, shares: Mapping[str, float], seed: int = 0) -> Checkpoint:
    """Return the model with so many of each named weight held at zero, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    masks = {
        name: torch.rand(parent.module.get_parameter(name).shape, generator=generator) >= share
        for name, share in shares.items()
    }
    return parent.narrowed({name: Constraints(mask=mask) for name, mask in masks.items()})


def zeros(model: Checkpoint) -> int:
    """Count the zeros among the weights, one by one."""
    return sum(1 for w in compressible(model.module).values() for value in w.flatten().tolist() if value == 0)


FIRST, LAST = "layers.0.weight", "layers.2.weight"


# --- numbers are exact where there are zeros already


@given(
    seed=st.integers(0, 999),
    allocation=st.sampled_from(ALLOCATIONS),
    structure=st.sampled_from(STRUCTURES),
    dead=st.tuples(*[st.sampled_from([0.0, 0.05, 0.3, 0.8, 0.97])] * 3),
    share=st.floats(0.0, 1.0),
    distinct=st.sampled_from([2, 1000]),
)
@settings(max_examples=60, deadline=None)
def test_zeros_are_as_many_as_asked_whatever_is_zero_already(
    seed: int, allocation: str, structure: Masked, dead: tuple[float, ...], share: float, distinct: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (4, 8), "b": (8, 4, 3, 3), "c": (2, 8)}
    drawn = {n: torch.randint(0, distinct, s, generator=generator).double() for n, s in shapes.items()}
    earlier = {
        n: torch.rand(s, generator=generator) >= d for (n, s), d in zip(shapes.items(), dead, strict=True)
    }
    task = Candidates(
        structure,
        validate({"kind": allocation}, Allocation),
        ranked(drawn, earlier),
        lambda c: sum(c.values()),
    )
    total = sum(score.numel() for score in drawn.values())
    there = sum(int((~mask).sum()) for mask in earlier.values())
    asked = round(share * (total - there)) + there
    try:
        counts = task.reaching(task.removed(asked / total))
        task.check(counts)
    except DecantError:  # less than a unit in each layer, or global would empty one
        return
    left = {name: (mask & earlier[name]).flatten().tolist() for name, mask in task.masks(counts).items()}
    found = sum(1 for values in left.values() for value in values if not value)
    assert asked <= found < asked + structure.size
    assert all(any(values) or not bool(earlier[name].any()) for name, values in left.items())


def pruned(parent: Checkpoint, splits: Splits = SPLITS, **recipe: Any) -> Checkpoint:
    return prune(parent, {"criterion": {"kind": "magnitude"}, **recipe}, splits).model


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("criterion", ["magnitude", "random", "taylor", "obs"])
def test_a_share_of_zeros_counts_those_of_one_layer(
    allocation: str, criterion: str, parent: Checkpoint
) -> None:
    fuller = with_masks(parent, {FIRST: 0.8})
    budget, kinds = {"sparsity": 0.7}, {"allocation": {"kind": allocation}, "criterion": {"kind": criterion}}
    assert zeros(pruned(fuller, budget=budget, **kinds)) == 224


@pytest.mark.parametrize("criterion", ["magnitude", "random", "obs"])
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_blocks_that_are_partly_zero_add_the_rest(
    criterion: str, allocation: str, parent: Checkpoint
) -> None:
    thinner = with_masks(parent, {FIRST: 0.3, LAST: 0.3})
    blocks = {"structure": {"kind": "blocks", "rows": 1, "columns": 4}, "allocation": {"kind": allocation}}
    model = pruned(thinner, budget={"sparsity": 0.45}, criterion={"kind": criterion}, **blocks)
    assert 144 <= zeros(model) <= 147


def test_zeros_that_no_mask_holds_count_where_nothing_is_trained(parent: Checkpoint) -> None:
    ternary = quantize(parent, {"scheme": {"kind": "ternary"}}, SPLITS).model
    before = zeros(ternary)
    assert 60 < before < 190
    for criterion in ("random", "magnitude"):
        assert zeros(pruned(ternary, budget={"sparsity": 0.6}, criterion={"kind": criterion})) == 192
    with pytest.raises(DecantError, match=rf"sparsity 0\.1 is exceeded already: {before} of the 320 weights"):
        pruned(ternary, budget={"sparsity": 0.1})


def test_a_pattern_holds_where_there_are_more_zeros_than_it_needs(parent: Checkpoint) -> None:
    fuller = with_masks(parent, {FIRST: 0.6, LAST: 0.6})
    for criterion in ("magnitude", "obs"):
        model = pruned(fuller, structure={"kind": "n-of-m"}, criterion={"kind": criterion})
        for weight in compressible(model.module).values():
            assert int((weight.reshape(-1, 4) == 0).sum(1).min()) >= 2


TRAINING = {"epochs": 2, "batch_size": 8, "optimizer": {"kind": "sgd", "learning_rate": 0.05}}


@pytest.mark.parametrize("kind", ["iterative", "gradual", "surgery", "rigl"])
@pytest.mark.parametrize("allocation", ["global", "layer"])
def test_schedules_that_count_units_count_those_that_are_gone(
    kind: str, allocation: str, parent: Checkpoint
) -> None:
    fuller = with_masks(parent, {LAST: 0.8, FIRST: 0.2})
    schedule = {"kind": kind, "training": TRAINING} | ({"every": 2} if kind != "iterative" else {"rounds": 2})
    model = pruned(fuller, budget={"sparsity": 0.6}, schedule=schedule, allocation={"kind": allocation})
    assert sum(int((~mask).sum()) for mask in masks_of(model).values()) == 192
    if kind != "rigl":
        blocks = {"kind": "blocks", "rows": 1, "columns": 4}
        shared = {"structure": blocks, "allocation": {"kind": "layer"}}
        model = pruned(fuller, budget={"sparsity": 0.6}, schedule=schedule, **shared)
        assert 192 <= sum(int((~mask).sum()) for mask in masks_of(model).values()) <= 195


def test_nonzeros_count_what_is_masked_in_layers_that_are_skipped(parent: Checkpoint) -> None:
    fuller = with_masks(parent, {LAST: 0.5})
    held = int((~masks_of(fuller)[LAST]).sum())
    schedule = {"kind": "gradual", "training": TRAINING, "every": 2}
    model = pruned(fuller, budget={"nonzeros": 200}, schedule=schedule, skip=["layers.2"])
    masks = masks_of(model)
    assert int((~masks[LAST]).sum()) == held
    assert (
        sum(p.numel() for p in model.module.parameters()) - sum(int((~m).sum()) for m in masks.values())
        == 200
    )


# --- what a model is not, it is not written as


def test_a_model_that_is_not_what_was_asked_is_refused(parent: Checkpoint) -> None:
    def broken(model: Checkpoint, **recipe: Any) -> None:
        block = recipe_of(PruneParams, {"criterion": {"kind": "magnitude"}, **recipe}, SPLITS.sizes)
        check_promises(model, MaskPruning(block, parent, parent, SPLITS, 0).promises(Pruned(model)))

    half = pruned(parent, budget={"sparsity": 0.5})
    broken(half, budget={"sparsity": 0.5})
    with pytest.raises(
        DecantError, match=r"sparsity 0\.51 is 163 zeros of 320 weights, and 160 are held at zero"
    ):
        broken(half, budget={"sparsity": 0.51})
    with pytest.raises(DecantError, match=r"sparsity 0\.4 is 128 zeros of 320 weights, and 160 are"):
        broken(half, budget={"sparsity": 0.4})
    with pytest.raises(DecantError, match=r"layers\.0\.weight: \d+ of 64 groups of 4 keep more than 2"):
        broken(half, structure={"kind": "n-of-m"})
    with pytest.raises(DecantError, match=r"\d+ of 64 blocks have lost some of their weights and not all"):
        broken(half, structure={"kind": "blocks"}, budget={"sparsity": 0.5})
    off = replace(half, constraints={**half.constraints, LAST: Constraints(range=Range(-0.01, 0.01))})
    with pytest.raises(DecantError, match=r"layers\.2\.weight: \d+ of 64 weights are off their range"):
        broken(off, budget={"sparsity": 0.5})


@pytest.mark.parametrize("part", ["weight", "sign of a zero", "mask", "lineage", "class"])
def test_what_is_read_back_is_the_model_to_the_bit(part: str, parent: Checkpoint) -> None:
    model = replace(with_masks(parent, {LAST: 0.5}), lineage=({"op": "teacher", "sizes": (1, 2)},))
    other = replace(model.narrowed({}), lineage=({"op": "teacher", "sizes": [1, 2]},))
    check_written(model, other, [])
    weight = other.module.get_parameter(LAST).data
    if part == "weight":
        weight[0, 0] += 1e-7
    elif part == "sign of a zero":
        weight[~masks_of(model)[LAST]] = -0.0
    elif part == "mask":
        other = replace(other, constraints={})
    elif part == "lineage":
        other = replace(other, lineage=())
    else:
        other = replace(other, classes=tuple("abce"))
    with pytest.raises(
        DecantError, match=r"What was written is not the model that was made: .* read back otherwise"
    ):
        check_written(model, other, [])


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder with two tables, in which models can be made."""
    with homes.home(tmp_path, noise((1, 4, 4), train=60, validation=20)) as folder:
        yield folder


def stage(name: str, **block: Any) -> None:
    teacher = {"architecture": {"kind": "mlp", "hidden": [8]}, "training": {"epochs": 1}}
    threads = {"teacher": 1, "clip": 1, "quantize": 1}
    write_params(
        {"seed": 1, "threads": threads, "teacher": teacher, "models": {"child": block} if block else {}}
    )
    arguments = () if name == "teacher" else ("child",)
    importlib.import_module(f"tasks.{name}.__main__").main(*arguments)


def test_nothing_is_written_where_a_disk_gives_back_something_else(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage("teacher")
    before = {file.name: file.read_bytes() for file in Path("models/teacher").iterdir()}
    original = step.load

    def damaged(folder: Path, build: Any = None) -> Checkpoint:
        model = original(folder, build)
        model.module.get_parameter("layers.0.weight").data[0, 0] += 1
        return model

    monkeypatch.setattr(step, "load", damaged)
    with pytest.raises(DecantError, match=r"layers\.0\.weight read back otherwise; nothing is kept"):
        stage("teacher")
    assert {file.name: file.read_bytes() for file in Path("models/teacher").iterdir()} == before
    assert [path.name for path in Path("models").iterdir()] == ["teacher"]


# --- something is left of each layer


@pytest.mark.parametrize(
    "make",
    [
        lambda parent: clip(parent, {"cut": {"kind": "threshold", "threshold": 100.0}}, SPLITS),
        lambda parent: clip(parent, {"cut": {"kind": "bounds", "minimum": 5, "maximum": 6}}, SPLITS),
        lambda parent: clip(parent, {"cut": {"kind": "sparsity", "sparsity": 0.999}}, SPLITS),
    ],
    ids=["threshold", "bounds", "sparsity"],
)
def test_an_operation_that_leaves_nothing_of_a_layer_is_refused(make: Any, parent: Checkpoint) -> None:
    with pytest.raises(
        DecantError, match=r"layers\.\d\.weight: nothing is left of the layer, every weight is"
    ):
        make(parent)


def test_signs_that_are_all_the_same_are_refused() -> None:
    architecture = Mlp(hidden=(1,))
    module = build(architecture, (1, 4, 4), 4, seed=0).eval()
    module.get_parameter(FIRST).data.abs_()
    parent, recipe = (
        Checkpoint(architecture, (1, 4, 4), tuple("abcd"), module),
        {"scheme": {"kind": "binary"}},
    )
    with pytest.raises(
        DecantError, match=r"layers\.0\.weight: nothing is left of the layer, every weight is 0\.1"
    ):
        quantize(parent, {**recipe, "first_and_last": "same"}, SPLITS)


def test_inputs_that_are_all_cut_to_one_number_are_refused(parent: Checkpoint) -> None:
    cut = {"target": "activations", "cut": {"kind": "bounds", "minimum": 50}}
    with pytest.raises(DecantError, match=r"inputs of layers\.0, which lie in .* would all be 50;"):
        clip(parent, cut, SPLITS)
    narrow = {"scheme": {"kind": "integer"}, "activations": {"range": {"kind": "percentile", "keep": 0.01}}}
    with pytest.raises(DecantError, match=r"inputs of layers\.2, which lie in .* would all be 0;"):
        quantize(parent, narrow, SPLITS)


def test_what_the_parent_had_lost_already_may_stay_lost(parent: Checkpoint) -> None:
    empty = parent.narrowed({LAST: Constraints(mask=torch.zeros(4, HIDDEN, dtype=torch.bool))})
    for result in (
        clip(empty, {"cut": {"kind": "percentile", "keep": 0.9}}, SPLITS),
        quantize(empty, {"scheme": {"kind": "integer", "bits": 8}}, SPLITS),
        finetune(empty, {"training": TRAINING}, SPLITS),
        prune(empty, {"criterion": {"kind": "magnitude"}, "budget": {"sparsity": 0.5}}, SPLITS),
    ):
        assert not result.model.module.get_parameter(LAST).any()
    assert zeros(pruned(empty, budget={"sparsity": 0.5})) == 160


def test_biases_may_be_zero_and_one_weight_may_be_alone(parent: Checkpoint) -> None:
    model = parent.narrowed({})
    for name, parameter in model.module.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    assert list(nothing_lost(parent)(model)) == []
    model.module.layers[2].weight = torch.nn.Parameter(torch.ones(1, 1))  # type: ignore[index, union-attr]
    assert list(nothing_lost(parent)(model)) == []
    model.module.get_parameter(LAST).data.zero_()
    assert len(list(nothing_lost(parent)(model))) == 1


# --- no more images are used than there are, and the lineage says how many


def test_more_images_than_there_are_are_refused_with_their_number(parent: Checkpoint) -> None:
    for block in (
        {"criterion": {"kind": "obs", "images": 41}, "budget": {"sparsity": 0.5}},
        {"criterion": {"kind": "wanda", "images": 41}, "budget": {"sparsity": 0.5}},
    ):
        with pytest.raises(
            DecantError, match=r"criterion\.images: 41 training images are asked for, and there are 40"
        ):
            prune(parent, block, SPLITS)
    adaptive = {"allocation": {"kind": "adaptive", "images": 25}, "criterion": {"kind": "magnitude"}}
    with pytest.raises(DecantError, match=r"allocation\.images: 25 validation images .* there are 24"):
        prune(parent, {**adaptive, "budget": {"sparsity": 0.5}}, SPLITS)
    integer = {"scheme": {"kind": "integer", "range": {"kind": "best", "images": 50}}, "images": 100_000}
    with pytest.raises(
        DecantError, match=r"range\.images: 50 training(?s:.*)  images: 100,000 training images"
    ):
        quantize(parent, integer, SPLITS)
    mixed = {"budget": {"bytes": 0.3}, "images": 25}
    with pytest.raises(DecantError, match=r"mixed\.images: 25 validation images"):
        quantize(parent, {"scheme": {"kind": "integer"}, "mixed": mixed}, SPLITS)
    with pytest.raises(DecantError, match=r"training\.batch_size: 64 training images"):
        finetune(parent, {"training": {**TRAINING, "batch_size": 64}}, SPLITS)
    with pytest.raises(DecantError, match="41 images are asked for, and there are 40"):
        SPLITS.train.first(41)


def test_numbers_that_were_left_out_are_what_there_is() -> None:
    block = counted(
        recipe_of(
            PruneParams,
            {
                "criterion": {"kind": "taylor"},
                "allocation": {"kind": "adaptive"},
                "budget": {"sparsity": 0.5},
            },
            SPLITS.sizes,
        ),
        SPLITS.sizes,
    )
    assert block.model_dump()["criterion"]["images"] == 40
    assert block.model_dump()["allocation"]["images"] == 24


def test_the_lineage_says_how_many_images_were_seen(home: Path) -> None:
    stage("teacher")
    static: dict[str, Any] = {"op": "quantize", "from": "teacher", "scheme": {"kind": "integer", "bits": 8}}
    stage("quantize", **static, activations={"bits": 8})
    assert load_model("child").lineage[-1]["images"] == 60
    assert load_model("child").lineage[0]["training"]["batch_size"] == 60
    with pytest.raises(DecantError, match=r"images: 61 training images are asked for, and there are 60"):
        stage("quantize", **static, activations={"bits": 8}, images=61)


def test_validate_knows_how_many_images_there_will_be() -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["models"]["obs-80"]["criterion"]["images"] = 55_000
    check(content)
    content["models"]["obs-80"]["criterion"]["images"] = 55_001
    with pytest.raises(
        DecantError, match=r"models\.obs-80\.criterion\.images: 55,001 training .* there are 55,000"
    ):
        check(content)
    content["data"]["validation"] = 60_000
    with pytest.raises(
        DecantError, match=r"data\.validation: must leave some of the 60,000 training images, got"
    ):
        check(content)
