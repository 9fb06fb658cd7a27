"""The source `folder`: picture files in folders by class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from decant.errors import DecantError
from decant.sealed import one_line
from tasks.prepare import parts
from tasks.prepare.params import SPLITS, ByShares, FolderParams
from tasks.prepare.splits import Split

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LISTED = 20
AHEAD = 64
"""Pictures that are decoded at a time, by as many threads as there are cores."""


@dataclass(frozen=True)
class Origin:
    """What the tables say of where the pictures come from."""

    name: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class File:
    """One picture file.

    Attributes:
        path: Where it lies.
        label: The number of its class.
        split: Where it goes; empty where that is drawn.
    """

    path: Path
    label: int
    split: str


@dataclass
class Pictures:
    """The pictures of a split, decoded when they are asked for; those that cannot be are left out.

    Attributes:
        params: How they are made alike.
        files: In the split's order.
        labels: Of those that were decoded.
        sums: Of their pixels, SHA-256.
        broken: The others, each with the reason.
    """

    params: FolderParams
    files: Sequence[File]
    labels: list[int] = field(default_factory=list)
    sums: list[bytes] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int, int]:
        """One picture [C, H, W]."""
        return self.params.shape

    def __len__(self) -> int:
        return len(self.files)

    def parts(self, rows: int) -> Iterator[Split]:
        """Yield the pictures in order, `rows` at a time; once, as it is noted what was decoded."""
        images, labels = self._room(rows), list[int]()
        for file, pixels in self._decoded():
            images[len(labels)] = pixels
            labels.append(file.label)
            if len(labels) == rows:
                yield Split(images, np.array(labels))
                images, labels = self._room(rows), []
        if labels:
            yield Split(images[: len(labels)], np.array(labels))

    def _room(self, rows: int) -> NDArray[np.uint8]:
        return np.empty((min(rows, len(self)), *self.shape), np.uint8)

    def _decoded(self) -> Iterator[tuple[File, NDArray[np.uint8]]]:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for start in range(0, len(self), AHEAD):
                some = self.files[start : start + AHEAD]
                for file, found in zip(some, pool.map(self._decode, some), strict=True):
                    if isinstance(found, str):
                        self.broken.append(f"{file.path}: {found}")
                        continue
                    self.labels.append(file.label)
                    self.sums.append(sha256(found.tobytes()).digest())
                    yield file, found

    def _decode(self, file: File) -> NDArray[np.uint8] | str:
        """Return the pixels of a picture; or why there are none."""
        try:
            return picture(file.path, self.params)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return one_line(error)


@dataclass(frozen=True)
class Drawn:
    """The three splits of a folder, of which no picture has been decoded yet.

    Attributes:
        params: What they were drawn by.
        splits: By name, the first two shuffled.
    """

    params: FolderParams
    splits: dict[str, Pictures]

    def check(self) -> list[str]:
        """Return what to tell of the pictures, once all were decoded.

        Raises:
            DecantError: One cannot be read, and that is an error; a split or a class has none left to learn
                from; or the same picture is in two splits, and that is an error.
        """
        params, splits = self.params, self.splits
        broken = sorted(each for split in splits.values() for each in split.broken)
        told = _told(broken, sum(map(len, splits.values())), params.bad == "fail")
        if empty := [name for name, split in splits.items() if not split.labels]:
            raise DecantError(f"{params.folder}: no picture of {', '.join(empty)} can be read; repair them")
        parts.check_learned(splits["train"].labels, params.names, params.folder, "picture")
        leak = parts.check_sums({name: split.sums for name, split in splits.items()}, params.leak == "fail")
        shares = (
            parts.shares(name, len(splits[name].labels), splits[name].labels, params.names, "pictures")
            for name in SPLITS
        )
        return [*told, *filter(None, [leak]), *shares]


def draw(params: FolderParams, seed: int) -> Drawn:
    """Return the splits `train`, `validation` and `test`, the first two shuffled.

    Pictures that turn out not to be readable are left out of the split that they were drawn for.

    Raises:
        DecantError: There is no such folder, fewer than two classes, or an empty one; or a split would be
            empty.
    """
    files = list_files(params)
    if isinstance(params.split, ByShares):
        groups = [file.label for file in files] if params.split.stratified else None
        rows = parts.by_shares(params.split, len(files), seed, groups)
    else:
        rows = parts.by_words([file.split for file in files], "the folder", params.folder, seed)
    return Drawn(
        params, {name: Pictures(params, [files[row] for row in chosen]) for name, chosen in rows.items()}
    )


def list_files(params: FolderParams) -> list[File]:
    """Return the picture files in order of their names; what is no picture by its name is left out.

    Raises:
        DecantError: There is no such folder, fewer than two classes, or one without pictures.
    """
    for place in params.places:
        if not place.is_dir():
            raise DecantError(f"No folder {place} here; put the pictures there, in a folder for each class")
    names = params.names
    if len(names) < 2:
        raise DecantError(
            f"{params.folder} has {len(names)} class, expected two or more folders with pictures of one "
            "class each; there is nothing to tell apart"
        )
    found = [file for place in params.places for file in _in_place(params, place, names)]
    if empty := parts.without((file.label for file in found), names):
        raise DecantError(
            f"{params.folder}: no pictures ({', '.join(ENDINGS)}) of {', '.join(empty)}; give the class "
            "some, or take its folder away"
        )
    return found


def _in_place(params: FolderParams, place: Path, names: Sequence[str]) -> Iterator[File]:
    split = "" if isinstance(params.split, ByShares) else place.name
    strangers = {path.name for path in place.iterdir() if path.is_dir() and path.name[0] != "."} - {*names}
    if strangers:
        raise DecantError(
            f"{place} has the folder {min(strangers)}, which `classes` do not name; add it there"
        )
    for label, name in enumerate(names):
        for path in sorted((place / name).rglob("*")):
            if path.suffix.lower() in ENDINGS and path.is_file():
                yield File(path, label, split)


def picture(path: Path, params: FolderParams) -> NDArray[np.uint8]:
    """Return one picture [C, H, W] in the size asked for: turned as its camera says, white where transparent.

    Raises:
        OSError: It is no picture, or not a whole one.
    """
    with Image.open(path) as opened:
        turned = ImageOps.exif_transpose(opened)
        if turned.has_transparency_data:
            behind = Image.new("RGBA", turned.size, "white")
            turned = Image.alpha_composite(behind, turned.convert("RGBA"))
        plain = turned.convert("L" if params.colours == "grey" else "RGB")
    height, width = params.size
    if params.crop:
        sized = ImageOps.fit(plain, (width, height), Image.Resampling.BILINEAR)
    else:
        sized = plain.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(sized).reshape(height, width, -1).transpose(2, 0, 1)


def _told(broken: Sequence[str], count: int, fail: bool) -> list[str]:
    """Return a list of the pictures that cannot be read, in lines.

    Raises:
        DecantError: There are some, and they are an error, or there are no others.
    """
    if not broken:
        return []
    more = [f"and {len(broken) - LISTED:,} more"] if len(broken) > LISTED else []
    lines = [f"{len(broken):,} of {count:,} pictures cannot be read:", *broken[:LISTED], *more]
    if fail or len(broken) == count:
        hint = "repair them" if len(broken) == count else "repair them, take them away, or say `bad: skip`"
        raise DecantError("\n  ".join(lines) + f"\n{hint[0].upper()}{hint[1:]}")
    return [f"{lines[0]} they are skipped", *(f"  {line}" for line in lines[1:])]
