"""The source `folder`: picture files in folders by class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from decant.errors import DecantError
from decant.progress import progress_bar
from decant.sealed import one_line
from tasks.prepare import parts
from tasks.prepare.params import SPLITS, ByShares, FolderParams
from tasks.prepare.splits import Split

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LISTED = 20
MOST_BYTES = 1 << 36
"""Of all pictures once they are read: they lie in memory together."""


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


def draw(params: FolderParams, seed: int) -> tuple[dict[str, Split], list[str]]:
    """Return the splits `train`, `validation` and `test`, the first two shuffled; and what to tell of them.

    Raises:
        DecantError: There is no such folder, fewer than two classes, or an empty one; a picture cannot be
            read; or a split would be empty.
    """
    files = list_files(params)
    images, read, broken = _pictures(params, files)
    labels = np.array([file.label for file in read])
    if isinstance(params.split, ByShares):
        groups = labels.tolist() if params.split.stratified else None
        rows = parts.by_shares(params.split, len(read), seed, groups)
    else:
        rows = parts.by_words([file.split for file in read], "the folder", params.folder, seed)
    found = {name: Split(images[chosen], labels[chosen]) for name, chosen in rows.items()}
    parts.check_learned(found["train"].labels.tolist(), params.names, params.folder, "picture")
    leak = parts.check_leaks(
        {name: (picture.tobytes() for picture in each.images) for name, each in found.items()},
        params.leak == "fail",
    )
    shares = (
        parts.shares(name, len(found[name]), found[name].labels.tolist(), params.names, "pictures")
        for name in SPLITS
    )
    return found, [*broken, *filter(None, [leak]), *shares]


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


def _pictures(params: FolderParams, files: Sequence[File]) -> tuple[NDArray[np.uint8], list[File], list[str]]:
    """Return the pictures [N, C, H, W] that can be read, their files, and what to tell of the others."""
    channels, height, width = params.shape
    if (size := len(files) * channels * height * width) > MOST_BYTES:
        raise DecantError(
            f"{len(files):,} pictures take {size:,} bytes, at most {MOST_BYTES:,}; make size less"
        )
    images = np.empty((len(files), channels, height, width), np.uint8)
    read, broken = list[File](), list[str]()
    with progress_bar(None, "pictures", "pictures", total=len(files)) as bar:
        for file in files:
            try:
                images[len(read)] = picture(file.path, params)
                read.append(file)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                broken.append(f"{file.path}: {one_line(error)}")
            bar.update()
    return images[: len(read)], read, _told(broken, len(files), params.bad == "fail")


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
