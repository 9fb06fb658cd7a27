"""What can be known before any training is told by `validate`, in one sentence each."""

import copy
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from decant.errors import DecantError
from decant.networks.architectures import Resnet, build
from decant.schema import RESERVED
from tasks.validate.gates import Gates
from tasks.validate.hardware import without_device
from tasks.validate.recipes import Recipes, check
from tests.imports import OPERATIONS

TRAINING = {"epochs": 2, "optimizer": {"kind": "sgd", "learning_rate": 0.05}}
SMALL: dict[str, Any] = {
    "seed": 1,
    "threads": dict.fromkeys((*OPERATIONS, "teacher", "evaluate"), 1),
    "data": {"source": "digits", "validation": 200},
    "teacher": {
        "architecture": {"kind": "resnet", "widths": [16, 32], "blocks": [1, 1]},
        "training": TRAINING,
    },
    "models": {"cut": {"op": "clip", "from": "teacher", "cut": {"kind": "percentile"}}},
    "benchmark": {},
    "gates": {},
}
"""1,237 images of 8 x 8 pixels to train on."""

INT8 = {"op": "quantize", "scheme": {"kind": "integer", "bits": 8}}
GROUPS = {"op": "quantize", "scheme": {"kind": "integer", "bits": 4, "group": 16}}
SPARSE = {"op": "prune", "criterion": {"kind": "magnitude"}, "budget": {"sparsity": 0.8}}
TWO_OF_FOUR = {"op": "prune", "criterion": {"kind": "magnitude"}, "structure": {"kind": "n-of-m"}}
THIN = {
    "op": "prune",
    "criterion": {"kind": "magnitude"},
    "structure": {"kind": "channels"},
    "budget": {"macs": 0.5},
}
FINETUNE = {"op": "finetune", "training": TRAINING}
STUDENT = {
    "op": "distill",
    "student": {"kind": "resnet", "widths": [8], "blocks": [1]},
    "loss": {"kind": "softmax"},
    "training": TRAINING,
}
ONE = TRAINING | {"batch_size": 1}
TINY = {"kind": "resnet", "widths": [8] * 4, "blocks": [0, 1, 1, 1]}
"""On it 8 x 8 pixels become one."""


def chain(*blocks: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return params with models a, b, c ..., each made from the one before, the first from the teacher."""
    names = "abcdefg"[: len(blocks)]
    models = {n: b | {"from": p} for n, b, p in zip(names, blocks, ["teacher", *names], strict=False)}
    return copy.deepcopy(SMALL | more | ({"models": models} if models else {}))


def with_value(path: str, value: Any, content: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return params, the small ones where none are given, with another value at `a/b/c`."""
    content = copy.deepcopy(content or SMALL)
    *parents, last = path.split("/")
    inside = content
    for key in parents:
        inside = inside[key]
    inside[last] = value
    return content


def complaints(content: dict[str, Any]) -> list[str]:
    with pytest.raises(DecantError) as told:
        check(content)
    first, *lines = str(told.value).splitlines()
    assert first == "params.yaml is not valid:"
    assert len(str(told.value)) < 10_000
    return [line.removeprefix("  ") for line in lines]


def unbounded(schema: Any, place: str = "") -> Iterator[str]:
    """Yield every number in a JSON schema that may be as large as one likes."""
    if isinstance(schema, list):
        for index, inner in enumerate(schema):
            yield from unbounded(inner, f"{place}.{index}")
    elif isinstance(schema, dict):
        ends = {"maximum", "exclusiveMaximum", "const", "enum"}
        if schema.get("type") in ("number", "integer") and not ends & schema.keys():
            yield place
        for key, inner in schema.items():
            yield from unbounded(inner, f"{place}.{key}")


def test_every_number_of_a_recipe_has_an_upper_bound() -> None:
    fields = {name: field for name, field in Recipes.model_fields.items() if field.annotation is not Gates}
    assert len(fields) == len(Recipes.model_fields) - 1
    for name, field in fields.items():
        schema = TypeAdapter(field.annotation).json_schema()
        assert schema.get("type") == "integer" or not list(unbounded(schema)), name


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 2**63),
        ("threads/teacher", 10**30),
        ("data/validation", 10**12),
        ("teacher/training/epochs", 10**9),
        ("teacher/training/batch_size", 10**12),
        ("teacher/training/optimizer/learning_rate", 1e300),
        ("teacher/training/weight_decay", 1e300),
        ("teacher/training/patience", 10**30),
        ("teacher/architecture/widths", [16, 10**12]),
        ("teacher/architecture/widths", [16, 10**30]),
        ("teacher/architecture/blocks", [1, 1_000_000]),
        ("teacher/architecture", {"kind": "mlp", "hidden": [10**9]}),
        ("teacher/architecture", {"kind": "mlp", "hidden": [8] * 10_000}),
        ("models/cut/cut", {"kind": "deviation", "multiple": 1e300}),
        ("models/cut/cut", {"kind": "bounds", "maximum": 1e39}),
        ("models/cut/images", 10**30),
        ("benchmark/threads", 10**6),
        ("benchmark/rounds", 10**9),
        ("benchmark/seconds", 1e12),
        ("gates/all", {"nll": {"rise": "1e999999999"}}),
        ("gates/all", {"nll": {"rise": "1e-999999999"}}),
        ("seed", 10**5000),
        ("seed", -(10**5000)),
        ("seed", math.nan),
        ("seed", [[[[[[[[[[]]]]]]]]]]),
        ("models/cut/from", "x" * 9000),
        ("models/cut/op", "x" * 9000),
        ("models/cut/skip", ["x" * 9000]),
        ("x" * 200, 1),
    ],
    ids=lambda value: str(value)[:40] if not isinstance(value, int) else f"{value.bit_length()} bits",
)
def test_numbers_and_words_without_end_are_one_short_sentence_at_once(path: str, value: Any) -> None:
    began = time.process_time()
    (line,) = complaints(with_value(path, value))
    assert len(line) <= 401
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "architecture",
    [
        {"kind": "resnet", "widths": [65_536, 65_536], "blocks": [1, 1]},
        {"kind": "mlp", "hidden": [65_536] * 60},
    ],
    ids=["resnet", "mlp"],
)
def test_a_network_too_large_is_told_by_arithmetic(architecture: Any) -> None:
    began = time.process_time()
    (line,) = complaints(with_value("teacher/architecture", architecture))
    assert line.startswith("teacher.architecture: this ")
    assert "weights on images of 1 x 8 x 8" in line
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "name", [*sorted(RESERVED), "1e3", "08", "0o17", "0e0", "2001-01-01", "8bit", "-x", "n" * 65]
)
def test_a_name_is_a_plain_word_to_yaml_dvc_windows_and_a_shell(name: str) -> None:
    (line,) = complaints(SMALL | {"models": {name: INT8 | {"from": "teacher"}}})
    assert line.startswith(f"models.{name}: ")
    (line,) = complaints(with_value("gates/removed", [name]))
    assert line.startswith("gates.removed.0: ")


