"""The source `folder`: picture files in folders by class, or with a table beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from decant.examples import Examples, Rows
from tasks.prepare import own_files
from tasks.prepare.of_files import FolderParams
from tasks.prepare.own_files import Stream
from tasks.prepare.own_tables import Drawn, Taken
from tasks.prepare.splits import Split

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Origin:
    """What the tables say of where the pictures come from."""

    name: str
    classes: tuple[str, ...]


def stream(params: FolderParams, seed: int) -> Stream:
    """Return the splits of pictures in folders by class, which are decoded when they are written.

    Raises:
        DecantError: As `own_files.stream`.
    """
    return own_files.stream(params, seed, _kind(params), lambda path: picture(path, params))


def _kind(params: FolderParams) -> own_files.Kind:
    return own_files.Kind("picture", ENDINGS, ERRORS, params.shape, np.uint8)


def draw(params: FolderParams, seed: int) -> Drawn:
    """Return the splits of pictures that a table names, the first two shuffled; and what to tell of them.

    The pictures are the input `image`, uint8 [N, C, H, W].

    Raises:
        DecantError: As `own_files.draw`.
    """
    return own_files.draw(params, seed, _kind(params), lambda path: picture(path, params))


@dataclass(frozen=True)
class Alone:
    """Pictures and classes without the tensors around them.

    Attributes:
        rows: Them, of which the picture is the one input.
    """

    rows: Taken

    @property
    def shape(self) -> tuple[int, ...]:
        """One picture [C, H, W]."""
        return _plain(self.rows.form).shape

    def __len__(self) -> int:
        return len(self.rows)

    def parts(self, rows: int) -> Iterator[Split]:
        """Yield the pictures in order, `rows` at a time."""
        return map(_plain, self.rows.parts(rows))


def alone(drawn: Drawn) -> dict[str, Split | Alone]:
    """Return splits of pictures and classes without the tensors around them."""
    return {
        name: Alone(each) if isinstance(each, Taken) else _plain(each) for name, each in drawn.splits.items()
    }


def _plain(examples: Examples) -> Split:
    assert isinstance(examples.images, Rows)
    (images,) = examples.images.tensors.values()
    return Split(images[:].numpy(), examples.known_labels.numpy())


def picture(path: Path, params: FolderParams) -> NDArray[np.uint8]:
    """Return one picture [C, H, W] in the size asked for: turned as its camera says, white where transparent.

    Raises:
        OSError: It is no picture, or not a whole one.
        ValueError: Its pixels have no white, as 32-bit numbers and fractions have none.
    """
    with Image.open(path) as opened:
        turned = _in_bytes(ImageOps.exif_transpose(opened))
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


def _in_bytes(opened: Image.Image) -> Image.Image:
    """Return a picture of 16 bits a pixel with 8, where 65,535 is white; others as they are.

    Pillow would cut them off at 255, and fractions from 0 to 1 at 0.
    """
    if opened.mode in ("I", "F"):
        found = "fractions" if opened.mode == "F" else "32-bit numbers"
        raise ValueError(
            f"its pixels are {found}, and nothing says which one is white, expected 8 or 16 bits; save it "
            "with these, or give pictures as arrays"
        )
    if not opened.mode.startswith("I;16"):
        return opened
    deep = np.asarray(opened).astype(np.uint32)
    return Image.fromarray(((deep + 128) // 257).astype(np.uint8))
