"""lineage.json: where a model comes from, and the sums of all that lies in its folder.

It names the sum of the model's own description and weights, so that the lineage of one model is never taken
for another's; its own sum, the folder's seal, stands for the whole folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from decant.errors import DecantError, Message
from decant.outputs import write_text
from decant.schema import Section, mistakes
from decant.sealed import LARGEST_TEXT, read_bytes, reading, sum_of, unseal, write_sealed

FILE = "lineage.json"


class Lineage(Section):
    """What lineage.json holds.

    Attributes:
        model: The sum that model.json ends with.
        beside: The sums of further files in the folder, by name.
        steps: One entry for each step from the teacher to the model, oldest first.
    """

    model: str
    beside: dict[str, str]
    steps: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Sealed:
    """A lineage as it was read, and its own sum, the seal of the folder."""

    lineage: Lineage
    seal: str


def write_lineage(
    folder: Path, model: str, steps: Sequence[Mapping[str, Any]], beside: Mapping[str, str] | None = None
) -> str:
    """Write the lineage and the files beside it; return the folder's seal.

    Args:
        folder: The model's.
        model: The sum that model.json ends with.
        steps: From the teacher to the model.
        beside: The text of further files, by name.
    """
    beside = beside or {}
    for name, text in beside.items():
        write_text(folder / name, text)
    sums = {name: sha256(text.encode()).hexdigest() for name, text in beside.items()}
    return write_sealed(folder / FILE, {"model": model, "beside": sums, "steps": list(steps)})


def read_lineage(folder: Path) -> Sealed:
    """Return the lineage of the model in a folder.

    Raises:
        DecantError: lineage.json is missing, damaged, or of a former format.
    """
    path = folder / FILE
    with reading(path, remedy(folder)):
        content = read_part(folder, FILE)
        if content.startswith(b"["):
            raise DecantError(f"{path} has a former format; {remedy(folder)}")
        unsealed = unseal(content)
        if wrong := mistakes(unsealed, Lineage):
            raise ValueError("; ".join(wrong))
        return Sealed(TypeAdapter(Lineage).validate_python(unsealed), sum_of(content))


def read_beside(folder: Path, name: str) -> str | None:
    """Return the text of a further file in a model's folder, or None where there is none of this name.

    Raises:
        DecantError: The file is missing, or has not the sum that lineage.json names.
    """
    expected = read_lineage(folder).lineage.beside.get(name)
    if expected is None:
        return None
    with reading(folder / name, remedy(folder)):
        content = read_part(folder, name)
        if sha256(content).hexdigest() != expected:
            raise ValueError(f"it has not the sum that {FILE} names")
        return content.decode()


def read_part(folder: Path, name: str, most: int = LARGEST_TEXT) -> bytes:
    """Return the content of one of a model's files, at most `most` bytes.

    Raises:
        DecantError: There is no such file.
        OSError: It cannot be read.
        ValueError: It is larger, or no file.
    """
    try:
        return read_bytes(folder / name, most)
    except FileNotFoundError:
        raise DecantError(f"No model at {folder / name}; run `dvc repro` or `dvc pull`") from None


def remedy(folder: Path) -> Message:
    """Return what to do about a folder that holds no whole model."""
    return f"delete {folder} and run `dvc repro`"