TWICE = "a is quantized already; start from its ancestor, or name the layers in skip that have levels"

CANNOT: dict[str, tuple[dict[str, Any], list[str]]] = {
    "quantized twice": (
        chain(INT8, FINETUNE, INT8),
        [f"models.c.from: {TWICE}"],
    ),
    "quantized twice in part": (
        chain(INT8 | {"skip": ["head"]}, INT8 | {"skip": ["stem.0"]}),
        [f"models.b.from: {TWICE}"],
    ),
    "inputs rounded twice": (
        chain(
            INT8 | {"activations": {"bits": 8}, "skip": ["head"]},
            INT8 | {"activations": {"bits": 8}},
        ),
        [f"models.b.from: {TWICE}"],
    ),
    "channels out of groups": (
        chain(GROUPS, THIN),
        [
            "models.b.structure: a has a scale for each group of inputs of head, which would shift: remove "
            "channels first, and quantize what is left"
        ],
    ),
    "channels out of n of m": (
        chain(TWO_OF_FOUR, FINETUNE, THIN),
        [
            "models.c.structure: a has a pattern of weights that lie side by side, which would shift: remove "
            "channels first"
        ],
    ),
    "no channel to remove": (
        chain(THIN | {"structure": {"kind": "channels", "round_to": 32}}),
        [
            "models.a.structure: no channel can be removed: layers have at most 32, and 32 may be left; "
            "lower round_to or minimum"
        ],
    ),
    "channels of the logits alone": (
        with_value(
            "teacher/architecture",
            {"kind": "mlp", "hidden": [8]},
            chain(THIN | {"skip": ["layers.0"]}),
        ),
        ["models.a.skip: no channel can be removed: all other layers make logits; skip fewer"],
    ),
    "macs that are there": (
        chain(THIN, THIN | {"budget": {"macs": 0.6}}),
        ["models.b.budget: macs 0.6 is met already: an ancestor has at most 0.5"],
    ),
    "sparsity that is there": (
        chain(SPARSE, FINETUNE, SPARSE),
        [
            "models.c.budget: sparsity 0.8 is there already: 15,526 of the 19,408 weights are zero in an "
            "ancestor; ask for a higher sparsity, or prune an ancestor"
        ],
    ),
    "sparsity that leaves nothing": (
        chain(SPARSE | {"budget": {"sparsity": 0.9999}}),
        [
            "models.a.budget: sparsity 0.9999 leaves less than one unit for each of 7 layers; the nearest "
            "possible is 0.999639"
        ],
    ),
    "back to a student's beginning": (
        chain(STUDENT, SPARSE | {"schedule": {"kind": "rewind", "epoch": 0}}),
        ["models.b.schedule: rewind goes back to the teacher's training, and a had another one"],
    ),
    "back to channels that are gone": (
        chain(THIN, SPARSE | {"criterion": {"kind": "snip"}}),
        [
            "models.b.criterion: snip goes back to the teacher's training, which had all the channels that "
            "an ancestor removed"
        ],
    ),
    "back behind folding": (
        chain(INT8, SPARSE | {"schedule": {"kind": "rewind", "epoch": 0}}),
        [
            "models.b.schedule: rewind goes back to weights with batch norms, which an ancestor folded: add "
            "weights: false"
        ],
    ),
    "back to an epoch that was not": (
        chain(SPARSE | {"schedule": {"kind": "rewind", "epoch": 2}}),
        ["models.a.schedule.epoch: must be less than the teacher's 2 epochs, got 2"],
    ),
    "all held out": (
        with_value("data/validation", 1437),
        ["data.validation: must leave some of the 1,437 training images, got 1,437"],
    ),
    "a batch of more than all": (
        with_value("teacher/training", TRAINING | {"batch_size": 1238}),
        ["teacher.training.batch_size: 1,238 training images are asked for, and there are 1,237"],
    ),
    "shifted out of sight": (
        with_value("teacher/training", TRAINING | {"augmentation": {"shift": 8}}),
        [
            "teacher.training.augmentation.shift: 8 moves images of 8 x 8 pixels out of sight; take less "
            "than 8"
        ],
    ),
    "shifted out of sight where answers are matched": (
        chain(SPARSE | {"logits": {"augmentation": {"shift": 9}}}),
        ["models.a.logits.augmentation.shift: 9 moves images of 8 x 8 pixels out of sight; take less than 8"],
    ),
    "best without images left": (
        chain(INT8 | {"activations": {"range": {"kind": "best"}}}),
        [
            "models.a.activations.range.images: best needs 1,000 training images beside the 1,000 that "
            "ranges are taken from, and there are 1,237; lower one of the two `images`"
        ],
    ),
}


