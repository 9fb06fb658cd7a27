"""A network that other people trained: adopted, and compared with what its owner measured."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from decant.adoption.adopting import Source, adopt
from decant.adoption.weights import files_of
from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.finish import Result
from decant.errors import DecantError
from decant.examples import Batch, Rows, Splits
from decant.networks.architectures import FOREIGN
from decant.networks.execution import as_rows, predict
from tasks.pipeline.arrays import read_arrays
from tasks.teacher.params import Expectation, TeacherParams

TRIED = 16
"""Rows on which ONNX Runtime is compared with PyTorch."""


def adopted(block: TeacherParams, splits: Splits) -> Result:
    """Return the teacher with the weights that its block names.

    Raises:
        DecantError: The network, its weights or what comes out are not what they should be.
    """
    assert isinstance(block.architecture, FOREIGN) and block.stored is not None
    weights = Path(block.stored.file)
    source = Source(block.architecture, weights, block.stored.key, block.inputs)
    result = adopt(source, splits.train)
    facts = {**result.facts, "weights_sha256": _sum(weights)}
    notes = (*result.notes, *_undeployable(result.model, splits.validation.images[:TRIED]))
    if block.expect is not None:
        facts |= _expected(block.expect, result.model, splits)
    return replace(result, facts=facts, notes=notes)


def _sum(weights: Path) -> str:
    """Return the sum of a file; of several, one over all of their bytes in the order of their names."""
    digest = hashlib.sha256()
    for file in files_of(weights):
        with file.open("rb") as content:
            while block := content.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def _undeployable(model: Checkpoint, images: Batch) -> list[str]:
    """Return why the network cannot be deployed as ONNX; nothing where it can, and is the same function.

    The exporter is loaded by name: what it finds is told and kept nowhere, so its code is no part of the
    model.
    """
    exporting, running = (import_module(f"decant.export.{name}") for name in ("deploy", "runtime"))
    try:
        deployed = exporting.deploy(model)
        exporting.check_same("teacher", model, running.open_session(deployed.content, 1), images)
    except DecantError as error:
        return [f"no ONNX: {error}"]
    return []


def _expected(expect: Expectation, model: Checkpoint, splits: Splits) -> dict[str, Any]:
    """Return what came out of the network.

    Raises:
        DecantError: It is not what its owner measured.
    """
    if expect.outputs is not None:
        gap = _gap(Path(expect.outputs), model)
        if not gap <= expect.within:
            raise DecantError(
                f"teacher.expect: outputs differ from {expect.outputs} by up to {gap:.3g}, expected at most "
                f"{expect.within:g}; the weights, the code or the inputs are not those of its owner"
            )
        return {"outputs within": float(f"{gap:.3g}")}
    assert expect.accuracy is not None
    logits, labels = predict(model.module, splits.validation.images), splits.validation.known_labels
    found = (logits.argmax(1) == labels).double().mean().item()
    if not abs(found - expect.accuracy) <= expect.within:
        raise DecantError(
            f"teacher.expect: the validation split has an accuracy of {found:.4f}, expected "
            f"{expect.accuracy:g} within {expect.within:g}; the weights, the code, the order of the classes "
            "or how inputs are prepared is not that of its owner"
        )
    return {"accuracy found": float(f"{found:.4g}")}


def _gap(path: Path, model: Checkpoint) -> float:
    """Return the largest difference between the outputs in a file and those of the network."""
    arrays = read_arrays(path)
    names = list(model.shape) if not isinstance(model.shape, tuple) else []
    if missing := [name for name in names if name not in arrays]:
        raise DecantError(f"{path} has no input {', '.join(missing)}; it has {', '.join(arrays)}")
    rows = Rows({name: arrays[name] for name in names})
    right = as_rows([each for name, each in arrays.items() if name not in names], len(rows))
    found = predict(model.module, rows)
    if found.shape != right.shape:
        raise DecantError(
            f"{path} has {right.shape[1]} outputs a row, and the network gives {found.shape[1]}; leave only "
            "the inputs and what the network returns in it"
        )
    return (found.double() - right.double()).abs().max().item()
