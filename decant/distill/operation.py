"""Distill: train a smaller network on what a teacher answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from decant.adoption.texts import check_texts
from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.coupling import groups_of
from decant.compression.finish import Result
from decant.compression.given import check_given
from decant.distill.cache import remember_
from decant.distill.params import DistillParams, Ensemble
from decant.distill.students import Proposed, inherit_, narrowed, propose
from decant.errors import DecantError
from decant.examples import Examples, Rows, Splits
from decant.inputs import alike
from decant.networks.architectures import FOREIGN, Architecture, build, picture
from decant.recipes import recipe_of
from decant.schema import did_you_mean
from decant.targets import Labels, Numbers, Tokens
from decant.training.ensemble import Mean
from decant.training.fresh import train
from decant.training.losses import loss_of
from decant.training.recipe import Loss
from decant.training.run import Run
from decant.training.teaching import Teaching, check_examples

ALONE = "ensemble: there is one teacher alone; start from a student of it, or leave it out"


def distill(
    parent: Checkpoint,
    recipe: DistillParams | Mapping[str, Any],
    splits: Splits,
    *,
    teacher: Checkpoint | None = None,
    others: Mapping[str, Checkpoint | Sequence[Checkpoint]] | None = None,
    run: Run | None = None,
) -> Result:
    """Return a student that was trained from fresh weights on the soft targets, or the outputs, of `parent`.

    It does not help where the student is as large as its teacher, or where labels are plenty and right.

    Args:
        parent: The model that teaches; untouched. A student of it may teach the next: a teacher assistant.
        recipe: The student, the loss and the training, with the keys of params.yaml.
        splits: What it learns from, and what its curve is measured on.
        teacher: With `ensemble`, the teacher of that name; else not used, as the parent teaches.
        others: More teachers that `ensemble` may name; several where other seeds made the same model, which
            also may be the parent, by its name in `from`.
        run: Its name, its seed, and where an interrupted training is resumed from.

    Raises:
        DecantError: The recipe is not valid, the student is too large for the images or of another vocabulary
            than texts, the examples are not of the teacher's shape or classes, `ensemble` has one teacher
            alone, or teachers of other classes, inputs or outputs, the budget fits no network or all of them,
            a teacher's weights are NaN, or the loss became NaN or infinite.

    References:
        Mirzadeh et al., Improved Knowledge Distillation via Teacher Assistant, 2019, for the chain; and
        Furlanello et al., Born-Again Neural Networks, 2018, for a student of its teacher's architecture.
        https://arxiv.org/abs/1902.03393, https://arxiv.org/abs/1805.04770
    """
    check_given(parent, splits, teacher)
    block = recipe_of(DistillParams, recipe, splits.sizes)
    check_examples(parent, splits.train)
    more, mean = _together(block, parent, teacher, others or {}, splits.train)
    classes, device = len(parent.classes), block.device
    loss = loss_of(block.loss, block.training, parent.module, splits.train, classes, device, more, mean)
    student, facts = _student(block, parent)
    if isinstance(student, FOREIGN) and isinstance(images := splits.train.images, Rows):
        check_texts(build(student, parent.shape, classes, 0).eval(), images, student.origin)
    notes = [_remembered(loss, block, splits.train, run)] if block.cache else []
    begin = partial(_inherited_, student, parent, splits.train, device, notes)
    result = train(
        student,
        block.training,
        splits,
        run,
        loss=loss,
        teacher=parent,
        device=device,
        begin_=begin if block.start == "teacher" else None,
    )
    return replace(result, facts={**result.facts, **facts}, notes=[*result.notes, *notes])


def _remembered(loss: Loss, block: DistillParams, train: Examples, run: Run | None) -> str:
    """Let the teachers answer now; return what that took and saves."""
    assert isinstance(loss, Teaching)
    scratch = run.scratch if run is not None else None
    seconds, answered = remember_(loss, train, None if scratch is None else scratch.folder)
    if not answered:
        return f"the teacher's answers were read in {seconds:.1f} s, as it had given them before"
    fewer = block.training.epochs - 1
    saved = f"{fewer} times fewer: about {fewer * seconds:.0f} s saved"
    return f"the teacher answered once in {seconds:.1f} s, and {saved}"


def _together(
    block: DistillParams,
    parent: Checkpoint,
    teacher: Checkpoint | None,
    others: Mapping[str, Checkpoint | Sequence[Checkpoint]],
    train: Examples,
) -> tuple[list[nn.Module], Mean]:
    """Return the teachers of an ensemble beside the parent, and which mean of all is matched."""
    if (ensemble := block.together) is None:
        return [], Mean()
    _check_mean(ensemble, parent, train)
    if block.ensemble is True and teacher is None:
        raise DecantError(ALONE)
    known = ({} if teacher is None else {"teacher": teacher}) | {block.from_: parent} | {**others}
    weights = {block.from_: 1.0} | ensemble.teachers
    found = [(each, weights[name]) for name in weights for each in _named(name, known, ensemble.seeds)]
    modules = {id(each.module): each.module for each, _ in found}
    if len(modules) < max(len(found), 2):
        raise DecantError(ALONE)
    for each, _ in found[1:]:
        if each.classes != parent.classes or not alike(each.shape, parent.shape):
            raise DecantError(
                "ensemble: the teachers have other classes or inputs; take those that answer the same"
            )
    return [each.module for each, _ in found[1:]], Mean(tuple(weight for _, weight in found), ensemble.mean)


def _check_mean(ensemble: Ensemble, parent: Checkpoint, train: Examples) -> None:
    """Refuse a mean of probabilities of outputs that are logits of no classes, labels or tokens."""
    told = isinstance(train.target, Labels) or (isinstance(train.target, Tokens) and train.labels is not None)
    classes = bool(parent.classes) and not isinstance(train.target, Numbers | Tokens)
    if ensemble.mean == "probabilities" and not told and not classes:
        raise DecantError(
            "ensemble.mean: these outputs are no logits, so there are no probabilities; take logits, which "
            "is the mean of the outputs"
        )


def _named(
    name: str, known: Mapping[str, Checkpoint | Sequence[Checkpoint]], seeds: bool
) -> Sequence[Checkpoint]:
    """Return a teacher, and what other seeds made of it where these answer too."""
    if name not in known:
        raise DecantError(f"ensemble: there is no model {name!r}{did_you_mean(name, known)}")
    found = known[name]
    models = [found] if isinstance(found, Checkpoint) else [*found]
    return models if seeds else models[:1]


def _student(block: DistillParams, parent: Checkpoint) -> tuple[Architecture, dict[str, Any]]:
    """Return the student, and what the lineage says of one that was proposed."""
    if not isinstance(block.student, Proposed):
        return block.student, {}
    found = propose(block.student, parent.built_by, picture(parent.shape), len(parent.classes))
    return found, {"proposed": found.model_dump(mode="json")}


def _inherited_(
    student: Architecture,
    parent: Checkpoint,
    train: Examples,
    device: str,
    notes: list[str],
    module: nn.Module,
) -> None:
    """Begin with the teacher's channels that are best kept; with its first ones where none can be cut out."""
    try:
        groups = groups_of(parent)
    except DecantError:
        notes.append(
            "start: teacher: the student begins with the first channels of each layer, as none of the "
            "teacher's can be cut out"
        )
        groups = []
    inherit_(module, student, narrowed(parent, groups, module, student, train, device), parent.built_by)