@pytest.mark.parametrize(("content", "lines"), CANNOT.values(), ids=CANNOT)
def test_what_a_model_cannot_do_is_told_before_any_is_trained(content: Any, lines: list[str]) -> None:
    assert complaints(content) == lines


BODY = [
    "stem.0",
    *(f"stages.{layer}" for layer in ("0.conv1", "0.conv2", "1.conv1", "1.conv2", "1.shortcut.0")),
]

CAN = {
    "the rest quantized": chain(INT8 | {"skip": ["head"]}, INT8 | {"skip": BODY}),
    "a student of a quantized model quantized": chain(INT8, STUDENT, INT8),
    "sparser and sparser": chain(SPARSE, SPARSE | {"budget": {"sparsity": 0.9}}),
    "as sparse, trained": chain(SPARSE, SPARSE | {"schedule": {"kind": "rigl", "training": TRAINING}}),
    "channels, then groups": chain(THIN, GROUPS),
    "groups of the first layer alone, then channels": chain(
        GROUPS | {"skip": [*BODY[1:], "head"]},
        THIN,
    ),
    "fewer and fewer multiplications": chain(THIN, THIN | {"budget": {"macs": 0.4}}),
    "channels of quantized weights": chain(INT8, THIN),
    "back where no batch norm was folded": with_value(
        "teacher/architecture",
        {"kind": "mlp", "hidden": [8]},
        chain(INT8, SPARSE | {"schedule": {"kind": "rewind", "epoch": 0}}),
    ),
    "back to the learning rate alone": chain(
        INT8, SPARSE | {"schedule": {"kind": "rewind", "epoch": 0, "weights": False}}
    ),
}


@pytest.mark.parametrize("content", CAN.values(), ids=CAN)
def test_what_a_model_can_do_is_not_refused(content: Any) -> None:
    check(content)


TRAININGS = {
    "finetune": (FINETUNE | {"training": ONE}, "training"),
    "iterative": (SPARSE | {"schedule": {"kind": "iterative", "training": ONE}}, "schedule.training"),
    "gradual": (SPARSE | {"schedule": {"kind": "gradual", "training": ONE}}, "schedule.training"),
    "levels": (INT8 | {"train": {"kind": "ste", "training": ONE}}, "train.training"),
}
PIXEL = (
    "batch_size: 1 image shrinks to one pixel in this network, and a batch norm needs two numbers or more; "
    "take a larger batch, or fewer stages"
)


