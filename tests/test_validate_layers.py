"""Layers that a loss names are looked for before any training, where recipes say what a network has."""

from typing import Any

from tasks.validate.recipes import check
from tests.test_validate import FINETUNE, INT8, SPARSE, STUDENT, chain, complaints


def hints(**layers: str) -> dict[str, Any]:
    """Return a loss on layers, `stages_0` for `stages.0`."""
    return {"kind": "hints", "layers": {own.replace("_", "."): other for own, other in layers.items()}}


def wrong(*blocks: dict[str, Any], **more: Any) -> list[str]:
    return complaints(chain(*blocks, **more))


def test_an_unknown_layer_lists_the_near_ones_of_its_network() -> None:
    assert wrong(STUDENT | {"loss": hints(stages_0="stage.1")}) == [
        "models.a.loss.layers: the teacher has no layer 'stage.1'; "
        "did you mean 'stages.1', 'stages.0' or 'stem.1'?"
    ]
    (line,) = wrong(STUDENT | {"loss": hints(stages_1="stages.1")})
    assert line.startswith(
        "models.a.loss.layers: the student has no layer 'stages.1'; did you mean 'stages.0'"
    )
    (line,) = wrong(STUDENT | {"loss": hints(nothing="stages.1")})
    assert "no layer 'nothing'; known are flatten, head, " in line


def test_a_student_of_another_family_has_nothing_to_begin_from() -> None:
    other = {"student": {"kind": "mlp", "hidden": [8]}, "start": "teacher"}
    told = ["models.a.start: no layer of the student is one of its teacher's; leave it out"]
    assert wrong(STUDENT | other) == told
    check(chain(STUDENT | {"start": "teacher"}))


def test_parts_of_a_mix_and_other_operations_are_looked_into() -> None:
    parts = [{"loss": {"kind": "dist"}}, {"loss": hints(stages_0="encoder")}]
    train = {"kind": "lsq", "loss": hints(stages_4="stages.0"), "training": FINETUNE["training"]}
    lines = wrong(STUDENT | {"loss": {"kind": "mix", "parts": parts}}, INT8 | {"train": train})
    assert [line.partition("; known")[0].partition("; did")[0] for line in lines] == [
        "models.a.loss.parts.1.loss.layers: the teacher has no layer 'encoder'",
        "models.b.train.loss.layers: the student has no layer 'stages.4'",
    ]


def test_a_network_that_recipes_do_not_describe_is_not_judged() -> None:
    tuned = FINETUNE | {"loss": hints(stages_7="stages.0")}
    check(chain(INT8, tuned))  # its batch norms are folded: what it calls is known once it is there
    assert "models.b.loss.layers: the student has no layer 'stages.7'" in wrong(SPARSE, tuned)[0]
    proposed = STUDENT | {"student": {"budget": {"kib": 5}}, "loss": hints(mine="stages.1")}
    check(chain(proposed))
