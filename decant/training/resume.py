"""The state of an interrupted training: a file named by a hash of all that the training depends on.

The file ends with a sum over that hash and the content, which is checked before anything is unpacked. A
state that is damaged, another training's, or of another form costs a sentence and the epochs it stood for.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from decant.errors import DecantError, Message
from decant.networks.architectures import LARGEST
from decant.outputs import replacing
from decant.sealed import one_line, read_bytes

SCRATCH = Path(".scratch")

LARGEST_STATE = 32 * LARGEST
"""Most bytes of a state that is read: a network, its average and best epoch, an optimizer's two moments."""

SUM = hashlib.sha256().digest_size


class DivergedError(DecantError):
    """What a training computes is no number any more."""


class Resumable(Protocol):
    """A training that can go on from a state."""

    def content(self) -> dict[str, Any]:
        """Return the state: tensors, numbers, strings, and lists and mappings of these."""

    def restore_(self, content: dict[str, Any]) -> None:
        """Go on from what `content` returned; any error refuses it."""


@dataclass(frozen=True)
class Scratch:
    """A place for the state of one training of one model.

    Attributes:
        folder: The model's folder; other trainings of the same model may lie there too.
        identity: Hash of all that decides the training's bits.
    """

    folder: Path
    identity: str = ""

    @property
    def file(self) -> Path:
        """Where the state lies."""
        return self.folder / f"{self.identity}.pt"

    def part(self, name: str) -> Scratch:
        """Return the place of one of several trainings of the same model; `clear` deletes all of them."""
        return Scratch(self.folder, hashlib.sha256(f"{self.identity}/{name}".encode()).hexdigest()[:20])

    def read(self) -> dict[str, Any] | None:
        """Return the state, or None where there is none that can be read; nothing in the file is executed."""
        if not self.file.exists():
            return None
        try:
            found = read_bytes(self.file, LARGEST_STATE)
            if found[-SUM:] != self._sum(found[:-SUM]):
                raise ValueError("its sum is another training's, or it is damaged")
            content = torch.load(io.BytesIO(found[:-SUM]), weights_only=True)
            if not isinstance(content, dict):
                raise ValueError(f"it holds a {type(content).__name__}")
        except Exception as error:
            print(self.unused(error), file=sys.stderr)
            return None
        return content

    def unused(self, error: Exception) -> Message:
        """Return a sentence on a state that is not used."""
        return f"{self.file} is not used ({one_line(error)}); starting from the first epoch"

    def write(self, content: Mapping[str, Any]) -> None:
        """Replace the state by `content`: tensors, numbers, strings, and lists and mappings of these."""
        torch.save(dict(content), buffer := io.BytesIO())
        with replacing(self.file) as temporary, temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.write(self._sum(buffer.getbuffer()))

    def _sum(self, content: bytes | memoryview) -> bytes:
        digest = hashlib.sha256(self.identity.encode())
        digest.update(content)
        return digest.digest()

    def clear(self) -> None:
        """Delete the state and older trainings of the same model: it is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)


def resume_(training: Resumable, scratch: Scratch) -> None:
    """Let a training go on from its state where there is one that fits it, in place; else it is as before."""
    if (content := scratch.read()) is None:
        return
    before = copy.deepcopy(training.content())
    try:
        training.restore_(content)
    except Exception as error:
        training.restore_(before)
        print(scratch.unused(error), file=sys.stderr)


@contextmanager
def telling_what_is_kept(scratch: Scratch | None, epochs: Sequence[Mapping[str, float]]) -> Iterator[None]:
    """Say where the state after the last whole epoch lies, where a training diverges in the next one.

    Args:
        scratch: Where it is kept; None keeps none.
        epochs: The curve's rows of those that were whole.
    """
    try:
        yield
    except DivergedError as error:
        if scratch is None:
            raise
        kept = "; no epoch was whole before, so that no state is kept"
        if epochs and scratch.file.exists():
            kept = (
                f"; the state after epoch {epochs[-1]['epoch']:.0f} is kept in {scratch.file}: "
                "torch.load(file)['module'] are its weights"
            )
        raise DivergedError(f"{error}{kept}") from None


def check_form(found: Any, expected: Any, place: str = "the state") -> None:
    """Check that a state has the form of another one: keys, types, shapes; all of its numbers are finite.

    A table may hold infinities where the other one has the same, as masks do.
    What is empty in the other one may hold anything.

    Raises:
        ValueError: It has not; names the place.
    """
    if type(found) is not type(expected):
        raise ValueError(f"{place} is a {type(found).__name__}, expected a {type(expected).__name__}")
    if isinstance(found, Tensor):
        if (found.shape, found.dtype) != (expected.shape, expected.dtype):
            raise ValueError(f"{place} has the shape {[*found.shape]}, expected {[*expected.shape]}")
        if not bool((torch.isfinite(found) | (found == expected)).all()):
            raise ValueError(f"{place} holds NaN or infinity")
    elif isinstance(found, float) and not math.isfinite(found):
        raise ValueError(f"{place} is {found}")
    elif isinstance(found, dict) and expected:
        if found.keys() != expected.keys():
            raise ValueError(f"{place} has other keys")
        for key, value in found.items():
            check_form(value, expected[key], f"{place}'s {key}")
    elif isinstance(found, list) and expected:
        if len(found) != len(expected):
            raise ValueError(f"{place} has {len(found)} entries, expected {len(expected)}")
        for value, other in zip(found, expected, strict=True):
            check_form(value, other, place)


def scratch(folder: Path, recipe: Mapping[str, Any], files: Iterable[Path], code: str) -> Scratch:
    """Return the place for a training.

    Args:
        folder: The model's own.
        recipe: All that the training's bits depend on beside files and code.
        files: What it reads.
        code: Identifies this version of the code.
    """
    digest = hashlib.sha256(json.dumps([torch.__version__, recipe, code], sort_keys=True).encode())
    for file in sorted(files):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return Scratch(folder, digest.hexdigest()[:20])