@pytest.mark.parametrize(("block", "place"), TRAININGS.values(), ids=TRAININGS)
def test_a_batch_of_one_pixel_is_told_of_every_training(block: Any, place: str) -> None:
    tiny = with_value("teacher/architecture", TINY, chain(block))
    assert complaints(tiny) == [f"models.a.{place}.{PIXEL}"]
    check(chain(block))  # two by two pixels
    tiny["teacher"]["architecture"] = {"kind": "mlp", "hidden": [8]}  # no batch norm
    check(tiny)


def test_a_batch_of_one_pixel_is_told_of_the_teacher_and_of_students() -> None:
    assert complaints(with_value("teacher", {"architecture": TINY, "training": ONE})) == [
        f"teacher.training.{PIXEL}"
    ]
    assert complaints(chain(STUDENT | {"student": TINY, "training": ONE})) == [f"models.a.training.{PIXEL}"]


def test_one_image_is_enough_where_batch_norms_are_folded() -> None:
    check(with_value("teacher/architecture", TINY, chain(INT8, FINETUNE | {"training": ONE})))


@pytest.mark.parametrize("widths", [[4], [4, 4], [4, 4, 4, 4, 4]])
@pytest.mark.parametrize("side", [1, 7, 8, 28])
def test_the_fewest_numbers_that_a_batch_norm_sees_are_those_of_the_network(
    widths: list[int], side: int
) -> None:
    import torch

    architecture, seen = Resnet(widths=tuple(widths), blocks=(1,) * len(widths)), []
    network = build(architecture, (1, side, side), 3, 0).eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0][:, 0].numel()))
    network(torch.zeros(3, 1, side, side))
    assert architecture.fewest((1, side, side), 3) == min(seen)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("teacher/training/epochs", "5", ": must be a whole number, got '5'"),
        ("teacher/training/optimizer/learning_rate", "2e-3", ": must be a number, got '2e-3'"),
        ("teacher/training/augmentation", {"flip": "yes"}, ".flip: must be true or false, got 'yes'"),
        ("teacher/training/augmentation", {"flip": "on"}, ".flip: must be true or false, got 'on'"),
        ("teacher/architecture/widths", [16, "32"], ".1: must be a whole number, got '32'"),
        ("threads/prune", "1", ": must be a whole number, got '1'"),
        ("seed", "1", ": must be a whole number, got '1'"),
        ("models/cut/images", "1:30", ": must be a whole number, got '1:30'"),
    ],
)
def test_a_word_is_no_number_and_no_switch_as_it_is_none_to_dvc(path: str, value: Any, told: str) -> None:
    assert complaints(with_value(path, value)) == [path.replace("/", ".") + told]


def test_a_word_that_stands_for_a_number_is_read() -> None:
    check(chain(THIN | {"structure": {"kind": "channels", "round_to": "auto"}}))


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from([10**30, -1, 0, 1e308, "1e3", [], {}, [1, 2], {"kind": "integer"}, "teacher", {"": 0}]),
)  # fmt: skip


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*place, key)
        yield from places(each, (*place, key))


FULL = chain(SPARSE, INT8 | {"activations": {"bits": 8}}, STUDENT, THIN, FINETUNE, GROUPS)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(places(FULL), key=str)), VALUES), min_size=1, max_size=3))
def test_whatever_stands_anywhere_is_valid_or_one_short_error(edits: list[tuple[Any, Any]]) -> None:
    content = copy.deepcopy(FULL)
    for (*path, last), value in edits:
        inside: Any = content
        for key in path:
            inside = inside[key] if isinstance(inside, dict) and key in inside else {}
        if isinstance(inside, dict):
            inside[last] = value
    try:
        check(content)
    except DecantError as error:
        assert len(str(error)) < 10_000


def test_validate_tells_devices_of_models_that_are_still_to_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    teacher, tuned = {"device": "cuda:99"}, {"op": "finetune", "from": "teacher", "device": "cuda:98"}
    params = {"teacher": teacher, "models": {"a": tuned, "b": {"op": "clip", "from": "a"}}}
    here = "is not there; this machine has cpu (the processor)"
    told = list(without_device(params))
    assert [line.partition(here)[0] for line in told] == [
        "teacher.device: cuda:99 ",
        "models.a.device: cuda:98 ",
    ]
    lock = {"stages": {"teacher": {"params": {"params.yaml": {"teacher": teacher, "seed": 1}}}}}
    Path("dvc.lock").write_text(json.dumps(lock))
    assert [line.partition(".device")[0] for line in without_device(params)] == ["models.a"]
    changed = params | {"teacher": teacher | {"training": {}}}
    assert len(list(without_device(changed))) == 2
    assert list(without_device({"teacher": {}, "models": {"a": {"device": "cpu"}}})) == []
